"""The fused forward pass on CPUs: tokens and candidates in, success probabilities out.

forward.h describes the library, which `pip install` builds where there is a C++ compiler.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_THREADS",
    "WRONG",
    "Forward",
    "ForwardError",
    "ForwardResult",
    "implementation",
    "paths",
]

ABI_VERSION = 2  # MODELSAT_FORWARD_ABI_VERSION of forward.h
MAX_THREADS = 256  # kMaxThreads of threads.h
FREE_AFFINITY, SHARE_WEIGHTS = 1, 2
BAD_FILE, BAD_PATH, WRONG = 3, 4, 10
_PROBLEMS = {
    1: "a null pointer",
    2: "a size that is negative or too large",
    BAD_FILE: "the file is missing, damaged or of another version",
    BAD_PATH: "this CPU, build or number format has no such path",
    5: "a token outside of the vocabulary",
    6: "the tokens do not begin with the inquiry prompt",
    7: "a row outside of the table",
    8: "more tokens than the file has positions",
    9: "out of memory, or a thread could not start",
    WRONG: "its results differ from those of plain loops on this machine",
}
# modelsat_forward_request. Rows of this array are read by C, so their order and types are the ABI.
_REQUEST = np.dtype(
    [
        ("tokens", np.uintp), ("length", np.int64), ("table", np.uintp), ("table_rows", np.int64),
        ("rows", np.uintp), ("count", np.int64), ("probability", np.uintp),
        ("null_row", np.uintp), ("hidden", np.uintp),
    ]
)  # fmt: skip


class ForwardError(Exception):
    """The library cannot be used, or refused a call. code: of forward.h, 0 if it was not called."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class _Head(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("offset", ctypes.c_float),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("prompt", ctypes.c_int32),
        ("positions", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("path", ctypes.c_char_p),
        ("number", ctypes.c_char_p),
    )


@dataclass(frozen=True)
class ForwardResult:
    """The result of one call for B requests and K candidates.

    p: (B, K). null_rows: (B, D) before the final norm, of the candidate whose embedding is zero.
    hidden: (B, K, D) before the final norm, or None if it was not asked for.
    """

    p: NDArray[np.float32]
    null_rows: NDArray[np.float32]
    hidden: NDArray[np.float32] | None


class Forward:
    """An open weights file with its threads. Calls from several threads wait for each other.

    Args:
        file: written by export/packed.py.
        path: a name of paths(), or None for the best one for the file's number format.
        threads: at least 1.
        affinity: keep helper threads off the caller's core.
        share: map the file, which processes share and which must not be written meanwhile, and do
            not read it into huge pages of this process; slower by 5 to 14 %.

    Raises:
        ForwardError: there is no library, or it refuses the file or the path.
    """

    def __init__(
        self, file: Path, path: str | None = None, threads: int = 1, *, affinity: bool = True,
        share: bool = False,
    ) -> None:  # fmt: skip
        self._handle = ctypes.c_void_p()
        library = _library()
        if isinstance(library, str):
            raise ForwardError(library)
        self._library = library
        code = library.modelsat_forward_open(
            os.fsencode(file), None if path is None else path.encode(), threads,
            (0 if affinity else FREE_AFFINITY) + SHARE_WEIGHTS * share, ctypes.byref(self._handle),
        )  # fmt: skip
        if code:
            raise ForwardError(f"{file.name} on path {path or 'best'}: {_PROBLEMS[code]}", code)
        info = _Info()
        library.modelsat_forward_describe(self._handle, ctypes.byref(info))
        self.width, self.layers, self.prompt = info.width, info.layers, info.prompt
        self.positions, self.threads = info.positions, info.threads
        self.path, self.number = info.path.decode(), info.number.decode()

    def close(self) -> None:
        """End the threads and unmap the file. No call may be running."""
        if self._handle:
            self._library.modelsat_forward_close(self._handle)
            self._handle = ctypes.c_void_p()

    def __del__(self) -> None:
        self.close()

    def run(
        self,
        tokens: Sequence[NDArray[np.int64]],
        table: NDArray[np.float32],
        rows: NDArray[np.int64],
        weight: NDArray[np.float32],
        *,
        eps: float,
        scale: float,
        offset: float,
        keep_hidden: bool = False,
    ) -> ForwardResult:
        """Score K candidates for B prompts, without padding.

        Args:
            tokens: B arrays of prompt tokens (L,), which begin with the inquiry prompt.
            table: (M, D) embeddings of candidates.
            rows: (K,) rows of `table` to score.
            weight, eps, scale, offset: as in cpp_ext.score.
            keep_hidden: return the rows before the final norm as well.

        Raises:
            ValueError: an array has another shape.
            ForwardError: the library refused the call; nothing was computed.
        """
        if table.ndim != 2 or table.shape[1] != self.width or weight.shape != (self.width,):
            raise ValueError(
                f"table is {table.shape} and weight {weight.shape}, expected width {self.width}"
            )
        prompts = [np.ascontiguousarray(t, dtype=np.int64) for t in tokens]
        table = np.ascontiguousarray(table, dtype=np.float32)
        weight = np.ascontiguousarray(weight, dtype=np.float32)
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        batch, count = len(prompts), len(rows)
        p = np.empty((batch, count), dtype=np.float32)
        null_rows = np.empty((batch, self.width), dtype=np.float32)
        hidden = np.empty((batch, count, self.width), dtype=np.float32) if keep_hidden else None
        requests = np.zeros(batch, dtype=_REQUEST)
        requests["tokens"] = [t.ctypes.data for t in prompts]
        requests["length"] = [len(t) for t in prompts]
        requests["table"], requests["table_rows"] = table.ctypes.data, len(table)
        requests["rows"], requests["count"] = rows.ctypes.data, count
        steps = np.arange(batch, dtype=np.uintp)
        requests["probability"] = p.ctypes.data + steps * np.uintp(4 * count)
        requests["null_row"] = null_rows.ctypes.data + steps * np.uintp(4 * self.width)
        if hidden is not None:
            size = np.uintp(4 * count * self.width)
            requests["hidden"] = hidden.ctypes.data + steps * size
        head = _Head(weight.ctypes.data, eps, scale, offset)
        code = self._library.modelsat_forward_run(
            self._handle, requests.ctypes.data, batch, ctypes.byref(head)
        )
        if code:
            raise ForwardError(f"the forward pass was refused: {_PROBLEMS[code]}", code)
        return ForwardResult(p, null_rows, hidden)

    def test(self) -> None:
        """Compare the path with plain loops on two layers. Raises ForwardError if they differ."""
        if code := self._library.modelsat_forward_test(self._handle):
            raise ForwardError(f"the test of path {self.path} failed: {_PROBLEMS[code]}", code)

    def products(self, tokens: int, candidates: int) -> None:
        """Run the matrix products alone of a pass of so many rows, for measurements.

        tokens: without the inquiry prompt. candidates: the null candidate included.
        """
        code = self._library.modelsat_forward_products(self._handle, tokens, candidates)
        if code:
            raise ForwardError(f"products of that size: {_PROBLEMS[code]}", code)


def paths() -> list[str]:
    """Name the paths that this CPU and build can run, best first; none without the library."""
    library = _library()
    return [] if isinstance(library, str) else library.modelsat_forward_paths().decode().split()


def implementation() -> str:
    """Name the paths, or say why there are none: "no compiled forward: <reason>"."""
    library = _library()
    return f"no compiled forward: {library}" if isinstance(library, str) else " ".join(paths())


@cache
def _library() -> Any:
    return _load(Path(__file__).parent)


def _load(folder: Path) -> Any:
    """Load the newest _forward*.so in `folder`, or return the reason why it cannot be used."""
    libraries = sorted(folder.glob("_forward*.so"), key=lambda path: path.stat().st_mtime)
    if not libraries:
        return f"no _forward*.so in {folder}"
    name = libraries[-1].name
    try:
        library = ctypes.CDLL(str(libraries[-1]))
        if (version := library.modelsat_forward_abi_version()) != ABI_VERSION:
            return f"{name} has ABI version {version}, expected {ABI_VERSION}; build it again"
        library.modelsat_forward_paths.restype = ctypes.c_char_p
        pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        library.modelsat_forward_open.argtypes = [
            ctypes.c_char_p, ctypes.c_char_p, number, number, pointer,
        ]  # fmt: skip
        library.modelsat_forward_close.argtypes = [pointer]
        library.modelsat_forward_close.restype = None
        library.modelsat_forward_describe.argtypes = [pointer, pointer]
        library.modelsat_forward_run.argtypes = [pointer, pointer, size, pointer]
        library.modelsat_forward_test.argtypes = [pointer]
        library.modelsat_forward_products.argtypes = [pointer, size, size]
    except (OSError, AttributeError) as error:
        return f"{name} does not load: {error}"
    return library
