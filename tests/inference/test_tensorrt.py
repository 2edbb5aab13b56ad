"""Test that the TensorRT backend gives the probabilities of ONNX Runtime and the CPU kernel.

The same tests run on a fake GPU (fake_cuda.cc, fake_tensorrt.py), which checks how the backend uses
CUDA and TensorRT, and on a real GPU if there is one with TensorRT and nvcc.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpp_ext import cuda as kernel
from engine.api.errors import BundleError, ModelsatError, UnavailableError
from engine.bundle.manifest import Calibration
from engine.inference.backend import BatchScores, ScoringHead
from engine.inference.devices import EMBEDDING_TOLERANCE
from engine.inference.onnx import OnnxBackend
from engine.inference.tensorrt.backend import Libraries, TensorRTBackend, find_libraries
from engine.inference.tensorrt.cuda import Cuda, find_cuda
from engine.inference.tensorrt.memory import MAX_ROWS
from engine.inference.tensorrt.plan import INPUTS, BackboneEngine, find_library
from engine.inference.tensorrt.shapes import ForwardShape, ShapeProfile, SizeRange, pad_shape
from export.onnx.fp16 import HalfGraph
from export.onnx.llama import emit_backbone
from export.onnx.ops import LlamaConfig
from export.tensorrt import backbone_profile, build_plan
from tests.support import tiny_llama
from tests.support.fake_gpu import fake_library
from tests.support.fake_tensorrt import Module

BASE = tiny_llama.base()
HEAD = ScoringHead(
    np.linspace(-1, 1, tiny_llama.WIDTH).astype(np.float32), 1e-5, Calibration(0.7, -0.2)
)  # fmt: skip
PROFILE = ShapeProfile(SizeRange(1, 64), SizeRange(64, 320), SizeRange(1, 257))
SHAPE = ForwardShape(1, 64, 17)  # of ask()


@dataclass
class Machine:
    """A GPU, real or fake. tolerance: in p, for fp16 products compared with fp32 ones."""

    plan: Path
    graph: Path
    libraries: Libraries
    tolerance: float
    fake: ctypes.CDLL | None = None

    def open(self, *captured: ForwardShape) -> TensorRTBackend:
        backend = TensorRTBackend(self.plan, self.libraries)
        backend.capture(HEAD, captured)
        return backend


def emit(folder: Path) -> Path:
    path = folder / "backbone.fp16.onnx"
    emit_backbone(
        LlamaConfig.of(BASE.config), BASE.arrays, path, graph=HalfGraph
    )  # fmt: skip
    return path


def fake_machine(graph: Path, **module: Any) -> Machine:
    library = kernel.load(fake_library())
    libraries = Libraries(Cuda(library), library, Module(library, **module))
    return Machine(graph, graph, libraries, 1e-5, library)


@cache
def gpu_machine(graph: Path) -> Machine | str:
    """Open the real GPU, or return why it or TensorRT is missing; with both, all else must work."""
    try:
        capability = find_cuda().capability()
        find_library()
    except ModelsatError as error:
        return str(error)
    plan = graph.with_name(f"backbone.sm{capability}.plan")
    profile = backbone_profile(tiny_llama.WIDTH)
    build_plan(graph, plan, capability, profile, graph.with_name("timings"))
    return Machine(plan, graph, find_libraries(), 5e-3)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emit(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module", params=["fake", "fake rtx", "gpu"])
def machine(request: pytest.FixtureRequest, graph: Path) -> Machine:
    if request.param != "gpu":
        return fake_machine(graph, captures_itself=request.param == "fake rtx")
    found = gpu_machine(graph)
    if isinstance(found, str):
        pytest.skip(f"no GPU: {found}")
    return found


@pytest.fixture(scope="module")
def backend(machine: Machine) -> Iterator[TensorRTBackend]:
    """Shared by many tests; after close(), nothing may be allocated."""
    opened = machine.open(
        *(pad_shape(PROFILE, b, n, k) for b in (1, 2) for n in (64, 96) for k in (9, 33))
    )
    yield opened
    opened.close()
    if machine.fake is not None:
        assert machine.fake.fake_live() == 0
        assert machine.libraries.tensorrt.queue.errors == []


@pytest.fixture(scope="module")
def exact(graph: Path) -> OnnxBackend:
    return OnnxBackend(graph, threads=1)


def table(seed: int, candidates: int) -> np.ndarray:
    shape = (candidates, tiny_llama.WIDTH)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def embedding_error(found: BatchScores, expected: BatchScores) -> float:
    """The largest relative error of an instruction's embedding."""
    difference = np.linalg.norm(found.embeddings - expected.embeddings, axis=1)
    return float((difference / np.linalg.norm(expected.embeddings, axis=1)).max())


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    candidates=st.integers(1, 30),
    seed=st.integers(0, 2),
    again=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_matches_the_cpu(
    machine: Machine, backend: TensorRTBackend, exact: OnnxBackend, lengths: list[int],
    candidates: int, seed: int, again: int, data: st.DataObject,
) -> None:  # fmt: skip
    """Queued, or from a graph for some shapes, again and again; any rows in any order."""
    of, prompts = table(seed, candidates), tiny_llama.prompts(lengths, seed)
    rows = np.array(data.draw(st.permutations(range(candidates))))[: 1 + seed * 5]
    expected = exact.probabilities(prompts, of, rows, HEAD)
    for _ in range(again):
        found = backend.probabilities(prompts, of, rows, HEAD)
        np.testing.assert_allclose(found.p, expected.p, rtol=0, atol=machine.tolerance)
        assert embedding_error(found, expected) < EMBEDDING_TOLERANCE
        assert found.p.shape == (len(lengths), len(rows))
        assert found.scoring_s == 0


@pytest.mark.parametrize(
    "case", ["a thousand rows", "the longest prompt", "too many requests", "too many rows"]
)
def test_limits_of_the_profile_match_the_cpu(
    machine: Machine, backend: TensorRTBackend, exact: OnnxBackend, case: str
) -> None:
    lengths, of = {
        "a thousand rows": ([20], table(3, 1000)),
        "the longest prompt": ([320], table(3, 1)),
        "too many requests": ([9] * 65, table(3, 2)),
        "too many rows": ([9], table(3, 300)),
    }[case]
    prompts, rows = tiny_llama.prompts(lengths), np.arange(len(of))
    found = backend.probabilities(prompts, of, rows, HEAD)
    expected = exact.probabilities(prompts, of, rows, HEAD)
    np.testing.assert_allclose(found.p, expected.p, rtol=0, atol=machine.tolerance)
    assert embedding_error(found, expected) < EMBEDDING_TOLERANCE


def test_oversized_inputs_are_refused_with_their_limits(backend: TensorRTBackend) -> None:
    one, rows = table(0, 1), np.arange(1)
    with pytest.raises(UnavailableError, match="321 tokens, the TensorRT plan accepts 320"):
        backend.probabilities(tiny_llama.prompts([321]), one, rows, HEAD)
    large = np.zeros((MAX_ROWS + 1, tiny_llama.WIDTH), dtype=np.float32)
    with pytest.raises(UnavailableError, match=f"the GPU has room for {MAX_ROWS}"):
        backend.probabilities(tiny_llama.prompts([9]), large, rows, HEAD)
    backend.prefetch_table(large)
    narrow = ScoringHead(np.ones(3, dtype=np.float32), 1e-5, HEAD.calibration)
    with pytest.raises(UnavailableError, match="scoring head is"):
        backend.probabilities(tiny_llama.prompts([9]), one, rows, narrow)


def test_new_scoring_head_is_not_answered_from_old_graphs(
    machine: Machine, backend: TensorRTBackend, exact: OnnxBackend
) -> None:
    of, prompts, rows = table(1, 4), tiny_llama.prompts([12]), np.arange(4)
    other = ScoringHead(HEAD.weight[::-1].copy(), 1e-3, Calibration(0.2, 0.4))
    for head in (HEAD, HEAD, HEAD, other, other, other, HEAD):
        found = backend.probabilities(prompts, of, rows, head).p
        expected = exact.probabilities(prompts, of, rows, head).p
        np.testing.assert_allclose(found, expected, rtol=0, atol=machine.tolerance)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
@settings(max_examples=25, deadline=None)
def test_table_swaps_never_mix_tables(
    machine: Machine, backend: TensorRTBackend, exact: OnnxBackend,
    steps: list[tuple[int, bool]],
) -> None:  # fmt: skip
    """Tables are prefetched and read in any order, also read without being prefetched."""
    tables, prompts, rows = [table(i, 5) for i in range(4)], tiny_llama.prompts([7]), np.arange(5)
    expected = [exact.probabilities(prompts, of, rows, HEAD).p for of in tables]
    for which, prefetched in steps:
        if prefetched:
            backend.prefetch_table(tables[which])
        else:
            found = backend.probabilities(prompts, tables[which], rows, HEAD).p
            np.testing.assert_allclose(found, expected[which], rtol=0, atol=machine.tolerance)


def test_prefetching_in_another_thread_never_mixes_tables(
    machine: Machine, backend: TensorRTBackend, exact: OnnxBackend
) -> None:
    tables, prompts, rows = [table(i, 5) for i in range(8)], tiny_llama.prompts([7]), np.arange(5)
    expected = [exact.probabilities(prompts, of, rows, HEAD).p for of in tables]
    stop = threading.Event()

    def prefetch() -> None:
        random = np.random.default_rng(0)
        while not stop.is_set():
            backend.prefetch_table(tables[random.integers(8)])

    thread = threading.Thread(target=prefetch)
    thread.start()
    try:
        for i in range(200):
            which = i // 3 % 8
            found = backend.probabilities(prompts, tables[which], rows, HEAD).p
            np.testing.assert_allclose(found, expected[which], rtol=0, atol=machine.tolerance)
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture
def fake(graph: Path) -> Machine:
    return fake_machine(graph)


def ask(backend: TensorRTBackend, length: int = 9, candidates: int = 3) -> np.ndarray:
    return backend.probabilities(
        tiny_llama.prompts([length]), table(0, candidates), np.arange(candidates), HEAD
    ).p


def test_prefetch_during_a_forward_pass_leaves_its_table_alone(fake: Machine) -> None:
    """The upload ends before the forward pass reads its own table, and the next pass uses it."""
    backend, old, new = fake.open(), table(0, 3), table(1, 3)
    prompts, rows, module = tiny_llama.prompts([9]), np.arange(3), fake.libraries.tensorrt
    expected = [backend.probabilities(prompts, of, rows, HEAD).p for of in (new, old)]

    def prefetch() -> None:
        for of in (new, table(2, 3), table(3, 3), new):
            backend.prefetch_table(of)
            fake.libraries.cuda.synchronize(backend._tables._stream)

    backend.probabilities(prompts, table(4, 3), rows, HEAD)  # the new table is evicted
    module.before_queue = prefetch
    np.testing.assert_array_equal(backend.probabilities(prompts, old, rows, HEAD).p, expected[1])
    module.before_queue = lambda: None
    assert backend._tables._find(new) is not None
    np.testing.assert_array_equal(backend.probabilities(prompts, new, rows, HEAD).p, expected[0])
    backend.close()


def test_graphs_and_contexts_are_made_at_start_and_in_no_request(
    fake: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = fake.open(SHAPE, ForwardShape(1, 128, 17))
    before, created = fake.fake.fake_launches(), []
    monkeypatch.setattr(BackboneEngine, "create_context", lambda *_: created.append(1))
    counted = []
    for length in (9, 9, 30, 120, 200, 200, 200):
        ask(backend, length)
        counted.append(fake.fake.fake_launches() - before)
    assert counted == [1, 2, 3, 4, 4, 4, 4], "up to 64 tokens are one shape, 200 have no graph"
    assert created == []
    assert "2 CUDA graphs" in backend.describe()
    backend.close()
    assert fake.fake.fake_live() == 0


def test_shapes_beyond_the_time_are_queued(fake: Machine, caplog: pytest.LogCaptureFixture) -> None:
    backend = fake.open()
    expected = ask(backend)
    backend.capture(HEAD, [SHAPE], seconds=-1)
    assert "0 of 1 shapes have a CUDA graph" in caplog.text
    np.testing.assert_array_equal(ask(backend), expected)
    backend.close()


def test_a_context_that_finds_no_memory_ends_the_capture_alone(
    fake: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: the whole plan was refused, where its first contexts could serve."""
    backend = fake.open(SHAPE)
    expected = ask(backend)

    def refuse(*_: Any) -> None:
        raise UnavailableError("no memory")

    monkeypatch.setattr(BackboneEngine, "create_context", refuse)
    backend.capture(HEAD, [ForwardShape(1, 128, 17)])
    assert "1 CUDA graphs" in backend.describe()
    np.testing.assert_array_equal(ask(backend), expected)
    backend.close()
    assert fake.fake.fake_live() == 0


def test_an_equal_head_keeps_the_graphs(fake: Machine) -> None:
    """The server makes a head of its own after the self-test's."""
    backend = fake.open(SHAPE)
    same = ScoringHead(HEAD.weight.copy(), HEAD.eps, HEAD.calibration)
    backend.probabilities(tiny_llama.prompts([9]), table(0, 3), np.arange(3), same)
    assert "1 CUDA graphs" in backend.describe()
    backend.close()


def test_failed_capture_disables_graphs(fake: Machine, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cudaStreamBeginCapture", "modelsat_rank_cuda", "cudaGraphInstantiateWithFlags"):
        backend = fake.open()
        first = ask(backend)
        capture = partial(backend.capture, HEAD, [SHAPE])
        if name == "modelsat_rank_cuda":  # must fail during the capture, not before
            capture = failing_in_capture(fake, capture)
        else:
            fake.fake.fake_fail(name.encode(), 901)
        with caplog.at_level(logging.WARNING):
            capture()
        assert "CUDA graphs disabled" in caplog.text
        np.testing.assert_array_equal(ask(backend), first)
        assert "0 CUDA graphs" in backend.describe()
        backend.close()
        assert fake.fake.fake_live() == 0
        caplog.clear()


def failing_in_capture(fake: Machine, call: Callable[[], None]) -> Callable[[], None]:
    module, capturing = fake.libraries.tensorrt, fake.libraries.tensorrt.capturing

    def armed() -> bool:
        if capturing():
            fake.fake.fake_fail(b"modelsat_rank_cuda", 4)
        return capturing()

    def run() -> None:
        module.capturing = armed
        try:
            call()
        finally:
            module.capturing = capturing

    return run


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("cudaMemcpyAsync", 700, "cudaMemcpyAsync failed: a simulated failure"),
        ("cudaStreamSynchronize", 700, "cudaStreamSynchronize failed"),
        ("modelsat_gather_cuda", 4, "failed to launch: .* a failed launch"),
    ],
)
def test_cuda_failure_affects_one_request_and_is_named(
    fake: Machine, name: str, code: int, words: str
) -> None:
    backend = fake.open()
    expected = ask(backend)
    fake.fake.fake_fail(name.encode(), code)
    with pytest.raises(UnavailableError, match=words):
        ask(backend)
    np.testing.assert_array_equal(ask(backend), expected)
    backend.close()


def test_invalid_plan_or_lack_of_memory_is_a_bundle_error(
    fake: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "backbone.sm89.plan"
    broken.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="does not load in fake_tensorrt"):
        TensorRTBackend(broken, fake.libraries)
    assert "not a plan" in caplog.text
    fake.fake.fake_fail(b"cudaMallocHost", 2)
    with pytest.raises(BundleError, match="does not run on this GPU: cudaMallocHost failed"):
        fake.open()
    assert fake.fake.fake_live() == 0


def test_fake_uses_only_names_of_the_real_library() -> None:
    """tensorrt_rtx, whose wheel can be imported without a GPU, has every name the backend calls."""
    trt = pytest.importorskip("tensorrt_rtx", reason="no TensorRT: pip install .[trt]")
    used = {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            *("num_io_tensors", "get_tensor_name", "get_tensor_dtype", "create_runtime_config"),
            *("get_tensor_profile_shape", "device_memory_size_v2", "create_execution_context"),
        ],
        trt.IExecutionContext: [
            *("set_device_memory", "set_tensor_address", "set_input_shape", "execute_async_v3"),
        ],
        trt.IRuntimeConfig: [
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ],
        trt.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE"],
        trt.DynamicShapesKernelSpecializationStrategy: ["LAZY"],
        trt.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        trt.DataType: ["INT64", "FLOAT", "HALF", "BF16"],
        trt.ILogger: ["log"],
    }
    missing = [f"{c.__name__}.{n}" for c, names in used.items() for n in names if not hasattr(c, n)]
    assert missing == []
    assert set(backbone_profile(1)) == set(INPUTS)
