"""What was computed with the weights belongs to them, or is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.api.errors import BundleError
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.task_places import TaskPlaces, load_task_places, save_task_places
from engine.bundle.training_set import TrainingSet, load_training_set, save_training_set
from tools.processes import ROOT
from training.weights import adapter, merge
from training.weights.adapter import Pretrained, load_pretrained, weights_id

RANDOM = np.random.default_rng(0)


def space(seed: int) -> InstructionSpace:
    random = np.random.default_rng(seed)
    mean, axes = random.random(6), random.random((6, 4)).astype(np.float16)
    return InstructionSpace(mean.astype(np.float32), axes.astype(np.float32))


def known(space: InstructionSpace | None, weights: str) -> TrainingSet:
    no_prints, zeros = np.zeros(0, np.uint32), np.zeros(3, np.float32)
    return TrainingSet(no_prints, zeros, zeros, space, weights)


def places(space: str) -> TaskPlaces:
    zeros = np.zeros((4, 4), np.float32)
    return TaskPlaces({}, zeros, zeros[0], zeros, space=space)


@pytest.fixture(scope="module")
def shipped() -> Pretrained:
    return load_pretrained(ROOT / "pretrained")


def test_the_shipped_files_belong_together(shipped: Pretrained) -> None:
    assert merge.stale_parts(shipped) == {}


def test_identities_survive_their_files(tmp_path: Path) -> None:
    mine = space(1)
    save_training_set(tmp_path, known(mine, "ab12"))
    save_task_places(tmp_path, places(mine.id))
    training_set, task_places = load_training_set(tmp_path), load_task_places(tmp_path)
    assert training_set is not None
    assert task_places is not None
    assert training_set.weights == "ab12"
    assert training_set.instruction_space is not None
    assert training_set.instruction_space.id == task_places.space == mine.id
    assert space(2).id != mine.id


def test_parts_of_other_weights_are_named_and_can_be_left_out(shipped: Pretrained) -> None:
    mine, other = space(1), space(2)
    fitting = replace(shipped, training_set=known(mine, shipped.id), places=places(mine.id))
    assert merge.stale_parts(fitting) == {}
    moved = replace(fitting, id="other")
    assert set(merge.stale_parts(moved)) == {"training_set.npz", "task_places.npz"}
    left = merge.without_stale(moved)
    assert left.places is None
    assert left.training_set is not None
    assert left.training_set.instruction_space is None
    other_space = replace(fitting, training_set=known(other, shipped.id))
    assert set(merge.stale_parts(other_space)) == {"task_places.npz"}
    kept = merge.without_stale(other_space).training_set
    assert kept is not None
    assert kept.instruction_space is other
    # Weights that were trained further keep the space, whose origin is then unknown.
    unknown = replace(fitting, training_set=known(mine, ""), places=places(""))
    assert merge.stale_parts(unknown) == {}
    assert set(merge.stale_parts(replace(fitting, training_set=None))) == {"task_places.npz"}


def test_merge_refuses_parts_of_other_weights(shipped: Pretrained, tmp_path: Path) -> None:
    stale = replace(shipped, training_set=known(space(1), "ab12"), places=None)
    with pytest.raises(BundleError, match=r"training_set\.npz: its space is of weights ab12"):
        merge.write_checkpoint(stale, ROOT / "pretrained" / "zoo.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_calibration_of_other_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pretrained"
    shutil.copytree(ROOT / "pretrained", folder)
    model = json.loads((folder / adapter.MODEL).read_text())
    model["weights"] = weights_id(folder)
    (folder / adapter.MODEL).write_text(json.dumps(model))
    assert load_pretrained(folder).id == model["weights"]
    connector = load_file(folder / adapter.CONNECTOR)
    connector["bias"] = connector["bias"] + 1
    save_file(connector, folder / adapter.CONNECTOR, metadata={"tasks": "[]"})
    with pytest.raises(BundleError, match=r"model\.json describes weights"):
        load_pretrained(folder)


def test_an_adapter_of_int8_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    name = f"{merge.PEFT_PREFIX}model.layers.0.mlp.up_proj"
    rows, columns = (RANDOM.integers(-127, 128, s).astype(np.int8) for s in ((2, 5), (7, 2)))
    scales = RANDOM.random((2, 2)).astype(np.float16)
    arrays = {
        f"{name}.lora_A.weight": rows,
        f"{name}.lora_A.weight.scale": scales[0],
        f"{name}.lora_B.weight": columns,
        f"{name}.lora_B.weight.scale": scales[1],
    }
    found = adapter.dequantize(arrays)
    factors = scales.astype(np.float32)
    expected = (columns * factors[1]) @ (rows * factors[0][:, None])
    np.testing.assert_allclose(
        found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"], expected, rtol=1e-6
    )
    halves = {n: a.astype(np.float16) for n, a in found.items()}
    for n, array in adapter.dequantize(halves).items():
        np.testing.assert_array_equal(array, halves[n])


def test_two_adapters_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in (adapter.ADAPTER, adapter.INT8_ADAPTER):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / name)
    with pytest.raises(BundleError, match="two adapters"):
        load_pretrained(tmp_path)


def test_the_command_leaves_out_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, written = tmp_path / "pretrained", list[Pretrained]()
    shutil.copytree(ROOT / "pretrained", folder)
    save_training_set(folder, known(space(1), "ab12"))
    monkeypatch.setattr(merge, "write_checkpoint", lambda p, *_: written.append(p) or _Depth())
    arguments = ["merge", "--pretrained", str(folder), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--leave-out-stale"])
    merge.main()
    assert "left out of training_set.npz: its space is of weights ab12" in capsys.readouterr().out
    assert written[0].training_set is not None
    assert written[0].training_set.instruction_space is None


class _Depth:
    depth = 6
