"""What the server is told at start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.contract.bundle import Device
from engine.contract.errors import InvalidInputError, Violation

# A table of 1,000 candidates with 50 tasks of 300 characters is 16 MB.
MAX_MESSAGE_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """address: HOST:PORT, port 0 takes a free one. threads: 0 means one per core."""

    bundle: Path = Path("artifacts/bundle")
    address: str = "127.0.0.1:50051"
    store: Path = Path("artifacts/candidates.sqlite")
    device: Device | Literal["auto"] = "auto"
    threads: int = 0
    max_waiting: int = 256
    cache_mb: int = 16
    max_text_bytes: int = 512 * 1024
    reembed: bool = False

    def check(self) -> None:
        """Raise one InvalidInputError that lists every wrong value."""
        bounds = {
            "threads": (0, 1024),
            "max_waiting": (1, 100_000),
            "cache_mb": (0, 1_000_000),
            "max_text_bytes": (1, MAX_MESSAGE_BYTES),
        }
        problems = [
            Violation(_flag(name), f"is {getattr(self, name)}; expected {low} to {high}.")
            for name, (low, high) in bounds.items()
            if not low <= getattr(self, name) <= high
        ]
        port = re.fullmatch(r".+:(\d{1,5})", self.address)
        if port is None or int(port[1]) > 65535:
            problems.append(
                Violation(
                    "--address", f"is {self.address!r}; expected HOST:PORT, as 0.0.0.0:50051."
                )
            )
        if problems:
            raise InvalidInputError(*problems)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
