"""Everything a training run depends on; stored in model.json."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from engine.api.errors import InvalidInputError, Violation
from training.weights.base import BACKBONE, ENCODER

Tuning = Literal["full", "lora"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """The defaults are the recipe; training/configs/ has what its runs change of it.

    data: folders, the first one's candidates set the norms. benchmarks: train on these alone.
    exclude_candidates: regular expression of candidates left out. synthetic_candidates: how many a
    step adds (training/data/augment.py). exact_accuracy_prob: share of the steps that show the
    measured accuracies, the others resample them. instructions_per_epoch: training rows an epoch,
    of each folder or of all, 0 = no limit; the next epoch takes the next ones.
    skill_weight_exponent: a candidate's outcomes weigh as its mean accuracy to this power, 0 = all
    alike. reformat_prob: share of the instructions that a step shows in another harness's format
    (training/data/reformat.py). init_from: a folder of trained weights to start from.
    """

    data: tuple[str, ...]
    output_dir: str
    benchmarks: tuple[str, ...] = ()
    exclude_candidates: str = ""
    init_from: str = ""
    backbone: str = BACKBONE
    encoder: str = ENCODER
    layers: int = 6
    tuning: Tuning = "full"
    lora_rank: int = 64
    instructions_per_epoch: tuple[int, ...] = (0,)
    batch_size: int = 8
    connector_warmup_steps: int = 20
    epochs: int = 1
    synthetic_candidates: int = 32
    exact_accuracy_prob: float = 0.5
    connector_lr: float = 1e-4
    backbone_lr: float = 2e-4
    instruction_contrast_weight: float = 0.25
    candidate_contrast_weight: float = 0.5
    skill_weight_exponent: float = 0.0
    reformat_prob: float = 0.5
    precision: Precision = "auto"
    checkpoint_minutes: float = 4.0
    validate_every: int = 400
    seed: int = 0

    def limit(self, folder: int) -> int | None:
        """Training rows an epoch of the folder with this number; None where all are used."""
        several = len(self.instructions_per_epoch) > 1
        return (
            self.instructions_per_epoch[folder] if several else self.instructions_per_epoch[0]
        ) or None


P = TypeVar("P", bound=Plan)


def parse_plan(description: str | None, arguments: list[str] | None = None, *, kind: type[P]) -> P:
    """Read the settings from the command line: a flag for each field of `kind`, and --config for a
    JSON file, as in training/configs/, that sets what no flag does.

    Raises:
        InvalidInputError: the file has a setting that `kind` does not have.
    """
    types = get_type_hints(kind)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="a JSON file of settings")
    for field in fields(kind):
        flag = "--" + field.name.replace("_", "-")
        if field.name in ("data", "benchmarks"):
            parser.add_argument(flag, nargs="+", default=(), required=field.name == "data")
        elif field.name == "instructions_per_epoch":
            parser.add_argument(flag, nargs="+", type=int, default=field.default)
        elif field.name == "output_dir":
            parser.add_argument(flag, required=True)
        elif get_origin(types[field.name]) is Literal:
            choices = get_args(types[field.name])
            parser.add_argument(flag, choices=choices, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    file = parser.parse_known_args(arguments)[0].config
    if file:
        parser.set_defaults(**_read(file, kind))
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    del values["config"]
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**frozen)


def _read(file: Path, kind: type[Plan]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if unknown := sorted(set(settings) - {f.name for f in fields(kind)}):
        raise InvalidInputError(Violation(str(file), f"has settings that no plan has: {unknown}."))
    return settings
