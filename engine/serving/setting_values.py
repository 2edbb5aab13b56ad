"""Values of settings: from text of any source to their type, and refused where they are mistyped.

A mistyped value never turns a protection off: an empty path of tokens or certificates is refused,
because it comes from an unset variable more often than not. Messages do not quote secrets.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.registry.stores.location import location_problem, path_problem

ENVIRONMENT = "MODELSAT_"
# Variables of the command line, the clients and the tests.
NOT_SETTINGS = ("CONFIG", "SERVER", "TOKEN", "REQUIRE_KERNEL", "REQUIRE_TOOLS")
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
PROTECTIONS = ("auth_tokens_file", "tls_certificate", "tls_key", "tls_client_ca")
STORES = ("candidates_db", "outcomes_db")
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s/@:\[\]]+):([0-9]{1,5})")


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among environment variables, name -> text.

    A name that only differs in case from MODELSAT_ is kept whole, so that it is refused as unknown.
    """
    found = {}
    for variable, text in environ.items():
        if not variable.upper().startswith(ENVIRONMENT):
            continue
        name = variable.removeprefix(ENVIRONMENT)
        if name not in NOT_SETTINGS:
            found[name.lower() if name != variable else variable] = text
    return found


def parse(name: str, default: Any, raw: Any) -> Any:
    """Convert `raw` to the type of `default`; raises ValueError that says what was expected."""
    kind = type(default)
    text = str(raw).strip()
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"expected one of {sorted(BOOLEANS)}.")
        return BOOLEANS[text.lower()]
    if kind in (int, float):
        return _number(kind, raw, may_be_infinite=default == math.inf)
    if not isinstance(raw, str | Path):
        raise ValueError("expected text in quotes.")
    if isinstance(default, Path):
        return _path(name, text)
    if name in STORES and (problem := location_problem(text)):
        raise ValueError(problem)
    return text


def quotable(name: str, raw: Any) -> bool:
    """Whether a message may quote a value: not where it may hold a password."""
    return name not in STORES and not any(sign in str(raw) for sign in ("@", "://", "password"))


def address_problem(text: str) -> str:
    """Say what is wrong with the address HOST:PORT, "" if nothing is."""
    port = ADDRESS.fullmatch(text)
    if port is not None and int(port[1]) <= 65535:
        return ""
    said = repr(text) if quotable("", text) else "a URL"
    return f"is {said}; expected HOST:PORT, as 0.0.0.0:50051."


def is_loopback(address: str) -> bool:
    """Return True if only this machine can reach HOST:PORT."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _path(name: str, text: str) -> Path:
    if name == "last_table_file" and not text:
        return Path()  # turned off: the default is a file, and nothing is less protected without
    if problem := path_problem(text):
        raise ValueError(problem)
    if name in PROTECTIONS and not Path(text).name:
        raise ValueError("expected the path of a file; leave the setting out to go without.")
    return Path(text) if text else Path()


def _number(kind: type, raw: Any, *, may_be_infinite: bool = False) -> Any:
    words = f"expected {'a whole' if kind is int else 'a'} number."
    if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
        raise ValueError(words)
    try:
        number = kind(raw)
    except (TypeError, ValueError):
        raise ValueError(words) from None
    if math.isinf(number) and not may_be_infinite:
        raise ValueError(words)
    return number
