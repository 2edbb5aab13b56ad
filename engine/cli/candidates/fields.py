"""Flags that describe a candidate, of `candidates update` and `aptitude run`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from engine.api.candidate import WORD_LISTS
from engine.cli import server_flags

UNKNOWN = "unknown"
EXAMPLES = {
    "modalities": "inputs that it reads besides text, such as image,file",
    "features": "features that requests can ask for, such as json_mode,tools",
    "tags": "tags that policies select by",
    "regions": "regions that it runs in, such as eu,us",
}
NAMES = (
    *("display_name", "context_window", "input_usd_per_million", "output_usd_per_million"),
    *("price_source", "mean_output_tokens", "time_to_first_token_ms", "output_tokens_per_s"),
    *("cached_input_usd_per_million",),
    *WORD_LISTS,
)


def add_arguments(
    group: argparse._ActionsContainer, *, without: tuple[str, ...] = (), default: str = UNKNOWN
) -> None:
    """Add a flag for each field of a candidate but its ID and results.

    without: fields to leave out. default: what the help says of a flag that is not given.
    """

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        if name not in without:
            flag = f"--{name.replace('_', '-')}"
            said = f"{text} (default: {default})"
            group.add_argument(flag, type=kind, metavar=metavar, help=said)

    add("display_name", str, "TEXT", "name for people")
    add("context_window", _number_or_unknown(int), "TOKENS", "context window in tokens")
    for direction in ("input", "output"):
        name = f"{direction}_usd_per_million"
        text = f"list price in US dollars per million {direction} tokens"
        add(name, _number_or_unknown(float), "USD", text)
    text = "list price in US dollars per million input tokens from the provider's prompt cache"
    add("cached_input_usd_per_million", _number_or_unknown(float), "USD", text)
    server_flags.add_price_unit(group)
    add("price_source", str, "TEXT", "where and when the prices were listed")
    text = "mean length of an answer in tokens"
    add("mean_output_tokens", _number_or_unknown(float), "N", text)
    text = "milliseconds until the first token of an answer"
    add("time_to_first_token_ms", _number_or_unknown(float), "MS", text)
    text = "tokens a second after the first one"
    add("output_tokens_per_s", _number_or_unknown(float), "N", text)
    for name in WORD_LISTS:
        add(name, words, "A,B", EXAMPLES[name])


def given_fields(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return field -> value of the flags that were given; None says that a number is unknown."""
    found = {name: getattr(parsed, name, None) for name in NAMES}
    return {
        name: None if value == UNKNOWN and name not in ("display_name", "price_source") else value
        for name, value in found.items()
        if value is not None
    }


def words(text: str) -> tuple[str, ...]:
    """Split a list at commas; each word once, sorted. An empty text gives an empty list."""
    return tuple(sorted({word.strip() for word in text.split(",")} - {""}))


def _number_or_unknown(kind: type[int] | type[float]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text.strip().lower() == UNKNOWN:
            return UNKNOWN
        try:
            return kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            problem = f"{text!r} is not {expected}, nor {UNKNOWN!r}"
            raise argparse.ArgumentTypeError(problem) from None

    return convert
