"""The calibration is fitted to what is served: log-odds of the weights and the match."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from engine.api.errors import BundleError
from tests.support import datasets
from tools.processes import BUNDLE, ROOT
from training import calibration
from training.calibration import fit_calibration


def folder(
    count: int, scale: float, offset: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x, added = 2 * random.standard_normal((2, count, 5))
    y = (random.random((count, 5)) < expit(scale * x + offset + added)).astype(float)
    y[random.random(y.shape) < 0.2] = np.nan
    return x, added, y


def test_scale_and_offset_are_those_that_go_with_the_match() -> None:
    found = fit_calibration([folder(4000, 0.6, -0.4, 0), folder(4000, 0.6, -0.4, 1)])
    assert found.scale == pytest.approx(0.6, abs=0.03)
    assert found.offset == pytest.approx(-0.4, abs=0.05)


def test_folders_weigh_alike_whatever_their_size() -> None:
    small, large = folder(400, 0.5, 1.0, 2), folder(8000, 0.5, -1.0, 3)
    assert fit_calibration([small, large]).offset == pytest.approx(0, abs=0.15)


def test_a_bundle_of_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = tmp_path / "weights", datasets.write(tmp_path / "one")
    out.mkdir()
    for name in ("adapter_config.json", "connector.safetensors"):
        (out / name).write_bytes((ROOT / "pretrained" / name).read_bytes())
    (out / "adapter_model.safetensors").write_bytes(b"other")
    arguments = ["--bundle", str(BUNDLE), "--data", str(data), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["calibration", *arguments])
    with pytest.raises(BundleError, match="was not made from the weights"):
        calibration.main()
