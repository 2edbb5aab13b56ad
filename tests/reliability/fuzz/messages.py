"""Build malformed messages from valid ones; pure functions of a random generator.

There are three layers. A message is built from the descriptors that is valid or nearly so, some of
its fields get values that no caller should send, and its bytes are mutated.
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
from engine.pb.router_service_pb2 import ROLE_USER

KNOWN = ("yi-6b-chat", "command-r-v01")
IDS = (*KNOWN, "fuzz-1", "fuzz-2", "unknown")
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
# Fields that most valid requests have, and fields with which few requests succeed.
USUAL_FIELDS = (
    "text", "text_parts", "messages", "role", "name", "candidate", "candidates", "requests",
    "request", "aptitude", "task_keywords", "decision_id", "id", "paths",
)  # fmt: skip
RARE_FIELDS = (
    "etag", "page_token", "candidate_id", "denied_candidates", "allowed_regions",
    "required_modalities", "required_features", "required_tags", "min_context_window",
    "max_input_usd_per_million", "max_output_usd_per_million", "regions", "modalities",
    "features", "tags",
)  # fmt: skip
INTEGER_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
Mutation = Callable[[bytes, Random], bytes]


def method_path(method: MethodDescriptor) -> str:
    """Return /package.Service/Method."""
    return f"/{method.containing_service.full_name}/{method.name}"


def make(method: MethodDescriptor, seed: int, number: int) -> bytes:
    """Return the bytes of request `number`; equal arguments give equal bytes."""
    random = Random(f"{seed}/{number}/{method.full_name}")
    message = GetMessageClass(method.input_type)()
    fill(message, random)
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        mutate_field(message, random)
    raw = message.SerializeToString()
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        raw = random.choice(MUTATIONS)(raw, random)
    return raw


def describe(method: MethodDescriptor, seed: int, number: int, raw: bytes) -> str:
    """Return what is needed to send the request again."""
    return f"{method_path(method)} seed {seed} number {number} {base64.b64encode(raw).decode()}"


def fill(message: Message, random: Random, depth: int = 0) -> None:
    """Give `message` mostly valid values, and at most one of each oneof."""
    fields = list(message.DESCRIPTOR.fields)
    random.shuffle(fields)
    filled = set()
    for field in fields:
        group = field.containing_oneof
        # Protobuf represents an optional field as a oneof whose name begins with an underscore.
        is_oneof = group is not None and not group.name.startswith("_")
        if is_oneof and group.name in filled:
            continue
        usual = is_oneof or field.name in USUAL_FIELDS
        if random.random() < (0.95 if usual else 0.05 if field.name in RARE_FIELDS else 0.3):
            _set(message, field, random, depth, valid=True)
            if is_oneof:
                filled.add(group.name)


def mutate_field(message: Message, random: Random) -> None:
    """Clear one field, at any depth, or give it a value that no caller should send."""
    for _ in range(random.randrange(MAX_DEPTH)):
        inner = [
            random.choice(value) if field.is_repeated else value
            for field, value in message.ListFields()
            if field.message_type
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
        _set(message, field, random, MAX_DEPTH - 2, valid=False)


def _set(
    message: Message, field: FieldDescriptor, random: Random, depth: int, *, valid: bool
) -> None:
    if field.is_repeated:
        count = random.choice((1, 2, 3) if valid else (0, 1, 2, 30, 300))
        if valid and field.name == "aptitude":
            count = TEST_TASKS
        message.ClearField(field.name)
        values = getattr(message, field.name)
        if field.message_type is None:
            values.extend({_scalar(field, random, valid=valid): None for _ in range(count)})
        elif depth < MAX_DEPTH:
            for i in range(count):
                fill(values.add(), random, depth + 1)
                if valid and field.name == "aptitude":
                    values[i].task_keywords = f"Task {i}"
                elif valid and field.name == "messages" and i == count - 1:
                    values[i].role = ROLE_USER
                elif valid and field.name == "candidates":
                    # Candidates to register have a name; of a comparison, they are named.
                    own = "name" if "name" in values[i].DESCRIPTOR.fields_by_name else "candidate"
                    setattr(values[i], own, f"candidates/{IDS[i]}")
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if depth < MAX_DEPTH:
            fill(inner, random, depth + 1)
    else:
        setattr(message, field.name, _scalar(field, random, valid=valid))


def _scalar(field: FieldDescriptor, random: Random, *, valid: bool) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.randrange(20))
        return _string(field.name, random) if valid else random.choice(STRINGS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        known = [value.number for value in field.enum_type.values if value.number]
        return random.choice(known if valid else [-1, 0, 99, 2**31 - 1])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.random() if valid else random.choice(FLOATS)
    low, high = INTEGER_BOUNDS[kind]
    return min(max(random.randrange(1, 5) if valid else random.choice(INTEGERS), low), high)


def _string(name: str, random: Random) -> str:
    if name in ("text", "text_parts"):
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


def truncate(raw: bytes, random: Random) -> bytes:
    """Keep the beginning."""
    return raw[: random.randrange(len(raw) + 1)]


def flip_bits(raw: bytes, random: Random) -> bytes:
    """Flip up to 8 bits."""
    mutated = bytearray(raw)
    for _ in range(min(len(raw), random.choice((1, 1, 2, 8)))):
        mutated[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(mutated)


def repeat(raw: bytes, random: Random) -> bytes:
    """Repeat the message, so that the parser has to merge it."""
    return raw * random.choice((2, 3))


def add_unknown_fields(raw: bytes, random: Random) -> bytes:
    """Add fields that no version of the API has."""
    number = random.choice((100, 1000, 536_870_911))
    return raw + length_delimited(number, b"fields") + varint(number << 3) + varint(7)


def add_invalid_utf8(raw: bytes, random: Random) -> bytes:
    """Add a string field that is not UTF-8."""
    text = random.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"abc\x80", b"\xf5" * 9))
    return raw + length_delimited(random.randrange(1, 6), text)


def nest(raw: bytes, random: Random) -> bytes:
    """Add a field that holds itself many times."""
    number, inner = random.randrange(1, 6), b""
    for _ in range(random.choice((10, 99, 101, 1000))):
        inner = length_delimited(number, inner)
    return raw + inner


def open_groups(raw: bytes, random: Random) -> bytes:
    """Open groups and do not always close all of them."""
    depth = random.choice((1, 50, 150, 5000))
    return raw + b"\x7b" * depth + b"\x7c" * (depth - random.randrange(2))


def overstate_length(raw: bytes, random: Random) -> bytes:
    """End with a field that is shorter than its length says."""
    length = random.choice((1, 2**31 - 1, 2**31, 2**32, 2**63))
    return raw + varint(random.randrange(1, 20) << 3 | 2) + varint(length)


def replace_with_noise(raw: bytes, random: Random) -> bytes:
    """Return random bytes."""
    return random.randbytes(random.choice((0, 1, 5, 50, 2000)))


MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip_bits,
    repeat,
    add_unknown_fields,
    add_invalid_utf8,
    nest,
    open_groups,
    overstate_length,
    replace_with_noise,
)


def varint(value: int) -> bytes:
    """Encode an integer as protobuf does."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, content: bytes) -> bytes:
    """Encode a string, bytes or message field as protobuf does."""
    return varint(number << 3 | 2) + varint(len(content)) + content


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an HTTP/2 frame. length: the length to claim instead of the true one."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def bad_connection(seed: int, number: int) -> bytes:
    """Return bytes that a broken or hostile client writes to the port."""
    random = Random(f"{seed}/{number}/connection")
    settings = frame(4, 0, 0, b"")
    noise = random.randbytes(random.choice((1, 9, 100, 5000)))
    return random.choice(
        (
            noise,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            PREFACE[: random.randrange(len(PREFACE))],
            PREFACE + noise,
            PREFACE + frame(4, 0, 0, b"\0" * 5),  # SETTINGS with half an entry
            PREFACE + settings + frame(1, 4, 1, noise),  # HEADERS that are not HPACK
            PREFACE + settings + frame(0, 1, 1, noise),  # DATA before HEADERS
            PREFACE + settings + frame(9, 0, 1, noise) * 20,  # CONTINUATION without HEADERS
            PREFACE + settings + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,  # WINDOW_UPDATE overflow
            PREFACE + settings + frame(3, 0, 1, b"\0\0\0\1") * 200,  # RST_STREAM of an idle stream
            PREFACE + settings + frame(6, 0, 0, b"12345678") * 200,  # a flood of PING
            PREFACE + settings + frame(random.randrange(256), 255, 2**31, noise),
            PREFACE + frame(1, 4, 1, b"", length=2**24 - 1),
        )
    )
