"""How far the served formats' probabilities are from fp32, and from those in other company.

On real instructions and the catalog's candidates. training.evaluation.evaluate says what it costs
in accuracy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.types import Int64Array
from engine.inference.backend import ScoringHead
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from tools.processes import BUNDLE

CANDIDATES = 20
INSTRUCTIONS = (
    "What is the capital of Australia?",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "A train leaves at 9:40 and arrives at 13:05. It stops for 12 minutes on the way. For how long"
    " does it move? Think step by step and give the answer in minutes.",
    "Translate into French: The meeting has been moved to Thursday because the room is taken.",
    "Which of these is a noble gas? (A) nitrogen (B) argon (C) chlorine (D) hydrogen",
    "Summarize in one sentence: " + "The council met again and did not agree on the bridge. " * 12,
    "Prove that the square root of 2 is irrational.",
    "hi",
)


def prompts() -> list[Int64Array]:
    """Return the tokens of INSTRUCTIONS, of 20 to 200 tokens each."""
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return [render(text, tokenizer).tokens for text in INSTRUCTIONS]


def differences(paths: dict[str, str], threads: int) -> dict[str, float]:
    """Return the largest differences in p.

    paths: path of the fused forward pass -> file of the bundle. Of each path: "NAME: p from fp32",
    and "NAME: p alone or in a batch".
    """
    manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
    encoder = load_encoder(BUNDLE, arrays)
    candidates = read_catalog(BUNDLE / "zoo.json")[:CANDIDATES]
    table = np.stack([encoder.encode(candidate) for candidate in candidates])
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    batch, rows = prompts(), np.arange(len(table))

    def scores(backend: OnnxBackend | FusedBackend, some: list[Int64Array]) -> NDArray[np.float32]:
        return backend.probabilities(some, table, rows, head).p

    exact = scores(OnnxBackend(BUNDLE / manifest.graphs["cpu-fp32"], threads), batch)
    found: dict[str, float] = {}
    for path, file in paths.items():
        backend = FusedBackend(BUNDLE / file, threads, [path])
        together = scores(backend, batch)
        alone = np.concatenate([scores(backend, [one]) for one in batch])
        found[f"{path}: p from fp32"] = float(np.abs(together - exact).max())
        found[f"{path}: p alone or in a batch"] = float(np.abs(together - alone).max())
    return found
