"""A run's adapter as a folder of the form of pretrained/, which merge and export read.

    python -m research.many_folders.export_adapter --name RUN --results DIR \
        --mean-of RUN... --runs FILE --pack FILE --everyday FILE --data DIR... --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from engine.bundle.arrays import Connector
from engine.bundle.manifest import Calibration
from engine.bundle.training_set import TrainingSet, describe, save_training_set
from engine.datasets.outcomes import fingerprint, read_outcomes, split
from training.data.dataset import tokenize
from training.model.lora import write_adapter
from training.weights.adapter import (
    ADAPTER,
    INT8_ADAPTER,
    dequantize,
    load_pretrained,
    save_pretrained,
)

FIGURES = {
    "rows": "instructions_tested",
    "auc": "pooled_auc",
    "within": "within_auc",
    "ece": "ece",
    "top_share": "top_share",
    "routed": "routed_accuracy",
    "constant": "best_constant_accuracy",
}


def found_in(path: Path, name: str) -> dict[str, Any]:
    """The result of a run."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return next(result for result in lines if result.get("name") == name)


def report_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Test figures by folder, by the names of model.json."""
    folders = {
        name: {to: parts["test"][key] for key, to in FIGURES.items()}
        for name, parts in result["folders"].items()
    }
    return {"datasets": folders}


def match_of(arrays: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The match's head, the temperature, and the factor of calibrated logits."""
    found: dict[str, Any] = {
        n: arrays[f"match/head.{n}"].astype(np.float16) for n in ("weight", "bias")
    }
    temperature, factor = (
        arrays[f"match/{n}"].astype(np.float32).reshape(1) for n in ("temperature", "factor")
    )
    return found | {"temperature": np.exp(temperature), "factor": scale * factor}


def known_to(
    data: list[Path],
    pack: Mapping[str, Any],
    everyday: Path,
    before: TrainingSet,
    tokenizer: Tokenizer,
) -> TrainingSet:
    """Fingerprints of every row outside of the test parts, and the tokens of training rows."""
    prints: list[int] = before.fingerprints.tolist()
    prompts = tokenize(json.loads(everyday.read_text(encoding="utf-8"))["train"], tokenizer)
    for folder in data:
        texts = read_outcomes(folder).texts
        training, validation, _ = split(texts)
        prints += [fingerprint(texts[i]) for i in (*training, *validation)]
        tokens, starts = pack[f"{folder.name}/tokens"], pack[f"{folder.name}/starts"]
        rows = np.flatnonzero(pack[f"{folder.name}/part"] == 0)
        prompts += [tokens[starts[r] : starts[r + 1]].astype(np.int64) for r in rows]
    return describe(prints, prompts, len(before.surprisal))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--mean-of", nargs="+", required=True, help="names of the averaged runs")
    parser.add_argument("--runs", type=Path, required=True, help="a file with their results")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--everyday", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    shipped = load_pretrained(arguments.pretrained)
    assert shipped.training_set is not None, "the weights that training began with name their rows"
    result = found_in(arguments.results / "results.jsonl", arguments.name)
    with np.load(arguments.results / f"{arguments.name}.npz") as file:
        arrays = {n: np.ascontiguousarray(file[n]) for n in file.files}
    int8 = {n: a for n, a in arrays.items() if ".lora_" in n}
    factors = {n: torch.from_numpy(a) for n, a in dequantize(int8).items()}
    weight, bias = (arrays[f"connector/{n}"].astype(np.float32) for n in ("weight", "bias"))
    connector = Connector(weight, bias)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_adapter(arguments.out, factors, result["rank"], shipped.backbone)
    (arguments.out / ADAPTER).unlink()  # its other form has half the size
    save_file(int8, arguments.out / INT8_ADAPTER)
    a, b = result["platt"]
    old = shipped.calibration
    config = {
        "backbone": shipped.backbone,
        "encoder": shipped.encoder,
        "layers": shipped.layers,
        "data": tuple(f.name for f in arguments.data),
        "rank": result["rank"],
        "mean_of": [found_in(arguments.runs, name)["config"] for name in arguments.mean_of],
    }
    calibration = Calibration(a * old.scale, a * old.offset + b)
    report = report_of(result)
    save_pretrained(arguments.out, config, connector, shipped.norms, calibration, report)
    before = shipped.training_set
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    with np.load(arguments.pack) as pack:
        known = known_to(arguments.data, pack, arguments.everyday, before, tokenizer)
    save_training_set(arguments.out, known)
    save_file(match_of(arrays, a), arguments.out / "match.safetensors")


if __name__ == "__main__":
    main()
