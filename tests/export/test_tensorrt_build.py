"""Test that fp16 graphs are close to fp32 ones, and that TensorRT, if installed, builds them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engine.api.errors import BundleError
from engine.inference.onnx import OnnxBackend
from export import tensorrt
from export.onnx.fp16 import HalfGraph
from export.onnx.llama import emit_backbone
from export.onnx.ops import LlamaConfig
from export.tensorrt import LIBRARIES, BuiltEngine, backbone_profile, build_plan, write_plans
from tests.export.test_graph import embeddings
from tests.support import tiny_llama

BASE = tiny_llama.base()
CONFIG = LlamaConfig.of(BASE.config)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    emit_backbone(CONFIG, BASE.arrays, path, graph=HalfGraph)
    return path


def test_products_are_fp16_and_close_to_fp32(half: Path, tmp_path: Path) -> None:
    full = tmp_path / "full.onnx"
    emit_backbone(CONFIG, BASE.arrays, full)
    prompts, e = tiny_llama.prompts([30, 7]), embeddings(5)
    found, expected = (OnnxBackend(p, 1).hidden(prompts, e) for p in (half, full))
    assert found.dtype == np.float32
    gap = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < gap < 5e-3
    stored = {w.name: w.data_type for w in onnx.load(half).graph.initializer}
    matrices = {k: v for k, v in stored.items() if "proj" in k or "embed" in k}
    assert set(matrices.values()) == {TensorProto.FLOAT16}
    assert len(matrices) > 10
    assert half.stat().st_size < 0.6 * full.stat().st_size


@pytest.mark.skipif(not any(map(find_spec, LIBRARIES)), reason="no TensorRT: pip install .[trt]")
def test_plan_is_built(half: Path, tmp_path: Path) -> None:
    profile = backbone_profile(CONFIG.width)
    plan = build_plan(half, tmp_path / "tiny.plan", "89", profile, tmp_path / "timings")
    assert (tmp_path / "tiny.plan").stat().st_size == plan.size > 10_000
    assert set(plan.inputs) == {"tokens", "lengths", "embeddings"}
    with pytest.raises(BundleError, match="could not build none"):
        build_plan(tmp_path / "none.onnx", tmp_path / "none.plan", "89", profile, tmp_path / "t")


def test_weights_that_overflow_fp16_are_refused(tmp_path: Path) -> None:
    arrays = dict(BASE.arrays)
    arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"] + 1e5
    with pytest.raises(BundleError, match="overflows fp16"):
        emit_backbone(CONFIG, arrays, tmp_path / "x.onnx", graph=HalfGraph)


def test_plans_of_other_capabilities_are_kept_if_one_build_fails(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backbone.fp16.onnx").write_bytes(half.read_bytes())

    def build(graph: Path, out: Path, capability: str, *_: Any) -> BuiltEngine:
        out.write_bytes(b"half a plan")
        if capability == "90":
            raise BundleError("no plan for sm90")
        return BuiltEngine(out.name, "fake", capability, 0, 1, {}, 0.0)

    monkeypatch.setattr(tensorrt, "library", lambda: "fake")
    monkeypatch.setattr(tensorrt, "build_plan", build)
    built, failed = write_plans(tmp_path, CONFIG.width, ["90", "89", "120"])
    assert [engine.capability for engine in built] == ["89", "120"]
    assert failed == {"90": "no plan for sm90"}
    names = sorted(path.name for path in tmp_path.glob("*.plan"))
    assert names == ["backbone.sm120.plan", "backbone.sm89.plan"]


def test_plan_is_built_for_the_capability_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorrt builds for this machine's GPU; tensorrt_rtx for those that it knows."""
    monkeypatch.setattr(tensorrt, "present_capability", lambda: "90")
    native = SimpleNamespace(__name__="tensorrt", __version__="11")
    tensorrt._aim(SimpleNamespace(), native, "90")
    with pytest.raises(BundleError, match="which has sm90; sm89 was asked for"):
        tensorrt._aim(SimpleNamespace(), native, "89")

    aimed: list[Any] = []
    config = SimpleNamespace(set_compute_capability=lambda target, _: aimed.append(target))
    known = SimpleNamespace(SM89="89", SM120="120")
    rtx = SimpleNamespace(__name__="tensorrt_rtx", __version__="1", ComputeCapability=known)
    tensorrt._aim(config, rtx, "120")
    assert aimed == ["120"]
    with pytest.raises(BundleError, match="no plans for sm90, only for 89, 120"):
        tensorrt._aim(config, rtx, "90")
