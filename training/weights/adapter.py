"""Read and write what a training run leaves and the repository ships.

adapter_config.json, adapter_model.safetensors   peft's form, half precision
adapter_model.int8.safetensors   the same in half the size, in place of it: int8 and scales
connector.safetensors    weight (D, C), bias (D,), center (E,), task_means (T,)
model.json               base models, layers, calibration, config, report
training_set.npz         fingerprints, token frequencies and space of instructions
task_places.npz          where tasks and training instructions lie among instructions

What was computed with adapter and connector names them by weights_id, so that a folder whose files
belong to different weights is refused.

Shapes: R rank, I inputs and O outputs of a matrix; lora_A (R, I), lora_B (O, R).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import BundleError
from engine.bundle.arrays import Connector, TaskNorms
from engine.bundle.manifest import Calibration
from engine.bundle.prompt import PROMPT_VERSION
from engine.bundle.task_places import TaskPlaces, load_task_places
from engine.bundle.training_set import TrainingSet, load_training_set

ADAPTER = "adapter_model.safetensors"
INT8_ADAPTER = "adapter_model.int8.safetensors"
SCALE = ".scale"  # after a matrix's name: one for each rank
ADAPTER_CONFIG = "adapter_config.json"
CONNECTOR = "connector.safetensors"
MODEL = "model.json"
# model.json of 0.1 and of research/ names a layout and a representation; these are served.
SERVED = {"layout": "candidate_last", "representation": "accuracy_weighted"}
LOCAL = {"data", "out", "weights"}  # paths, of which only the last part is kept


@dataclass(frozen=True)
class Pretrained:
    """A trained Model-SAT without its base weights.

    id: see weights_id. lora: peft's names -> arrays. lora_scale: factor of the adapter's product.
    """

    id: str

    backbone: str
    encoder: str
    layers: int
    calibration: Calibration
    connector: Connector
    norms: TaskNorms
    lora: Mapping[str, NDArray[np.float32]]
    lora_scale: float
    report: Mapping[str, Any]
    training_set: TrainingSet | None
    places: TaskPlaces | None = None

    @property
    def rank(self) -> int:
        """Rank of the adapter; 0 if it is empty."""
        return max((a.shape[0] for n, a in self.lora.items() if ".lora_A." in n), default=0)


def save_connector(path: Path, connector: Connector, norms: TaskNorms) -> None:
    """Write weight (D, C), bias (D,), center (E,), task_means (T,), and the tasks as metadata."""
    from safetensors.numpy import save_file

    arrays = {
        "weight": connector.weight,
        "bias": connector.bias,
        "center": norms.center,
        "task_means": np.array(list(norms.means.values()), dtype=np.float32),
    }
    save_file(arrays, path, metadata={"tasks": json.dumps(list(norms.means))})


def load_connector(path: Path) -> tuple[Connector, TaskNorms]:
    """Read what save_connector wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    tasks = json.loads(metadata["tasks"])
    means = dict(zip(tasks, arrays["task_means"].tolist(), strict=True))
    return Connector(arrays["weight"], arrays["bias"]), TaskNorms(arrays["center"], means)


def weights_id(folder: Path) -> str:
    """Identify the trained weights in a folder by its adapter and connector."""
    digest = hashlib.sha256()
    for path in (_adapter_file(folder), folder / ADAPTER_CONFIG, folder / CONNECTOR):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _adapter_file(folder: Path) -> Path:
    """Return the path of the adapter; raises BundleError if there is none, or more than one."""
    found = [name for name in (ADAPTER, INT8_ADAPTER) if (folder / name).is_file()]
    if len(found) == 2:
        raise BundleError(f"{folder} has two adapters, {ADAPTER} and {INT8_ADAPTER}; remove one.")
    return folder / (found[0] if found else ADAPTER)


def dequantize(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return the float32 matrices of an adapter by name. Those with scales (R,) are int8: rows of
    lora_A and columns of lora_B are multiplied."""
    found = {}
    for name, array in arrays.items():
        if name.endswith(SCALE):
            continue
        scale = arrays.get(name + SCALE, np.ones(1)).astype(np.float32)
        found[name] = array.astype(np.float32) * (scale[:, None] if ".lora_A." in name else scale)
    return found


def _names(value: str | Sequence[str]) -> str | list[str]:
    return Path(value).name if isinstance(value, str) else [Path(v).name for v in value]


def save_pretrained(
    folder: Path,
    config: Mapping[str, Any],
    connector: Connector,
    norms: TaskNorms,
    calibration: Calibration,
    report: Mapping[str, Any],
) -> None:
    """Write connector and model.json, and convert a float adapter in `folder` to half precision.

    config: the settings of the run. report: what model.json holds of its results.
    """
    from safetensors.numpy import load_file, save_file

    if (adapter := _adapter_file(folder)).name == ADAPTER:
        halves = {k: v.astype(np.float16) for k, v in load_file(adapter).items()}
        save_file(halves, adapter)
    save_connector(folder / CONNECTOR, connector, norms)
    kept = {k: config[k] for k in ("backbone", "encoder", "layers", *SERVED) if k in config}
    description = {
        **kept,
        "weights": weights_id(folder),
        "calibration": asdict(calibration),
        "prompt_version": PROMPT_VERSION,
        "config": {k: _names(v) if k in LOCAL else v for k, v in config.items()},
        "report": dict(report),
    }
    (folder / MODEL).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_pretrained(folder: Path) -> Pretrained:
    """Read `folder`.

    Raises:
        BundleError: a file is missing, the model is not one that this version can serve, or
            model.json describes other weights.
    """
    from safetensors.numpy import load_file

    adapter = _adapter_file(folder)
    wanted = (adapter.name, ADAPTER_CONFIG, CONNECTOR, MODEL)
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise BundleError(f"{folder} has no {missing}; `make train` or the repository has them.")
    model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if (found := model["prompt_version"]) != PROMPT_VERSION:
        raise BundleError(
            f"{folder / MODEL}: prompt_version is {found!r}, this code renders {PROMPT_VERSION!r};"
            " train again, or use the version that trained it."
        )
    for name, only in SERVED.items():
        if (found := model.get(name, only)) != only:
            raise BundleError(
                f"{folder / MODEL}: {name} is {found!r}, only {only!r} can be exported and trained"
                " further; research/ trains and measures the others."
            )
    own = weights_id(folder)
    if (found := model.get("weights", own)) != own:
        raise BundleError(
            f"{folder / MODEL} describes weights {found}, but adapter and connector are {own}; its"
            " calibration does not fit them."
        )
    connector, norms = load_connector(folder / CONNECTOR)
    return Pretrained(
        id=own,
        backbone=model["backbone"],
        encoder=model["encoder"],
        layers=model["layers"],
        calibration=Calibration(**model["calibration"]),
        connector=connector,
        norms=norms,
        lora=dequantize(load_file(adapter)),
        lora_scale=config["lora_alpha"] / config["r"],
        report=model["report"],
        training_set=load_training_set(folder),
        places=load_task_places(folder),
    )
