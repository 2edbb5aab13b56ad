"""Read a file of candidates as plain values: JSON, TOML, or YAML if PyYAML is installed."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.api.text_files import read_utf8

STDIN = Path("-")
YAML_SUFFIXES = {".yaml", ".yml"}


def read_document(path: Path) -> Any:
    """Read a file by its suffix: .toml, .yaml or .yml; any other, and "-", which is the standard
    input, is JSON, TOML or YAML.

    Raises:
        InvalidInputError: it cannot be read, or has a key twice.
    """
    try:
        text = sys.stdin.read() if path == STDIN else read_utf8(path)
        if not text.strip():
            raise ValueError("it is empty")
        if path.suffix in YAML_SUFFIXES:
            return _yaml(text)
        if path.suffix == ".toml":
            return tomllib.loads(text)
        try:
            return json.loads(text, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError:
            if path.suffix == ".json":
                raise
            return _toml_or_yaml_or_json_error(text)
    except (OSError, ValueError, RecursionError) as error:
        form = {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}.get(path.suffix, "JSON")
        name = "standard input" if path == STDIN else str(path)
        reason = error.strerror if isinstance(error, OSError) else error
        problem = f"is not a readable {form} file ({reason})."
        raise InvalidInputError(Violation(name, problem)) from error


def _toml_or_yaml_or_json_error(text: str) -> Any:
    """Read TOML or YAML; raise the error of the JSON reader if it is neither."""
    for read in (tomllib.loads, _yaml):
        try:
            found = read(text)
        except ValueError:
            continue
        if not isinstance(found, str):  # any words are YAML
            return found
    return json.loads(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated[:80]!r} is there twice")
    return fields


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ValueError("PyYAML is not installed; install it, or write TOML or JSON") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            value_of = self.construct_object
            pairs = [(str(value_of(k, deep=True)), value_of(v, deep=True)) for k, v in node.value]
            return _without_repeats(pairs)

    # A date without quotes stays text, as in the other forms.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
