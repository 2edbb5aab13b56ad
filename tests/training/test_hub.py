"""Checkpoints through a hub over real HTTP, and what Hugging Face's own loaders make of one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.bundle.manifest import (
    MANIFEST,
    commit_dir,
    hash_files,
    manifest_digest,
    read_manifest,
    stage_dir,
)
from tests.conftest import CHECKPOINT
from tests.support import tiny_llama
from tests.support.fake_hub import hub
from tools.processes import ROOT
from training.weights.base import load_base
from training.weights.merge import write_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small one: a tiny backbone under the manifest of the real checkpoint."""
    out = tmp_path / "checkpoint"
    unfinished = stage_dir(out, "checkpoint")
    write_model(unfinished / "backbone", tiny_llama.base())
    manifest = replace(read_manifest(CHECKPOINT, "checkpoint"), files=hash_files(unfinished))
    commit_dir(unfinished, out, manifest)
    return out


def run(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_x"}
    command = [sys.executable, "-m", "training.weights.hub", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_pull_returns_and_checks_what_push_published(checkpoint: Path, tmp_path: Path) -> None:
    extra = checkpoint / "backbone" / "notes.txt"
    extra.write_text("not in the manifest")
    back = tmp_path / "back"
    with hub() as (endpoint, repositories):
        done = run(endpoint, tmp_path / "home", "push", str(checkpoint), "team/router")
        assert "holds backbone/notes.txt, which manifest.json does not list" in done.stderr
        assert repositories == {}
        extra.unlink()
        done = run(endpoint, tmp_path / "home", "push", str(checkpoint), "team/router")
        assert done.returncode == 0, done.stderr
        files = repositories["team/router"]
        assert sorted(files) == [
            "README.md",
            "backbone/config.json",
            "backbone/model.safetensors",
            "backbone/tokenizer.json",
            "manifest.json",
        ]
        front = yaml.safe_load(files["README.md"].decode().split("---")[1])
        assert front["license"] == "apache-2.0"

        pulling = ("pull", "team/router", "--out", str(back))
        assert run(endpoint, tmp_path / "home", *pulling).returncode == 0
        assert read_manifest(back, "checkpoint") == read_manifest(checkpoint, "checkpoint")

        weights = files["backbone/model.safetensors"]
        files["backbone/model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
        spoilt = run(endpoint, tmp_path / "home", *pulling)
        assert spoilt.returncode == 1
        assert "sha256 is" in spoilt.stderr
        read_manifest(back, "checkpoint")  # the one that was there stays

        unknown = run(endpoint, tmp_path / "home", "pull", "team/nothing", "--out", str(back))
        assert unknown.returncode == 1
        assert unknown.stderr.startswith("error: the hub request for 'team/nothing'")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),  # a repository without a model card
        ({"files": {"../victim": hashlib.sha256(b"mine").hexdigest()}}, "files has '../victim'"),
        ({"graphs": {"cpu": "no.onnx"}}, "graphs has ['no.onnx']"),
    ],
    ids=["no card", "outside", "unlisted"],
)
def test_foreign_repository_is_installed_whole_or_refused(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    manifest = json.loads((checkpoint / MANIFEST).read_text("utf-8")) | change
    del manifest["seal"]
    with hub() as (endpoint, repositories):
        repositories["team/router"] = {
            MANIFEST: json.dumps(manifest | {"seal": manifest_digest(manifest)}).encode(),
            **{name: (checkpoint / name).read_bytes() for name in hash_files(checkpoint)},
        }
        pulling = ("pull", "team/router", "--out", str(tmp_path / "back"))
        done = run(endpoint, tmp_path / "home", *pulling)
    assert (done.returncode == 0) is (why == ""), done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    left = {path.name for path in tmp_path.iterdir()} - {"home", "checkpoint"}
    assert left == ({"victim"} if why else {"victim", "back"})


def test_transformers_loads_the_backbone() -> None:
    """The shipped one, with the adapter folded in: weights and tokens as the engine has them."""
    folder = CHECKPOINT / "backbone"
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    base = load_base(str(folder))
    state = model.state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in base.arrays.items())
    text = "If 3x + 7 = 22, what is x?\n"
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    assert logits.shape == (
        1,
        len(ids),
        json.loads((folder / "config.json").read_text())["vocab_size"],
    )
    assert bool(torch.isfinite(logits).all())
