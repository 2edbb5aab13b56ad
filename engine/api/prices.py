"""Recognize prices that were given per token or per thousand tokens instead of per million.

Used wherever a person or a file enters prices; the API takes what programs send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.api.candidate import Candidate
from engine.api.errors import InvalidInputError, Violation

# Factor that makes a price one per million tokens.
UNITS: Mapping[str, float] = {"million": 1.0, "thousand": 1e3, "token": 1e6}
# List prices per million tokens start at about 0.005 USD. One below PER_TOKEN_BELOW cannot be per
# million, and one below PER_THOUSAND_BELOW is more likely a price per thousand tokens.
PER_TOKEN_BELOW, PER_THOUSAND_BELOW = 0.0005, 0.005
FIELDS = ("input_usd_per_million", "output_usd_per_million")


def price_problem(
    price: float | None,
    flag: str,
    otherwise: str = ", or state the unit: --price-unit million, thousand or token.",
) -> Violation | None:
    """Return what is suspicious about a price per million tokens; None if nothing is.

    flag: how the price is entered. otherwise: ends the message, after the value to type.
    """
    if price is None or not 0 < price < PER_THOUSAND_BELOW:
        return None
    if price < PER_TOKEN_BELOW:
        text = (
            f"is {price:g} US dollars per million tokens, which looks like a price per token:"
            f" {price:g} a token is {price * 1e6:g} a million. Give {price * 1e6:g}"
        )
    else:
        text = (
            f"is {price:g} US dollars per million tokens, which looks like a price per thousand:"
            f" {price:g} a thousand is {price * 1e3:g} a million. Give {price * 1e3:g}"
        )
    return Violation(flag, text + otherwise)


def in_usd_per_million(candidate: Candidate, unit: str | None, field: str = "") -> Candidate:
    """Convert the prices of `candidate`, which are in US dollars per `unit` of tokens.

    Args:
        candidate: with prices as they were entered.
        unit: "million", "thousand" or "token". None means that it is not stated: the prices are
            taken as per million, unless they cannot be.
        field: path of the candidate for errors; empty means that flags hold the prices.

    Raises:
        InvalidInputError: no unit is stated and a price looks like one of another unit.
    """
    if unit is not None:
        scaled = {
            name: round(price * UNITS[unit], 9)
            for name in (*FIELDS, "cached_input_usd_per_million")
            if (price := getattr(candidate, name)) is not None
        }
        return replace(candidate, **scaled)
    names = {f: f"{field}.{f}" if field else f"--{f.replace('_', '-')}" for f in FIELDS}
    found = [price_problem(getattr(candidate, f), names[f]) for f in FIELDS]
    if problems := [p for p in found if p]:
        raise InvalidInputError(*problems)
    return candidate
