"""Compute how embeddings of instructions are compared, and write it to the weights.

    python -m training.instruction_space --bundle artifacts/bundle --data DIR... --out pretrained

The mean and the axes come from folders of several kinds, because a memory of one kind, centered on
its own mean, could not tell that an instruction of another kind is far away. The axes are the first
principal ones, half whitened: on six unseen folders that raised the mean AUC after comparisons by
.004 over plain cosines (whole whitening by .003). Run it after a change of the weights, then `make
export`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from engine.api.errors import BundleError, ModelsatError
from engine.bundle.arrays import load_arrays
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.training_set import load_training_set, save_training_set
from engine.bundle.types import Float32Array
from engine.datasets.outcomes import read_outcomes
from engine.inference.backend import ScoringHead
from engine.inference.devices import open_backend
from training.fit_arguments import fit_parser

SEED = 0
AXES = 128
FLOOR = 0.1  # of the mean variance, added to every axis so that small ones are not blown up
NO_CANDIDATES = np.empty(0, dtype=np.int64)


def sample_texts(folders: Iterable[Path], count: int) -> list[str]:
    """Draw at most `count` instructions of each data folder, always the same ones."""
    texts: list[str] = []
    for folder in folders:
        every = read_outcomes(folder).texts
        order = np.random.default_rng(SEED).permutation(len(every))[:count]
        texts += [every[i] for i in order]
    return texts


def embed_instructions(bundle: Path, texts: Sequence[str]) -> Float32Array:
    """Embed instructions as a server with this bundle does: (N, D). Raises BundleError."""
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    backend = open_backend(bundle, manifest)
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    table = np.zeros((1, manifest.width), dtype=np.float32)

    prompts = [render(text, tokenizer).tokens for text in texts]
    rows = [
        backend.probabilities([tokens], table, NO_CANDIDATES, head).embeddings
        for tokens in track(prompts, "embed")
    ]
    return np.concatenate(rows)


def describe_space(embeddings: Float32Array, axes: int = AXES) -> InstructionSpace:
    """Compute mean and half-whitened principal axes of embeddings (N, D)."""
    mean = embeddings.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov((embeddings - mean).T))
    values, vectors = values[::-1][:axes], vectors[:, ::-1][:, :axes]
    scale = (values + FLOOR * values.mean()) ** -0.25
    # The sign of an eigenvector is arbitrary; cosines do not depend on it.
    return InstructionSpace(mean.astype(np.float32), (vectors * scale).astype(np.float32))


def main() -> None:
    """Parse the command line, compute the space and write it."""
    description = (__doc__ or "").splitlines()[0]
    parser = fit_parser(description, "texts", 400, "training_set.npz")
    arguments = parser.parse_args()
    known = load_training_set(arguments.out)
    if known is None:
        raise BundleError(f"{arguments.out} has no training_set.npz to add it to.")
    embeddings = embed_instructions(arguments.bundle, sample_texts(arguments.data, arguments.texts))
    space, bundled = describe_space(embeddings), load_training_set(arguments.bundle)
    weights = "" if bundled is None else bundled.weights
    known = replace(known, instruction_space=space, weights=weights)
    save_training_set(arguments.out, known)
    print(f"{len(embeddings)} instructions, {space.axes.shape[1]} axes")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
