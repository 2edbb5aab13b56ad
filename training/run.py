"""A training run: what it depends on, what a step reads and changes, its state on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm import tqdm

from engine.contract.bundle import Calibration, Layout, Representation
from engine.contract.errors import BundleError, ModelsatError
from training.base import BACKBONE, CACHE, ENCODER, Base, load_base
from training.capability import Capabilities, capabilities, new_connector
from training.data import Batch, Outcomes, batches, read_outcomes, tokenise
from training.model import ModelSat, TextEncoder, build

Floats = NDArray[np.float32]
NEUTRAL = Calibration(1.0, 0.0)
START_SPREAD = 0.4  # standard deviation of the first log-odds
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on; stored in model.json. The defaults are the shipped run's."""

    data: str
    out: str
    backbone: str = BACKBONE
    encoder: str = ENCODER
    layers: int = 6
    layout: Layout = "candidate_last"
    representation: Representation = "accuracy_weighted"
    instructions: int = 6400  # 0 = all
    batch: int = 16
    stage1_steps: int = 30
    epochs: int = 1
    rank: int = 16
    connector_lr: float = 1e-4
    backbone_lr: float = 5e-4
    across: float = 0.25
    within: float = 0.5
    checkpoint_minutes: float = 4.0
    validate_every: int = 60
    seed: int = 0


@dataclass
class Run:
    """What a step reads and changes."""

    plan: Plan
    model: ModelSat
    outcomes: Outcomes
    capability: Capabilities
    tokens: list[NDArray[np.int64]]
    optimizer: torch.optim.Optimizer
    start: Calibration = NEUTRAL
    step: int = 0


def logits(run: Run, batch: Batch, c: Floats) -> Tensor:
    """(B, M) margins, scaled and shifted so that the first predictions are near the base rate."""
    margins = run.model(
        torch.from_numpy(batch.tokens),
        torch.from_numpy(batch.lengths),
        torch.from_numpy(c),
        run.plan.layout,
    )
    return run.start.scale * margins + run.start.offset


@torch.no_grad()
def predict(run: Run, rows: NDArray[np.int64]) -> Floats:
    """(V, len(rows), M) log-odds of each variant, in the order of `rows`."""
    run.model.eval()
    place = {int(row): i for i, row in enumerate(rows)}
    shape = (len(run.capability.c), len(rows), len(run.outcomes.candidates))
    result = np.zeros(shape, dtype=np.float32)
    variants = [run.capability.standardise(c) for c in run.capability.c]
    work = batches(run.tokens, rows, run.plan.batch, seed=None)
    for batch in tqdm(work, desc="predict", unit="batch", leave=False):
        at = [place[int(r)] for r in batch.rows]
        for variant, c in enumerate(variants):
            result[variant, at] = logits(run, batch, c).numpy()
    return result


def prepare(plan: Plan) -> Run:
    """Weights, data and optimiser; the state of a checkpoint where one is found."""
    torch.manual_seed(plan.seed)
    outcomes = read_outcomes(Path(plan.data))
    base = load_base(plan.backbone, CACHE, plan.layers)
    encoder = load_base(plan.encoder, CACHE)
    _require_family("backbone", base, "llama")
    _require_family("encoder", encoder, "bert")
    capability = capabilities(outcomes, TextEncoder(encoder), plan.representation)
    backbone = build(base, causal=True)
    connector = new_connector(capability.c.shape[-1], backbone.get_input_embeddings().weight)
    config = LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=TARGETS)
    model = ModelSat(get_peft_model(backbone, config), connector, base.tokenizer)
    adapter = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": list(connector.parameters())}, {"params": adapter}], weight_decay=0.01
    )
    tokens = tokenise(outcomes.texts, base.tokenizer)
    run = Run(plan, model, outcomes, capability, tokens, optimizer)
    restore(run)
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
    START_SPREAD: the trial that started elsewhere lost its first 100 steps."""
    with torch.no_grad():
        margins = logits(run, batch, run.capability.standardise(run.capability.c[0]))
    rate = float(np.nanmean(run.outcomes.scores))
    scale = START_SPREAD / float(margins.std())
    return Calibration(scale, float(np.log(rate / (1 - rate))) - scale * float(margins.mean()))


def _trained(model: ModelSat) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(run: Run) -> None:
    """Write state.pt whole or not at all."""
    path = Path(run.plan.out) / "state.pt"
    state = {
        "plan": asdict(run.plan),
        "step": run.step,
        "start": asdict(run.start),
        "weights": _trained(run.model),
        "optimizer": run.optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def restore(run: Run) -> None:
    """Continue from state.pt where there is one; it must be of the same plan."""
    path = Path(run.plan.out) / "state.pt"
    if not path.is_file():
        return
    state = torch.load(path)
    if state["plan"] != asdict(run.plan):
        raise ModelsatError(
            f"{path} is the state of another plan; give --out another folder, or remove it."
        )
    own = _trained(run.model)
    with torch.no_grad():
        for name, value in state["weights"].items():
            own[name].copy_(value)
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.start = state["step"], Calibration(**state["start"])
