"""Wrong messages, made from right ones: pure functions of a random generator.

Three layers. A message is built that is right or nearly so; some of its fields are then given
values that no caller should send; and its bytes are damaged. Every method of the services is met,
by their descriptors.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from engine.api.candidate import TEST_TASKS

KNOWN = ("yi-6b-chat", "command-r-v01")
IDS = (*KNOWN, "fuzz-1", "fuzz-2", "nobody")
MASKS = ("*", "display_name", "aptitude", "context_window", "price_source", "tags")
TEXTS = ("What is 3 + 4?", "Hi", "Name a river.", "Übersetze: good day", "def f(x):")
STRINGS = (
    "", " ", "\0", "a\0b", "\n" * 50, "\u202e\u0000", "😀" * 20, "\ufffe\uffff", "e\u0301" * 30,
    "candidates/", "candidates/UPPER", "candidates/" + "a" * 64, "../../etc/passwd", "%s%n%x",
    "'; DROP TABLE candidates; --", "*", "{}", "-1", "NaN", "x" * 5_000, "\u200b", "a" * 129,
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 0.5, 1.0, 1.0000001, -1e-300, 5e-324, 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"), 1e-9, 2.0**53,
)  # fmt: skip
INTEGERS = (0, 1, -1, 2, 63, 64, 256, 257, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 2**53)
MAX_DEPTH = 5
# Fields without which a request is wrong, and those that are seldom right.
NEEDED = ("text", "messages", "role", "name", "candidate", "candidates", "requests", "request",
          "aptitude", "task", "decision_id", "id", "paths")  # fmt: skip
RARE = ("etag", "page_token", "candidate_id", "deny", "regions", "modalities", "features", "tags",
        "min_context_window", "max_input_usd_per_million",
        "max_output_usd_per_million")  # fmt: skip
Damage = Callable[[bytes, Random], bytes]


def method_path(method: MethodDescriptor) -> str:
    """As it is called: /package.Service/Method."""
    return f"/{method.containing_service.full_name}/{method.name}"


def make(method: MethodDescriptor, seed: int, number: int) -> bytes:
    """The bytes of fuzzed request `number`; equal arguments give equal bytes."""
    random = Random(f"{seed}/{number}/{method.full_name}")
    message = GetMessageClass(method.input_type)()
    fill(message, random)
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        spoil(message, random)
    raw = message.SerializeToString()
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        raw = random.choice(DAMAGES)(raw, random)
    return raw


def describe(method: MethodDescriptor, seed: int, number: int, raw: bytes) -> str:
    """How to repeat it."""
    return f"{method_path(method)} seed {seed} number {number} {base64.b64encode(raw).decode()}"


def fill(message: Message, random: Random, depth: int = 0) -> None:
    """Give `message` values that are mostly right, at most one of each oneof."""
    fields = list(message.DESCRIPTOR.fields)
    random.shuffle(fields)
    taken = set()
    for field in fields:
        group = field.containing_oneof
        real = group is not None and not group.name.startswith("_")
        if real and group.name in taken:
            continue
        likely = 0.95 if real or field.name in NEEDED else 0.05 if field.name in RARE else 0.3
        if random.random() < likely:
            _put(message, field, random, depth, right=True)
            if real:
                taken.add(group.name)


def spoil(message: Message, random: Random) -> None:
    """Give one field, somewhere inside, a value that no caller should send."""
    for _ in range(random.randrange(MAX_DEPTH)):
        inner = [v for f, v in message.ListFields() if f.message_type and not f.is_repeated]
        inner += [
            random.choice(v) for f, v in message.ListFields() if f.message_type and f.is_repeated
        ]
        if not inner:
            break
        message = random.choice(inner)
    if not message.DESCRIPTOR.fields:
        return
    field = random.choice(list(message.DESCRIPTOR.fields))
    if random.random() < 0.2:
        message.ClearField(field.name)
    else:
        _put(message, field, random, MAX_DEPTH - 2, right=False)


def _put(
    message: Message, field: FieldDescriptor, random: Random, depth: int, *, right: bool
) -> None:
    if field.is_repeated:
        count = random.choice((1, 2, 3) if right else (0, 1, 2, 30, 300))
        if right and field.name == "aptitude":
            count = TEST_TASKS
        message.ClearField(field.name)
        values = getattr(message, field.name)
        if field.message_type is None:
            values.extend({_scalar(field, random, right=right): None for _ in range(count)})
        elif depth < MAX_DEPTH:
            for i in range(count):
                fill(values.add(), random, depth + 1)
                if right and field.name == "aptitude":
                    values[i].task = f"Task {i}"
                elif right and field.name == "candidates":
                    values[i].name = f"candidates/{IDS[i]}"
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if depth < MAX_DEPTH:
            fill(inner, random, depth + 1)
    else:
        setattr(message, field.name, _scalar(field, random, right=right))


def _scalar(field: FieldDescriptor, random: Random, *, right: bool) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.randrange(20))
        return _string(field.name, random) if right else random.choice(STRINGS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        known = [value.number for value in field.enum_type.values if value.number]
        return random.choice(known if right else [-1, 0, 99, 2**31 - 1])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.random() if right else random.choice(FLOATS)
    bits = 32 if "32" in str(_KINDS[kind]) else 64
    low = 0 if _KINDS[kind].startswith("u") else -(2 ** (bits - 1))
    high = 2 ** (bits - (0 if low == 0 else 1)) - 1
    value = random.randrange(1, 5) if right else random.choice(INTEGERS)
    return min(max(value, low), high)


_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_UINT32: "uint32",
    FieldDescriptor.CPPTYPE_UINT64: "uint64",
}


def _string(name: str, random: Random) -> str:
    if name == "text":
        return f"{random.choice(TEXTS)} {random.randrange(20)}"
    if name in ("allowed_candidates", "denied_candidates", "default_candidate"):
        return "candidates/" + random.choice(KNOWN)
    if name in ("name", "candidate"):
        return "candidates/" + random.choice(IDS)
    if name == "candidate_id":
        return random.choice(IDS)
    if name == "paths":
        return random.choice(MASKS)
    return random.choice(("tools", "eu", "image", f"t{random.randrange(500)}"))


def cut(raw: bytes, random: Random) -> bytes:
    """Its beginning."""
    return raw[: random.randrange(len(raw) + 1)]


def flip(raw: bytes, random: Random) -> bytes:
    """Some bits of it turned."""
    spoiled = bytearray(raw)
    for _ in range(min(len(raw), random.choice((1, 1, 2, 8)))):
        spoiled[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(spoiled)


def twice(raw: bytes, random: Random) -> bytes:
    """A message after itself, which a parser must merge."""
    return raw * random.choice((2, 3))


def unknown(raw: bytes, random: Random) -> bytes:
    """With fields that no version has."""
    number = random.choice((100, 1000, 536_870_911))
    return raw + varint(number << 3 | 2) + varint(6) + b"fields" + varint(number << 3) + varint(7)


def not_utf8(raw: bytes, random: Random) -> bytes:
    """With a string that is no text, in a low field."""
    wrong = random.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"abc\x80", b"\xf5" * 9))
    return raw + varint(random.randrange(1, 6) << 3 | 2) + varint(len(wrong)) + wrong


def nested(raw: bytes, random: Random) -> bytes:
    """With a field inside itself, many times."""
    number, inner = random.randrange(1, 6), b""
    for _ in range(random.choice((10, 99, 101, 1000))):
        inner = varint(number << 3 | 2) + varint(len(inner)) + inner
    return raw + inner


def groups(raw: bytes, random: Random) -> bytes:
    """With groups that are opened and not always closed."""
    depth = random.choice((1, 50, 150, 5000))
    return raw + b"\x7b" * depth + b"\x7c" * (depth - random.randrange(2))


def lies(raw: bytes, random: Random) -> bytes:
    """With a length that is not there."""
    length = random.choice((1, 2**31 - 1, 2**31, 2**32, 2**63))
    return raw + varint(random.randrange(1, 20) << 3 | 2) + varint(length)


def noise(raw: bytes, random: Random) -> bytes:
    """Anything."""
    return random.randbytes(random.choice((0, 1, 5, 50, 2000)))


DAMAGES: tuple[Damage, ...] = (cut, flip, twice, unknown, not_utf8, nested, groups, lies, noise)


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """An HTTP/2 frame; length: a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def bad_connection(seed: int, number: int) -> bytes:
    """What a broken or hostile peer writes to the port."""
    random = Random(f"{seed}/{number}/connection")
    settings = frame(4, 0, 0, b"")
    noisy = random.randbytes(random.choice((1, 9, 100, 5000)))
    return random.choice(
        (
            noisy,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            PREFACE[: random.randrange(len(PREFACE))],
            PREFACE + noisy,
            PREFACE + frame(4, 0, 0, b"\0" * 5),  # SETTINGS of no whole entries
            PREFACE + settings + frame(1, 4, 1, noisy),  # HEADERS that are no HPACK
            PREFACE + settings + frame(0, 1, 1, noisy),  # DATA before HEADERS
            PREFACE + settings + frame(9, 0, 1, noisy) * 20,  # CONTINUATION of nothing
            PREFACE + settings + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,  # WINDOW_UPDATE overflow
            PREFACE + settings + frame(3, 0, 1, b"\0\0\0\1") * 200,  # RST_STREAM of nothing
            PREFACE + settings + frame(6, 0, 0, b"12345678") * 200,  # PING, many
            PREFACE + settings + frame(random.randrange(256), 255, 2**31, noisy),
            PREFACE + frame(1, 4, 1, b"", length=2**24 - 1),
        )
    )
