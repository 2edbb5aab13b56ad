"""Training at tiny width on made-up outcomes: it learns, resumes exactly, and merges."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.bundle import Calibration, Representation, start_folder
from engine.contract.errors import BundleError, InvalidInputError, ModelsatError
from tests import tiny
from tests.conftest import CHECKPOINT
from training import loss, metrics, train
from training.base import Base, load_base
from training.data import normalised, read_outcomes, split
from training.merge import fold, write_model
from training.model import build
from training.pretrained import load_pretrained
from training.run import Plan, Run

CANDIDATES, INSTRUCTIONS, TASKS = 4, 80, 50


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A tiny backbone, the real encoder, and outcomes that depend on the first word."""
    write_model(tmp_path / "backbone", tiny.base(layers=2))
    data = tmp_path / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    easy = random.random(INSTRUCTIONS) < 0.5
    skill = np.linspace(0.1, 0.9, CANDIDATES)
    scores = (random.random((CANDIDATES, INSTRUCTIONS)) < skill[:, None]) | easy
    scores = scores.astype(np.float16)
    scores[0, :5] = np.nan
    rows = [
        {
            "id": f"q{i}",
            "benchmark": "made-up",
            "text": f"{'Yes' if easy[i] else 'No'} " * 3 + str(i),
        }
        for i in range(INSTRUCTIONS)
    ]
    (data / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [f"c{i}" for i in range(CANDIDATES)]
    (data / "candidates.json").write_text(json.dumps([{"name": n} for n in names]))
    np.savez(data / "scores.npz", scores=scores)
    tasks = [f"task_{t}" for t in range(TASKS)]
    figures = {
        n: (s + 0.1 * random.random(TASKS)).tolist() for n, s in zip(names, skill, strict=True)
    }
    test = {"tasks": tasks, "items": {"task_0": ["q7"]}, "scores": figures}
    (data / "aptitude.json").write_text(json.dumps(test))
    return Plan(
        data=str(data),
        out=str(tmp_path / "out"),
        backbone=str(tmp_path / "backbone"),
        encoder=str(CHECKPOINT / "encoder"),
        layers=2,
        batch=8,
        epochs=6,
        stage1_steps=6,
        rank=4,
        connector_lr=3e-3,
        backbone_lr=3e-3,
        validate_every=1000,
    )


def losses(out: str) -> list[float]:
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("representation", ["accuracy_weighted", "text"])
def test_a_run_learns_and_its_adapter_merges(plan: Plan, representation: Representation) -> None:
    plan = replace(plan, representation=representation)
    report = train.train(plan)
    found = losses(plan.out)
    assert np.mean(found[-8:]) < 0.9 * np.mean(found[:8])
    assert report["pooled_auc"] > 0.6
    pretrained = load_pretrained(Path(plan.out))
    base = load_base(plan.backbone)
    merged = Base(
        base.config, fold(base.arrays, pretrained.lora, pretrained.lora_scale), base.tokenizer
    )
    run = train.prepare(plan)  # restores the last checkpoint
    tokens, lengths = tiny.padded(tiny.prompts([7, 3]))
    e = torch.from_numpy(run.capability.c[0] @ pretrained.connector.weight.T) + torch.from_numpy(
        pretrained.connector.bias
    )
    with torch.no_grad():
        adapted = run.model.eval()(
            tokens,
            lengths,
            torch.from_numpy(run.capability.standardise(run.capability.c[0])),
            plan.layout,
        )
        run.model.backbone = build(merged, causal=True)
        plain = run.model.margins(tokens, lengths, e, plan.layout)
    # The adapter ships in half precision.
    torch.testing.assert_close(plain, adapted, atol=0.02, rtol=0.02)
    assert pretrained.calibration != Calibration(1.0, 0.0)


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = train.one_step

    def until(plan: Plan, stop: int) -> Run:
        """Train up to step `stop` of the whole schedule, then die."""

        def step(run: Run, *rest: Any) -> dict[str, float]:
            if run.step == stop:
                raise KilledError
            return real_step(run, *rest)

        monkeypatch.setattr(train, "one_step", step)
        run = train.prepare(plan)
        rows, watched, _ = split(run.outcomes.texts)
        schedule = train.batches(run.tokens, rows, plan.batch, plan.seed)
        if run.step == 0:
            run.start = train.start_calibration(run, schedule[0])
        Path(plan.out).mkdir(exist_ok=True)
        with contextlib.suppress(KilledError):
            train.loop(run, schedule, watched, Path(plan.out))
        return run

    plan = replace(plan, stage1_steps=3, checkpoint_minutes=0.0)  # a checkpoint every step
    whole = replace(plan, out=str(tmp_path / "whole"))
    unbroken = until(whole, 8)
    until(plan, 5)  # two steps into stage 2
    saved = (Path(plan.out) / "state.pt").read_bytes()
    until(plan, 7)
    (Path(plan.out) / "state.pt").write_bytes(saved)  # as if 6 and 7 had not been saved
    resumed = until(plan, 8)
    assert resumed.step == unbroken.step == 8
    np.testing.assert_allclose(losses(plan.out), losses(whole.out), rtol=1e-4)
    for name, value in unbroken.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)
    other = replace(plan, batch=4)
    with pytest.raises(ModelsatError, match="state of another plan"):
        train.prepare(other)


def test_bad_data_is_refused_with_every_problem(plan: Plan) -> None:
    data = Path(plan.data)
    scores = np.load(data / "scores.npz")["scores"]
    scores[1, 1] = 1.5
    np.savez(data / "scores.npz", scores=scores[:, :-1])
    lines = (data / "instructions.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"id": "q3", "benchmark": "made-up", "text": "  "})
    test = json.loads((data / "aptitude.json").read_text())
    test["scores"]["c2"][0] = 85
    (data / "aptitude.json").write_text(json.dumps(test))
    (data / "instructions.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidInputError) as refused:
        read_outcomes(data)
    for words in (
        "is (4, 79), expected (4, 80)",
        "1 values lie outside [0, 1]",
        "first 'q3'",
        "['c2'] lie",
    ):
        assert words in str(refused.value)
    (data / "scores.npz").unlink()
    with pytest.raises(InvalidInputError, match=r"misses \['scores.npz'\]"):
        read_outcomes(data)


def test_aptitude_items_are_kept_out(plan: Plan) -> None:
    """By id, and by question: q8 asks what the item q7 asks."""
    path = Path(plan.data) / "instructions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[8]["text"] = rows[7]["text"].upper() + "?"
    path.write_text("\n".join(map(json.dumps, rows)))
    outcomes = read_outcomes(Path(plan.data))
    assert len(outcomes.texts) == INSTRUCTIONS - 2
    assert not any(text.endswith((" 7", "7?")) for text in outcomes.texts)


@given(st.text(min_size=1), st.sampled_from(["  ", "\n", "?!", " - "]))
def test_equal_questions_land_on_the_same_side(text: str, noise: str) -> None:
    first, second = (split([variant]) for variant in (text, text.upper().lower() + noise))
    if normalised(text) == normalised(text.upper().lower() + noise):
        assert [len(part) for part in first] == [len(part) for part in second]


def test_losses_ignore_what_was_not_measured() -> None:
    logits = torch.tensor([[2.0, -1.0, 9.0], [0.5, 0.0, -9.0]])
    outcomes = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 1.0, torch.nan]])
    for function in (loss.bce, loss.contrast):
        torch.testing.assert_close(
            function(logits, outcomes), function(logits[:, :2], outcomes[:, :2])
        )
    # One well-done against one badly done: softplus of the difference, for each candidate.
    expected = torch.nn.functional.softplus(torch.tensor([0.5 - 2.0, -1.0 - 0.0])).mean()
    torch.testing.assert_close(loss.contrast(logits, outcomes), expected)
    assert loss.contrast(logits, torch.ones(2, 3)) == 0
    assert loss.total(logits, torch.full((2, 3), torch.nan), 1.0, 1.0) == 0


def test_platt_finds_the_calibration_it_was_made_with() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, (4000, 5))
    outcomes = (random.random(margins.shape) < 1 / (1 + np.exp(-(0.7 * margins - 0.4)))).astype(
        float
    )
    outcomes[:100] = np.nan
    assert metrics.platt(margins, outcomes) == pytest.approx((0.7, -0.4), abs=0.05)


def test_the_card_says_what_was_measured() -> None:
    root = Path(__file__).resolve().parents[1]
    report = json.loads((root / "pretrained" / "model.json").read_text())["report"]
    assert report["pooled_auc"] > report["candidate_mean_pooled_auc"] + 0.05
    card = (root / "pretrained" / "README.md").read_text()
    readme = (root / "README.md").read_text()
    assert f"{report['instructions_trained']:,} instructions" in card
    assert f"{report['pooled_auc']:.3f}"[1:] in readme


def test_a_folder_that_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("two years of work")
    with pytest.raises(BundleError, match="not empty and holds no checkpoint"):
        start_folder(tmp_path, "checkpoint")
    assert precious.read_text() == "two years of work"


def test_a_base_stored_in_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    half = tiny.base()
    write_model(
        tmp_path / "m", Base({**half.config, "dtype": "bfloat16"}, half.arrays, half.tokenizer)
    )
    model = build(load_base(str(tmp_path / "m"), layers=1), causal=True)
    assert model.dtype == torch.float32
    assert len(model.model.layers) == 1
