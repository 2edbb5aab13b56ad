"""Griffe extension: show the `Example:` sections of docstrings as Python code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Examples?:\n((?:[ ]{4}.*(?:\n|\Z)|\n)+)", re.MULTILINE)


class ExampleExtension(griffe.Extension):
    """Put the content of each example section into a fenced block."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(section: re.Match[str]) -> str:
    return f"Examples:\n    ```python\n{section[1].rstrip()}\n    ```\n\n"
