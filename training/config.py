"""Settings of a training run: one dataclass, a flag for each field, stored in model.json."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from engine.api.errors import InvalidInputError, Violation
from training.weights.base import BACKBONE, ENCODER

Tuning = Literal["full", "lora"]
WarmupData = Literal["all", "first"]
Precision = Literal["auto", "float32", "bfloat16"]


def setting(default: Any, text: str) -> Any:
    """A field with a default and the help text of its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Each field's help says what it does.

    The defaults are the recipe; training/configs/ holds what its runs change of it.
    """

    data: tuple[str, ...] = field(
        metadata={"help": "data folders; the candidates of the first one set the task norms"}
    )
    output_dir: str = field(metadata={"help": "folder for adapter, metrics and checkpoints"})
    benchmarks: tuple[str, ...] = setting((), "train on instructions of these benchmarks only")
    exclude_candidates: str = setting(
        "", "leave out candidates whose name matches this regular expression"
    )
    init_from: str = setting("", "folder of an earlier run whose weights training starts from")
    backbone: str = setting(
        BACKBONE, "base model that scores: a Hugging Face id, a folder, or a .gguf file"
    )
    encoder: str = setting(
        ENCODER, "text encoder that embeds task keywords: a Hugging Face id or a folder"
    )
    layers: int = setting(6, "layers of the backbone that are kept, from the first")
    tuning: Tuning = setting(
        "full", "train the layers' matrices (full) or low-rank adapters of them (lora)"
    )
    lora_rank: int = setting(64, "rank of the adapter that is written")
    instructions_per_epoch: tuple[int, ...] = setting(
        (0,), "training instructions per epoch, one number for all folders or one each; 0: all"
    )
    batch_size: int = setting(8, "instructions per step")
    connector_warmup_steps: int = setting(20, "first steps that train the connector alone")
    connector_warmup_data: WarmupData = setting(
        "all", "folders of these steps: all of them mixed, or the first one alone"
    )
    epochs: int = setting(1, "passes; with a limit per epoch, each continues with other rows")
    synthetic_candidates: int = setting(
        32, "candidates composed of real ones that each step adds (training/data/augment.py)"
    )
    exact_accuracy_prob: float = setting(
        0.5, "share of steps that show measured accuracies; the others resample them"
    )
    connector_lr: float = setting(1e-4, "peak learning rate of the connector")
    backbone_lr: float = setting(2e-4, "peak learning rate of the backbone")
    bce_weight: float = setting(1.0, "weight of binary cross-entropy; 0: contrast alone")
    instruction_contrast_weight: float = setting(
        0.25, "weight of the loss that ranks instructions for each candidate"
    )
    candidate_contrast_weight: float = setting(
        0.5, "weight of the loss that ranks candidates for each instruction"
    )
    contrast_rivals: int = setting(
        0, "bad outcomes that a good one is compared with, drawn for each group; 0: all"
    )
    skill_weight_exponent: float = setting(
        0.0, "weigh a candidate's outcomes by its mean accuracy to this power; 0: all alike"
    )
    reformat_prob: float = setting(
        0.5, "share of instructions shown in the format of another evaluation harness"
    )
    precision: Precision = setting(
        "auto", "number type of the forward pass; auto takes the faster one of the device"
    )
    checkpoint_minutes: float = setting(4.0, "minutes between checkpoints")
    validate_every: int = setting(400, "steps between validations")
    seed: int = setting(0, "seed of all randomness; equal seeds repeat a run")

    def limit(self, folder: int) -> int | None:
        """Training rows per epoch of the folder with this number; None if all are used."""
        limits = self.instructions_per_epoch
        return (limits[folder] if len(limits) > 1 else limits[0]) or None


class _Adding(argparse.Action):
    """Add the values of a repeated flag; the first use replaces what --config sets."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See argparse.Action."""
        earlier = getattr(namespace, f"_{self.dest}", [])
        setattr(namespace, f"_{self.dest}", [*earlier, *values])
        setattr(namespace, self.dest, [*earlier, *values])


C = TypeVar("C", bound=TrainingConfig)


def parse_config(
    description: str | None, arguments: list[str] | None = None, *, kind: type[C]
) -> C:
    """Read the settings from the command line.

    There is a flag for each field of `kind`. --config names a JSON file, as in training/configs/,
    which sets what no flag sets.

    Raises:
        InvalidInputError: the file has a setting that `kind` does not have.
    """
    types = get_type_hints(kind)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file of settings")
    for option in fields(kind):
        words: dict[str, Any] = {"help": option.metadata["help"], "default": option.default}
        if option.name in ("data", "output_dir"):
            words |= {"required": True, "default": None}
        elif option.default not in ("", ()):
            words["help"] += " (%(default)s)"
        if get_origin(types[option.name]) is tuple:
            words |= {"nargs": "+", "type": get_args(types[option.name])[0]}
        elif get_origin(types[option.name]) is Literal:
            words["choices"] = get_args(types[option.name])
        else:
            words["type"] = types[option.name]
        if option.name == "data":
            words["action"] = _Adding
        parser.add_argument("--" + option.name.replace("_", "-"), **words)
    file = parser.parse_known_args(arguments)[0].config
    if file:
        parser.set_defaults(**_read(file, kind))
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    values = {k: v for k, v in values.items() if k != "config" and not k.startswith("_")}
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**frozen)


def _read(file: Path, kind: type[TrainingConfig]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    known = {option.name for option in fields(kind)}
    if unknown := sorted(set(settings) - known):
        raise InvalidInputError(
            Violation(
                str(file), f"has unknown settings {unknown}; expected some of {sorted(known)}."
            )
        )
    return settings
