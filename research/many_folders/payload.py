"""What travels to the device machine: the pack with a small vocabulary, and the weights as stored.

    python -m research.many_folders.payload --pack FILE --everyday FILE \
        --pretrained pretrained --out DIR

The base matrices travel as their GGUF file holds them (Q4_1; embeddings Q8_0, used ids alone), a
third of float16's bytes and exact. Leaves data.npz and weights.npz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engine.bundle.prompt import NO, YES
from engine.datasets.aptitude_test import AptitudeTest
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.registry.encoder import accuracy_weighted, keyword_vectors
from engine.registry.onnx_encoder import load_embedder
from research.many_folders.data.pack import pack_task_set, quantised
from research.many_folders.data.task_sets import task_sets
from research.many_folders.weights import RAW
from training.data.capability import _scale_of
from training.data.dataset import tokenize
from training.weights.adapter import load_pretrained
from training.weights.base import CACHE, fetch, single_token


def compact(arrays: dict[str, Any], extra: list[int]) -> np.ndarray[Any, Any]:
    """Rename the token ids of every folder to rows of the returned array of used ids."""
    names = [n for n in arrays if n.rsplit("/", 1)[-1] in ("tokens", "other_tokens")]
    used = np.unique(np.concatenate([*(arrays[n] for n in names), np.array(extra)]))
    for name in names:
        arrays[name] = np.searchsorted(used, arrays[name]).astype(np.uint16)
    return used.astype(np.int64)


def raw_weights(path: Path, layers: int, used: Any) -> dict[str, Any]:
    """The bytes of the first `layers` layers, the final norm and the embeddings of `used`."""
    import gguf

    found: dict[str, Any] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if tensor.name == "token_embd.weight":
            found[RAW + tensor.name] = np.array(tensor.data)[used]
        elif parts[0] == "output_norm" or (parts[0] == "blk" and int(parts[1]) < layers):
            found[RAW + tensor.name] = np.array(tensor.data)
    return found


def everyday_folder(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The prompts of a JSON file (train, test) as a folder without outcomes."""
    prompts = json.loads(path.read_text(encoding="utf-8"))
    texts = [*prompts["train"], *prompts["test"]]
    tokens = tokenize(texts, tokenizer)
    starts = np.cumsum([0, *(len(t) for t in tokens)])
    count = len(texts)
    return {
        "everyday/tokens": np.concatenate(tokens).astype(np.uint16),
        "everyday/starts": starts,
        "everyday/other_tokens": np.zeros(0, np.uint16),
        "everyday/other_starts": np.zeros(count + 1, np.int64),
        "everyday/scores": np.zeros((0, count), np.float16),
        "everyday/part": np.repeat([0, 2], [len(prompts["train"]), len(prompts["test"])]),
        "everyday/clean": np.ones(count, bool),
        "everyday/fresh": np.ones(count, bool),
        "everyday/vectors": np.zeros((count, 384), np.int8),
        "everyday/scale": np.ones((count, 1), np.float32),
        "everyday/measured": np.int64(0),
        "everyday/benchmark": np.zeros(count, np.int16),
        "everyday/task_sets": np.int64(0),
    }


def prose_folder(
    path: Path, embeddings: Path, tokenizer: Tokenizer, embed: Any, norms: Any
) -> dict[str, Any]:
    """The texts of research/many_folders/data/prose.py as a folder of task_sets alone."""
    listed = json.loads(path.read_text(encoding="utf-8"))
    texts = [text for _, text in listed]
    vectors = np.load(embeddings).astype(np.float32)
    count = len(texts)
    outcomes = Outcomes(
        "prose",
        texts,
        ["prose"] * count,
        [package for package, _ in listed],
        [],
        np.zeros((0, count), np.float32),
        AptitudeTest([], [], np.zeros((0, 0), np.float32), None),
    )
    arrays: dict[str, Any] = {}
    tokens = tokenize(texts, tokenizer)
    small, scale = quantised(vectors)
    found = task_sets(outcomes, None, vectors, np.ones(count, bool))
    for number, task_set in enumerate(found):
        pack_task_set(arrays, f"prose/test{number}", task_set, embed, norms)
    return arrays | {
        "prose/tokens": np.concatenate(tokens).astype(np.uint16),
        "prose/starts": np.cumsum([0, *(len(t) for t in tokens)]),
        "prose/other_tokens": np.zeros(0, np.uint16),
        "prose/other_starts": np.zeros(count + 1, np.int64),
        "prose/scores": np.zeros((0, count), np.float16),
        "prose/part": np.zeros(count, np.int8),
        "prose/clean": np.ones(count, bool),
        "prose/fresh": np.ones(count, bool),
        "prose/vectors": small,
        "prose/scale": scale,
        "prose/measured": np.int64(0),
        "prose/benchmark": np.zeros(count, np.int16),
        "prose/task_sets": np.int64(len(found)),
    }


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--everyday", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--prose-vectors", type=Path, required=True)
    parser.add_argument("--first", type=Path, required=True, help="the folder that sets the scale")
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    with np.load(arguments.pack) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= everyday_folder(arguments.everyday, tokenizer)
    shipped = load_pretrained(arguments.pretrained)
    embed = load_embedder(arguments.bundle)
    arrays |= prose_folder(
        arguments.prose, arguments.prose_vectors, tokenizer, embed, shipped.norms
    )
    meta = json.loads(str(arrays["meta"]))
    meta.append({"name": "prose", "candidates": [], "benchmarks": ["prose"]})
    meta.append({"name": "everyday", "candidates": [], "benchmarks": ["everyday"]})
    arrays["meta"] = np.array(json.dumps(meta))
    yes, no = single_token(tokenizer, YES), single_token(tokenizer, NO)
    used = compact(arrays, [yes, no])
    source = fetch(shipped.backbone, CACHE)
    weights = raw_weights(source, shipped.layers, used)
    outcomes = read_outcomes(arguments.first)
    vectors = keyword_vectors(embed(outcomes.test.keywords), shipped.norms.center)
    means = shipped.norms.of(outcomes.test.keywords)
    shift, scale = _scale_of(accuracy_weighted(outcomes.test.accuracies, means, vectors))
    weights |= {
        "shift": shift.astype(np.float32),
        "scale": scale.astype(np.float32),
        "center": shipped.norms.center,
        "connector_weight": shipped.connector.weight,
        "connector_bias": shipped.connector.bias,
        "calibration": np.array([shipped.calibration.scale, shipped.calibration.offset]),
        "yes_no": np.searchsorted(used, [yes, no]),
        "used": used,
        "layers": np.int64(shipped.layers),
        "lora_scale": np.float64(shipped.lora_scale),
    }
    weights |= {f"lora/{k}": v.astype(np.float16) for k, v in shipped.lora.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out / "data.npz", **arrays)
    np.savez(arguments.out / "weights.npz", **weights)
    print(f"{len(used)} token ids; shape scale {scale[0]:.4f}, level scale {scale[-1]:.4f}")


if __name__ == "__main__":
    main()
