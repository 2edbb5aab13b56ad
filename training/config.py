"""Everything a training run depends on; stored in model.json."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from engine.api.errors import InvalidInputError, Violation
from training.weights.base import BACKBONE, ENCODER

Tune = Literal["full", "lora"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """The defaults are the recipe; training/configs/ has what its runs change of it.

    data: folders, the first one's candidates set the norms. benchmarks: train on these alone.
    without: candidates left out, by a regular expression. made: made candidates a step
    (training/data/augment.py). exact: share of the steps that show the figures as they are, others
    draw
    them anew. instructions: training rows an epoch, of each folder or of all, 0 = no
    limit; the next epoch takes the next ones. stronger: a candidate's outcomes weigh as its mean
    accuracy to this power, 0 = all alike. reworded: share of the instructions that a step puts as
    another harness would (training/data/reformat.py). weights: a folder of trained ones to begin
    with.
    """

    data: tuple[str, ...]
    out: str
    benchmarks: tuple[str, ...] = ()
    without: str = ""
    weights: str = ""
    backbone: str = BACKBONE
    encoder: str = ENCODER
    layers: int = 6
    tune: Tune = "full"
    rank: int = 64
    instructions: tuple[int, ...] = (0,)
    batch: int = 8
    connector_warmup_steps: int = 20
    epochs: int = 1
    made: int = 32
    exact: float = 0.5
    connector_lr: float = 1e-4
    backbone_lr: float = 2e-4
    across: float = 0.25
    within: float = 0.5
    stronger: float = 0.0
    reworded: float = 0.5
    precision: Precision = "auto"
    checkpoint_minutes: float = 4.0
    validate_every: int = 400
    seed: int = 0

    def limit(self, folder: int) -> int | None:
        """Training rows an epoch of the folder with this number; None where all are used."""
        several = len(self.instructions) > 1
        return (self.instructions[folder] if several else self.instructions[0]) or None


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
        elif field.name == "instructions":
            parser.add_argument(flag, nargs="+", type=int, default=field.default)
        elif field.name == "out":
            parser.add_argument(flag, required=True)
        elif get_origin(types[field.name]) is Literal:
            choices = get_args(types[field.name])
            parser.add_argument(flag, choices=choices, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    file = parser.parse_known_args(arguments)[0].plan
    if file:
        parser.set_defaults(**_read(file, kind))
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    del values["plan"]
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**frozen)


def _read(file: Path, kind: type[Plan]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if unknown := sorted(set(settings) - {f.name for f in fields(kind)}):
        raise InvalidInputError(Violation(str(file), f"has settings that no plan has: {unknown}."))
    return settings
