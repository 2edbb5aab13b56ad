"""Test the fused forward pass on the shipped bundle, and when it serves."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from cpp_ext.forward import MAX_THREADS, WRONG, Forward, ForwardError, paths
from engine.api.errors import BundleError, UnavailableError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.inference import devices
from engine.inference.backend import ScoringHead
from engine.inference.fused import FAST_PATHS, PATHS_VARIABLE, FusedBackend, allowed_paths
from engine.inference.onnx import OnnxBackend
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from tests.conftest import INSTRUCTIONS
from tests.support.backends import open_format
from tools.processes import BUNDLE

MANIFEST, ARRAYS = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
HEAD = ScoringHead(ARRAYS.readout, MANIFEST.norm_eps, MANIFEST.calibration)
TOKENIZER = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
PROMPTS = [render(text, TOKENIZER).tokens for text in INSTRUCTIONS[:8]]
TABLE = np.random.default_rng(7).normal(0, 0.05, (15, MANIFEST.width)).astype(np.float32)
ROWS = np.arange(len(TABLE))


@pytest.mark.parametrize(
    "path", [name for name in paths() if name != "scalar" and not name.endswith("bf16")] or [None]
)
def test_int8_is_as_near_to_fp32_as_the_graph_is(path: str | None) -> None:
    """The graph has 7 bits of a weight and no mixed rows; a wrong layer would move the mean."""
    fused = open_format("backbone.int8.fused", 2, path)
    exact, graph = open_format("backbone.onnx", 2), open_format("backbone.int8.onnx", 2)
    expected = exact.probabilities(PROMPTS, TABLE, ROWS, HEAD)
    of_graph, found = (b.probabilities(PROMPTS, TABLE, ROWS, HEAD) for b in (graph, fused))
    moved = np.abs(found.p - expected.p)
    assert moved.max() < 0.03
    assert moved.mean() < np.abs(of_graph.p - expected.p).mean() + 1e-4
    # How large the errors of embeddings are depends on the weights; those of a wrong layer are not
    # alike in both.
    errors = [np.linalg.norm(x.embeddings - expected.embeddings, axis=1) for x in (of_graph, found)]
    of_graph_max, own_max = (
        (error / np.linalg.norm(expected.embeddings, axis=1)).max() for error in errors
    )
    assert own_max < of_graph_max < 0.12


def test_int8_moves_no_probability_by_more_than_promised() -> None:
    """.03 with the catalog's candidates, on instructions of our own (of the folders:
    docs/explanation/quality.md)."""
    fused, exact = open_format("backbone.int8.fused", 2), open_format("backbone.onnx", 2)
    encoder = load_encoder(BUNDLE, ARRAYS)
    table = np.stack([encoder.encode(c) for c in read_catalog(BUNDLE / "zoo.json")[::3]])
    rows = np.arange(len(table))
    prompts = [render(text, TOKENIZER).tokens for text in INSTRUCTIONS]
    found, expected = (
        np.concatenate([b.probabilities([p], table, rows, HEAD).p for p in prompts])
        for b in (fused, exact)
    )
    assert np.abs(found - expected).max() < 0.03
    # A choice that changed was between candidates that are as good.
    lost = expected.max(axis=1) - expected[np.arange(len(prompts)), found.argmax(axis=1)]
    assert lost.max() < 0.01


def test_bf16_is_near_fp32() -> None:
    fused, exact = open_format("backbone.bf16.fused", 2), open_format("backbone.onnx", 2)
    found = fused.probabilities(PROMPTS, TABLE, ROWS, HEAD)
    expected = exact.probabilities(PROMPTS, TABLE, ROWS, HEAD)
    assert np.abs(found.p - expected.p).max() < 0.005


def test_cpu_takes_the_fused_pass_where_it_is_fast(caplog: pytest.LogCaptureFixture) -> None:
    open_format("backbone.int8.fused", 1)
    with caplog.at_level(logging.INFO, devices.log.name):
        backend = devices.open_backend(BUNDLE, MANIFEST, "cpu", 1)
    if set(paths()) & set(FAST_PATHS):
        assert isinstance(backend, FusedBackend)
        assert (
            backend.describe()
            == f"fused forward {allowed_paths()[0]}, 1 threads, backbone.int8.fused"
        )
    else:
        assert isinstance(backend, OnnxBackend)
        assert "ONNX Runtime serves instead" in caplog.text
    assert isinstance(devices.open_backend(BUNDLE, MANIFEST, "cpu-onnx", 1), OnnxBackend)


@pytest.mark.parametrize("named", ["", "sse2", "amx-bf16"])
def test_onnx_runtime_serves_if_no_path_is_allowed(
    named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the only path allowed is for another number format."""
    open_format("backbone.int8.fused", 1)
    monkeypatch.setenv(PATHS_VARIABLE, named)
    with caplog.at_level(logging.INFO, devices.log.name):
        backend = devices.open_backend(BUNDLE, MANIFEST, "cpu", 1)
    assert isinstance(backend, OnnxBackend)
    assert "cannot serve backbone.int8.fused" in caplog.text
    with pytest.raises(BundleError, match="cannot serve"):
        devices.open_backend(BUNDLE, MANIFEST, "cpu-fused", 1)


def test_a_damaged_file_does_not_make_the_server_slower_without_a_word(tmp_path: Path) -> None:
    """It is refused, as any other damaged file is."""
    open_format("backbone.int8.fused", 1)
    content = bytearray((BUNDLE / "backbone.int8.fused").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "backbone.int8.fused").write_bytes(content)
    with pytest.raises(BundleError, match="changed or damaged"):
        devices.open_backend(tmp_path, MANIFEST, "cpu", 1)


@pytest.mark.parametrize("wrong", [1, 9])
def test_a_path_that_fails_its_test_does_not_serve(
    wrong: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one serves if there is one, and else ONNX Runtime. wrong: paths that fail."""
    open_format("backbone.int8.fused", 1)
    allowed = [name for name in allowed_paths() if not name.endswith("bf16")]
    if not allowed:
        pytest.skip("no path would serve on this CPU")
    tested: list[str] = []

    def test(forward: Forward) -> None:
        tested.append(forward.path)
        if len(tested) <= wrong:
            raise ForwardError(f"the test of path {forward.path} failed", WRONG)

    monkeypatch.setattr(Forward, "test", test)
    with caplog.at_level(logging.INFO):
        backend = devices.open_backend(BUNDLE, MANIFEST, "cpu", 1)
    assert tested == allowed[: wrong + 1]
    assert isinstance(backend, FusedBackend if len(allowed) > wrong else OnnxBackend)
    message = f"the test of path {allowed[0]} failed"
    assert any(r.levelname == "WARNING" and message in r.message for r in caplog.records)


def test_a_machine_of_many_cores_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes at most MAX_THREADS threads, and refuses more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(384)))
    monkeypatch.setattr(Forward, "test", lambda _: None)
    assert f"{MAX_THREADS} threads" in open_format("backbone.int8.fused", 0).describe()


def test_refused_tokens_fail_their_batch_alone() -> None:
    fused = open_format("backbone.int8.fused", 1)
    other = PROMPTS[0].copy()
    other[0] += 1
    with pytest.raises(UnavailableError, match="do not begin with the inquiry prompt"):
        fused.probabilities([other], TABLE, ROWS, HEAD)
    assert np.isfinite(fused.probabilities([PROMPTS[0]], TABLE, ROWS, HEAD).p).all()
