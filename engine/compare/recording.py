"""Record comparisons with a server, which learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.api.usage import Usage
from engine.client.errors import ModelsatClientError
from engine.client.sync import Client
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.grading import ComparedReply, Comparison

MIN_CANDIDATES = 2  # of a comparison
MAX_GRADER_CHARS = 200


def record_comparisons(
    client: Client,
    comparisons: Sequence[Comparison],
    candidates: Mapping[str, PricedEndpoint],
    grader: str,
    *,
    store_text: bool = False,
) -> dict[str, int]:
    """Record the comparisons in which two or more candidates have a score; the same ones again
    change nothing.

    Args:
        candidates: by ID, with the prices that costs are computed from.

    Returns:
        "outcomes" that the server stored, and "conflicts": instructions for which it has other
        scores already, which stay.

    Raises:
        ModelsatClientError: the server does not take them.
    """
    counts = {"outcomes": 0, "conflicts": 0}
    for comparison in comparisons:
        if len(scores := comparison.scores) < MIN_CANDIDATES:
            continue
        usage = {c: usage_of(candidates[c], comparison.replies[c]) for c in scores}
        try:
            counts["outcomes"] += client.record_comparison(
                scores,
                text=comparison.instruction.text,
                store_text=store_text,
                category=comparison.instruction.category,
                grader=grader[:MAX_GRADER_CHARS],
                disagreement=comparison.disagreement,
                usage=usage,
            )
        except ModelsatClientError as error:
            if error.code != "ALREADY_EXISTS":
                raise
            counts["conflicts"] += 1
    return counts


def usage_of(candidate: PricedEndpoint, compared: ComparedReply) -> Usage:
    """Convert what a reply used. Token counts that are estimates are left out."""
    reply = compared.reply
    return Usage(
        input_tokens=reply.prompt_tokens if reply.counted else None,
        output_tokens=reply.answer_tokens if reply.counted else None,
        reasoning_tokens=reply.reasoning_tokens if reply.counted else None,
        cost_usd=candidate.cost_of(reply),
        latency_s=reply.latency_s,
    )
