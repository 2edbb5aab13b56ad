"""From an instruction to the tokens the backbone reads; training and serving share this code.

The performance inquiry prompt p and the instruction x of Model-SAT (Zhang, Zhan, Ye: "Capability
Instruction Tuning", AAAI 2025). p comes first: it is the same for every request, so its keys and
values can be computed once (docs/adr/0005). The candidate's embedding comes after both, and is not
part of these tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

INQUIRY = "Predict whether the model can handle the test instruction by indicating 'Yes' or 'No'.\n"
AFTER = "\nModel:"
YES, NO = "Yes", "No"

MAX_INSTRUCTION_TOKENS = 256
HEAD_SHARE = 0.75  # of the reading budget; the rest reads the end, where the question often is
# Text is cut to this many characters a token before it is tokenised, so that a book costs no more
# than a page. English runs at 4 to 5; runs of spaces reach 16 in this vocabulary.
MAX_CHARS_PER_TOKEN = 16

PROMPT_VERSION = hashlib.sha256(
    "\0".join(
        [
            *(INQUIRY, AFTER, YES, NO),
            *map(str, (MAX_INSTRUCTION_TOKENS, HEAD_SHARE, MAX_CHARS_PER_TOKEN)),
        ]
    ).encode()
).hexdigest()[:12]


class Encoding(Protocol):
    """What a tokenizer returns."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer; `tokenizers.Tokenizer` is one."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding:
        """Tokens of `sequence`."""

    def __hash__(self) -> int:
        """By identity: the constant parts are tokenised once for each."""


@dataclass(frozen=True)
class Prompt:
    """tokens: (L,) int64 ids of p and x. input_tokens: tokens of the whole instruction
    (estimated from its length where it was cut). truncated: whether its middle was left out."""

    tokens: NDArray[np.int64]
    input_tokens: int
    truncated: bool


def render(text: str, tokenizer: Tokenizer, budget: int = MAX_INSTRUCTION_TOKENS) -> Prompt:
    """Tokens of the inquiry prompt and `text`; of a long text, its head and tail.

    At most `budget` tokens of the instruction are read. Deterministic: equal text gives equal
    tokens, in training and in serving.
    """

    def encode(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False).ids

    text = text.strip()
    window = budget * MAX_CHARS_PER_TOKEN
    clipped = len(text) > 2 * window
    if clipped:
        head_ids = encode(text[:window])
        tail_ids = encode(text[-window:])
        count = round(len(text) * (len(head_ids) + len(tail_ids)) / (2 * window))
    else:
        head_ids = tail_ids = encode(text)
        count = len(head_ids)
    truncated = clipped or count > budget
    if truncated:
        head = int(budget * HEAD_SHARE)
        ids = head_ids[:head] + tail_ids[-(budget - head) :]
    else:
        ids = head_ids
    before, after = _around(tokenizer)
    return Prompt(np.array([*before, *ids, *after], dtype=np.int64), count, truncated)


@lru_cache(maxsize=4)
def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of INQUIRY and AFTER: the same for every request, and half the time of a short one."""
    before, after = (tokenizer.encode(t, add_special_tokens=False) for t in (INQUIRY, AFTER))
    return tuple(before.ids), tuple(after.ids)
