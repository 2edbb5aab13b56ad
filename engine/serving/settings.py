"""What the server is told at start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """address: HOST:PORT, port 0 takes a free one. threads: 0 means one per core."""

    bundle: Path = Path("artifacts/bundle")
    address: str = "127.0.0.1:50051"
    store: Path = Path("artifacts/candidates.sqlite")
    threads: int = 0
    max_waiting: int = 256
    max_text_bytes: int = 512 * 1024
    reembed: bool = False
