"""Bundles that differ from their manifest are refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api.errors import BundleError
from engine.bundle.arrays import FILE, load_arrays
from engine.bundle.manifest import MANIFEST, manifest_digest, read_manifest
from engine.bundle.training_set import load_training_set
from tools.processes import BUNDLE, ROOT


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy whose files are links, but for the manifest and the small ones."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for source in BUNDLE.iterdir():
        if source.stat().st_size > 10_000_000:
            (copy / source.name).symlink_to(source)
        else:
            shutil.copy(source, copy)
    return copy


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((bundle / MANIFEST).read_text())
    change(raw)
    raw["seal"] = manifest_digest(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw))


def flip_byte(bundle: Path) -> None:
    path = bundle / "scoring.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped byte": (flip_byte, r"scoring\.npz: sha256 is \w+\.\.\., the manifest says"),
    "missing file": (lambda b: (b / "zoo.json").unlink(), r"zoo\.json is missing"),
    "unlisted file": (
        lambda b: (b / "extra.onnx").write_bytes(b"x"),
        r"holds extra\.onnx, which manifest\.json does not list",
    ),
    "unlisted file in a folder": (
        lambda b: ((b / "sub").mkdir(), (b / "sub" / "m.npz").write_bytes(b"x")),
        r"holds sub/m\.npz, which",
    ),
    "unlisted link": (lambda b: (b / "link.json").symlink_to("zoo.json"), r"holds link\.json,"),
    "file taken off the list": (
        lambda b: edit(b, lambda m: m["files"].pop("tokenizer.json")),
        r"holds tokenizer\.json, which",
    ),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), r"has no manifest\.json"),
    "not JSON": (lambda b: (b / MANIFEST).write_text("{"), "not readable JSON"),
    "a list": (lambda b: (b / MANIFEST).write_text("[]"), "holds list, expected an object"),
    "schema": (lambda b: edit(b, lambda m: m.update(schema=99)), "schema is 99, this version"),
    "prompt": (
        lambda b: edit(b, lambda m: m.update(prompt_version="old")),
        "prompt_version is 'old', this version expects",
    ),
    "kind": (lambda b: edit(b, lambda m: m.update(kind="checkpoint")), "kind is 'checkpoint'"),
    "layout": (lambda b: edit(b, lambda m: m.update(layout="sideways")), "layout is 'sideways'"),
    "unserved layout": (
        lambda b: edit(b, lambda m: m.update(layout="capability_first")),
        "layout is 'capability_first', but only 'candidate_last' can be exported and served",
    ),
    "unserved representation": (
        lambda b: edit(b, lambda m: m.update(representation="text")),
        "representation is 'text', but only 'accuracy_weighted' can be exported and served",
    ),
    "figure": (
        lambda b: (b / MANIFEST).write_text(
            (b / MANIFEST).read_text().replace('"scale": ', '"scale": 8')
        ),
        "seal does not match",
    ),
    "field": (lambda b: edit(b, lambda m: m.pop("norm_eps")), r"missing \['norm_eps'\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_bundle_is_refused_with_reason(bundle: Path, case: str) -> None:
    damage, words = BROKEN[case]
    damage(bundle)
    with pytest.raises(BundleError, match=words) as refused:
        read_manifest(bundle, "bundle")
    assert "make clean export" in str(refused.value) or "layout" in case or "representation" in case


def test_built_bundle_is_complete_and_within_parity_limits(bundle: Path) -> None:
    manifest = read_manifest(bundle, "bundle")
    assert manifest.graphs["cpu"] == "backbone.int8.onnx"
    assert max(manifest.parity["onnx"], manifest.parity["encoder"]) < 1e-3
    assert manifest.parity["int8"] < 0.03
    assert {p.name for p in BUNDLE.iterdir()} == {*manifest.files, MANIFEST}


def test_a_bundle_compares_instructions_as_its_weights_say(bundle: Path) -> None:
    shipped = load_training_set(ROOT / "pretrained")
    assert shipped is not None
    assert shipped.instruction_space is not None
    assert shipped.instruction_space.mean.any()
    space = load_arrays(bundle).instruction_space
    np.testing.assert_array_equal(space.mean, shipped.instruction_space.mean)
    np.testing.assert_array_equal(space.axes, shipped.instruction_space.axes)


@pytest.mark.parametrize("width", [None, 575, 1])
def test_an_older_bundle_has_a_neutral_space_and_one_of_another_width_is_refused(
    bundle: Path, width: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with np.load(bundle / FILE) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("instruction_")}
    if width is not None:
        arrays["instruction_mean"] = np.ones(width, np.float32)
    np.savez(bundle / FILE, **arrays)
    if width is None:
        with caplog.at_level("INFO"):
            space = load_arrays(bundle).instruction_space
        assert (space.mean.any(), space.axes.shape[1]) == (False, 0)
        assert "has no mean embedding" in caplog.text
    else:
        with pytest.raises(BundleError, match=rf"instruction_mean is \({width},\), expected"):
            load_arrays(bundle)
