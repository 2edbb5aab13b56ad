"""Watch for replies that cannot be read, so that a run stops before it costs more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from engine.api.errors import ModelsatError
from engine.aptitude.grading import why_unreadable
from engine.aptitude.journal import Reply
from engine.aptitude.questions import Question
from engine.registry.catalog import MAX_UNREADABLE_SHARE

MIN_REPLIES = 20  # before the share is looked at
MIN_UNREADABLE = 3
SAMPLES, SAMPLE_CHARS = 3, 160


class UnreadableRepliesError(ModelsatError):
    """Too many replies choose no option. The replies so far are in the journal."""


class UnreadableReplies:
    """Counts of unreadable replies by kind, with samples.

    Args:
        questions: of the run; replies to others are not counted.
        key: API key, which samples must not show.
    """

    def __init__(self, questions: Iterable[Question], key: str = "") -> None:
        self._options: Mapping[str, tuple[str, ...]] = {q.key: q.options for q in questions}
        self._key = key
        self.replies = 0
        self.kinds: Counter[str] = Counter()
        self._samples: list[tuple[str, str]] = []

    @property
    def unreadable(self) -> int:
        """Number of replies that choose no option, or ended before they did."""
        return self.kinds.total()

    @property
    def too_many(self) -> bool:
        """True if more than MAX_UNREADABLE_SHARE of the replies are unreadable."""
        return (
            self.unreadable >= MIN_UNREADABLE
            and self.unreadable > MAX_UNREADABLE_SHARE * self.replies
        )

    def add(self, reply: Reply) -> None:
        """Count `reply`."""
        if reply.question not in self._options:
            return
        self.replies += 1
        problem = why_unreadable(reply, self._options[reply.question])
        if problem:
            self.kinds[problem] += 1
            if len(self._samples) < SAMPLES and reply.text.strip():
                self._samples.append((problem, self._shortened(reply.text)))

    @property
    def surely_too_many(self) -> bool:
        """True if there are more than chance explains at MAX_UNREADABLE_SHARE (two deviations)."""
        expected = MAX_UNREADABLE_SHARE * self.replies
        deviation = math.sqrt(expected * (1 - MAX_UNREADABLE_SHARE))
        enough = self.replies >= min(MIN_REPLIES, len(self._options))
        return enough and self.unreadable > expected + 2 * deviation + MIN_UNREADABLE - 1

    def require_few(self) -> None:
        """Raise UnreadableRepliesError if there are too many, beyond chance."""
        if self.surely_too_many:
            raise UnreadableRepliesError(
                f"{self.describe()} The run stopped before it costs more; replies so far are kept."
                " Fix the cause (--max-tokens, --extra-body, the endpoint's chat template), or go"
                " on with --accept-unreadable, which counts them as they are."
            )

    def describe(self) -> str:
        """Say how many replies are unreadable, of which kinds, with shortened samples."""
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        samples = "".join(f" [{kind}: {text}]" for kind, text in self._samples)
        return f"{self.unreadable} of {self.replies} replies are unreadable ({kinds}).{samples}"

    def _shortened(self, text: str) -> str:
        line = " ".join(text[:4000].replace(self._key or "\0", "[key]").split())
        line = "".join(c if c.isprintable() else "?" for c in line)
        if len(line) <= SAMPLE_CHARS:
            return repr(line)
        half = SAMPLE_CHARS // 2
        end = " ".join(text[-half:].replace(self._key or "\0", "[key]").split())
        end = "".join(c if c.isprintable() else "?" for c in end)
        return repr(f"{line[:half]} ... {end}")
