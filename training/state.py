"""State of a training run: its weights and data, its checkpoints, its predictions.

accelerate places model and batches, so that the same script runs on one CPU, one GPU, or many
processes under torchrun or `accelerate launch` (DDP, FSDP, DeepSpeed).

Shapes: B instructions, M candidates.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from engine.api.errors import BundleError, InvalidInputError, ModelsatError, Violation
from engine.bundle.arrays import Connector, TaskNorms
from engine.bundle.manifest import Calibration
from engine.bundle.prompt import Tokenizer
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.outcomes import Outcomes, drop_candidates, read_outcomes, split
from training.config import TrainingConfig
from training.data.capability import Capabilities, new_connector
from training.data.dataset import Batch, Dataset, build_datasets
from training.model.lora import adapt
from training.model.model import ModelSat, TextEncoder, build
from training.model.precision import mixed_precision
from training.weights.adapter import Pretrained, load_pretrained
from training.weights.base import CACHE, Base, load_base
from training.weights.merge import fold

IDENTITY = Calibration(1.0, 0.0)
INITIAL_SPREAD = 0.4  # standard deviation of the first log-odds
STATE = "state"
DatasetBuilder = Callable[
    [Sequence[Outcomes], TextEncoder, Tokenizer, TaskNorms | None],
    tuple[Capabilities, Sequence[Dataset]],
]


@dataclass
class TrainState:
    """What a step reads and changes.

    init: the trained weights that the run started from, if any. start: applied to margins, so that
    the first predictions are near the base rate, or those of `init`. step: steps taken so far.
    """

    config: TrainingConfig
    model: Any
    datasets: list[Dataset]
    capability: Capabilities
    optimizer: Any
    accelerator: Accelerator
    init: Pretrained | None
    start: Calibration = IDENTITY
    step: int = 0

    @property
    def plain(self) -> ModelSat:
        """The model without accelerate's wrapper."""
        plain: ModelSat = self.accelerator.unwrap_model(self.model)
        return plain


def logits(run: TrainState, batch: Batch, c: Float32Array) -> Tensor:
    """Score candidates c (M, C) on `batch`; returns (B, M) margins, calibrated by run.start."""
    device = run.accelerator.device
    margins = run.model(
        torch.from_numpy(batch.tokens).to(device),
        torch.from_numpy(batch.lengths).to(device),
        torch.from_numpy(c).to(device),
    )
    return run.start.scale * margins.float() + run.start.offset


@torch.no_grad()
def predict(run: TrainState, dataset: Dataset, rows: Int64Array) -> Float32Array:
    """Predict (len(rows), M) log-odds, in the order of `rows`."""
    run.model.eval()
    position = {int(row): i for i, row in enumerate(rows)}
    result = np.zeros((len(rows), len(dataset.c)), dtype=np.float32)
    batches = dataset.batches(rows, run.config.batch_size, None, 0)
    quiet = not run.accelerator.is_main_process
    for batch in tqdm(batches, desc="predict", unit="batch", leave=False, disable=quiet):
        at = [position[int(r)] for r in batch.rows]
        result[at] = logits(run, batch, dataset.c).cpu().numpy()
    return result


def read_data(config: TrainingConfig) -> list[Outcomes]:
    """Read the data folders without the candidates and benchmarks that the settings leave out.

    Raises:
        InvalidInputError: lists the problems of every folder.
    """
    folders: list[Outcomes] = []
    problems: list[Violation] = []
    for folder in config.data:
        try:
            folders.append(_select(read_outcomes(Path(folder)), config))
        except InvalidInputError as error:
            problems += error.violations
    if problems := problems + _setting_problems(config) + _split_problems(folders, config):
        raise InvalidInputError(*problems)
    return folders


def _setting_problems(config: TrainingConfig) -> list[Violation]:
    problems = []
    names = [Path(folder).name for folder in config.data]
    if len(set(names)) < len(names):
        problems.append(
            Violation("--data", f"names the folders {names}; give each a different name.")
        )
    limits = len(config.instructions_per_epoch)
    if limits not in (1, len(names)):
        problems.append(
            Violation(
                "--instructions-per-epoch",
                f"has {limits} numbers for {len(names)} folders; expected one, or one each.",
            )
        )
    return problems


def _split_problems(folders: list[Outcomes], config: TrainingConfig) -> list[Violation]:
    """folders: those that could be read; only all of them can be said to lack validation rows."""
    problems = []
    splits = [split(outcomes.texts) for outcomes in folders]
    for outcomes, (training, _, _) in zip(folders, splits, strict=True):
        if not len(training):
            problems.append(
                Violation(
                    outcomes.name,
                    f"has {len(outcomes.texts)} instructions, none of them in the training part.",
                )
            )
    complete = len(folders) == len(config.data)
    if complete and not any(len(validation) for _, validation, _ in splits):
        problems.append(
            Violation(
                "--data",
                "has no instruction in the validation part (5 %), which calibration needs; a"
                " hundred instructions are usually enough.",
            )
        )
    return problems


def _select(outcomes: Outcomes, config: TrainingConfig) -> Outcomes:
    if config.benchmarks:
        rows = [i for i, b in enumerate(outcomes.benchmarks) if b in config.benchmarks]
        outcomes = outcomes.take(np.array(rows, dtype=np.int64))
    if config.exclude_candidates:
        pattern = re.compile(config.exclude_candidates, re.IGNORECASE)
        kept = [i for i, n in enumerate(outcomes.candidates) if not pattern.search(n)]
        outcomes = outcomes.take_candidates(np.array(kept, dtype=np.int64))
    if not outcomes.texts or not outcomes.candidates:
        raise InvalidInputError(
            Violation(outcomes.name, "nothing is left after --benchmarks and --exclude-candidates.")
        )
    return drop_candidates(outcomes)


def prepare(
    config: TrainingConfig,
    model_class: type[ModelSat] = ModelSat,
    build_data: DatasetBuilder = build_datasets,
) -> TrainState:
    """Load weights and data, build the optimizer, and restore a checkpoint if there is one.

    Args:
        config: the settings.
        model_class: replaced by research/ to train another layout.
        build_data: replaced by research/ to train another representation of the candidates.

    Raises:
        InvalidInputError: the data or settings have problems.
        BundleError: the base models or the initial weights do not fit.
        ModelsatError: output_dir holds a checkpoint of other settings.
    """
    torch.manual_seed(config.seed)
    state = find_state(config)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # else CPU processes under torchrun each train alone
        mixed_precision=state["precision"] if state else mixed_precision(config.precision),
    )
    outcomes = read_data(config)
    with accelerator.main_process_first():  # the first process downloads, the others read
        base = load_base(config.backbone, CACHE, config.layers)
        psi = load_base(config.encoder, CACHE)
    _require_family("backbone", base, "llama")
    _require_family("encoder", psi, "bert")
    init = load_init(config)
    norms = init.norms if init else None
    capability, datasets = build_data(outcomes, TextEncoder(psi), base.tokenizer, norms)
    backbone = adapt(build(init_backbone(base, init), causal=True), config)
    connector = (
        unfuse_standardization(init.connector, capability)
        if init
        else new_connector(datasets[0].c.shape[-1], backbone.get_input_embeddings().weight)
    )
    model = model_class(backbone, connector, base.tokenizer)
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": list(connector.parameters())}, {"params": trained}],
        weight_decay=0.01,
        fused=True,
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run = TrainState(config, prepared, list(datasets), capability, optimizer, accelerator, init)
    if state:
        accelerator.load_state(str(Path(config.output_dir) / STATE))
        run.step, run.start = state["step"], Calibration(**state["start"])
    return run


def _require_family(part: str, base: Base, family: str) -> None:
    """Refuse a model that could be trained and then not exported."""
    if base.config["model_type"] != family:
        raise BundleError(
            f"the {part} is of family {base.config['model_type']!r}; training and export support"
            f" {family!r} only."
        )


def initial_calibration(run: TrainState, batch: Batch) -> Calibration:
    """Calibrate margins so that the first predictions are close to the base rate.

    They spread by INITIAL_SPREAD around it. A trial that started elsewhere lost its first 100
    steps. Trained weights bring their own calibration.
    """
    if run.init:
        return run.init.calibration
    dataset = run.datasets[batch.dataset]
    with torch.no_grad():
        margins = logits(run, batch, dataset.c)
    rate = float(np.nanmean(dataset.outcomes.scores).clip(0.01, 0.99))
    scale = INITIAL_SPREAD / max(float(margins.std()), 1e-6)
    return Calibration(scale, float(np.log(rate / (1 - rate))) - scale * float(margins.mean()))


def save(run: TrainState) -> None:
    """Write a checkpoint, whole or not at all: accelerate's state, and what a step depends on."""
    folder = Path(run.config.output_dir) / STATE
    fresh = folder.with_suffix(".unfinished")
    run.accelerator.save_state(str(fresh))
    run.accelerator.wait_for_everyone()  # each process writes a part of it
    if run.accelerator.is_main_process:
        state = {
            "config": asdict(run.config),
            "precision": run.accelerator.mixed_precision,
            "step": run.step,
            "start": asdict(run.start),
        }
        (fresh / "run.json").write_text(json.dumps(state), encoding="utf-8")
        old = folder.with_suffix(".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # a kill may have left a part
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    run.accelerator.wait_for_everyone()


def find_state(config: TrainingConfig) -> dict[str, Any] | None:
    """Read the description of the last checkpoint; None if there is none.

    A run continues in the precision that it started with.

    Raises:
        ModelsatError: the checkpoint was made with other settings, or by version 0.1.
    """
    folder = Path(config.output_dir) / STATE
    old = folder.with_suffix(".old")
    if old.exists() and not folder.exists():  # killed between the two renames of save
        with contextlib.suppress(FileNotFoundError):  # another process of the run was first
            old.replace(folder)
    if not folder.exists():
        return None
    state: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if state.get("config") != json.loads(json.dumps(asdict(config))):
        raise ModelsatError(
            f"{folder} is a checkpoint of other settings; use another --output-dir, or remove it."
        )
    return state


MUST_MATCH = ("backbone", "encoder", "layers")


def load_init(config: TrainingConfig) -> Pretrained | None:
    """Load the weights that the run starts from; None if it starts from the base models.

    Raises:
        BundleError: they belong to another model, or cannot be trained further this way.
    """
    if not config.init_from:
        return None
    init = load_pretrained(Path(config.init_from))
    pairs = {k: (getattr(init, k), getattr(config, k)) for k in MUST_MATCH}
    differing = [f"{k} {a!r}, the settings {b!r}" for k, (a, b) in pairs.items() if a != b]
    if differing:
        raise BundleError(f"the weights in {config.init_from} have {'; '.join(differing)}.")
    if config.tuning != "full":
        raise BundleError(
            "--init-from needs --tuning full: the adapter is computed against the base weights."
        )
    return init


def init_backbone(base: Base, init: Pretrained | None) -> Base:
    """Fold the adapter of `init`, if any, into `base`."""
    if init is None:
        return base
    arrays = fold(base.arrays, init.lora, init.lora_scale)
    return Base(base.config, arrays, base.tokenizer)


def unfuse_standardization(connector: Connector, capability: Capabilities) -> nn.Linear:
    """Build the connector for standardized representations from the one for plain ones.

    The inverse of training.data.capability.fuse_standardization.
    """
    layer = nn.Linear(connector.weight.shape[1], connector.weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(connector.weight * capability.scale))
        layer.bias.copy_(torch.from_numpy(connector.bias + connector.weight @ capability.shift))
    return layer
