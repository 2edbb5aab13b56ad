"""Scores of finished chunks on disk, found again by what they were computed from.

So an unbroken run, one that was killed and goes on, and a later one with other policies are the
same to it. No text is kept: a chunk is known by a hash.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.contract.prompt import PROMPT_VERSION
from engine.replay.scoring import Plan, Scores


class Checkpoint:
    """The folder of one or more replays; written by one process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shape = len(plan.table.candidates)
        made_by = (PROMPT_VERSION, plan.manifest_hash, plan.table.embeddings.shape)
        self._origin = hashlib.sha256(repr(made_by).encode())
        self._origin.update(plan.table.embeddings.tobytes())

    def key(self, instructions: Sequence[tuple[str, int]]) -> str:
        """Names the scores of these (text, context_chars)."""
        digest = self._origin.copy()
        for text, context_chars in instructions:
            encoded = text.encode()
            digest.update(b"%d %d " % (len(encoded), context_chars))
            digest.update(encoded)
        return digest.hexdigest()[:32]

    def load(self, key: str, rows: int) -> Scores | None:
        """The scores of `key`; None where they are not here whole."""
        try:
            with self._path(key).open("rb") as raw, np.load(raw) as file:
                found = Scores(file["p"], file["input_tokens"], file["unlikeness"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return found if found.p.shape == (rows, self._shape) else None

    def save(self, key: str, scores: Scores) -> None:
        """Whole or not at all."""
        path = self._path(key)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **vars(scores))
        part.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"
