"""Decision IDs that no caller can guess or invent, bound to the caller who asked.

An ID is 32 hexadecimal digits: 8 random bytes, 4 that only servers of this store can compute from
them, and 4 that depend on the caller as well. Without the store's key, none of its 128 bits can be
predicted. An ID that a caller learned from another's log or header does not pass as the caller's
own. Servers that share a store accept each other's IDs, and none has to remember them.
"""

from __future__ import annotations

import hmac
import secrets

from engine.api.request_context import PRINCIPAL

NONCE, MARK = 16, 8  # hexadecimal digits


class DecisionIds:
    """Makes and recognizes the IDs of one store. key: secret of the store, 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self) -> str:
        """Return a new ID for the caller of this task."""
        nonce = secrets.token_hex(NONCE // 2)
        return nonce + self._mark(nonce) + self._mark(nonce, PRINCIPAL.get())

    def is_ours(self, identifier: str) -> bool:
        """Whether a server of this store made the ID, for whomever."""
        nonce, mark = identifier[:NONCE], identifier[NONCE : NONCE + MARK]
        return hmac.compare_digest(self._mark(nonce), mark)

    def is_of(self, identifier: str, principal: str) -> bool:
        """Whether a server of this store made the ID for `principal`."""
        mark = self._mark(identifier[:NONCE], principal)
        return self.is_ours(identifier) & hmac.compare_digest(mark, identifier[NONCE + MARK :])

    def of_text(self, text: str, principal: str) -> str:
        """Return what stands for a decision ID where `principal` reports on a text that was not
        routed here: the same for the same text, and a secret to everyone without the key."""
        content = "\0".join((principal, text)).encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, b"text\0" + content, "sha256").hex()[: 2 * NONCE]

    def _mark(self, nonce: str, principal: str | None = None) -> str:
        """Return what only servers of this store can compute: for a caller, or for all of them."""
        message = b"decision\0" + nonce.encode()
        if principal is not None:
            message = b"caller\0" + nonce.encode() + principal.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, "sha256").hex()[:MARK]
