"""Bearer tokens: a JSON file of hashes and roles, read anew when it changes.

    {"tokens": [{"sha256": "<hex of the token's sha256>", "role": "route", "name": "gateway-1"}]}

A token is 256 random bits, so a plain hash of it keeps it secret; the file never holds one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.serving.auth.file_watch import file_fingerprint

ROLES = ("route", "read", "admin")
MAX_NAME_CHARS = 100
LOOK_EVERY_S = 1.0  # at the file's modification time
SHA256 = re.compile(r"[0-9a-f]{64}")
PREFIX = "modelsat_"  # what scanners for leaked secrets can look for
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """Who may do what. sha256: 64 lower-case hexadecimal digits; role: one of ROLES."""

    sha256: str
    role: str
    name: str


def new_token(role: str, name: str) -> tuple[str, Token]:
    """A fresh random token and what the file must hold of it. Raises InvalidInputError."""
    if not _is_name(name):
        raise InvalidInputError(Violation("--name", f"must be 1 to {MAX_NAME_CHARS} characters."))
    text = PREFIX + secrets.token_urlsafe(32)
    return text, Token(_sha256(text), role, name)


class TokenFile:
    """The tokens of a file, for any thread. Raises InvalidInputError where it cannot be used at the
    start; later a file that cannot is logged once, and the tokens before it stay."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fingerprint = file_fingerprint([path])
        self._tokens = read_tokens(path)
        self._verified: dict[str, Token] = {}  # sha256 -> token; no more than there are tokens
        self._looked = time.monotonic()
        self._lock = threading.Lock()

    def find(self, given: str) -> Token | None:
        """The token that `given` is, None where it is none."""
        digest = _sha256(given)
        with self._lock:
            self._reload_if_changed()
            found = self._verified.get(digest)
            if found is None:
                found = _match(self._tokens, digest)
                if found is not None:
                    self._verified[digest] = found
            return found

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        seen = file_fingerprint([self._path])
        if seen == self._fingerprint:
            return
        self._fingerprint = seen
        try:
            self._tokens = read_tokens(self._path)
        except InvalidInputError as error:
            log.error("the tokens stay as they were: %s", error)
            return
        self._verified = {}
        log.info("%d tokens read from %s", len(self._tokens), self._path)


def _match(tokens: Sequence[Token], digest: str) -> Token | None:
    """Compares with every token, in a time that tells nothing about them."""
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token
    return found


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Raises one InvalidInputError that lists everything that is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # The error's text may quote the file, which may hold a token by mistake.
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InvalidInputError(
            Violation("--auth-tokens-file", f"is {path}, which cannot be read: {why}.")
        ) from None
    entries = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InvalidInputError(
            Violation(
                "--auth-tokens-file", f'is {path}; expected an object {{"tokens": [...]}} in it.'
            )
        )
    problems = [p for i, entry in enumerate(entries) for p in _problems(f"tokens[{i}]", entry)]
    if problems:
        raise InvalidInputError(*(Violation(f"{path}: {p.field}", p.description) for p in problems))
    tokens = tuple(Token(e["sha256"], e["role"], e["name"]) for e in entries)
    if len({t.sha256 for t in tokens}) < len(tokens):
        raise InvalidInputError(
            Violation("--auth-tokens-file", f"is {path}, which has a sha256 twice.")
        )
    return tokens


def _problems(where: str, entry: Any) -> list[Violation]:
    """Never quotes a value: a token may have been put in the place of its hash."""
    keys = {"sha256", "role", "name"}
    if not isinstance(entry, dict) or set(entry) != keys:
        return [Violation(where, "must have exactly the keys sha256, role and name.")]
    problems = []
    if not SHA256.fullmatch(str(entry["sha256"])):
        problems.append(
            Violation(f"{where}.sha256", "must be 64 of 0-9 a-f; `modelsat token` makes an entry.")
        )
    if entry["role"] not in ROLES:
        problems.append(Violation(f"{where}.role", f"must be one of {ROLES}."))
    if not _is_name(entry["name"]):
        problems.append(Violation(f"{where}.name", f"must be 1 to {MAX_NAME_CHARS} characters."))
    return problems


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
