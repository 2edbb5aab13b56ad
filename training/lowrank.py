"""What a run changed, as a low-rank adapter in peft's format: small enough to ship.

A fully tuned run changes every matrix; the difference to the base weights is cut to the rank that
loses least (Eckart and Young, 1936). The run's figures are measured after the cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.lora import TARGETS
from training.pretrained import ADAPTER, ADAPTER_CONFIG

PREFIX = "base_model.model."


def cut(backbone: Any, base: dict[str, NDArray[np.float32]], rank: int) -> dict[str, torch.Tensor]:
    """Replace each tuned matrix of `backbone` by base + its change's best rank-`rank` part; returns
    these parts by peft's names, lora_A (rank, in) and lora_B (out, rank)."""
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
    """adapter_model.safetensors and adapter_config.json, as peft would read them."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    save_file(factors, folder / ADAPTER)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=TARGETS, base_model_name_or_path=base
    ).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(plain, indent=1, default=str, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
