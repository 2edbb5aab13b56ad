"""Train at tiny width on synthetic outcomes: a run learns, resumes exactly, and merges."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine.api.errors import BundleError, InvalidInputError, ModelsatError
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import Calibration, stage_dir
from engine.bundle.training_set import save_training_set
from engine.datasets.outcomes import split
from research.paper import PaperConfig
from tests.conftest import CHECKPOINT
from tests.support import datasets, tiny_llama
from tools.processes import ROOT
from training import train
from training.config import TrainingConfig, Tuning, parse_config
from training.evaluation import metrics
from training.model import loss
from training.model.lora import truncate_to_rank
from training.model.model import build
from training.model.precision import mixed_precision
from training.state import find_state, initial_calibration, predict, prepare, read_data
from training.train import epoch_rows, schedule_of, trained_rows
from training.weights.adapter import load_pretrained
from training.weights.base import Base, load_base
from training.weights.merge import fold, write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """A tiny backbone, the real encoder, and outcomes that depend on the first word."""
    write_model(tmp_path / "backbone", tiny_llama.base(layers=2))
    return TrainingConfig(
        data=(str(datasets.write(tmp_path / "data")),),
        output_dir=str(tmp_path / "out"),
        backbone=str(tmp_path / "backbone"),
        encoder=str(CHECKPOINT / "encoder"),
        layers=2,
        batch_size=8,
        epochs=6,
        connector_warmup_steps=6,
        lora_rank=4,
        synthetic_candidates=3,
        connector_lr=3e-3,
        backbone_lr=3e-3,
        validate_every=1000,
        precision="float32",
    )


def losses(out: str) -> list[float]:
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_run_learns_and_its_adapter_merges(
    config: TrainingConfig, tmp_path: Path, tune: Tuning
) -> None:
    """Two folders, one of them without an aptitude test of its own."""
    second = datasets.write(tmp_path / "second", aptitude=False, seed=1, subjects=2)
    config = replace(config, data=(*config.data, str(second)), tuning=tune)
    report = train.train(config)
    found = losses(config.output_dir)
    assert np.mean(found[-8:]) < 0.9 * np.mean(found[:8])
    assert all(part["pooled_auc"] > 0.6 for part in report["datasets"].values())
    assert (Path(config.output_dir) / "curves.png").stat().st_size > 1000
    pretrained = load_pretrained(Path(config.output_dir))
    assert pretrained.calibration != Calibration(1.0, 0.0)
    base = load_base(config.backbone)
    merged = Base(
        base.config, fold(base.arrays, pretrained.lora, pretrained.lora_scale), base.tokenizer
    )
    run = prepare(config)  # restores the last checkpoint
    if tune == "full":
        truncate_to_rank(run.plain.backbone, base.arrays, config.lora_rank)
    dataset, capability = run.datasets[0], run.capability
    plain_c = dataset.c * capability.scale + capability.shift
    e = plain_c @ pretrained.connector.weight.T + pretrained.connector.bias
    tokens, lengths = tiny_llama.padded(tiny_llama.prompts([7, 3]))
    with torch.no_grad():
        adapted = run.plain.eval()(tokens, lengths, torch.from_numpy(dataset.c))
        run.plain.backbone = build(merged, causal=True)
        plain = run.plain.margins(tokens, lengths, torch.from_numpy(e).float())
    # The adapter ships in half precision.
    torch.testing.assert_close(plain, adapted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_half_precision_learns_and_leaves_float32_weights(
    config: TrainingConfig, tune: Tuning
) -> None:
    """In a process of its own: accelerate keeps one precision a process."""
    config = replace(
        config, precision="bfloat16", reformat_prob=0.5, skill_weight_exponent=1.0, tuning=tune
    )
    subprocess.run(command(config), check=True, capture_output=True)
    found = losses(config.output_dir)
    assert np.mean(found[-8:]) < 0.9 * np.mean(found[:8])
    assert find_state(config)["precision"] == "bf16"
    state = load_file(Path(config.output_dir) / "state" / "model.safetensors")
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}


def test_precision_auto_takes_the_faster_type_and_a_named_one_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mixed_precision("auto") in ("no", "bf16")
    assert (mixed_precision("float32"), mixed_precision("bfloat16")) == ("no", "bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert mixed_precision("auto") is None
    assert mixed_precision("float32") == "no"


def test_epoch_continues_where_the_last_one_ended(config: TrainingConfig) -> None:
    config = replace(config, instructions_per_epoch=(24,), epochs=4)
    (dataset,) = prepare(config).datasets
    epochs = [epoch_rows(config, 0, dataset, epoch) for epoch in range(4)]
    assert all(len(set(rows)) == 24 for rows in epochs)
    count = len(dataset.train)
    assert 48 < count < 96, "else this tests nothing"
    assert set(np.concatenate(epochs)[:count]) == set(dataset.train)
    assert list(trained_rows(config, 0, dataset)) == sorted(dataset.train)
    whole = replace(config, instructions_per_epoch=(0,))
    assert set(epoch_rows(whole, 0, dataset, 1)) == set(dataset.train)


def test_run_continues_from_trained_weights(config: TrainingConfig, tmp_path: Path) -> None:
    """At its first step it predicts what the weights predicted; it remembers their questions."""
    train.train(config)
    one = prepare(config)  # at its last checkpoint
    train.ship_backbone(one, tmp_path)
    other = datasets.write(tmp_path / "other", seed=5)
    more = replace(
        config, data=(str(other),), init_from=config.output_dir, output_dir=str(tmp_path / "more")
    )
    two = prepare(more)
    assert two.capability.norms.means == one.capability.norms.means
    pretrained = load_pretrained(Path(config.output_dir))
    two.start = initial_calibration(two, schedule_of(two)[0])
    assert two.start == pretrained.calibration
    rows = one.datasets[0].test
    one.start = pretrained.calibration
    c = one.datasets[0].c * one.capability.scale + one.capability.shift
    c = (c - two.capability.shift) / two.capability.scale
    found = predict(two, replace(one.datasets[0], c=c.astype(np.float32)), rows)
    np.testing.assert_allclose(found, predict(one, one.datasets[0], rows), atol=0.02)
    before = pretrained.training_set
    assert before is not None
    space = InstructionSpace(np.arange(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    save_training_set(Path(config.output_dir), replace(before, instruction_space=space))
    train.train(more)
    known = load_pretrained(Path(more.output_dir)).training_set
    assert known is not None
    assert known.instruction_space is not None
    np.testing.assert_array_equal(known.instruction_space.mean, space.mean)
    assert set(before.fingerprints) < set(known.fingerprints)
    with pytest.raises(BundleError, match="layers 2, the settings 1"):
        prepare(replace(more, layers=1, output_dir=str(tmp_path / "one layer")))


def command(config: TrainingConfig, *launcher: str) -> list[str]:
    """The command line of a run with these settings."""
    words = [sys.executable, *launcher, "-m", "training.train"]
    for name, value in asdict(config).items():
        if value != "" and value != ():
            values = value if isinstance(value, tuple) else (value,)
            words += ["--" + name.replace("_", "-"), *map(str, values)]
    return words


def test_killed_run_resumes_to_the_same_result(config: TrainingConfig, tmp_path: Path) -> None:
    """kill -9 in the middle of stage 2, at whatever point of a step it hits."""
    config = replace(
        config, connector_warmup_steps=3, epochs=3, checkpoint_minutes=0.0
    )  # a checkpoint a step
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    subprocess.run(command(whole), check=True, capture_output=True)
    written = Path(config.output_dir) / "metrics.jsonl"
    with subprocess.Popen(command(config), stdout=-3, stderr=-3) as process:
        while process.poll() is None and (
            not written.is_file() or len(losses(config.output_dir)) < 9
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 9 <= len(losses(config.output_dir)) < len(losses(whole.output_dir))
    old = Path(config.output_dir) / "state.old"
    old.mkdir(exist_ok=True)
    (old / "left").touch()  # as where the kill hits the removal of the state before
    subprocess.run(command(config), check=True, capture_output=True)
    np.testing.assert_allclose(losses(config.output_dir), losses(whole.output_dir), rtol=1e-4)
    a, b = (load_pretrained(Path(x.output_dir)) for x in (config, whole))
    np.testing.assert_allclose(a.connector.weight, b.connector.weight, rtol=1e-3, atol=1e-5)
    with pytest.raises(ModelsatError, match="checkpoint of other settings"):
        prepare(replace(config, batch_size=4))


def test_two_processes_train_as_one(config: TrainingConfig, tmp_path: Path) -> None:
    """torchrun on two CPU processes; each takes half of every batch."""
    # What is left out depends on who shares a batch: contrasts are means over the pairs at hand.
    config = replace(
        config,
        epochs=2,
        synthetic_candidates=0,
        instruction_contrast_weight=0.0,
        candidate_contrast_weight=0.0,
        reformat_prob=0.0,
    )
    config = replace(
        config, instructions_per_epoch=(49,), checkpoint_minutes=0.0
    )  # the last batch is of one row
    one = replace(config, output_dir=str(tmp_path / "one"))
    subprocess.run(command(one), check=True, capture_output=True)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        command(config, *launcher), check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("run: ") == 1, "each process trained alone"
    two, single = load_pretrained(Path(config.output_dir)), load_pretrained(Path(one.output_dir))
    assert two.report["steps"] == single.report["steps"]
    # Halves of a batch have different numbers of measured outcomes, so means differ a little.
    drift = np.abs(two.connector.weight - single.connector.weight).mean()
    assert drift < 0.2 * np.abs(single.connector.weight).mean()
    shutil.rmtree(Path(config.output_dir) / "state.old", ignore_errors=True)
    (Path(config.output_dir) / "state").rename(
        Path(config.output_dir) / "state.old"
    )  # as a kill may leave it
    subprocess.run(command(config, *launcher), check=True, capture_output=True, timeout=300)
    again = load_pretrained(Path(config.output_dir))
    np.testing.assert_array_equal(again.connector.weight, two.connector.weight)


def test_run_prints_its_estimate_and_lists_data_problems(
    config: TrainingConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train.train(replace(config, epochs=1))
    said = capsys.readouterr().out
    for words in (
        "training rows x 4",
        "million parameters",
        "GiB of memory",
        "minutes from step 0",
    ):
        assert words in said
    broken = datasets.write(tmp_path / "broken")
    (broken / "candidates.json").write_text("[]")
    also = datasets.write(tmp_path / "also")
    (also / "scores.npz").unlink()
    with pytest.raises(InvalidInputError) as refused:
        train.train(
            replace(config, data=(str(broken), str(also)), output_dir=str(tmp_path / "new"))
        )
    assert "expected (0, 80)" in str(refused.value)
    assert "has no ['scores.npz']" in str(refused.value)


def test_every_config_file_is_valid() -> None:
    kinds = {"training": TrainingConfig, "research": PaperConfig}
    files = [(f, kind) for name, kind in kinds.items() for f in (ROOT / name / "configs").iterdir()]
    assert len(files) == 4
    for file, kind in files:
        words = ["--config", str(file), "--data", "a", "b", "--output-dir", "c", "--seed", "7"]
        found = parse_config("", words, kind=kind)
        assert (found.data, found.output_dir, found.seed) == (("a", "b"), "c", 7)
        for name, value in (json.loads(file.read_text()) | {"seed": 7}).items():
            kept = getattr(found, name)
            assert (list(kept) if isinstance(kept, tuple) else kept) == value


def test_a_repeated_data_flag_adds_folders(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"data": ["from-file"]}')
    words = ["--data", "a", "--data", "b", "c", "--output-dir", "d"]
    assert parse_config("", words, kind=TrainingConfig).data == ("a", "b", "c")
    words = ["--config", str(file), *words]
    assert parse_config("", words, kind=TrainingConfig).data == ("a", "b", "c")


def test_settings_leave_out_candidates_and_benchmarks(config: TrainingConfig) -> None:
    (outcomes,) = read_data(replace(config, exclude_candidates="C[01]$"))
    assert outcomes.candidates == ["c2", "c3"]
    assert outcomes.test.accuracies.shape[0] == outcomes.scores.shape[0] == 2
    with pytest.raises(InvalidInputError, match="nothing is left"):
        read_data(replace(config, benchmarks=("other",)))


@pytest.mark.parametrize("odd", ["one task", "one candidate", "all right"])
def test_data_without_any_spread_can_be_trained_on(
    config: TrainingConfig, tmp_path: Path, odd: str
) -> None:
    folder = datasets.write(tmp_path / "odd", aptitude=False)  # one subject: one task
    scores = np.load(folder / "scores.npz")["scores"]
    kept = slice(1, 2) if odd == "one candidate" else slice(None)
    scores = np.ones_like(scores) if odd == "all right" else scores
    names = json.loads((folder / "candidates.json").read_text())[kept]
    (folder / "candidates.json").write_text(json.dumps(names))
    np.savez(folder / "scores.npz", scores=scores[kept])
    report = train.train(replace(config, data=(str(folder),), epochs=1))
    assert np.isfinite(report["datasets"]["odd"]["ece"])


def test_folders_that_do_not_fit_together_are_refused(
    config: TrainingConfig, tmp_path: Path
) -> None:
    one, two = str(datasets.write(tmp_path / "a" / "x")), str(datasets.write(tmp_path / "b" / "x"))
    with pytest.raises(InvalidInputError) as refused:
        read_data(replace(config, data=(one, two), instructions_per_epoch=(5, 5, 5)))
    assert "names the folders ['x', 'x']" in str(refused.value)
    assert "has 3 numbers for 2 folders" in str(refused.value)
    broken = datasets.write(tmp_path / "broken")
    (broken / "scores.npz").unlink()
    with pytest.raises(InvalidInputError, match=r"has no \['scores.npz'\].*has 2 numbers for 1"):
        read_data(replace(config, data=(str(broken),), instructions_per_epoch=(5, 5)))
    few = datasets.write(tmp_path / "few")
    lines = (few / "instructions.jsonl").read_text().splitlines()
    fewest = [
        i for i in range(len(lines)) if i not in split([json.loads(x)["text"] for x in lines])[1]
    ]
    (few / "instructions.jsonl").write_text("\n".join(lines[i] for i in fewest))
    np.savez(few / "scores.npz", scores=np.load(few / "scores.npz")["scores"][:, fewest])
    with pytest.raises(InvalidInputError, match="no instruction in the validation part"):
        read_data(replace(config, data=(str(few),)))


def test_losses_ignore_missing_outcomes() -> None:
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


def test_drawn_rivals_are_bad_outcomes_of_the_group() -> None:
    """The rivals of a group differ in how much they cost, so the loss says how many were drawn."""
    logits = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    outcomes = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    one = {round(float(loss.contrast(logits, outcomes, most=1)), 3) for _ in range(60)}
    expected = {round(float(torch.nn.functional.softplus(logits[i, 0])), 3) for i in (1, 2, 3)}
    assert one == expected
    everyone = loss.contrast(logits, outcomes)
    for most in (0, 3, 9):
        torch.testing.assert_close(loss.contrast(logits, outcomes, most=most), everyone)
    alone = loss.total(logits, outcomes, 1.0, 0.0, bce_weight=0.0)
    torch.testing.assert_close(alone, everyone)


def test_weight_two_equals_the_candidate_twice() -> None:
    """As if a candidate of weight 2 were there twice, in each of the losses' means."""
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(6, 3)))
    outcomes = torch.from_numpy((random.random((6, 3)) < 0.5).astype(float))
    outcomes[1, 1] = torch.nan
    weights, twice = torch.tensor([1.0, 2.0, 1.0]).double(), [0, 1, 1, 2]
    for function in (loss.bce, loss.contrast):
        torch.testing.assert_close(
            function(logits, outcomes, weights), function(logits[:, twice], outcomes[:, twice])
        )
    even = loss.total(logits, outcomes, 0.3, 0.7, torch.full((3,), 5.0).double())
    torch.testing.assert_close(even, loss.total(logits, outcomes, 0.3, 0.7))


def test_platt_recovers_the_true_calibration() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, (4000, 5))
    outcomes = (random.random(margins.shape) < 1 / (1 + np.exp(-(0.7 * margins - 0.4)))).astype(
        float
    )
    outcomes[:100] = np.nan
    assert metrics.platt(margins, outcomes) == pytest.approx((0.7, -0.4), abs=0.05)


def test_folder_of_other_content_is_not_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("two years of work")
    with pytest.raises(BundleError, match="does not hold a checkpoint that could be replaced"):
        stage_dir(tmp_path, "checkpoint")
    assert precious.read_text() == "two years of work"


def test_half_precision_base_is_read_as_float32(tmp_path: Path) -> None:
    """In a process that has not imported ml_dtypes before."""
    half = tiny_llama.base()
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in half.arrays.items()}
    write_model(tmp_path / "m", Base({**half.config, "dtype": "bfloat16"}, arrays, half.tokenizer))
    read = (
        f"from training.weights.base import load_base; load_base({str(tmp_path / 'm')!r}, layers=1)"
    )
    subprocess.run([sys.executable, "-c", read], check=True, cwd=ROOT)
    model = build(load_base(str(tmp_path / "m"), layers=1), causal=True)
    assert model.dtype == torch.float32
    assert len(model.model.layers) == 1
