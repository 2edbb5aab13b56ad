"""Bearer tokens: a JSON file of hashes and roles, reloaded when it changes.

    {"tokens": [{"sha256": "<hex of the token's sha256>", "role": "route", "name": "gateway-1"}]}

A token is 256 random bits, so its plain hash keeps it secret. The file never holds a token.
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
CHECK_INTERVAL_S = 1.0  # for changes of the file
SHA256 = re.compile(r"[0-9a-f]{64}")
PREFIX = "modelsat_"  # lets scanners find leaked tokens
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """An entry of the file. sha256: 64 lower-case hexadecimal digits. role: one of ROLES. name: of
    its owner."""

    sha256: str
    role: str
    name: str


def new_token(role: str, name: str) -> tuple[str, Token]:
    """Return a new random token, and its entry for the tokens file.

    Raises:
        InvalidInputError: the name is too long or not printable.
    """
    if not _is_name(name):
        raise InvalidInputError(Violation("--name", f"must be 1 to {MAX_NAME_CHARS} characters."))
    text = PREFIX + secrets.token_urlsafe(32)
    return text, Token(_sha256(text), role, name)


class TokenFile:
    """The tokens of a file. Thread-safe.

    Raises InvalidInputError if the file is unusable at start. If it becomes unusable later, that is
    logged once and the previous tokens stay valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fingerprint = file_fingerprint([path])
        self._tokens = read_tokens(path)
        self._verified: dict[str, Token] = {}  # sha256 -> token; no more than there are tokens
        self._checked = time.monotonic()
        self._lock = threading.Lock()

    def find(self, text: str) -> Token | None:
        """Return the entry of a token's text, None if the token is unknown."""
        digest = _sha256(text)
        with self._lock:
            self._reload_if_changed()
            token = self._verified.get(digest)
            if token is None:
                token = _match(self._tokens, digest)
                if token is not None:
                    self._verified[digest] = token
            return token

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._checked < CHECK_INTERVAL_S:
            return
        self._checked = now
        fingerprint = file_fingerprint([self._path])
        if fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        try:
            self._tokens = read_tokens(self._path)
        except InvalidInputError as error:
            log.error("could not reload tokens file, keeping previous tokens: %s", error)
            return
        self._verified = {}
        log.info("loaded %d tokens from %s", len(self._tokens), self._path)


def _match(tokens: Sequence[Token], digest: str) -> Token | None:
    """Compare with every token, in constant time."""
    match = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            match = token
    return match


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read a tokens file; raises one InvalidInputError that lists all its problems."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # The error's text may quote the file, which may contain a token by mistake.
        reason = error.strerror if isinstance(error, OSError) else "it is not valid JSON"
        raise InvalidInputError(
            Violation("--auth-tokens-file", f"is {path}, which cannot be read: {reason}.")
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
            Violation("--auth-tokens-file", f"is {path}, in which a sha256 appears twice.")
        )
    return tokens


def _problems(where: str, entry: Any) -> list[Violation]:
    """Check one entry. Never quotes a value, because it may be a token put in place of its hash."""
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
