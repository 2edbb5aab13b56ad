"""What a training run leaves and the repository ships: adapter, connector, model.json.

adapter_config.json, adapter_model.safetensors   peft's form, half precision
connector.safetensors    weight (D, C), bias (D,), center (E,), task_means (T,)
model.json               base models, layers, layout, tasks, calibration, plan, report
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.arrays import Connector, TaskNorms
from engine.contract.bundle import Calibration, Layout, Representation
from engine.contract.errors import BundleError

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CONNECTOR = "connector.safetensors"
MODEL = "model.json"


@dataclass(frozen=True)
class Pretrained:
    """A trained Model-SAT, less its base weights. lora: peft's names -> arrays."""

    backbone: str
    encoder: str
    layers: int
    layout: Layout
    representation: Representation
    calibration: Calibration
    connector: Connector
    norms: TaskNorms
    lora: Mapping[str, NDArray[np.float32]]
    lora_scale: float
    report: Mapping[str, Any]


def save_pretrained(
    folder: Path,
    plan: Mapping[str, Any],
    connector: Connector,
    norms: TaskNorms,
    calibration: Calibration,
    report: Mapping[str, Any],
) -> None:
    """Write connector and model.json beside the adapter that peft saved, and halve the adapter."""
    from safetensors.numpy import load_file, save_file

    adapter = load_file(folder / ADAPTER)
    save_file({k: v.astype(np.float16) for k, v in adapter.items()}, folder / ADAPTER)
    save_file(
        {
            "weight": connector.weight,
            "bias": connector.bias,
            "center": norms.center,
            "task_means": np.array(list(norms.means.values()), dtype=np.float32),
        },
        folder / CONNECTOR,
    )
    kept = {k: plan[k] for k in ("backbone", "encoder", "layers", "layout", "representation")}
    local = {"data", "out"}
    description = {
        **kept,
        "calibration": asdict(calibration),
        "tasks": list(norms.means),
        "default_mean": norms.default_mean,
        "plan": {k: Path(v).name if k in local else v for k, v in plan.items()},
        "report": dict(report),
    }
    (folder / MODEL).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_pretrained(folder: Path) -> Pretrained:
    """Read `folder`; raises BundleError where a file is missing."""
    from safetensors.numpy import load_file

    missing = [n for n in (ADAPTER, ADAPTER_CONFIG, CONNECTOR, MODEL) if not (folder / n).is_file()]
    if missing:
        raise BundleError(f"{folder} misses {missing}; `make train` or the repository holds them.")
    model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    arrays = load_file(folder / CONNECTOR)
    means = dict(zip(model["tasks"], arrays["task_means"].tolist(), strict=True))
    return Pretrained(
        backbone=model["backbone"],
        encoder=model["encoder"],
        layers=model["layers"],
        layout=model["layout"],
        representation=model["representation"],
        calibration=Calibration(**model["calibration"]),
        connector=Connector(arrays["weight"], arrays["bias"]),
        norms=TaskNorms(arrays["center"], means, model["default_mean"]),
        lora={k: v.astype(np.float32) for k, v in load_file(folder / ADAPTER).items()},
        lora_scale=config["lora_alpha"] / config["r"],
        report=model["report"],
    )
