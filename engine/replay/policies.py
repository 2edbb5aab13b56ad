"""Read named policies from --policy NAME=FIELD=VALUE,... or from a TOML file.

The fields are those of the API's Policy (proto/router_service.proto).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy
from engine.api.proto import policy_from
from engine.api.text_files import read_utf8
from engine.pb import router_service_pb2
from engine.registry.table import Table
from engine.routing.eligibility import validate_policy

DEFAULT = {"default": Policy()}  # what Route does without a policy
# Fields that hold candidate names, with or without the prefix.
NAME_FIELDS = ("allowed_candidates", "denied_candidates", "default_candidate")
FIELDS = {
    f.name: f.is_repeated
    for f in router_service_pb2.Policy.DESCRIPTOR.fields
    if f.name != "ranking_size"  # the replay needs no ranking
}


def read_policies(specs: Sequence[str], file: Path | None, table: Table) -> dict[str, Policy]:
    """Read all policies, those of `file` first; the API's default policy if there is none.

    Raises:
        InvalidInputError: names the policy and the field that is wrong.
    """
    raw = {} if file is None else _toml(file)
    for spec in specs:
        name, _, rest = spec.partition("=")
        if not name or name in raw:
            raise InvalidInputError(
                Violation(
                    "--policy", f"is {spec!r}; expected NAME=FIELD=VALUE,... with a new NAME."
                )
            )
        raw[name] = _fields(name, rest)
    return {name: _policy(name, fields, table) for name, fields in raw.items()} or DEFAULT


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_utf8(file))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            Violation(str(file), f"is not a readable TOML file ({error}).")
        ) from error


def _fields(name: str, spec: str) -> dict[str, Any]:
    """Parse budget_usd=0.3,denied_candidates=a,denied_candidates=b.

    A field with several values is repeated.
    """
    fields: dict[str, Any] = {}
    for pair in filter(None, spec.split(",")):
        key, _, value = pair.partition("=")
        if FIELDS.get(key):
            fields.setdefault(key, []).append(value)
        elif key in fields:
            raise InvalidInputError(Violation(f"policy {name}", f"sets {key} twice."))
        else:
            fields[key] = value
    return fields


def _policy(name: str, fields: Any, table: Table) -> Policy:
    at = f"policy {name}"
    if not isinstance(fields, Mapping):
        raise InvalidInputError(
            Violation(at, "is not a table; expected [NAME] and fields under it.")
        )
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise InvalidInputError(
            Violation(at, f"has unknown fields {unknown}; expected {', '.join(FIELDS)}.")
        )
    named = {k: _with_prefix(v) if k in NAME_FIELDS else v for k, v in fields.items()}
    try:
        policy = policy_from(json_format.ParseDict(named, router_service_pb2.Policy()))
        validate_policy(policy, table)
    except json_format.ParseError as error:
        raise InvalidInputError(Violation(at, f"cannot be read: {error}")) from error
    except InvalidInputError as error:
        raise InvalidInputError(
            *(Violation(f"{at}, {v.field}", v.description) for v in error.violations)
        ) from error
    return policy


def _with_prefix(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_prefix(item) for item in value]
    return NAME_PREFIX + value.removeprefix(NAME_PREFIX) if isinstance(value, str) else value
