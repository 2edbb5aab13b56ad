"""The same forward pass in torch, and its matrix products alone by oneDNN, torch's library.

Imports torch, so baselines import it only if torch is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.roofline import Shape
from training.model.model import ModelSat, build
from training.weights.base import load_base

Call = Callable[[], object]


def forward(
    checkpoint: str,
    tokens: NDArray[np.int64],
    embeddings: NDArray[np.float32],
    *,
    half: bool,
    compiled: bool,
) -> Call:
    """Return a function that scores tokens (L,) with embeddings (M, D), candidates last.

    checkpoint: folder of the backbone. half: in bf16. compiled: by torch.compile, with weights
    packed beforehand; the first call compiles.
    """
    base = load_base(checkpoint)
    width = embeddings.shape[1]
    model = ModelSat(build(base, causal=True), torch.nn.Linear(1, width), base.tokenizer).eval()
    dtype = torch.bfloat16 if half else torch.float32
    model = model.to(dtype)
    inputs = (
        torch.from_numpy(tokens)[None],
        torch.tensor([len(tokens)]),
        torch.from_numpy(embeddings).to(dtype),
    )
    score: Any = model.margins
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        score = torch.compile(model.margins, dynamic=False)

    @torch.no_grad()
    def run() -> object:
        return score(*inputs)

    return run


def products(shape: Shape, rows: int, candidates: int, seen: int, number: str) -> Call:
    """Return a function that computes the products of a request by oneDNN, each with weights of its
    own that are packed beforehand.

    number: fp32, bf16 or int8. The products within attention are in bf16 for int8 too. See
    Shape.operations for the other arguments.
    """
    dtype = torch.float32 if number == "fp32" else torch.bfloat16
    calls: list[Call] = []
    for m, inputs, outputs in shape.linear(rows, candidates):
        weight = torch.randn(outputs, inputs) * inputs**-0.5
        calls.append(_int8(m, weight) if number == "int8" else _linear(m, weight.to(dtype)))
    heads, groups = shape.keys // shape.head, shape.width // shape.keys
    for layer in range(shape.layers):
        count = groups * (candidates if layer == shape.layers - 1 else rows)
        query = torch.randn(heads, count, shape.head, dtype=dtype)
        keys = torch.randn(heads, shape.head, seen, dtype=dtype)
        values = torch.randn(heads, seen, shape.head, dtype=dtype)
        calls.append(lambda q=query, k=keys, v=values: torch.bmm(torch.bmm(q, k), v))  # type: ignore[misc]

    @torch.no_grad()
    def run() -> None:
        for call in calls:
            call()

    return run


def _linear(rows: int, weight: torch.Tensor) -> Call:
    ops = torch.ops.mkldnn
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    packed = ops._reorder_linear_weight(weight, rows)
    return lambda: ops._linear_pointwise(x, packed, None, "none", [], "")


def _int8(rows: int, weight: torch.Tensor) -> Call:
    ops = torch.ops.onednn
    x = torch.randint(0, 255, (rows, weight.shape[1]), dtype=torch.uint8)
    scales = weight.abs().amax(1) / 127
    signed = (weight / scales[:, None]).round().to(torch.int8)
    packed = ops.qlinear_prepack(signed, [rows, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    fixed = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: ops.qlinear_pointwise(x, 0.1, 128, *fixed)
