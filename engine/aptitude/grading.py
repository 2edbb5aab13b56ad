"""From replies to the figures of a candidate, and how sure they are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.aptitude.journal import Reply
from engine.aptitude.questions import LETTERS, Question, standard_tasks
from engine.aptitude.selection import PER_TASK
from engine.datasets.outcomes import task_keywords

PARTIAL = "partial-test"  # tag of a candidate that sat less than the whole test


@dataclass(frozen=True)
class TaskFigure:
    """asked, right, unparsed: questions; unparsed ones count as wrong."""

    task: str
    asked: int
    right: int
    unparsed: int

    @property
    def accuracy(self) -> float:
        """Share answered right."""
        return self.right / self.asked

    @property
    def standard_error(self) -> float:
        """Of the accuracy, with one right and one wrong answer added (Laplace): never 0."""
        share = (self.right + 1) / (self.asked + 2)
        return math.sqrt(share * (1 - share) / (self.asked + 2))


@dataclass(frozen=True)
class Marks:
    """figures: of the tasks that were sat, sorted. cut: replies that ended at the token limit.
    counted: replies whose tokens the endpoint counted; the others are estimates."""

    figures: tuple[TaskFigure, ...]
    mean_output_tokens: float
    cut: int
    counted: int

    @property
    def asked(self) -> int:
        """Questions."""
        return sum(f.asked for f in self.figures)

    @property
    def unparsed(self) -> int:
        """Replies that choose no option."""
        return sum(f.unparsed for f in self.figures)

    @property
    def accuracy(self) -> float:
        """Mean of the tasks' accuracies, as the router reads it."""
        return math.fsum(f.accuracy for f in self.figures) / len(self.figures)

    @property
    def standard_error(self) -> float:
        """Of the mean accuracy, for these tasks."""
        return math.sqrt(math.fsum(f.standard_error**2 for f in self.figures)) / len(self.figures)

    @property
    def partial(self) -> bool:
        """Whether it is less than 50 tasks with 20 questions each."""
        return len(self.figures) < TEST_TASKS or any(f.asked < PER_TASK for f in self.figures)


def mark(questions: Sequence[Question], replies: Mapping[str, Reply]) -> Marks:
    """The marks of `questions`, each of which has a reply."""
    letters = {q.key: extract(replies[q.key].text, q.options) for q in questions}
    figures = []
    for task in sorted({q.task for q in questions}):
        own = [q for q in questions if q.task == task]
        right = sum(letters[q.key] == q.answer for q in own)
        unparsed = sum(letters[q.key] is None for q in own)
        figures.append(TaskFigure(task, len(own), right, unparsed))
    given = [replies[q.key] for q in questions]
    return Marks(
        figures=tuple(figures),
        mean_output_tokens=round(sum(r.answer_tokens for r in given) / len(given), 1),
        cut=sum(r.cut for r in given),
        counted=sum(r.counted for r in given),
    )


def expected_figures(marks: Marks) -> dict[str, float]:
    """Task -> accuracy for tasks that were not sat, as many as make 50 with those that were: the
    training candidates' mean, moved by how much this candidate is above them on the others. So the
    level stays that of the tasks it sat, and its shape says nothing of the rest."""
    known = standard_tasks()
    average = math.fsum(t.mean for t in known.values()) / len(known)
    usual = [known[f.task].mean if f.task in known else average for f in marks.figures]
    above = marks.accuracy - math.fsum(usual) / len(usual)
    sat = {f.task for f in marks.figures}
    missing = [t for t in known if t not in sat][: TEST_TASKS - len(sat)]
    return {t: round(min(1.0, max(0.0, known[t].mean + above)), 4) for t in missing}


def with_marks(candidate: Candidate, marks: Marks, *, direct: bool = False) -> Candidate:
    """`candidate` with figures, mean answer length, and the tag `partial-test` where it fits.
    direct: whether it was asked for letters alone, whose length says nothing of its answers."""
    figures = {f.task: f.accuracy for f in marks.figures} | expected_figures(marks)
    words = task_keywords(list(figures))
    aptitude = tuple(TaskResult(w, a) for w, a in zip(words, figures.values(), strict=True))
    tags = tuple(sorted({*candidate.tags, PARTIAL})) if marks.partial else candidate.tags
    length = None if direct else marks.mean_output_tokens
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
NAMED = [
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
# A second letter: not the I of "and I am sure", and after a comma only where no clause begins.
SECOND = re.compile(
    r"\s*(?:(?:or|and|/|&)\s*(?!\s*I\s+[a-z])\(?\s*[A-Za-z]\s*\)?(?![\w'’])"
    r"|,\s*\(?\s*[A-Z]\s*\)?(?=\s*(?:[,.;:/&)}\]!]|(?:or|and)\b|$)))",
    re.MULTILINE,
)
BOXED = re.compile(r"\\boxed\s*\{\s*(.*?)\s*\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
OPENING = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:\]]+(?=\s|$)|$)", re.MULTILINE)
NAMERS = [re.compile(pattern, re.MULTILINE) for pattern in NAMED]


def extract(reply: str, options: Sequence[str]) -> str | None:
    """The letter that `reply` chooses of these options, A for the first."""
    text = _plain(reply)
    if boxed := BOXED.findall(text):
        return _in_box(boxed[-1], options)
    text = text.replace("$", "")
    named = [found for pattern in NAMERS for found in pattern.finditer(text)]
    if named:
        last = max(named, key=lambda found: (found.end(), -found.start()))
        if _either(text, last):
            return None
        return _valid(next(g for g in last.groups() if g), options)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [found[1] for line in lines if (found := OPENING.match(line))]
    if len(starts) == 1 and (OPENING.match(lines[0]) or OPENING.fullmatch(lines[-1])):
        return _valid(starts[0], options)
    if starts and lines[-1].strip("(). ").upper() == starts[-1].upper():
        return _valid(starts[-1], options)
    return _by_text(lines[-1], options) if lines else None


def _in_box(content: str, options: Sequence[str]) -> str | None:
    """A letter ("B", "(B)"), the text of an option, or both ("B. 4")."""
    bare = content.strip("().$ ")
    begins = OPENING.match(content.strip("$ "))
    if begins and not _either(content.strip("$ "), begins):
        bare = begins[1]
    return _valid(bare, options) or _by_text(content, options)


def _plain(reply: str) -> str:
    """Without the thinking that some models show, and without mark-up."""
    text = THOUGHT.sub("", reply)
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"[*`\"“”]|__|^#+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"['‘]([A-Za-z])['’]", r"\1", text)
    return WRAPPED.sub(r"\1", text).strip()


def _either(text: str, found: re.Match[str]) -> bool:
    """Whether a second letter follows: "A or B"."""
    return SECOND.match(text, found.end()) is not None


def _valid(letter: str, options: Sequence[str]) -> str | None:
    upper = letter.upper()
    return upper if len(upper) == 1 and upper in LETTERS[: len(options)] else None


def _by_text(line: str, options: Sequence[str]) -> str | None:
    """The one option whose text `line` is, or ends with after "is" or a colon."""

    def bare(words: str) -> str:
        return " ".join(words.lower().split()).strip(" .")

    tail = bare(re.split(r"\banswer\s*(?:is|:)\s*:?", line, flags=re.IGNORECASE)[-1])
    same = [i for i, option in enumerate(options) if tail and bare(option) == tail]
    return LETTERS[same[0]] if len(same) == 1 else None
