"""Grade replies: find the chosen option, compute accuracies and their standard errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.aptitude.journal import Reply
from engine.aptitude.questions import LETTERS, Question, reference_tasks
from engine.aptitude.selection import QUESTIONS_PER_TASK
from engine.datasets.outcomes import keywords_of

PARTIAL = "partial-test"  # tag of a candidate that was not given the whole test


@dataclass(frozen=True)
class TaskScore:
    """Counts of questions of one task: asked, answered right, and without a readable answer.

    Unparsed replies count as wrong.
    """

    task: str
    asked: int
    right: int
    unparsed: int

    @property
    def accuracy(self) -> float:
        """Share answered right, in [0, 1]."""
        return self.right / self.asked

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy; one right and one wrong answer are added (Laplace), so
        that it is never 0."""
        share = (self.right + 1) / (self.asked + 2)
        return math.sqrt(share * (1 - share) / (self.asked + 2))


@dataclass(frozen=True)
class AptitudeResult:
    """The outcome of an aptitude test.

    scores: of the tasks that were tested, sorted by task. mean_output_tokens: length of a reply.
    cut: replies that ended at the token limit. counted: replies whose tokens the endpoint
    reported; the others are estimates.
    """

    scores: tuple[TaskScore, ...]
    mean_output_tokens: float
    cut: int
    counted: int

    @property
    def asked(self) -> int:
        """Number of questions."""
        return sum(s.asked for s in self.scores)

    @property
    def unparsed(self) -> int:
        """Number of replies that choose no option."""
        return sum(s.unparsed for s in self.scores)

    @property
    def accuracy(self) -> float:
        """Mean of the tasks' accuracies, as the router reads it."""
        return math.fsum(s.accuracy for s in self.scores) / len(self.scores)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean accuracy, given these tasks."""
        return math.sqrt(math.fsum(s.standard_error**2 for s in self.scores)) / len(self.scores)

    @property
    def partial(self) -> bool:
        """True if it has fewer than TEST_TASKS tasks or QUESTIONS_PER_TASK questions in one."""
        too_few = any(s.asked < QUESTIONS_PER_TASK for s in self.scores)
        return len(self.scores) < TEST_TASKS or too_few


def grade(questions: Sequence[Question], replies: Mapping[str, Reply]) -> AptitudeResult:
    """Grade `questions`, each of which has a reply (question key -> reply)."""
    letters = {q.key: extract(replies[q.key].text, q.options) for q in questions}
    scores = []
    for task in sorted({q.task for q in questions}):
        of_task = [q for q in questions if q.task == task]
        right = sum(letters[q.key] == q.answer for q in of_task)
        unparsed = sum(letters[q.key] is None for q in of_task)
        scores.append(TaskScore(task, len(of_task), right, unparsed))
    graded = [replies[q.key] for q in questions]
    return AptitudeResult(
        scores=tuple(scores),
        mean_output_tokens=round(sum(r.answer_tokens for r in graded) / len(graded), 1),
        cut=sum(r.cut for r in graded),
        counted=sum(r.counted for r in graded),
    )


def imputed_accuracies(result: AptitudeResult) -> dict[str, float]:
    """Estimate the accuracy of tasks that were not tested, so that there are TEST_TASKS in all.

    Each is the training candidates' mean on the task, plus this candidate's lead over them on the
    tasks that it was tested on. The overall level stays that of the tested tasks, and the task
    profile says nothing about the others.
    """
    reference = reference_tasks()
    average = math.fsum(t.mean for t in reference.values()) / len(reference)
    usual = [reference[s.task].mean if s.task in reference else average for s in result.scores]
    lead = result.accuracy - math.fsum(usual) / len(usual)
    tested = {s.task for s in result.scores}
    missing = [t for t in reference if t not in tested][: TEST_TASKS - len(tested)]
    return {t: round(min(1.0, max(0.0, reference[t].mean + lead)), 4) for t in missing}


def with_result(
    candidate: Candidate, result: AptitudeResult, *, answer_only: bool = False
) -> Candidate:
    """Add the accuracies and the mean answer length to `candidate`, and tag a partial test.

    answer_only: the model was asked for letters alone, whose length says nothing about its usual
    answers, so the length is left out.
    """
    accuracies = {s.task: s.accuracy for s in result.scores} | imputed_accuracies(result)
    keywords = keywords_of(list(accuracies))
    aptitude = tuple(TaskResult(k, a) for k, a in zip(keywords, accuracies.values(), strict=True))
    tags = tuple(sorted({*candidate.tags, PARTIAL})) if result.partial else candidate.tags
    length = None if answer_only else result.mean_output_tokens
    return replace(candidate, aptitude=aptitude, mean_output_tokens=length, tags=tags)


# A letter by itself. Lower case counts only in brackets or before punctuation or the end, and a
# capital A or I only where it does not begin a phrase: "the answer is a bit long", "I think".
LETTER = (
    r"(?:\(\s*([A-Za-z])\s*\)"
    r"|([B-HJ-Z])(?![\w'’])"
    r"|([AI])(?![\w'’])(?!\s+(?:think|would|believe|am|can|can't|cannot|do|don't|have|will)\b)"
    r"|([a-z])(?=\s*(?:[.,;:)\]!]|$)))"
)
OPTION = r"(?:option|choice|answer|letter)"
CHOICES = [
    rf"\b(?i:{OPTION})(?i:\s+(?:to\s+.{{1,60}}?\s+)?(?:is|would\s+be|should\s+be|must\s+be"
    rf"|has\s+to\s+be|will\s+be)|\s*[:=])\s*:?\s*(?i:(?:the\s+)?{OPTION}\s*:?\s+)?{LETTER}",
    rf"\b(?i:(?:i|we)(?:['’]d|['’]ll|\s+would|\s+will)?\s+(?:choose|pick|select|go\s+with"
    rf"|opt\s+for|answer))\s*:?\s*(?i:(?:the\s+)?{OPTION}\s+)?{LETTER}",
    rf"\b(?i:{OPTION}\s+){LETTER}(?i:\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|true"
    rf"|answer|accurate|appropriate))\b",
    rf"(?:^|[\s(]){LETTER}[).:]?(?i:\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|answer))\b",
    rf"\b(?i:correct|best|right|final)\s+(?i:{OPTION}|one)\s*(?i:is|:)?\s*{LETTER}",
    rf"^\s*(?i:(?:the\s+)?answer)\s+{LETTER}[).:]*\s*$",
    rf"\A(?i:{OPTION})\s+{LETTER}(?:[).:]+\s.*|[).:]*)\Z",
]
# A second letter after the first ("A or B"): not the I of "and I am sure", and after a comma only
# if no clause begins there.
SECOND_LETTER = re.compile(
    r"\s*(?:(?:or|and|/|&)\s*(?!\s*I\s+[a-z])\(?\s*[A-Za-z]\s*\)?(?![\w'’])"
    r"|,\s*\(?\s*[A-Z]\s*\)?(?=\s*(?:[,.;:/&)}\]!]|(?:or|and)\b|$)))",
    re.MULTILINE,
)
BOXED = re.compile(r"\\boxed\s*\{\s*(.*?)\s*\}")
LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
REASONING_BLOCK = re.compile(
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE
)
LEADING_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:\]]+(?=\s|$)|$)", re.MULTILINE)
CHOICE_PATTERNS = [re.compile(pattern, re.MULTILINE) for pattern in CHOICES]


def extract(reply: str, options: Sequence[str]) -> str | None:
    """Find the letter of the option that `reply` chooses; None if it chooses none, or several."""
    text = _plain(reply)
    if boxed := BOXED.findall(text):
        return _in_box(boxed[-1], options)
    text = text.replace("$", "")
    matches = [match for pattern in CHOICE_PATTERNS for match in pattern.finditer(text)]
    if matches:
        last = max(matches, key=lambda match: (match.end(), -match.start()))
        if _names_another(text, last):
            return None
        return _valid(next(g for g in last.groups() if g), options)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [match[1] for line in lines if (match := LEADING_LETTER.match(line))]
    if len(starts) == 1 and (LEADING_LETTER.match(lines[0]) or LEADING_LETTER.fullmatch(lines[-1])):
        return _valid(starts[0], options)
    if starts and lines[-1].strip("(). ").upper() == starts[-1].upper():
        return _valid(starts[-1], options)
    return _by_text(lines[-1], options) if lines else None


def _in_box(content: str, options: Sequence[str]) -> str | None:
    """Read a boxed answer: a letter ("B", "(B)"), the text of an option, or both ("B. 4")."""
    bare = content.strip("().$ ")
    leading = LEADING_LETTER.match(content.strip("$ "))
    if leading and not _names_another(content.strip("$ "), leading):
        bare = leading[1]
    return _valid(bare, options) or _by_text(content, options)


def _plain(reply: str) -> str:
    """Remove the reasoning that some models show, and markup."""
    text = REASONING_BLOCK.sub("", reply)
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"[*`\"“”]|__|^#+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"['‘]([A-Za-z])['’]", r"\1", text)
    return LATEX_TEXT.sub(r"\1", text).strip()


def _names_another(text: str, match: re.Match[str]) -> bool:
    """True if a second letter follows the first: "A or B"."""
    return SECOND_LETTER.match(text, match.end()) is not None


def _valid(letter: str, options: Sequence[str]) -> str | None:
    upper = letter.upper()
    return upper if len(upper) == 1 and upper in LETTERS[: len(options)] else None


def _by_text(line: str, options: Sequence[str]) -> str | None:
    """Find the one option whose text is `line`, or what follows "answer is" in it."""

    def bare(words: str) -> str:
        return " ".join(words.lower().split()).strip(" .")

    tail = bare(re.split(r"\banswer\s*(?:is|:)\s*:?", line, flags=re.IGNORECASE)[-1])
    same = [i for i, option in enumerate(options) if tail and bare(option) == tail]
    return LETTERS[same[0]] if len(same) == 1 else None
