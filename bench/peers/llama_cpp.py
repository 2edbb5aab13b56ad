"""Time llama.cpp's prompt processing of the base GGUF, cut to the same number of layers.

llama.cpp comes prebuilt from npm (node-llama-cpp) and is installed once under build/. Without
Node.js, or if the install fails, the baseline is skipped with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers import process
from bench.peers.process import MissingError, Peer
from tools.processes import ROOT

VERSION = "3.22.1"
FOLDER = ROOT / "build" / "llama.cpp"


def install() -> None:
    """Install node-llama-cpp and its CPU binaries. Raises MissingError."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise MissingError("no Node.js; install node and npm")
    if (FOLDER / "installed").is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}"]
    command = ["npm", "install", "--ignore-scripts", "--omit=optional", "--prefix", str(FOLDER)]
    done = subprocess.run(command + packages, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"npm: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    (FOLDER / "installed").touch()


def cut(gguf: Path, layers: int, out: Path) -> None:
    """Write `gguf` with its first `layers` blocks only; tensors are copied byte for byte."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(gguf)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
        value = layers if name == f"{architecture}.block_count" else value
        writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        block = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else "0"
        if int(block) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def running(gguf: Path, threads: int, tokens: int) -> Iterator[Peer]:
    """Run llama.cpp with `gguf` loaded. Raises MissingError."""
    install()
    # Node looks for packages in the folder of the script.
    script = shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), FOLDER)
    command = ["node", str(script), str(gguf), str(threads), str(tokens)]
    with process.running("llama.cpp", command) as peer:
        yield peer
