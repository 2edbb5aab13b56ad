"""Parse large messages in steps, so that none holds the event loop for long.

protobuf parses a message in one call, which holds the interpreter's lock: 4 MiB of empty entries
take 100 ms. By the encoding's definition, a message that is cut between fields and merged piece by
piece is the same message (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import ROUTER_MESSAGE_BYTES

STEP_BYTES = 64 * 1024  # takes 2 ms at worst
STEP_FIELDS = 2048  # walked between two steps of the event loop
MAX_FIELDS = 50_000  # walked of one message; a table of 1,000 candidates has 1,000
MAX_ENTRY_BYTES = 256 * 1024  # of a map, parsed in one call; takes 5 ms at worst
MAX_DEPTH = 8
LENGTH_DELIMITED = 2
FIXED_BYTES = {1: 8, 5: 4}  # wire type -> size


async def parse_in_steps(
    message: Message, raw: bytes, max_string_bytes: int = ROUTER_MESSAGE_BYTES
) -> None:
    """Parse `raw` into an empty message, with a step of the event loop after each piece.

    max_string_bytes: of one string, which cannot be parsed in steps: checking that 20 MiB are UTF-8
    takes as long as 50 ms with what follows.

    Raises:
        DecodeError: the bytes are no message of this type.
        InvalidInputError: there are more than MAX_FIELDS fields, and it names the last, or a string
            is too long. An unknown field counts as a string.
    """
    await _Walk(max_string_bytes).merge(message, memoryview(raw), "")


class _Walk:
    """The walk over one message. fields: how many it has visited, at all levels."""

    def __init__(self, max_string_bytes: int = ROUTER_MESSAGE_BYTES) -> None:
        self._max_string_bytes = max_string_bytes
        self.fields = 0

    async def merge(self, message: Message, raw: memoryview, path: str) -> None:
        """Merge fields of `raw`. Small ones are merged together, large messages level by level.

        path: of the message in the request, with a dot at its end.
        """
        known = message.DESCRIPTOR.fields_by_number
        begun = 0
        for start, body, end, number in fields(raw):
            field = known.get(number)
            self.fields += 1
            if self.fields > MAX_FIELDS:
                name = path + ("unknown" if field is None else field.name)
                problem = f"has more than {MAX_FIELDS} entries; send less in one message."
                raise InvalidInputError(Violation(name, problem))
            if end - body > self._max_string_bytes and (
                field is None or field.type == FieldDescriptor.TYPE_STRING
            ):
                name = path + ("unknown" if field is None else field.name)
                problem = f"is {end - body} bytes; at most {self._max_string_bytes} in one string."
                raise InvalidInputError(Violation(name, problem))
            if end - body > MAX_ENTRY_BYTES and field is not None and _is_map(field):
                problem = f"has an entry of {end - body} bytes; at most {MAX_ENTRY_BYTES}."
                raise InvalidInputError(Violation(path + field.name, problem))
            if self.fields % STEP_FIELDS == 0:
                await asyncio.sleep(0)
            nested = end - body > STEP_BYTES and field is not None and _is_message(field)
            if not nested or path.count(".") == MAX_DEPTH:
                if end - begun > STEP_BYTES:
                    await self._merge_piece(message, raw[begun:end])
                    begun = end
                continue
            if start > begun:
                await self._merge_piece(message, raw[begun:start])
            assert field is not None
            await self.merge(_entry(message, field), raw[body:end], f"{path}{field.name}.")
            begun = end
        if begun < len(raw):
            await self._merge_piece(message, raw[begun:])

    async def _merge_piece(self, message: Message, piece: memoryview) -> None:
        message.MergeFromString(bytes(piece))
        await asyncio.sleep(0)


def fields(raw: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start of the tag, start of the value, end, number) of each field of a message."""
    at, size = 0, len(raw)
    while at < size:
        start = at
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == LENGTH_DELIMITED:
            length, at = _varint(raw, at)
            end = at + length
        elif kind == 0:
            _, end = _varint(raw, at)
        elif kind in FIXED_BYTES:
            end = at + FIXED_BYTES[kind]
        else:  # groups, which no message here has
            raise DecodeError("unexpected wire type")
        if end > size or tag >> 3 == 0:
            raise DecodeError("truncated message")
        yield start, at, end, tag >> 3
        at = end


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    """Return (value, position after it)."""
    value = shift = 0
    for position in range(at, min(at + 10, len(raw))):
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise DecodeError("truncated or overlong number")


def _is_message(field: Any) -> bool:
    """Whether the field holds messages; entries of maps cannot be reached one by one."""
    return field.message_type is not None and not _is_map(field)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _entry(message: Message, field: Any) -> Message:
    """Return the message to merge a field's value into: a new entry of a repeated field."""
    value = getattr(message, field.name)
    if field.is_repeated:
        added: Message = value.add()
        return added
    value.SetInParent()
    present: Message = value
    return present
