"""Low-rank adapters as one operation per matrix (LoRA: Hu et al., 2021), in peft's format.

peft's layer computes W x, B A x, their scaling and their sum as separate operations; on a CPU the
passes over memory cost what the saved weight gradient would have gained (docs/log.md). Here the
second product is added in place by the matrix multiplication itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor

from training.config import TrainingConfig
from training.weights.adapter import ADAPTER, ADAPTER_CONFIG

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapt(backbone: Any, config: TrainingConfig) -> Any:
    """Set up what is trained: the matrices of the layers, or low-rank adapters of them.

    Token embeddings and norms stay frozen. Returns the backbone, with adapters if there are any.
    """
    if config.tuning == "full":
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in TARGETS)
        return backbone
    rank = config.lora_rank
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
    model = get_peft_model(backbone, adapters)
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
    """Compute y = x W' + s x A' B'; x (N, in), W (out, in) frozen, A (r, in), B (out, r)."""

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


PREFIX = "base_model.model."


def truncate_to_rank(
    backbone: Any, base: dict[str, NDArray[np.float32]], rank: int
) -> dict[str, torch.Tensor]:
    """Replace each trained matrix by its base plus the best rank-`rank` part of its change.

    Returns:
        These parts by peft's names: lora_A (rank, in) and lora_B (out, rank), in half precision.
    """
    factors = {}
    for name, parameter in backbone.named_parameters():
        if name.split(".")[-2] not in TARGETS:
            continue
        before = torch.from_numpy(base[name])
        u, s, v = torch.linalg.svd(parameter.detach().cpu().float() - before, full_matrices=False)
        root = s[:rank].sqrt()
        high, low = u[:, :rank] * root, root[:, None] * v[:rank]
        module = PREFIX + name.removesuffix(".weight")
        factors[f"{module}.lora_A.weight"] = low.half().float().contiguous()
        factors[f"{module}.lora_B.weight"] = high.half().float().contiguous()
        with torch.no_grad():
            change = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
            parameter.copy_(before + change)
    return factors


def write_adapter(folder: Path, factors: dict[str, torch.Tensor], rank: int, base: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as peft reads them."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    save_file(factors, folder / ADAPTER)
    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=TARGETS, base_model_name_or_path=base
    ).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    text = json.dumps(plain, indent=1, default=str, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
