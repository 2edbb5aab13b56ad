"""Whether the files of an open SQLite database still have their names: SQLite would go on writing
into one that was moved or removed, and what it acknowledged would be lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.contract.errors import StoreError


def inodes(path: Path) -> dict[Path, int]:
    """Of the open database `path` and its log, for check_inodes."""
    files = (path, path.with_name(path.name + "-wal"))
    return {file: file.stat().st_ino for file in files if file.exists()}


def check_inodes(known: Mapping[Path, int], remedy: str) -> None:
    """Call it before COMMIT. Raises StoreError, which ends with `remedy`, where a file is gone or
    another one has its name."""
    for file, inode in known.items():
        if not file.exists() or file.stat().st_ino != inode:
            raise StoreError(f"{file} was removed or replaced while the server ran; {remedy}.")
