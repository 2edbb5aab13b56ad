"""Test which backend opens on which machine, and what is logged about the others."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api.errors import BundleError
from engine.bundle.arrays import Connector, ScoringArrays, TaskNorms, save_arrays
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import Manifest, hash_files, read_manifest
from engine.inference import devices, onnx
from engine.inference.batcher import GPU_ROWS
from engine.inference.onnx import OnnxBackend
from engine.inference.tensorrt import cuda
from engine.inference.tensorrt.backend import TensorRTBackend
from engine.inference.tensorrt.shapes import ForwardShape
from engine.serving.components import _batch_limits
from engine.serving.settings import Settings
from export.onnx.fp16 import HalfGraph
from export.onnx.llama import emit_backbone
from export.onnx.ops import LlamaConfig
from tests.inference.test_tensorrt import BASE, Machine, emit, fake_machine
from tests.support import tiny_llama
from tests.support.fake_gpu import fake_library
from tools.processes import BUNDLE

FILES = ["backbone.onnx", "backbone.sm89.plan", "other.sm90.plan", "backbone.sm120.plan"]


def test_plan_matches_the_gpu() -> None:
    assert devices.choose_plan(FILES, "89") == "backbone.sm89.plan"
    assert devices.choose_plan(FILES, "120") == "backbone.sm120.plan"
    with pytest.raises(BundleError, match=r"GPU is sm90, .* for sm120, sm89; .*--cuda-arch 90"):
        devices.choose_plan(FILES, "90")
    with pytest.raises(BundleError, match="has plans for none"):
        devices.choose_plan(FILES[:1], "90")


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Manifest]:
    """A tiny bundle with a plan for the fake GPU; its manifest is the real one with other files."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    path = emit(folder)
    (folder / "backbone.sm89.plan").write_bytes(path.read_bytes())
    (folder / "backbone.sm86.plan").write_bytes(path.read_bytes())
    readout = np.linspace(-1, 1, tiny_llama.WIDTH).astype(np.float32)
    norms = TaskNorms(np.zeros(2, np.float32), {})
    connector = Connector(np.zeros((tiny_llama.WIDTH, 3), np.float32), readout)
    space = InstructionSpace.unknown(tiny_llama.WIDTH)
    save_arrays(folder, ScoringArrays(readout, connector, norms, 8, space))
    graphs = {"tensorrt": "backbone.sm89.plan", "cpu": path.name, "cuda-fp16": path.name}
    manifest = replace(
        read_manifest(BUNDLE, "bundle"),
        width=tiny_llama.WIDTH, files=hash_files(folder), graphs=graphs,
    )  # fmt: skip
    return folder, manifest


@pytest.fixture
def machine(bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A fake GPU (see test_tensorrt.py) in place of a real one."""
    fake = fake_machine(bundle[0] / "backbone.fp16.onnx")
    monkeypatch.setattr(devices, "find_libraries", lambda: fake.libraries)
    few = [ForwardShape(1, 64, 17), ForwardShape(2, 192, 17)]  # the second is the self-test's
    monkeypatch.setattr(devices, "usual_shapes", lambda _: few)
    return fake


def test_auto_uses_tensorrt_if_it_works(bundle: tuple[Path, Manifest], machine: Machine) -> None:
    launches = machine.fake.fake_launches()
    backend = devices.open_backend(*bundle)
    assert isinstance(backend, TensorRTBackend)
    assert _batch_limits(Settings(), backend).max_rows == GPU_ROWS
    assert "backbone.sm89.plan, 2 CUDA graphs" in backend.describe(), "the usual shapes"
    assert machine.fake.fake_launches() > launches, "the self-test ran a graph"
    backend.close()
    machine.fake.fake_capability(b"86")
    try:
        backend = devices.open_backend(*bundle, device="tensorrt")
    finally:
        machine.fake.fake_capability(b"89")
    assert "backbone.sm86.plan" in backend.describe()
    backend.close()
    assert machine.fake.fake_live() == 0


@pytest.mark.parametrize(
    "case", ["no kernel", "no such plan", "a changed file", "NaN", "another model"]
)
def test_auto_logs_why_it_falls_back_to_the_cpu(
    bundle: tuple[Path, Manifest], machine: Machine, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, case: str,
) -> None:  # fmt: skip
    expected = {
        "no kernel": "cudaGetDeviceCount failed",
        "no such plan": "GPU is sm75",
        "a changed file": "changed or damaged",
        "NaN": "p differs by nan",
        "another model": "from the same graph on the CPU",
    }[case]
    folder, manifest = bundle
    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    if case == "no kernel":
        machine.fake.fake_fail(b"cudaGetDeviceCount", 35)

        def fails() -> None:
            try:
                machine.libraries.cuda.devices()
            except Exception as error:
                raise BundleError(f"No GPU responds: {error}") from error

        monkeypatch.setattr(devices, "find_libraries", fails)
    elif case == "a changed file":
        (folder / "backbone.sm89.plan").write_bytes(b"changed")
    elif case in ("NaN", "another model"):  # wrong in the same way each time
        factor = np.float32("nan" if case == "NaN" else -1)
        other = {n: factor * a if "down_proj" in n else a for n, a in BASE.arrays.items()}
        plan = folder / "backbone.sm89.plan"
        emit_backbone(LlamaConfig.of(BASE.config), other, plan, graph=HalfGraph)
        manifest = replace(manifest, files=hash_files(folder))
    if case == "no such plan":
        machine.fake.fake_capability(b"75")
    try:
        with caplog.at_level(logging.INFO):
            backend = devices.open_backend(folder, manifest, threads=1)
    finally:
        machine.fake.fake_capability(b"89")
    assert isinstance(backend, OnnxBackend)
    messages = [r.getMessage() for r in caplog.records if r.name == devices.log.name]
    assert [m.split(" unavailable (")[0] for m in messages] == ["TensorRT", "CUDA"]
    assert expected in messages[0]
    assert machine.fake.fake_live() == 0
    with pytest.raises(BundleError):
        devices.open_backend(*bundle, device="cuda-fp16")


def test_missing_graph_error_lists_the_available_devices() -> None:
    manifest = read_manifest(BUNDLE, "bundle")
    graphs = {name: file for name, file in manifest.graphs.items() if name != "tensorrt"}
    with pytest.raises(BundleError, match="no graph for --device tensorrt, only for"):
        devices.open_backend(BUNDLE, replace(manifest, graphs=graphs), device="tensorrt")


def test_cuda_libraries_are_loaded_before_the_provider(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    session = onnx.ort.InferenceSession

    def opened(graph: Path, options: Any, providers: Any) -> Any:
        loaded.append("session")
        return session(graph, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx.ort, "preload_dlls", lambda: loaded.append("libraries"))
    monkeypatch.setattr(onnx.ort, "InferenceSession", opened)
    with pytest.raises(BundleError, match="finds no GPU"):
        OnnxBackend(bundle[0] / "backbone.fp16.onnx", 1, provider="CUDA")
    assert loaded == ["libraries", "session"]


def test_an_older_runtime_is_tried_if_the_driver_is_too_old_for_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(fake_library())
    fake = ctypes.CDLL(path)
    monkeypatch.setattr(cuda, "_library_names", lambda: iter(["no such file", path, path]))
    fake.fake_fail(b"cudaGetDeviceCount", 35)  # only the next call
    assert cuda.find_cuda().capability() == "89"
    monkeypatch.setattr(cuda, "_library_names", lambda: iter([path]))
    fake.fake_fail(b"cudaGetDeviceCount", 35)
    with pytest.raises(BundleError, match=r"cudaGetDeviceCount failed: .*error 35"):
        cuda.find_cuda()
    monkeypatch.setattr(cuda, "_library_names", lambda: iter(["no such file"]))
    with pytest.raises(BundleError, match=r"Found no libcudart\.so of CUDA 13 or 12"):
        cuda.find_cuda()
