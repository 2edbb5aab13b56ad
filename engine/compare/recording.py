"""Record comparisons with a server, which learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from engine.api.candidate import NAME_PREFIX
from engine.client.channel import Credentials, open_channel
from engine.client.errors import ModelsatClientError, translate_errors
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.grading import ComparedReply, Comparison
from engine.pb import router_service_pb2, router_service_pb2_grpc

MIN_CANDIDATES = 2  # of a comparison
CALL_TIMEOUT_S = 30.0  # the server scores the instruction for all candidates
# Stores a comparison; returns the number of outcomes that are new.
RecordComparison = Callable[[router_service_pb2.RecordComparisonRequest], int]


@contextmanager
def recorder(address: str, credentials: Credentials) -> Iterator[RecordComparison]:
    """Connect to a server; yields what records a comparison."""
    channel = open_channel(address, credentials, retries=True)
    stub = router_service_pb2_grpc.RouterServiceStub(channel)
    metadata = credentials.metadata()

    def record(request: router_service_pb2.RecordComparisonRequest) -> int:
        with translate_errors(address):
            return int(
                stub.RecordComparison(request, timeout=CALL_TIMEOUT_S, metadata=metadata).recorded
            )

    try:
        yield record
    finally:
        channel.close()


def comparison_request(
    comparison: Comparison,
    candidates: Mapping[str, PricedEndpoint],
    grader: str,
    *,
    store_text: bool = False,
) -> router_service_pb2.RecordComparisonRequest | None:
    """Build the request that records a comparison; None if fewer than two candidates have a score.

    candidates: by ID, with the prices that the costs are computed from.
    """
    scores = comparison.scores
    if len(scores) < MIN_CANDIDATES:
        return None
    request = router_service_pb2.RecordComparisonRequest(
        text=comparison.instruction.text,
        store_text=store_text,
        category=comparison.instruction.category,
        grader=grader[:200],
        candidates=[
            router_service_pb2.ComparedCandidate(
                candidate=NAME_PREFIX + name,
                score=score,
                usage=usage_of(candidates[name], comparison.replies[name]),
            )
            for name, score in scores.items()
        ],
    )
    if comparison.disagreement is not None:
        request.disagreement = comparison.disagreement
    return request


def record_comparisons(
    record: RecordComparison,
    comparisons: Sequence[Comparison],
    candidates: Mapping[str, PricedEndpoint],
    grader: str,
    *,
    store_text: bool = False,
) -> dict[str, int]:
    """Record all comparisons; the same ones again change nothing.

    Returns:
        "outcomes" that the server stored, and "conflicts": instructions for which it has other
        scores already, which stay.

    Raises:
        ModelsatClientError: the server does not take them.
    """
    counts = {"outcomes": 0, "conflicts": 0}
    for comparison in comparisons:
        request = comparison_request(comparison, candidates, grader, store_text=store_text)
        if request is None:
            continue
        try:
            counts["outcomes"] += record(request)
        except ModelsatClientError as error:
            if error.code != "ALREADY_EXISTS":
                raise
            counts["conflicts"] += 1
    return counts


def usage_of(candidate: PricedEndpoint, compared: ComparedReply) -> router_service_pb2.Usage:
    """Convert what a reply used. Token counts that are estimates are left out."""
    reply = compared.reply
    usage = router_service_pb2.Usage()
    if reply.counted:
        usage.input_tokens, usage.output_tokens = reply.prompt_tokens, reply.answer_tokens
        if reply.reasoning_tokens is not None:
            usage.reasoning_tokens = reply.reasoning_tokens
    if (cost := candidate.cost_of(reply)) is not None:
        usage.cost_usd = cost
    if reply.latency_s is not None:
        usage.latency.FromNanoseconds(round(reply.latency_s * 1e9))
    return usage
