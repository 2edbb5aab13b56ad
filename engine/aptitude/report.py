"""Report an aptitude test: the file that `modelsat candidates create` reads, a summary, a chart."""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence
from typing import Any

from engine import __version__
from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, TEST_TASKS, Candidate, to_json
from engine.aptitude.grading import AptitudeResult, TaskScore, imputed_accuracies
from engine.aptitude.llm import Endpoint, estimated_tokens, prompt_of
from engine.aptitude.questions import Question
from engine.aptitude.selection import QUESTIONS_PER_TASK, QuestionSet
from engine.datasets.known_tasks import reference_tasks

COMPARABLE_OVERLAP = 0.9  # share of reference questions from which the level compares
TYPICAL_ANSWER_TOKENS = {True: 5, False: 350}  # a letter; a few steps of reasoning


def run_fingerprint(question_set: QuestionSet, endpoint: Endpoint) -> dict[str, Any]:
    """Collect what must be equal for replies to belong to one run."""
    return {
        "model": endpoint.model,
        "base_url": endpoint.base_url,
        "questions": question_set.digest,
        "answer_only": endpoint.answer_only,
        "max_tokens": endpoint.max_tokens,
        "extra_body": dict(endpoint.extra_body),
    }


def estimate(
    questions: Sequence[Question], endpoint: Endpoint, answer_tokens: float | None
) -> tuple[int, int]:
    """Estimate the tokens (input, output) of asking `questions`.

    answer_tokens: expected length of a reply; None means a typical one.
    """
    prompts = [prompt_of(q, answer_only=endpoint.answer_only) for q in questions]
    each = TYPICAL_ANSWER_TOKENS[endpoint.answer_only] if answer_tokens is None else answer_tokens
    return sum(map(estimated_tokens, prompts)), round(len(questions) * each)


def content(
    candidate: Candidate, result: AptitudeResult, question_set: QuestionSet, endpoint: Endpoint
) -> dict[str, Any]:
    """Build the JSON document: the candidate, and how its accuracies were measured."""
    return {
        "candidates": [to_json(candidate)],
        "provenance": {
            "made_by": f"modelsat {__version__} aptitude run",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **run_fingerprint(question_set, endpoint),
            "source": question_set.source,
            "seed": question_set.seed,
            "asked": result.asked,
            "reference_question_overlap": question_set.reference_overlap,
            "unparsed": result.unparsed,
            "incomplete": result.incomplete,
            "cut_at_max_tokens": result.cut,
            "answers_with_counted_tokens": result.counted,
            "accuracy": round(result.accuracy, 4),
            "standard_error": round(result.standard_error, 4),
            "tasks": {
                s.task: {
                    "asked": s.asked,
                    "right": int(s.right) if s.right.is_integer() else round(s.right, 4),
                    "unparsed": s.unparsed,
                    "incomplete": s.incomplete,
                    "standard_error": round(s.standard_error, 4),
                }
                for s in result.scores
            },
            "imputed_tasks": imputed_accuracies(result),
        },
    }


def summary(
    result: AptitudeResult, question_set: QuestionSet, *, answer_only: bool = False
) -> list[str]:
    """Write human-readable summary lines."""
    tasks = len(result.scores)
    estimated = result.asked - result.counted
    lines = [
        f"{result.asked} questions of {tasks} tasks: {result.accuracy:.1%} right, standard error"
        f" {result.standard_error:.1%}; mean answer {result.mean_output_tokens:g} tokens"
        + (f" ({estimated} estimated)" if estimated else "")
        + "."
    ]
    if answer_only:
        lines.append(
            "The length of single letters (--answer-only) says nothing about usual answers, so it"
            f" is left out; costs assume {DEFAULT_OUTPUT_TOKENS:g} tokens."
        )
    if result.unparsed:
        lines.append(
            f"{result.unparsed} replies chose no option and count as wrong; {result.cut} of all"
            " replies ended at --max-tokens."
        )
    if result.incomplete:
        lines.append(
            f"{result.incomplete} replies ended at --max-tokens before an answer and are left out;"
            " more tokens would let the model finish."
        )
    if result.partial:
        error = sum(s.standard_error for s in result.scores) / tasks
        lines.append(
            f"This is a partial test (the whole test has {TEST_TASKS} tasks of"
            f" {QUESTIONS_PER_TASK} questions): the accuracy of a task has a standard error of"
            f" {error:.1%}. {TEST_TASKS - tasks} tasks were not tested; their accuracies are those"
            " expected of a candidate at this level. It is tagged partial-test."
        )
    if question_set.reference_overlap < COMPARABLE_OVERLAP * result.asked:
        lines.append(
            f"Only {question_set.reference_overlap} of {result.asked} questions are those that the"
            " shipped candidates were asked: an easier or harder test shifts this candidate's level"
            " against theirs. --questions TIGER-Lab/MMLU-Pro has theirs."
        )
    return lines


def cost_usd(tokens: tuple[int, int], candidate: Candidate) -> float | None:
    """Price (input, output) tokens in US dollars; None if a price is unknown."""
    prices = candidate.input_usd_per_million, candidate.output_usd_per_million
    if prices[0] is None or prices[1] is None:
        return None
    return (tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6


def chart(name: str, result: AptitudeResult) -> str:
    """Draw the accuracy of each task as a bar with its standard error; returns an SVG document.

    Needs matplotlib, of the extra `aptitude`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = (len(result.scores) + 1) // 2
    about = (
        f"{len(result.scores)} tasks, {result.asked} questions, {result.unparsed} replies unparsed."
        " Line: standard error; orange: mean of the training candidates."
    )
    title = f"{name}: {result.accuracy:.1%} ± {result.standard_error:.1%}"
    # Text stays text, so that it can be searched and copied; equal results give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "modelsat"}):
        figure = Figure(figsize=(12, 1.2 + 0.21 * rows), layout="constrained")
        figure.suptitle(f"{title}\n{about}", fontsize=11, parse_math=False)
        columns = [result.scores[:rows], result.scores[rows:]]
        for axes, scores in zip(figure.subplots(1, 2), columns, strict=True):
            _draw_column(axes, scores, rows)
        document = io.StringIO()
        figure.savefig(document, format="svg", metadata={"Date": None})
    return document.getvalue()


def _draw_column(axes: Any, scores: Sequence[TaskScore], rows: int) -> None:
    places = list(range(len(scores)))
    errors = [s.standard_error for s in scores]
    axes.barh(places, [s.accuracy for s in scores], xerr=errors, color="#4c78a8", ecolor="#24292f")
    reference = reference_tasks()
    known = [(i, reference[s.task].mean) for i, s in enumerate(scores) if s.task in reference]
    axes.scatter(
        [m for _, m in known], [i for i, _ in known], marker="|", color="#d9730d", zorder=3
    )
    labels = [f"{s.task.replace('_', ' ')}  {s.accuracy:.0%}" for s in scores]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
