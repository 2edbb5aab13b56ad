"""Bearer tokens: a JSON file of hashes and roles, reloaded when it changes.

    {"tokens": [{"sha256": "<hex of the token's sha256>", "role": "route", "name": "gateway-1"}]}

A token is 256 random bits, so its plain hash keeps it secret. The file never holds a token.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.api.text_files import read_utf8
from engine.serving.auth.file_watch import ReloadedFiles

ROLES = ("route", "outcomes", "read", "admin")
MAX_NAME_CHARS = 100
NAME_RULE = f"must be 1 to {MAX_NAME_CHARS} printable characters, without blanks around them."
CHECK_INTERVAL_S = 1.0  # for changes of the file
SHA256 = re.compile(r"[0-9a-f]{64}")
# What `sha256sum` says of an empty variable, with and without a line break.
EMPTY_HASHES = tuple(hashlib.sha256(text).hexdigest() for text in (b"", b"\n"))
PREFIX = "modelsat_"  # lets scanners find leaked tokens


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
        raise InvalidInputError(Violation("--name", NAME_RULE))
    text = PREFIX + secrets.token_urlsafe(32)
    return text, Token(_sha256(text), role, name)


class TokenFile:
    """The tokens of a file, reloaded when it changes. Thread-safe.

    Raises InvalidInputError if the file is unusable at start. If it becomes unusable later, that is
    logged and counted, the previous tokens stay valid, and the file is tried again.
    """

    def __init__(self, path: Path) -> None:
        self.files = ReloadedFiles(
            "tokens file", [path], lambda: read_tokens(path), lambda t: f"{len(t)} tokens"
        )
        if not self.files.value:  # later it is how to lock every caller out
            raise _invalid(f"is {path}, which has no token; `modelsat token` makes an entry.")
        self._version = self.files.version
        self._verified: dict[str, Token] = {}  # sha256 -> token; no more than there are tokens
        self._checked = time.monotonic()
        self._lock = threading.Lock()

    def allows(self, token: Token, needed: Collection[str]) -> bool:
        """Whether the file still has an entry like `token`, with a role among `needed`."""
        return any(t.sha256 == token.sha256 and t.role in needed for t in self.files.value)

    def find(self, text: str) -> Token | None:
        """Return the entry of a token's text, None if the token is unknown."""
        digest = _sha256(text)
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= CHECK_INTERVAL_S:
                self._checked = now
                self.files.refresh()
            if self._version != self.files.version:
                self._version, self._verified = self.files.version, {}
            token = self._verified.get(digest)
            if token is None:
                token = _match(self.files.value, digest)
                if token is not None:
                    self._verified[digest] = token
            return token


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
        text = read_utf8(path, refuse_mark=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _invalid(f"is {path}, which cannot be read: {reason}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        # The error's text may quote the file, which may contain a token by mistake.
        reason = "it is not valid JSON"
        if isinstance(error, _RepeatedKeyError):
            reason = "a key appears twice in one object"
        raise _invalid(f"is {path}, which cannot be read: {reason}.") from None
    entries = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(entries, list) or len(content) != 1:
        raise _invalid(f'is {path}; expected an object {{"tokens": [...]}} in it, nothing else.')
    problems = [p for i, entry in enumerate(entries) for p in _problems(f"tokens[{i}]", entry)]
    if problems:
        raise InvalidInputError(*(Violation(f"{path}: {p.field}", p.description) for p in problems))
    tokens = tuple(Token(e["sha256"], e["role"], e["name"]) for e in entries)
    if len({t.sha256 for t in tokens}) < len(tokens):
        raise _invalid(f"is {path}, in which a sha256 appears twice.")
    return tokens


class _RepeatedKeyError(ValueError):
    """JSON takes the last of equal keys; of two roles, a reader may have meant the first."""


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise _RepeatedKeyError
    return dict(pairs)


def _invalid(problem: str) -> InvalidInputError:
    return InvalidInputError(Violation("--auth-tokens-file", problem))


def _problems(where: str, entry: Any) -> list[Violation]:
    """Check one entry. Never quotes a value, because it may be a token put in place of its hash."""
    keys = {"sha256", "role", "name"}
    if not isinstance(entry, dict) or set(entry) != keys:
        return [Violation(where, "must have exactly the keys sha256, role and name.")]
    problems = []
    digest, role = entry["sha256"], entry["role"]
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        problems.append(
            Violation(f"{where}.sha256", "must be 64 of 0-9 a-f; `modelsat token` makes an entry.")
        )
    elif digest in EMPTY_HASHES:
        problems.append(Violation(f"{where}.sha256", "is the hash of no text at all."))
    if not isinstance(role, str) or role not in ROLES:
        problems.append(Violation(f"{where}.role", f"must be one of {ROLES}."))
    if not _is_name(entry["name"]):
        problems.append(Violation(f"{where}.name", NAME_RULE))
    return problems


def _is_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and name == name.strip()
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
