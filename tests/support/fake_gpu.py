"""The fakes of CUDA, the CUDA kernel and TensorRT, in place of what find_libraries() loads."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from cpp_ext import cuda as kernel
from engine.inference.tensorrt.backend import Libraries
from engine.inference.tensorrt.cuda import Cuda
from tests.support.fake_tensorrt import Module

SOURCE = Path(__file__).with_name("fake_cuda.cc")
BUILT = "FAKE_CUDA_LIBRARY"  # a built library, for processes that a test starts


@cache
def fake_library() -> Path:
    if name := os.environ.get(BUILT):
        return Path(name)
    built = Path(mkdtemp()) / "fake_cuda.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    where = ["-DMODELSAT_EMULATION", f"-I{Path(kernel.__file__).parent}", f"-I{SOURCE.parent}"]
    where += ["-x", "c++", str(SOURCE)]
    subprocess.run(["g++", *flags, *where, "-o", str(built)], check=True, capture_output=True)
    return built


def find_libraries() -> Libraries:
    library = kernel.load(fake_library())
    return Libraries(Cuda(library), library, Module(library))
