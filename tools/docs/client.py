"""The Python client's page, from signatures and docstrings."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from engine.api import policy
from engine.client import aio, channel, requests
from engine.client import sync as sync_client

PUBLIC = (
    sync_client.Client,
    aio.AsyncClient,
    requests.Turn,
    policy.Policy,
    policy.Session,
    channel.Access,
    requests.ModelsatClientError,
)
HEAD = """# Python client

Made from the docstrings of engine/client/sync.py, engine/client/aio.py and what they take.
[Call it from your own code](../how-to/clients.md) shows them in use.

"""


def page() -> str:
    """A section for each class, its own public methods with it."""
    return HEAD + "\n".join(_class(found) for found in PUBLIC)


def _class(found: type[Any]) -> str:
    parts = [f"## {found.__name__}\n", f"`from {found.__module__} import {found.__name__}`\n"]
    if is_dataclass(found) or "__init__" in vars(found):
        parts.append(_signature(found.__name__, found))
    parts.append(_text(found))
    for name, member in vars(found).items():
        if name.startswith("_") or not inspect.isfunction(member):
            continue
        word = "await " if inspect.iscoroutinefunction(member) else ""
        parts += [f"### {found.__name__}.{name}\n", _signature(word + name, member), _text(member)]
    return "\n".join(parts)


def _signature(name: str, found: Any) -> str:
    signature = inspect.signature(found)
    own = [p for p in signature.parameters.values() if p.name != "self"]
    lines = "".join(f"    {one},\n" for one in _with_markers(own))
    result = signature.return_annotation
    arrow = f" -> {result}" if isinstance(result, str) and not inspect.isclass(found) else ""
    return f"```python\n{name}({chr(10) + lines if lines else ''}){arrow}\n```\n"


def _with_markers(parameters: list[inspect.Parameter]) -> list[str]:
    """Parameters as they are written, with the star before those that need their name."""
    shown: list[str] = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        default = "" if one.default is one.empty else f" = {_default(one.default)}"
        shown.append(f"{one.name}: {one.annotation}{default}")
    return shown


def _default(value: Any) -> str:
    """As it would be written: Policy(), not all that is in one."""
    if isinstance(value, Path):
        return f"Path({str(value)!r})" if value.name else "Path()"
    kind: Any = type(value)
    if is_dataclass(value) and value == kind():
        return f"{kind.__name__}()"
    return repr(value)


def _text(found: Any) -> str:
    return (inspect.getdoc(found) or "") + "\n"
