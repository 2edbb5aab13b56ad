"""Render an instruction as the tokens that the backbone reads, for training and serving alike.

The tokens are the performance inquiry prompt p and the instruction x of Model-SAT (Zhang, Zhan, Ye:
"Capability Instruction Tuning", AAAI 2025). p comes first because it is the same for every request,
so its keys and values can be computed once (docs/adr/0005). The candidate's embedding follows both
and is not part of these tokens.
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
# Of MAX_INSTRUCTION_TOKENS; the rest goes to the end of the text, where the question often is.
HEAD_SHARE = 0.75
# Text is cut to this many characters per token before tokenization, so that a book takes no longer
# than a page. English has 4 to 5 characters per token; runs of spaces reach 16 in this vocabulary.
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
    """Result of a tokenizer."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that rendering needs."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding:
        """Tokenize `sequence`."""

    def __hash__(self) -> int:
        """Hash by identity: the constant parts are tokenized once per tokenizer."""


@dataclass(frozen=True)
class Prompt:
    """A rendered instruction.

    tokens: (L,) int64 IDs of p and x. input_tokens: length of the whole instruction in tokens,
    estimated from its characters if it was cut before tokenization. truncated: True if the middle
    of the instruction was left out.
    """

    tokens: NDArray[np.int64]
    input_tokens: int
    truncated: bool


def render(text: str, tokenizer: Tokenizer, budget: int = MAX_INSTRUCTION_TOKENS) -> Prompt:
    """Tokenize the inquiry prompt and `text`; a long text is truncated in the middle.

    budget: maximum tokens of the instruction. Equal texts give equal tokens, in training and in
    serving.
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
    before, after = _constant_tokens(tokenizer)
    return Prompt(np.array([*before, *ids, *after], dtype=np.int64), count, truncated)


@lru_cache(maxsize=4)
def _constant_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of INQUIRY and AFTER; for short texts this takes half of the time."""
    before, after = (tokenizer.encode(t, add_special_tokens=False) for t in (INQUIRY, AFTER))
    return tuple(before.ids), tuple(after.ids)
