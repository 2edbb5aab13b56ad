"""Read the instructions that candidates are compared on from logs of past requests.

Every format of `modelsat replay` is read. A request is left out if its answer would need what a log
does not hold or a comparison does not offer, such as tools and images; the reason is counted.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.api.conversation.conversation import Conversation
from engine.api.conversation.reading import find_ask
from engine.api.errors import InvalidInputError, Violation
from engine.datasets.cells import CellError, decode, is_missing
from engine.replay.log import PastRequest
from engine.replay.run import LogNotes, LogSource, empty_log_error, read_requests

MAX_POOL = 5000  # instructions of a log that are held; of a longer log a random sample


@dataclass(frozen=True)
class LoggedInstruction:
    """An instruction that every candidate is asked.

    text: what the human asked, which is what the router reads. messages: the conversation up to it.
    references: right answers, patterns or schemas, for graders that need them. category: the log's
    own. response_format: of the request, in the form of chat completions.
    """

    text: str
    messages: tuple[Mapping[str, str], ...]
    references: tuple[Any, ...] = ()
    category: str = ""
    response_format: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """Hash of the conversation, the same for the same request of any log."""
        content = json.dumps([*self.messages, self.response_format], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def extra_body(self) -> dict[str, Any]:
        """Fields of a request's body besides the messages."""
        return {"response_format": dict(self.response_format)} if self.response_format else {}


@dataclass
class InstructionPool:
    """The different instructions of a log.

    left_out: reason -> requests that cannot be compared. repeated: requests that were met before.
    requests: all that the log holds. invalid_rows: rows of the log that could not be read.
    """

    instructions: list[LoggedInstruction]
    left_out: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    requests: int = 0
    invalid_rows: int = 0

    def keep(self, suitable: Callable[[LoggedInstruction], bool], reason: str) -> None:
        """Leave out the instructions that are not suitable, and count them under `reason`."""
        kept = [instruction for instruction in self.instructions if suitable(instruction)]
        if left_out := len(self.instructions) - len(kept):
            self.left_out[reason] += left_out
        self.instructions = kept


def read_pool(
    log: LogSource, references: LogSource | None = None, seed: int = 0, size: int = MAX_POOL
) -> InstructionPool:
    """Read the instructions of `log`; of more than `size` different ones, a random sample.

    references: rows with the text of an instruction and its reference, which replaces the log's.

    Raises:
        InvalidInputError: a file cannot be read, or holds no request that can be compared.
    """
    known = _references_by_text(references) if references else {}
    notes, pool = LogNotes(), InstructionPool([])
    draw = random.Random(seed)  # noqa: S311 - a draw that can be repeated
    met: set[str] = set()
    for request, _ in read_requests(log, notes):
        pool.requests += 1
        try:
            instruction = instruction_of(request)
        except ValueError as reason:
            pool.left_out[str(reason)] += 1
            continue
        if instruction.key in met:
            pool.repeated += 1
            continue
        met.add(instruction.key)
        if instruction.text in known:
            instruction = replace(instruction, references=known[instruction.text])
        if len(pool.instructions) < size:
            pool.instructions.append(instruction)
        elif (place := draw.randrange(len(met))) < size:
            pool.instructions[place] = instruction
    pool.invalid_rows = notes.count
    if not pool.requests:
        raise empty_log_error(log, notes)
    if not pool.instructions:
        reasons = "; ".join(f"{n} {reason}" for reason, n in pool.left_out.most_common())
        files = ", ".join(map(str, log.files[:3]))
        raise InvalidInputError(
            Violation(files, f"has no request that can be compared: {reasons}.")
        )
    return pool


def instruction_of(request: PastRequest) -> LoggedInstruction:
    """Return what a comparison asks for `request`; raises ValueError, with the reason if not."""
    ask, asked_at = find_ask(request.conversation.turns)
    if not ask:
        raise ValueError("have no text of a human")
    if reason := _unsuitable(request, asked_at):
        raise ValueError(reason)
    turns = request.conversation.turns[: asked_at + 1]
    return LoggedInstruction(
        text=ask,
        messages=tuple({"role": t.role, "content": t.text} for t in turns if t.text.strip()),
        references=references_of(request.reference),
        category="".join(c if c.isprintable() else " " for c in request.category).strip(),
        response_format=request.response_format,
    )


def _unsuitable(request: PastRequest, asked_at: int) -> str:
    conversation: Conversation = request.conversation
    if "tools" in conversation.needs.features:
        return "need tools"
    if conversation.needs.modalities or conversation.media_tokens:
        return f"need {', '.join(conversation.needs.modalities) or 'media'}"
    if conversation.uncounted or conversation.unread_turns:
        return "refer to a history that the log does not hold"
    if any(turn.role == "tool" for turn in conversation.turns[:asked_at]):
        return "have answers of tools"
    if "json_mode" in conversation.needs.features and request.response_format is None:
        return "ask for a format in the words of another provider"
    return ""


def references_of(value: Any) -> tuple[Any, ...]:
    """Read the reference of a row: one, or a list of which each is right. JSON as text is decoded.

    Objects are kept, as JSON schemas are objects; anything else is a text.
    """
    if is_missing(value):
        return ()
    try:
        found = decode(value)
    except CellError:
        found = value  # prose or a pattern that begins like a list
    listed = found if isinstance(found, list) else [found]
    return tuple(
        item if isinstance(item, Mapping) else _text(item)
        for item in listed
        if not is_missing(item)
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _references_by_text(source: LogSource) -> dict[str, tuple[Any, ...]]:
    notes = LogNotes()
    found = {
        request.text: references
        for request in _requests_of(source, notes)
        if (references := references_of(request.reference))
    }
    if not found:
        raise InvalidInputError(
            Violation(
                "--references",
                "holds no reference; expected rows with the instruction's text and `reference`.",
            )
        )
    return found


def _requests_of(source: LogSource, notes: LogNotes) -> Iterator[PastRequest]:
    for request, _ in read_requests(source, notes):
        yield request
