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

from tools.processes import ROOT

VERSION = "3.22.1"
FOLDER = ROOT / "build" / "llama.cpp"


class MissingError(Exception):
    """Raised with the reason if llama.cpp cannot run on this machine."""


def install() -> None:
    """Install node-llama-cpp and its CPU binaries. Raises MissingError."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise MissingError("no Node.js")
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


class Engine:
    """A running llama.cpp process; each call evaluates the prompt once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.version = f"node-llama-cpp {VERSION}"

    def __call__(self) -> float:
        """Return the milliseconds of one evaluation."""
        return float(self._ask())

    def _ask(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            assert self._process.stderr is not None
            words = self._process.stderr.read().strip().splitlines() or ["it ended"]
            raise MissingError(f"llama.cpp: {words[-1]}")
        return line


@contextmanager
def running(gguf: Path, threads: int, tokens: int) -> Iterator[Engine]:
    """Run llama.cpp with `gguf` loaded. Raises MissingError."""
    install()
    # Node looks for packages in the folder of the script.
    script = shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), FOLDER)
    command = ["node", str(script), str(gguf), str(threads), str(tokens)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    engine = Engine(process)
    try:
        while engine._line() != "ready":
            pass
        yield engine
    finally:
        process.kill()
        process.wait()
