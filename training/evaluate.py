"""Score held-out rows through an exported bundle, the thing that is served.

    python -m training.evaluate --bundle artifacts/bundle --data DIR --out DIR

Writes report.json; the rows are those of training.data.split, which training never saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from cpp_ext import score
from engine.contract.arrays import load_arrays
from engine.contract.bundle import read_manifest
from engine.contract.candidate import Candidate, TaskResult
from engine.contract.errors import ModelsatError
from engine.registry.onnx_encoder import load_encoder
from engine.scoring.onnx_backend import OnnxBackend
from training import metrics
from training.data import Outcomes, batches, read_outcomes, split, tokenise

Floats = NDArray[np.float32]
BATCH = 8


def probabilities(bundle: Path, outcomes: Outcomes) -> Floats:
    """(N, M) probabilities of every instruction and candidate of `outcomes`."""
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    encoder = load_encoder(bundle, manifest, arrays)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokens = tokenise(outcomes.texts, tokenizer)
    embeddings = np.concatenate([encoder.encode(c) for c in candidates_of(outcomes)])
    backend = OnnxBackend(bundle / "backbone.onnx")
    p = np.empty((len(tokens), len(outcomes.candidates)), dtype=np.float32)
    work = batches(tokens, np.arange(len(tokens)), BATCH, seed=None)
    for batch in tqdm(work, desc="score", unit="batch"):
        p[batch.rows] = score(
            backend.hidden([tokens[r] for r in batch.rows], embeddings),
            arrays.readout,
            eps=manifest.norm_eps,
            scale=manifest.calibration.scale,
            offset=manifest.calibration.offset,
            variants=encoder.variants,
        )
    return p


def candidates_of(outcomes: Outcomes) -> list[Candidate]:
    """The data's candidates with their aptitude figures."""
    return [
        Candidate(
            f"c{i}",
            tuple(TaskResult(k, float(a)) for k, a in zip(outcomes.keywords, figures, strict=True)),
        )
        for i, figures in enumerate(outcomes.aptitude)
    ]


def evaluate(bundle: Path, data: Path) -> dict[str, float | int]:
    """The figures of the held-out rows of `data`; candidate_mean_* is the constant predictor."""
    outcomes = read_outcomes(data)
    train, _, test = split(outcomes.texts)
    held_out = outcomes.take(test)
    p = probabilities(bundle, held_out)
    return {
        "instructions": len(test),
        "candidates": len(outcomes.candidates),
        **metrics.report(p, held_out.scores.T, outcomes.scores[:, train].T),
    }


def main() -> None:
    """Parse the command line, evaluate, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = {"datasets": {d.name: evaluate(arguments.bundle, d) for d in arguments.data}}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, figures in report["datasets"].items():
        print(name)
        for label, value in figures.items():
            print(
                f"  {label:28}{value:10.4f}"
                if isinstance(value, float)
                else f"  {label:28}{value:10}"
            )
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
