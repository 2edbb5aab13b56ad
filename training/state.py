"""A training run: what a step reads and changes, its checkpoints, its predictions.

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
from engine.datasets.outcomes import Outcomes, read_outcomes, split
from training.config import Plan
from training.data.capability import Capabilities, new_connector
from training.data.dataset import Batch, Pool, make_pools
from training.model.lora import adapt
from training.model.model import ModelSat, TextEncoder, build
from training.model.precision import mixed_precision
from training.weights.adapter import Pretrained, load_pretrained
from training.weights.base import CACHE, Base, load_base
from training.weights.merge import fold

NEUTRAL = Calibration(1.0, 0.0)
START_SPREAD = 0.4  # standard deviation of the first log-odds
STATE = "state"
PoolBuilder = Callable[
    [Sequence[Outcomes], TextEncoder, Tokenizer, TaskNorms | None],
    tuple[Capabilities, Sequence[Pool]],
]


@dataclass
class Run:
    """What a step reads and changes. weights: what the run began with. start: applied to margins,
    so that the first predictions are near the base rate, or those of the weights."""

    plan: Plan
    model: Any
    pools: list[Pool]
    capability: Capabilities
    optimizer: Any
    accelerator: Accelerator
    weights: Pretrained | None
    start: Calibration = NEUTRAL
    step: int = 0

    @property
    def plain(self) -> ModelSat:
        """The model without what accelerate wrapped around it."""
        plain: ModelSat = self.accelerator.unwrap_model(self.model)
        return plain


def logits(run: Run, batch: Batch, c: Float32Array) -> Tensor:
    """(B, M) margins, scaled and shifted by run.start."""
    device = run.accelerator.device
    margins = run.model(
        torch.from_numpy(batch.tokens).to(device),
        torch.from_numpy(batch.lengths).to(device),
        torch.from_numpy(c).to(device),
    )
    return run.start.scale * margins.float() + run.start.offset


@torch.no_grad()
def predict(run: Run, pool: Pool, rows: Int64Array) -> Float32Array:
    """(len(rows), M) log-odds, in the order of `rows`."""
    run.model.eval()
    place = {int(row): i for i, row in enumerate(rows)}
    result = np.zeros((len(rows), len(pool.c)), dtype=np.float32)
    work = pool.batches(rows, run.plan.batch_size, None, 0)
    quiet = not run.accelerator.is_main_process
    for batch in tqdm(work, desc="predict", unit="batch", leave=False, disable=quiet):
        at = [place[int(r)] for r in batch.rows]
        result[at] = logits(run, batch, pool.c).cpu().numpy()
    return result


def read_pools(plan: Plan) -> list[Outcomes]:
    """The plan's data, less the candidates and benchmarks it leaves out; every folder's problems
    are listed at once."""
    found: list[Outcomes] = []
    problems: list[Violation] = []
    for folder in plan.data:
        try:
            found.append(_kept(read_outcomes(Path(folder)), plan))
        except InvalidInputError as error:
            problems += error.violations
    if problems := problems + _of_the_plan(plan) + _of_the_splits(found, plan):
        raise InvalidInputError(*problems)
    return found


def _of_the_plan(plan: Plan) -> list[Violation]:
    problems = []
    names = [Path(folder).name for folder in plan.data]
    if len(set(names)) < len(names):
        problems.append(Violation("data", f"are folders named {names}; give each another name."))
    if len(plan.instructions_per_epoch) not in (1, len(names)):
        numbers = len(plan.instructions_per_epoch)
        wrong = f"has {numbers} numbers for {len(names)} folders; expected one each."
        problems.append(Violation("instructions", wrong))
    return problems


def _of_the_splits(found: list[Outcomes], plan: Plan) -> list[Violation]:
    """found: the folders that could be read; only all of them can lack validation rows."""
    problems = []
    splits = [split(outcomes.texts) for outcomes in found]
    for outcomes, (training, _, _) in zip(found, splits, strict=True):
        if not len(training):
            wrong = f"has {len(outcomes.texts)} instructions, none of them in the training part."
            problems.append(Violation(outcomes.name, wrong))
    whole = len(found) == len(plan.data)
    if whole and not any(len(validation) for _, validation, _ in splits):
        wrong = "have no instruction in the validation part (5 %), which calibration is fitted on;"
        problems.append(Violation("data", f"{wrong} a hundred instructions are usually enough."))
    return problems


def _kept(outcomes: Outcomes, plan: Plan) -> Outcomes:
    if plan.benchmarks:
        rows = [i for i, b in enumerate(outcomes.benchmarks) if b in plan.benchmarks]
        outcomes = outcomes.take(np.array(rows, dtype=np.int64))
    if plan.exclude_candidates:
        pattern = re.compile(plan.exclude_candidates, re.IGNORECASE)
        kept = [i for i, n in enumerate(outcomes.candidates) if not pattern.search(n)]
        outcomes = outcomes.only(np.array(kept, dtype=np.int64))
    if not outcomes.texts or not outcomes.candidates:
        raise InvalidInputError(
            Violation(outcomes.name, "nothing is left of it after --benchmarks and --without.")
        )
    return outcomes


def prepare(
    plan: Plan,
    model_class: type[ModelSat] = ModelSat,
    build_pools: PoolBuilder = make_pools,
) -> Run:
    """Load weights and data, build the optimizer, and restore a checkpoint if there is one.

    model_class and build_pools are what research/ replaces to train another layout or another
    representation of the candidates.
    """
    torch.manual_seed(plan.seed)
    state = find_state(plan)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # else CPU processes under torchrun each train alone
        mixed_precision=state["precision"] if state else mixed_precision(plan.precision),
    )
    found = read_pools(plan)
    with accelerator.main_process_first():  # which fetches them where they are not here yet
        base = load_base(plan.backbone, CACHE, plan.layers)
        psi = load_base(plan.encoder, CACHE)
    _require_family("backbone", base, "llama")
    _require_family("encoder", psi, "bert")
    encoder = TextEncoder(psi)
    weights = weights_of(plan)
    norms = weights.norms if weights else None
    capability, pools = build_pools(found, encoder, base.tokenizer, norms)
    backbone = adapt(build(begun(base, weights), causal=True), plan)
    connector = (
        unfolded(weights.connector, capability)
        if weights
        else new_connector(pools[0].c.shape[-1], backbone.get_input_embeddings().weight)
    )
    model = model_class(backbone, connector, base.tokenizer)
    tuned = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": list(connector.parameters())}, {"params": tuned}],
        weight_decay=0.01,
        fused=True,
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run = Run(plan, prepared, list(pools), capability, optimizer, accelerator, weights)
    if state:
        accelerator.load_state(str(Path(plan.output_dir) / STATE))
        run.step, run.start = state["step"], Calibration(**state["start"])
    return run


def _require_family(part: str, base: Base, family: str) -> None:
    """Before anything is trained that could not be exported."""
    if base.config["model_type"] != family:
        raise BundleError(
            f"the {part} is of family {base.config['model_type']!r}; training and export know"
            f" {family!r} for it so far."
        )


def start_calibration(run: Run, batch: Batch) -> Calibration:
    """What to apply to margins so that the first predictions are the base rate, give or take
    START_SPREAD: the trial that started elsewhere lost its first 100 steps. Trained weights bring
    their own."""
    if run.weights:
        return run.weights.calibration
    pool = run.pools[batch.pool]
    with torch.no_grad():
        margins = logits(run, batch, pool.c)
    rate = float(np.nanmean(pool.outcomes.scores).clip(0.01, 0.99))
    scale = START_SPREAD / max(float(margins.std()), 1e-6)
    return Calibration(scale, float(np.log(rate / (1 - rate))) - scale * float(margins.mean()))


def save(run: Run) -> None:
    """Write the state folder whole or not at all: accelerate's own, and what a step depends on."""
    folder = Path(run.plan.output_dir) / STATE
    fresh = folder.with_suffix(".unfinished")
    run.accelerator.save_state(str(fresh))
    run.accelerator.wait_for_everyone()  # each process writes a part of it
    if run.accelerator.is_main_process:
        state = {
            "plan": asdict(run.plan),
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


def find_state(plan: Plan) -> dict[str, Any] | None:
    """What a checkpoint says of itself, None where there is none. A run goes on in the precision
    that it began with. Raises ModelsatError where the checkpoint is of another plan."""
    folder = Path(plan.output_dir) / STATE
    old = folder.with_suffix(".old")
    if old.exists() and not folder.exists():  # killed between the two renamings of save
        with contextlib.suppress(FileNotFoundError):  # another process of the run was first
            old.replace(folder)
    if not folder.exists():
        return None
    state: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if state["plan"] != json.loads(json.dumps(asdict(plan))):
        raise ModelsatError(
            f"{folder} is the state of another plan; give --out another folder, or remove it."
        )
    return state


SAME = ("backbone", "encoder", "layers")


def weights_of(plan: Plan) -> Pretrained | None:
    """What the plan begins with, None where with the base models alone. Raises BundleError where it
    belongs to another model."""
    if not plan.init_from:
        return None
    found = load_pretrained(Path(plan.init_from))
    differ = {k: (getattr(found, k), getattr(plan, k)) for k in SAME}
    wrong = [f"{k} {a!r}, the plan {b!r}" for k, (a, b) in differ.items() if a != b]
    if wrong:
        raise BundleError(f"the weights in {plan.init_from} have {'; '.join(wrong)}.")
    if plan.tuning != "full":
        raise BundleError("--weights needs --tune full: the change is cut from the base weights.")
    return found


def begun(base: Base, weights: Pretrained | None) -> Base:
    """`base` with the change folded in."""
    if weights is None:
        return base
    arrays = fold(base.arrays, weights.lora, weights.lora_scale)
    return Base(base.config, arrays, base.tokenizer)


def unfolded(connector: Connector, capability: Capabilities) -> nn.Linear:
    """The inverse of training.data.capability.folded: the connector for standardised
    representations."""
    layer = nn.Linear(connector.weight.shape[1], connector.weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(connector.weight * capability.scale))
        layer.bias.copy_(torch.from_numpy(connector.bias + connector.weight @ capability.shift))
    return layer
