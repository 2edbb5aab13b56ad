"""Scores of one instruction's replies, and how several graders are brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.api.errors import InvalidInputError
from engine.aptitude.journal import Reply
from engine.aptitude.marking.reasoning import without_reasoning
from engine.compare.graders.answers import AnswerCheck, NoReferenceError
from engine.compare.sampling.instructions import LoggedInstruction

CUT = "ended at max_tokens"
UNFINISHED = "ended while reasoning"


@dataclass(frozen=True)
class Grades:
    """What a grader makes of the replies to one instruction.

    scores: candidate -> score in [0, 1]. problems: candidate -> why it has none. disagreement: of
    verdicts within this grader, in [0, 1]; None if there is one verdict for each score.
    """

    scores: Mapping[str, float]
    problems: Mapping[str, str] = field(default_factory=dict)
    disagreement: float | None = None


class Grader(Protocol):
    """Scores the visible replies of several candidates to one instruction."""

    @property
    def name(self) -> str: ...

    async def grade(self, instruction: LoggedInstruction, replies: Mapping[str, str]) -> Grades:
        """Grade replies (candidate -> text without reasoning)."""


@dataclass(frozen=True)
class AnswerGrader:
    """Compares each reply with a reference; see answers.py."""

    name: str
    check: AnswerCheck

    async def grade(self, instruction: LoggedInstruction, replies: Mapping[str, str]) -> Grades:
        """See Grader."""
        try:
            scores = {c: float(self.check(instruction, text)) for c, text in replies.items()}
        except (NoReferenceError, InvalidInputError) as error:
            return Grades({}, dict.fromkeys(replies, f"{self.name}: {error}"))
        return Grades(scores)

    def can_grade(self, instruction: LoggedInstruction) -> bool:
        """True if the instruction has what replies are compared with."""
        try:
            self.check(instruction, "")
        except (NoReferenceError, InvalidInputError):
            return False
        return True


@dataclass(frozen=True)
class ComparedReply:
    """One candidate's reply to an instruction, and its score, None if problem says why not."""

    reply: Reply
    score: float | None
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """All candidates' replies to an instruction.

    replies: candidate -> reply. disagreement: how far the verdicts differ, in [0, 1]; None if only
    one verdict was given.
    """

    instruction: LoggedInstruction
    replies: Mapping[str, ComparedReply]
    disagreement: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the candidates that have one."""
        return {c: r.score for c, r in self.replies.items() if r.score is not None}


def visible_reply(reply: Reply) -> tuple[str, str]:
    """Return (what the model shows, why it cannot be graded, "" if it can).

    A reply that ended at the token limit says nothing about the candidate's skill, as in the
    aptitude test. A refusal of a content filter is an empty reply, and is graded.
    """
    if reply.error:
        return "", reply.error
    visible = without_reasoning(reply.text)
    if visible is None:
        return "", UNFINISHED
    if reply.cut:
        return "", CUT
    return visible.strip(), ""


def gradable(replies: Mapping[str, Reply]) -> tuple[dict[str, str], dict[str, str]]:
    """Return (candidate -> visible reply, candidate -> why its reply cannot be graded)."""
    visible = {candidate: visible_reply(reply) for candidate, reply in replies.items()}
    texts = {candidate: text for candidate, (text, problem) in visible.items() if not problem}
    return texts, {candidate: problem for candidate, (_, problem) in visible.items() if problem}


async def compare_replies(
    instruction: LoggedInstruction, replies: Mapping[str, Reply], graders: Sequence[Grader]
) -> Comparison:
    """Grade the replies of all candidates. A score is the mean of the graders' scores; one that a
    grader could not give is left out."""
    texts, problems = gradable(replies)
    grades = [await grader.grade(instruction, texts) for grader in graders] if texts else []
    compared = {}
    for candidate, reply in replies.items():
        given = [g.scores[candidate] for g in grades if candidate in g.scores]
        reasons = [g.problems[candidate] for g in grades if candidate in g.problems]
        score = sum(given) / len(given) if given else None
        problem = problems.get(candidate) or "; ".join(reasons)
        compared[candidate] = ComparedReply(reply, score, "" if given else problem)
    return Comparison(instruction, compared, _disagreement(grades))


def _disagreement(grades: Sequence[Grades]) -> float | None:
    """The mean spread of the graders' scores, or what a grader says of itself if that is more."""
    own = [g.disagreement for g in grades if g.disagreement is not None]
    spreads = []
    for candidate in dict.fromkeys(c for g in grades for c in g.scores):
        given = [g.scores[candidate] for g in grades if candidate in g.scores]
        if len(given) > 1:
            spreads.append(max(given) - min(given))
    if spreads:
        own.append(sum(spreads) / len(spreads))
    return max(own, default=None)
