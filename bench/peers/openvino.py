"""Time OpenVINO on the graph in standard operators, from an environment of its own.

`make openvino` installs that environment; without it the peer is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.peers import process
from bench.peers.process import MissingError, Peer
from engine.bundle.manifest import sha256_of
from tools.processes import ROOT

PYTHON = ROOT / ".venv-openvino" / "bin" / "python"
KEPT = ROOT / "build" / "openvino"  # quantized models, by the hash of their graph
NUMBERS: tuple[Literal["bf16", "int8"], ...] = ("bf16", "int8")


@contextmanager
def running(graph: Path, feeds: Path, number: str, threads: int) -> Iterator[Peer]:
    """Run OpenVINO with `graph` loaded in a number format. feeds: an .npz file of its inputs.

    Raises MissingError if there is no such environment, or if it fails.
    """
    if not PYTHON.is_file():
        raise MissingError("no .venv-openvino; `make openvino` makes it")
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{sha256_of(graph)[:16]}.xml"
    script = Path(__file__).with_name("openvino_child.py")
    # -P, or this module would be what the script imports as openvino.
    command = [
        str(PYTHON),
        "-P",
        *map(str, (script, graph, feeds)),
        number,
        str(threads),
        str(kept),
    ]
    with process.running(f"OpenVINO {number}", command) as peer:
        yield peer
