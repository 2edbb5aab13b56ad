"""The memory of messages that are being answered, and a limit on it.

An entry of a repeated field takes two bytes on the wire and 80 in memory, so what a message takes
is estimated by its entries once it is parsed.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from engine.api.errors import TooManyCallsError
from engine.serving.rpc.fair_slots import RETRY_S
from engine.serving.rpc.wire import STEP_BYTES

HELD_BYTES = 256 * 1024 * 1024  # of messages of more than STEP_BYTES, of one address
CALLER_SHARE = 0.5  # of it, for the messages of one caller
ENTRY_BYTES = 80
MAX_ENTERED = 2048  # entries of a field whose own ones are counted; no method takes more of those


class MessageMemory:
    """Counts what the messages of one address take. refused: how many were, for the others."""

    def __init__(self, limit_bytes: int = HELD_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used = 0
        self.refused = 0
        self._used_by: Counter[str] = Counter()

    def add(self, caller: str, size: int) -> None:
        """Count `size` more bytes, or fewer if it is negative.

        Raises TooManyCallsError above the limits, and counts nothing then.
        """
        used, mine = self.used + size, self._used_by[caller] + size
        if size > 0 and (used > self.limit_bytes or mine > CALLER_SHARE * self.limit_bytes):
            self.refused += 1
            words = f"The messages that are being answered take {self.used} bytes already."
            raise TooManyCallsError(words, RETRY_S)
        self.used, self._used_by[caller] = used, mine
        if not mine:
            del self._used_by[caller]


class Share:
    """What one message of `caller` takes; release() it once that is answered."""

    def __init__(self, memory: MessageMemory, caller: str) -> None:
        self._memory, self._caller, self._size = memory, caller, 0

    def resize(self, size: int) -> None:
        """Count `size` bytes from now on, none for a small message. See MessageMemory.add."""
        counted = size if size > STEP_BYTES else 0
        if counted != self._size:
            self._memory.add(self._caller, counted - self._size)
            self._size = counted

    def release(self) -> None:
        """Count nothing from now on."""
        self.resize(0)


def memory_of(message: object, size: int) -> int:
    """Estimate the bytes of memory of a parsed message. size: on the wire."""
    return size + (ENTRY_BYTES * _entries(message) if isinstance(message, Message) else 0)


def _entries(message: Message) -> int:
    count = 0
    for field in _fields_with_entries(message.DESCRIPTOR):
        value = getattr(message, field.name)
        if not field.is_repeated:
            count += _entries(value) if message.HasField(field.name) else 0
            continue
        count += len(value)
        if len(value) <= MAX_ENTERED and _fields_with_entries(field.message_type):
            count += sum(map(_entries, value))
    return count


@lru_cache(maxsize=256)
def _fields_with_entries(kind: Descriptor, depth: int = 0) -> tuple[FieldDescriptor, ...]:
    """Return the fields of messages that are repeated, or that hold such a field."""
    return tuple(
        field
        for field in kind.fields
        if field.message_type is not None
        and not field.message_type.GetOptions().map_entry
        and (
            field.is_repeated or (depth < 8 and _fields_with_entries(field.message_type, depth + 1))
        )
    )
