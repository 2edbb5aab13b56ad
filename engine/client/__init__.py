"""The Python client; `from modelsat import Client` gives its public names."""

from engine.client.adaptation import (
    AdaptationInfo,
    DecisionExplanation,
    ExplainedProbability,
    MatchedTask,
    SimilarInstruction,
)
from engine.client.aio import AsyncClient
from engine.client.channel import Credentials
from engine.client.errors import ModelsatClientError
from engine.client.requests import Instruction, Outcome, Turn, conversation_from_body
from engine.client.results import (
    CandidatesChange,
    RankedCandidate,
    RevisionInfo,
    RouteDecision,
    RouteResult,
    ServerInfo,
)
from engine.client.sync import Client

__all__ = [
    "AdaptationInfo",
    "AsyncClient",
    "CandidatesChange",
    "Client",
    "Credentials",
    "DecisionExplanation",
    "ExplainedProbability",
    "Instruction",
    "MatchedTask",
    "ModelsatClientError",
    "Outcome",
    "RankedCandidate",
    "RevisionInfo",
    "RouteDecision",
    "RouteResult",
    "ServerInfo",
    "SimilarInstruction",
    "Turn",
    "conversation_from_body",
]
