"""Low-rank adapters as one operation a matrix (LoRA: Hu et al., 2021), in peft's own format.

peft's layer computes W x, B A x, their scaling and their sum as separate operations; on a CPU the
passes over memory cost what the saved weight gradient would have gained (docs/log.md). Here the
second product is added in place by the matrix multiplication itself.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from training.plan import Plan

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapt(backbone: Any, plan: Plan) -> Any:
    """`backbone` with what the plan tunes set to be trained: the matrices of its layers, or
    low-rank changes to them. Token embeddings and norms stay as they are."""
    if plan.tune == "full":
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in TARGETS)
        return backbone
    config = LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=TARGETS)
    model = get_peft_model(backbone, config)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.forward = _fused(module)
    return model


def _fused(module: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        low, high = module.lora_A["default"].weight, module.lora_B["default"].weight
        weight, scale = module.base_layer.weight, module.scaling["default"]
        device = x.device.type
        half = torch.is_autocast_enabled(device)  # in-place products are not cast by themselves
        kind = torch.get_autocast_dtype(device) if half else x.dtype
        parts = (part.to(kind) for part in (x.flatten(0, -2), weight, low, high))
        flat = Adapted.apply(*parts, scale)
        return flat.unflatten(0, x.shape[:-1])

    return forward


class Adapted(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed
    """y = x W' + s x A' B'. x (N, in), W (out, in) frozen, A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
        low = x @ a.T
        ctx.save_for_backward(x, w, a, b, low)
        ctx.scale = s
        return (x @ w.T).addmm_(low, b.T, alpha=s)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        x, w, a, b, low = ctx.saved_tensors
        high = g @ b
        dx = (g @ w).addmm_(high, a, alpha=ctx.scale)
        return dx, None, ctx.scale * (high.T @ x), ctx.scale * (g.T @ low), None
