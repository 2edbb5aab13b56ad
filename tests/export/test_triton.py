"""Test the Triton repository of a bundle: that Triton's schema parses its configuration, and that
its graphs give the engine's probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from engine.api.errors import BundleError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.inference.backend import ScoringHead
from engine.inference.onnx import OnnxBackend
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from export.triton import BACKBONE, ENSEMBLE, READOUT, write_repository
from tests.conftest import INSTRUCTIONS
from tests.support.deploy_tools import needs_tools, run
from tools.processes import BUNDLE

pytestmark = pytest.mark.slow

KINDS = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(BUNDLE, out)
    write_repository(BUNDLE, out, "cpu-fp32", version=2)
    return out


def session(repository: Path, model: str, version: int = 1) -> ort.InferenceSession:
    return ort.InferenceSession(repository / model / str(version) / "model.onnx")


@needs_tools
def test_configuration_parses_and_matches_the_graphs(repository: Path) -> None:
    configs = json.loads(run("python", "tests/support/triton_config.py", str(repository)))
    assert set(configs) == {BACKBONE, READOUT, ENSEMBLE}
    for name in (BACKBONE, READOUT):
        graph = session(repository, name)
        for field, tensors in (("input", graph.get_inputs()), ("output", graph.get_outputs())):
            expected = [
                (t.name, KINDS[t.type], [d if isinstance(d, int) else -1 for d in t.shape])
                for t in tensors
            ]
            assert tensors_of(configs[name], field) == expected
        assert configs[name]["platform"] == "onnxruntime_onnx"
        assert "maxBatchSize" not in configs[name]  # proto3 omits 0
    ensemble = configs[ENSEMBLE]
    assert tensors_of(ensemble, "input") == tensors_of(configs[BACKBONE], "input")
    assert tensors_of(ensemble, "output") == tensors_of(configs[READOUT], "output")
    known = {t[0] for t in tensors_of(ensemble, "input")}
    for step in ensemble["ensembleScheduling"]["step"]:  # each input comes from an earlier step
        model = configs[step["modelName"]]
        assert set(step["inputMap"]) == {t[0] for t in tensors_of(model, "input")}
        assert set(step["inputMap"].values()) <= known
        known |= set(step["outputMap"].values())
    assert {t[0] for t in tensors_of(ensemble, "output")} <= known


def tensors_of(config: dict[str, Any], field: str) -> list[tuple[str, str, list[int]]]:
    return [(t["name"], t["dataType"], [int(d) for d in t["dims"]]) for t in config[field]]


@pytest.mark.parametrize("version", [1, 2])
def test_repository_gives_the_engines_probabilities(repository: Path, version: int) -> None:
    manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
    encoder = load_encoder(BUNDLE, arrays)
    table = np.stack([encoder.encode(c) for c in read_catalog(BUNDLE / "zoo.json")])
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    prompts = [render(text, tokenizer).tokens for text in INSTRUCTIONS[:3]]
    lengths = np.array([len(p) for p in prompts])
    tokens = np.zeros((len(prompts), lengths.max()), dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    feeds = {"tokens": tokens, "lengths": lengths, "embeddings": table}
    (hidden,) = session(repository, BACKBONE, version).run(None, feeds)
    (found,) = session(repository, READOUT, version).run(None, {"hidden": hidden})

    graph = BUNDLE / manifest.graphs["cpu" if version == 1 else "cpu-fp32"]
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    expected = OnnxBackend(graph).probabilities(prompts, table, np.arange(len(table)), head)
    assert np.abs(found - expected.p).max() < 1e-5


def test_device_without_onnx_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no ONNX graph for tensorrt"):
        write_repository(BUNDLE, tmp_path, "tensorrt")


def test_no_folder_is_empty(repository: Path) -> None:
    assert [p for p in repository.rglob("*") if p.is_dir() and not any(p.iterdir())] == []


def test_version_with_other_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / BACKBONE / "1").mkdir(parents=True)
    config = tmp_path / BACKBONE / "config.pbtxt"
    config.write_text("of another width")
    with pytest.raises(BundleError, match="belongs to version 1"):
        write_repository(BUNDLE, tmp_path, version=2)
    assert sorted(p.name for p in config.parent.iterdir()) == ["1", "config.pbtxt"]
    assert config.read_text() == "of another width"
