"""What the clients return: plain immutable values, with candidates named by their IDs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from engine.api.candidate import NAME_PREFIX, Candidate
from engine.api.proto import candidate_from
from engine.client.errors import ModelsatClientError, error_of_result
from engine.pb import candidate_service_pb2, router_service_pb2

PHASES = tuple(field.name for field in router_service_pb2.Timing.DESCRIPTOR.fields)


@dataclass(frozen=True)
class RankedCandidate:
    """One eligible candidate of a decision.

    Attributes:
        candidate: ID of the candidate.
        probability: Calibrated probability in [0, 1] that it answers the instruction well.
        expected_cost_usd: Price of the input and of an answer of mean length, in US dollars; None
            if its prices are unknown.
        utility: What the ranking is sorted by, highest first.
        base_probability: The probability before the correction by outcomes; None, like the next
            two, if the server has learned nothing from outcomes yet.
        standard_error: Of the probability.
        similar_outcomes: Effective number of remembered outcomes of this candidate on similar
            instructions.
    """

    candidate: str
    probability: float
    expected_cost_usd: float | None
    utility: float
    base_probability: float | None = None
    standard_error: float | None = None
    similar_outcomes: float | None = None


@dataclass(frozen=True)
class RouteDecision:
    """Which candidate should answer an instruction, and why.

    Attributes:
        selected: ID of the candidate to call.
        kind: "ranked" (first of the ranking), "session_affinity" (the session's candidate),
            "defaulted" (the default candidate, as the policy's limits say), "fallback" (ranked
            by mean aptitude, because there was no time to score) or "explored" (drawn from the
            other candidates, to learn how well it does).
        reason: One sentence that explains the choice.
        ranking: Eligible candidates, the selected one first.
        excluded: Reason for every candidate that a constraint excluded, by ID.
        decision_id: Names this decision in `record_outcome` and in the server's logs.
        revision: Revision of the candidates that were ranked.
        revision_token: Identity of that revision, see `Client.revision_token`.
        input_tokens: Tokens of the instruction and the conversation before it.
        truncated: True if the instruction was too long and its middle was not read.
        ood_score: Out-of-distribution score in [0, 1]; near 1, treat the probabilities as
            extrapolation. None if the bundle has no reference.
        timing_s: Seconds that the server spent, by phase ("tokenize", "queue", ..., "total").
        token_count_method: How input_tokens was counted: "tokenizer" (the bundle's), "estimate" or
            "mixed".
        uncounted: What input_tokens leaves out because its size is unknown, such as "stored
            history".
        adaptation_id: Identity of what the server had learned from outcomes and decided by; "" if
            the probabilities are those of the weights.
        propensity: The probability with which the selected candidate was drawn; None if the server
            does not explore.
        recent_failures: How many of the last 10 results of tools since the ask failed; each of the
            first three halved the odds of every candidate.
    """

    selected: str
    kind: str
    reason: str
    ranking: tuple[RankedCandidate, ...]
    excluded: Mapping[str, str]
    decision_id: str
    revision: int
    input_tokens: int
    truncated: bool
    ood_score: float | None
    timing_s: Mapping[str, float]
    token_count_method: str = ""
    uncounted: tuple[str, ...] = ()
    revision_token: str = ""
    adaptation_id: str = ""
    propensity: float | None = None
    recent_failures: int = 0


@dataclass(frozen=True)
class ServerInfo:
    """What a server runs. The fields are those of GetServerInfoResponse.

    Attributes:
        version: Version of the server.
        backend: What runs the backbone, such as "tensorrt" or "cpu".
        scoring_kernel: What runs the scoring kernel.
        prompt_layout: Order of instruction and candidate in the backbone's input.
        aptitude_representation: How aptitude test results become an embedding.
        num_layers: Layers of the backbone.
        prompt_version: Hash of the prompt template.
        encoder_id: Hash of the encoder of aptitude test results.
        revision: Revision of the candidates that are served now.
        candidates: Number of candidates.
        max_instruction_tokens: Tokens of an instruction that are read; longer ones are truncated in
            the middle.
        max_text_bytes: Largest text that a request may carry, in bytes.
        revision_token: Identity of the revision that is served now.
        store_connected: True if the candidate store answers; if not, changes are refused.
        table_from_file: True if the candidates are those of the last run, because the store has not
            answered since the start.
        adaptation_id: Identity of what the server has learned from outcomes and decides by; "" if
            it has not.
        remembered_instructions: Number of instructions with outcomes that it learned from.
    """

    version: str
    backend: str
    scoring_kernel: str
    prompt_layout: str
    aptitude_representation: str
    num_layers: int
    prompt_version: str
    encoder_id: str
    revision: int
    candidates: int
    max_instruction_tokens: int
    max_text_bytes: int
    revision_token: str = ""
    store_connected: bool = True
    table_from_file: bool = False
    adaptation_id: str = ""
    remembered_instructions: int = 0


@dataclass(frozen=True)
class RevisionInfo:
    """One revision of the table of candidates.

    Attributes:
        number: Its number; every change adds one.
        create_time: When it was made, in UTC, by the clock of the server or database.
        description: What changed, such as "created candidates/x".
        candidates: Number of candidates in it.
        principal: Who made it: name of the token or subject of the certificate, "" if unknown.
        peer: Address that the change came from, "" if unknown.
    """

    number: int
    create_time: datetime
    description: str
    candidates: int
    principal: str = ""
    peer: str = ""


@dataclass(frozen=True)
class CandidatesChange:
    """What changed in the table of candidates since the previous message of a watch.

    Attributes:
        revision: The revision that is served now.
        changed: Candidates that are new or different; all of them in the first message.
        removed: IDs of candidates that are gone.
    """

    revision: int
    changed: tuple[Candidate, ...]
    removed: tuple[str, ...]


RouteResult = RouteDecision | ModelsatClientError


def decision_from(response: router_service_pb2.RouteResponse) -> RouteDecision:
    """Convert the response of Route."""
    kind = router_service_pb2.DecisionKind.Name(response.kind)
    return RouteDecision(
        selected=response.selected.removeprefix(NAME_PREFIX),
        kind=kind.removeprefix("DECISION_KIND_").lower(),
        reason=response.reason,
        ranking=tuple(
            RankedCandidate(
                ranked.candidate.removeprefix(NAME_PREFIX),
                ranked.probability,
                optional(ranked, "expected_cost_usd"),
                ranked.utility,
                optional(ranked, "base_probability"),
                optional(ranked, "standard_error"),
                optional(ranked, "similar_outcomes"),
            )
            for ranked in response.ranking
        ),
        excluded={e.candidate.removeprefix(NAME_PREFIX): e.reason for e in response.excluded},
        decision_id=response.decision_id,
        revision=response.revision,
        revision_token=response.revision_token,
        input_tokens=response.input_tokens,
        truncated=response.truncated,
        ood_score=optional(response, "ood_score"),
        timing_s={phase: getattr(response.timing, phase).ToNanoseconds() / 1e9 for phase in PHASES},
        token_count_method=response.token_count_method,
        uncounted=tuple(response.uncounted),
        adaptation_id=response.adaptation_id,
        propensity=optional(response, "propensity"),
        recent_failures=response.recent_failures,
    )


def optional(message: Message, field: str) -> Any:
    """Return the value of an optional field, None if it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def result_from(result: router_service_pb2.RouteResult) -> RouteResult:
    """Convert the result of one instruction among several."""
    if result.HasField("error"):
        return error_of_result(result.error)
    return decision_from(result.response)


def server_info_from(response: router_service_pb2.GetServerInfoResponse) -> ServerInfo:
    """Convert the response of GetServerInfo."""
    return ServerInfo(**{name: getattr(response, name) for name in ServerInfo.__annotations__})


def revision_from(revision: candidate_service_pb2.Revision) -> RevisionInfo:
    """Convert one revision."""
    create_time = revision.create_time.ToDatetime(tzinfo=UTC)
    return RevisionInfo(
        revision.number,
        create_time,
        revision.description,
        revision.candidates,
        revision.principal,
        revision.peer,
    )


def change_from(response: candidate_service_pb2.WatchCandidatesResponse) -> CandidatesChange:
    """Convert one message of WatchCandidates."""
    return CandidatesChange(
        response.revision,
        tuple(candidate_from(candidate, "changed") for candidate in response.changed),
        tuple(name.removeprefix(NAME_PREFIX) for name in response.removed),
    )
