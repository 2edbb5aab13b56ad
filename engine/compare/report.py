"""Report comparisons: scores by candidate and region with intervals, costs, disagreement.

Intervals are 95 %. That of a mean score is Wilson's, which is wider than needed for scores between
0 and 1. That of a difference is normal, from the paired differences on the same instructions.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import __version__
from engine.aptitude.journal import Reply
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.grading import Comparison
from engine.compare.run import ComparePlan, CompareRun
from engine.compare.sampling.spread import Regions

Z = 1.96
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class SampleNotes:
    """How the instructions were drawn.

    requests: in the log. left_out: reason -> requests that cannot be compared. repeated: requests
    that were met before. invalid_rows: of the log, that could not be read. pool: different
    instructions that were drawn from. vectors: what measured their distance.
    """

    requests: int
    pool: int
    vectors: str
    seed: int
    repeated: int = 0
    invalid_rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share `mean` of `count` trials; (0, 1) for none."""
    if not count:
        return 0.0, 1.0
    spread = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2))
    center, scale = mean + Z**2 / (2 * count), 1 + Z**2 / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def report(plan: ComparePlan, run: CompareRun, regions: Regions, notes: SampleNotes) -> JsonObject:
    """Build the JSON document. It holds no text of instructions or replies; a region's name is made
    of words of its instructions."""
    region_of = {
        instruction.key: regions.names[label]
        for instruction, label in zip(plan.instructions, regions.labels, strict=True)
    }
    by_region: dict[str, list[Comparison]] = {}
    for comparison in run.comparisons:
        by_region.setdefault(region_of[comparison.instruction.key], []).append(comparison)
    names = [candidate.name for candidate in plan.candidates]
    overall = _scores(run.comparisons, names)
    return {
        "made_by": f"modelsat {__version__} compare run",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "graders": plan.grader_names,
        "sample": {
            "requests": notes.requests,
            "left_out": dict(notes.left_out),
            "repeated": notes.repeated,
            "invalid_rows": notes.invalid_rows,
            "pool": notes.pool,
            "drawn": len(plan.instructions),
            "vectors": notes.vectors,
            "seed": notes.seed,
        },
        "compared": len(run.comparisons),
        "over_budget": run.over_budget,
        "spent_usd": _rounded(run.spent_usd),
        "candidates": {
            candidate.name: {**overall[candidate.name], **_usage(candidate, run.comparisons)}
            for candidate in plan.candidates
        },
        "regions": [
            {
                "name": name,
                "instructions": len(by_region[name]),
                "candidates": _scores(by_region[name], names),
                "disagreement": _mean_disagreement(by_region[name]),
            }
            for name in sorted(by_region, key=lambda name: (-len(by_region[name]), name))
        ],
        "disagreement": _mean_disagreement(run.comparisons),
        "judges": {
            judge.endpoint.name: _totals(
                judge.endpoint, run.judge_replies.get(judge.endpoint.name, ())
            )
            for judge in plan.judges
        },
        "comparisons": [_row(c, region_of[c.instruction.key]) for c in run.comparisons],
    }


def _scores(comparisons: Sequence[Comparison], names: Sequence[str]) -> dict[str, JsonObject]:
    """Return candidate -> mean score with interval, and how far it is behind the best one."""
    scores = {
        n: {i: s[n] for i, c in enumerate(comparisons) if n in (s := c.scores)} for n in names
    }
    means = {name: sum(of.values()) / len(of) for name, of in scores.items() if of}
    best = max(means, key=lambda name: means[name], default="")
    found: dict[str, JsonObject] = {}
    for name in names:
        entry: JsonObject = {"graded": len(scores[name]), "score": None}
        if name in means:
            entry["score"] = _rounded(means[name])
            entry["interval"] = list(map(_rounded, wilson(means[name], len(scores[name]))))
        if name in means and name != best:
            shared = scores[name].keys() & scores[best].keys()
            entry["minus_best"] = _difference([scores[name][i] - scores[best][i] for i in shared])
        found[name] = entry
    return found


def _difference(differences: Sequence[float]) -> JsonObject | None:
    count = len(differences)
    if count < 2:
        return None
    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    half = Z * math.sqrt(variance / count)
    interval = [_rounded(mean - half), _rounded(mean + half)]
    return {"difference": _rounded(mean), "interval": interval, "instructions": count}


def _usage(candidate: PricedEndpoint, comparisons: Sequence[Comparison]) -> JsonObject:
    replies = [c.replies[candidate.name] for c in comparisons]
    problems = Counter(r.problem for r in replies if r.problem)
    return {
        "model": candidate.endpoint.model,
        "not_graded": dict(problems.most_common()),
        **_totals(candidate, [r.reply for r in replies]),
    }


def _totals(endpoint: PricedEndpoint, replies: Sequence[Reply]) -> JsonObject:
    answered = [reply for reply in replies if not reply.error]
    costs = [cost for reply in answered if (cost := endpoint.cost_of(reply)) is not None]
    latencies = sorted(r.latency_s for r in answered if r.latency_s is not None)
    complete = len(costs) == len(answered)
    return {
        "replies": len(answered),
        "input_tokens": sum(r.prompt_tokens for r in answered),
        "output_tokens": sum(r.answer_tokens for r in answered),
        "reasoning_tokens": sum(r.reasoning_tokens or 0 for r in answered),
        "estimated_token_counts": sum(not r.counted for r in answered),
        "cost_usd": _rounded(math.fsum(costs)) if complete else None,
        "median_latency_s": latencies[len(latencies) // 2] if latencies else None,
    }


def _mean_disagreement(comparisons: Sequence[Comparison]) -> float | None:
    known = [c.disagreement for c in comparisons if c.disagreement is not None]
    return _rounded(math.fsum(known) / len(known)) if known else None


def _row(comparison: Comparison, region: str) -> JsonObject:
    problems = {c: r.problem for c, r in comparison.replies.items() if r.problem}
    return {
        "instruction": comparison.instruction.key,
        "region": region,
        "scores": {c: _rounded(score) for c, score in comparison.scores.items()},
        **({"not_graded": problems} if problems else {}),
        **(
            {"disagreement": _rounded(comparison.disagreement)}
            if comparison.disagreement is not None
            else {}
        ),
    }


def _rounded(value: float) -> float:
    return round(value, 6)
