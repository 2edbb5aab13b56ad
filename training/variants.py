"""What the ablations compare: the protocol's plan, changed in one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.representations import Represent, bare, pieces, truncated, weighted

COMMON: dict[str, Any] = {
    "benchmarks": ("mmlu_pro",),
    "without": "qwen|gemini|phi|jamba|command-r|mathstral",
    "validate_every": 10**9,
}


@dataclass(frozen=True)
class Variant:
    """plan: settings that differ. represent: other representations, fixed through training.
    sampled: candidates that a step shows, 0 = all. teacher: a variant whose probabilities are half
    of what a step aims at. blank: no pretrained backbone."""

    plan: dict[str, Any] = field(default_factory=dict)
    represent: tuple[Represent, ...] = ()
    sampled: int = 0
    teacher: str = ""
    blank: bool = False


REAL = {"made": 0}
VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "another seed": Variant({"seed": 1}),
    "depth 3": Variant({"layers": 3}),
    "depth 12": Variant({"layers": 12}),
    "depth 30": Variant({"layers": 30}),
    "teacher: depth 12": Variant(teacher="depth 12"),
    "teacher: depth 30": Variant(teacher="depth 30"),
    "weights: not pretrained": Variant(blank=True),
    "tuned: half the rate": Variant({"backbone_lr": 1e-4}),
    "tuned: adapter of rank 64": Variant({"tune": "lora", "backbone_lr": 5e-4}),
    "loss: bce alone": Variant({"across": 0.0, "within": 0.0}),
    "loss: bce + within": Variant({"across": 0.0}),
    "loss: bce + across": Variant({"within": 0.0}),
    "loss: stronger candidates weigh more": Variant({"stronger": 1.0}),
    "candidates: none made": Variant(REAL),
    "candidates: nine made": Variant({"made": 9}),
    "candidates: figures always redrawn": Variant({"exact": 0.0}),
    "instructions: never reworded": Variant({"reworded": 0.0}),
    "size: 500": Variant({"instructions": (500,)}),
    "size: 3,000": Variant({"instructions": (3000,)}),
    "size: each twice": Variant({"epochs": 2}),
    "layout: candidate last, 4 sampled": Variant(REAL, sampled=4),
    "layout: capability first, 4 sampled": Variant(
        REAL | {"layout": "capability_first"}, sampled=4
    ),
    "c: weighted figures": Variant(REAL, (weighted,)),
    "c: bare figures": Variant(REAL, (bare,)),
    "c: text in pieces": Variant(REAL, (pieces,)),
    "c: text truncated": Variant(REAL, (truncated,)),
    "c: weighted figures and text": Variant(REAL, (weighted, pieces)),
}
