"""Trained weights to begin a run with: for another pass, or to tune the router on own outcomes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.contract.arrays import Connector
from engine.contract.errors import BundleError
from training.base import Base
from training.capability import Capabilities
from training.merge import fold
from training.plan import Plan
from training.pretrained import Pretrained, load_pretrained

SAME = ("backbone", "encoder", "layers", "layout", "representation")


def weights_of(plan: Plan) -> Pretrained | None:
    """What the plan begins with, None where with the base models alone. Raises BundleError where it
    belongs to another model."""
    if not plan.weights:
        return None
    found = load_pretrained(Path(plan.weights))
    differ = {k: (getattr(found, k), getattr(plan, k)) for k in SAME}
    wrong = [f"{k} {a!r}, the plan {b!r}" for k, (a, b) in differ.items() if a != b]
    if wrong:
        raise BundleError(f"the weights in {plan.weights} have {'; '.join(wrong)}.")
    if plan.tune != "full":
        raise BundleError("--weights needs --tune full: the change is cut from the base weights.")
    return found


def begun(base: Base, weights: Pretrained | None) -> Base:
    """`base` with the change folded in."""
    if weights is None:
        return base
    arrays = fold(base.arrays, weights.lora, weights.lora_scale)
    return Base(base.config, arrays, base.tokenizer)


def unfolded(connector: Connector, capability: Capabilities) -> nn.Linear:
    """The inverse of training.capability.folded: the connector for standardised representations."""
    layer = nn.Linear(connector.weight.shape[1], connector.weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(connector.weight * capability.scale))
        layer.bias.copy_(torch.from_numpy(connector.bias + connector.weight @ capability.shift))
    return layer
