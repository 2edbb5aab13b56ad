"""Python client of a modelsat server.

    from modelsat import Client, Policy

    with Client("127.0.0.1:50051") as client:
        decision = client.route("If 3x + 7 = 22, what is x?", Policy("willingness_to_pay_usd", 0.1))
        print(decision.selected, decision.reason)

Arguments and results are plain immutable values, and candidates are named by their IDs. Every error
is a ModelsatError. The package needs gRPC and protobuf, and loads nothing of the server.
"""

from engine.api.candidate import Candidate, TaskResult
from engine.api.errors import InvalidInputError, ModelsatError
from engine.api.policy import Policy, Session
from engine.api.usage import Usage
from engine.client import (
    AdaptationInfo,
    AsyncClient,
    CandidatesChange,
    Client,
    Credentials,
    DecisionExplanation,
    ExplainedProbability,
    Instruction,
    ModelsatClientError,
    Outcome,
    RankedCandidate,
    RevisionInfo,
    RouteDecision,
    RouteResult,
    ServerInfo,
    SimilarInstruction,
    Turn,
    conversation_from_body,
)

__all__ = [
    "AdaptationInfo",
    "AsyncClient",
    "Candidate",
    "CandidatesChange",
    "Client",
    "Credentials",
    "DecisionExplanation",
    "ExplainedProbability",
    "Instruction",
    "InvalidInputError",
    "ModelsatClientError",
    "ModelsatError",
    "Outcome",
    "Policy",
    "RankedCandidate",
    "RevisionInfo",
    "RouteDecision",
    "RouteResult",
    "ServerInfo",
    "Session",
    "SimilarInstruction",
    "TaskResult",
    "Turn",
    "Usage",
    "conversation_from_body",
]
