"""Where the compared candidates and the judges are asked: a TOML file, or one gateway for all."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.api.prices import price_problem
from engine.aptitude.journal import Reply
from engine.aptitude.llm import Endpoint, url_problems

DEFAULTS = "defaults"  # the table of the file whose values hold for all others
KEY_VARIABLE = "OPENAI_API_KEY"
NUMBERS = {  # field -> smallest value
    "max_tokens": 1,
    "timeout_s": 0.001,
    "max_attempts": 1,
    "max_retry_after_s": 0,
    "concurrency": 1,
    "requests_per_minute": 0.001,
    "tokens_per_minute": 1,
    "input_usd_per_million": 0,
    "output_usd_per_million": 0,
}
INTEGERS = {"max_tokens", "max_attempts", "concurrency"}
OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FIELDS = ("base_url", "model", "api_key_env", "extra_body", *NUMBERS)


@dataclass(frozen=True)
class PricedEndpoint:
    """An endpoint under the name of a candidate or judge, with its prices in US dollars per million
    tokens, None if unknown."""

    name: str
    endpoint: Endpoint
    input_usd_per_million: float | None = None
    output_usd_per_million: float | None = None
    mean_output_tokens: float | None = None

    @property
    def max_output_tokens(self) -> int:
        """Limit on the tokens of a reply, whichever field of the request sets it."""
        body = self.endpoint.extra_body
        limits = [n for f in OUTPUT_LIMITS if isinstance(n := body.get(f), int) and n > 0]
        return max(limits, default=self.endpoint.max_tokens)

    def cost_usd(self, input_tokens: float, output_tokens: float) -> float | None:
        """Return the price of so many tokens; None if a price is unknown."""
        if self.input_usd_per_million is None or self.output_usd_per_million is None:
            return None
        return (
            input_tokens * self.input_usd_per_million + output_tokens * self.output_usd_per_million
        ) / 1e6

    def cost_of(self, reply: Reply) -> float | None:
        """Return the price of a reply; None if a price is unknown."""
        return self.cost_usd(reply.prompt_tokens, reply.answer_tokens)


def read_endpoints(
    names: Sequence[str], file: Path | None, shared: Mapping[str, Any], environ: Mapping[str, str]
) -> list[PricedEndpoint]:
    """Return the endpoint of each of `names`.

    Args:
        names: candidates or judges.
        file: TOML with a table for each name, and one named defaults for what they share.
        shared: fields from flags, which hold where the file says nothing else.
        environ: where the API keys are.

    Raises:
        InvalidInputError: lists every problem.
    """
    tables = _tables(file)
    endpoints, problems = [], []
    for name in names:
        values = {**shared, **tables.get(DEFAULTS, {}), **tables.get(name, {})}
        values.setdefault("model", name)
        where = f"{file.name} [{name}]" if file and name in tables else name
        if found := _problems(values, where, environ):
            problems += found
        else:
            endpoints.append(_endpoint(name, values, environ))
    if problems:
        raise InvalidInputError(*dict.fromkeys(problems))
    return endpoints


def _tables(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(Violation(str(file), f"cannot be read ({error}).")) from error
    if others := [name for name, table in tables.items() if not isinstance(table, dict)]:
        problem = (
            f"has {others[0]!r} outside of a table; give [defaults], or a table for each name."
        )
        raise InvalidInputError(Violation(str(file), problem))
    # A dot in a table's name that is not quoted makes a table within a table.
    for name, table in tables.items():
        if nested := [key for key in table if isinstance(table[key], dict) and key != "extra_body"]:
            problem = f'has [{name}.{nested[0]}]; quote names with dots: ["{name}.{nested[0]}"].'
            raise InvalidInputError(Violation(str(file), problem))
    return tables


def _problems(values: Mapping[str, Any], where: str, environ: Mapping[str, str]) -> list[Violation]:
    problems = [
        Violation(where, f"has the unknown field {name!r}; expected one of {', '.join(FIELDS)}.")
        for name in values
        if name not in FIELDS
    ]
    for name in ("base_url", "model", "api_key_env"):
        if not isinstance(values.get(name, ""), str):
            problems.append(Violation(f"{where}.{name}", "is not a text."))
    for name, minimum in NUMBERS.items():
        value = values.get(name)
        kinds = (int,) if name in INTEGERS else (int, float)
        if value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool) or not value >= minimum:
            problem = f"is {value!r}; expected a number of at least {minimum:g}."
            problems.append(Violation(f"{where}.{name}", problem))
    if problems:
        return problems
    if not values.get("base_url"):
        problem = "has no base_url; give --base-url, or a table in the file of --endpoints."
        return [Violation(where, problem)]
    for name in ("input_usd_per_million", "output_usd_per_million"):
        if found := price_problem(values.get(name), f"{where}.{name}", "."):
            problems.append(found)
    body = _body(values)
    if not isinstance(body, Mapping) or {"messages", "model", "stream"} & set(body):
        problem = "is not an object of fields other than model, messages and stream."
        problems.append(Violation(f"{where}.extra_body", problem))
    key = _key(values, environ)
    if not all(0x20 < ord(c) < 0x7F for c in key):
        text = "has a space, a line break or a character beyond ASCII; it must be the key alone."
        problems.append(Violation(f"${values.get('api_key_env', KEY_VARIABLE)}", text))
    return problems + url_problems(f"{where}.base_url", str(values["base_url"]), key)


def _body(values: Mapping[str, Any]) -> Any:
    """Return extra_body, which may be JSON as text: TOML has no null."""
    body = values.get("extra_body", {})
    try:
        return json.loads(body) if isinstance(body, str) else body
    except (ValueError, RecursionError):
        return None


def _key(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    return environ.get(str(values.get("api_key_env", KEY_VARIABLE)), "").strip()


def _endpoint(name: str, values: Mapping[str, Any], environ: Mapping[str, str]) -> PricedEndpoint:
    known = {field.name for field in fields(Endpoint)} - {
        "key",
        "base_url",
        "answer_only",
        "extra_body",
    }
    return PricedEndpoint(
        name,
        Endpoint(
            base_url=values["base_url"].rstrip("/"),
            key=_key(values, environ),
            **{field: value for field, value in values.items() if field in known},
            extra_body=_body(values),
        ),
        values.get("input_usd_per_million"),
        values.get("output_usd_per_million"),
    )
