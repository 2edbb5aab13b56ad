"""Restore the weights of the H100 run to the form of pretrained/, which merge and export read.

    python -m research.many_folders.restore --out DIR
    python -m training.weights.merge --pretrained DIR --out CHECKPOINT

The adapter is kept as int8 with a scale for each rank component, half the size of float16. The
product of its factors then differs by 1.1 % of its norm. RESULTS.md has the figures, and why
these weights are not the shipped ones.

Shapes: R rank, I inputs and O outputs of a matrix; lora_A (R, I), lora_B (O, R).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.bundle.types import Float32Array

KEPT = Path(__file__).parent / "weights_h100"
PRETRAINED = Path("pretrained")
SCALE = ".scale"


def read_adapter(file: Path) -> dict[str, Float32Array]:
    """Return the adapter's float32 matrices by name."""
    return adapter_of(load_file(file))


def adapter_of(arrays: Mapping[str, Any]) -> dict[str, Float32Array]:
    """Return the float32 matrices of int8 ones and their scales, by name."""
    return {
        name: array.astype(np.float32) * _as_factor(name, arrays[name + SCALE])
        for name, array in arrays.items()
        if ".lora_" in name and not name.endswith(SCALE)
    }


def _as_factor(name: str, scale: Float32Array) -> Float32Array:
    """Shape (R,) scales to multiply rows of lora_A or columns of lora_B."""
    return scale.astype(np.float32)[:, None] if ".lora_A." in name else scale.astype(np.float32)


def restore(out: Path, kept: Path = KEPT) -> None:
    """Write a folder like pretrained/ to `out`, with the catalog of the shipped candidates."""
    out.mkdir(parents=True, exist_ok=True)
    adapter = {k: v.astype(np.float16) for k, v in read_adapter(next(kept.glob("*int8*"))).items()}
    save_file(adapter, out / "adapter_model.safetensors")
    for name in ("adapter_config.json", "connector.safetensors", "model.json", "training_set.npz"):
        shutil.copyfile((kept if (kept / name).exists() else KEPT) / name, out / name)
    shutil.copyfile(PRETRAINED / "zoo.json", out / "zoo.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--kept", type=Path, default=KEPT, help="weights_h100 or weights_h100_2")
    arguments = parser.parse_args()
    restore(arguments.out, arguments.kept)
