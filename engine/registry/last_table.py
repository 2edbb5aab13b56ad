"""The last table on disk, with which a server starts while its database is away."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.candidate import from_json, to_json
from engine.api.errors import StoreError
from engine.registry.private_files import OWNER_ONLY
from engine.registry.stores.base import RevisionId, StoredTable
from engine.registry.table import Table

FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LastTableFile:
    """The file of one store's last table.

    store: identifies the store; encoder_id, width: of its embeddings. A table of another store or
    encoder is not read.
    """

    path: Path
    store: str
    encoder_id: str
    width: int

    def save(self, table: Table, decision_key: bytes) -> None:
        """Replace the file atomically; failures are logged, because routing does not need it."""
        content = {
            "format": FORMAT,
            "store": self.store,
            "encoder_id": self.encoder_id,
            "width": self.width,
            "id": astuple(table.id),
            "lineage": sorted(table.lineage.items()),
            "decision_key": decision_key.hex(),
            "candidates": [to_json(c) for c in table.candidates],
            "embeddings": base64.b64encode(table.embeddings.astype("<f4").tobytes()).decode(),
        }
        raw = json.dumps(content).encode()
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(unfinished, flags, OWNER_ONLY), "wb") as file:
                file.write(hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except OSError as error:
            log.warning("%s cannot be written (%s)", self.path, type(error).__name__)

    def load(self) -> tuple[StoredTable, bytes]:
        """Return the table and the key that signs decision IDs.

        Raises:
            StoreError: there is no such file, it is damaged, or another store's or encoder's.
        """
        try:
            digest, _, raw = self.path.read_bytes().partition(b"\n")
            if hashlib.sha256(raw).hexdigest().encode() != digest:
                raise StoreError(f"{self.path} is damaged.")
            content: dict[str, Any] = json.loads(raw)
            found = tuple(content[key] for key in ("format", "store", "encoder_id", "width"))
            if found != (FORMAT, self.store, self.encoder_id, self.width):
                raise StoreError(f"{self.path} is of another database, encoder or version.")
            rows = np.frombuffer(base64.b64decode(content["embeddings"]), dtype="<f4")
            candidates = [from_json(c) for c in content["candidates"]]
            stored = StoredTable(
                RevisionId(*content["id"]),
                {int(number): str(nonce) for number, nonce in content["lineage"]},
                list(zip(candidates, rows.reshape(-1, self.width).astype(np.float32), strict=True)),
            )
            return stored, bytes.fromhex(content["decision_key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path} cannot be read ({type(error).__name__}).") from error
