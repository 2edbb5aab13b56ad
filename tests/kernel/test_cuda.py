"""Test the CUDA kernel, emulated on the CPU, against the float64 reference and NumPy's order."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpp_ext import cuda, score_reference
from tests.kernel.test_cpu import CALIBRATION, DTYPES, TOLERANCE, as_dtype, draw

pytestmark = pytest.mark.slow

SOURCE = Path(cuda.__file__).parent / "score_cuda.cu"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("cuda") / "emulated.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    support = Path(__file__).parents[1] / "support"
    emulated = ["-DMODELSAT_EMULATION", f"-I{support}", "-x", "c++", str(SOURCE), "-o", str(built)]
    subprocess.run(["g++", *flags, *emulated], check=True, capture_output=True, text=True)
    return cuda.load(built)


def launch(
    library: ctypes.CDLL, kind: str, hidden: np.ndarray, ranked: int, **given: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return probability (B, M) and order (B, ranked); check that nothing is written past them."""
    batch, candidates, width = hidden.shape
    p = np.full(batch * candidates + 1, 7, dtype=np.float32)
    order = np.full(batch * ranked + 1, 7, dtype=np.int32)
    inputs = [hidden, given["weight"], given["allowed"], given["penalty"]]
    at = cuda.RankPointers(*(a.ctypes.data for a in [*inputs, p, order]))
    sizes = cuda.RankSizes(DTYPES.index(kind), batch, candidates, width, ranked)
    cuda.rank(library, at, sizes, **CALIBRATION)
    assert (p[-1], order[-1]) == (7, 7)
    return p[:-1].reshape(batch, candidates), order[:-1].reshape(batch, ranked)


@settings(max_examples=60)
@example(seed=0, batch=1, candidates=1, width=1, ranked=3, kind="fp32")
@example(seed=1, batch=2, candidates=1000, width=33, ranked=1000, kind="fp16")
@example(seed=2, batch=1, candidates=4096, width=3, ranked=5, kind="bf16")
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 5),
    candidates=st.integers(1, 40),
    width=st.integers(1, 300),
    ranked=st.integers(0, 45),
    kind=st.sampled_from(DTYPES),
)
def test_probabilities_and_order_match_reference(
    library: ctypes.CDLL, seed: int, batch: int, candidates: int, width: int,
    ranked: int, kind: str,
) -> None:  # fmt: skip
    """With equal rows (ties), a row of NaN, a row whose fp32 sums overflow, and disallowed rows."""
    random = np.random.default_rng(seed)
    rows, weight = draw(seed, batch, candidates, width)
    rows[:, -1] = rows[:, 0]
    if seed % 3 == 0:
        rows[0, random.integers(candidates)] = np.nan
    if seed % 5 == 0:
        rows[0, random.integers(candidates)] *= 1e30
    hidden, arguments = as_dtype(rows, kind)
    allowed = (random.random((batch, candidates)) < 0.8).astype(np.uint8)
    if seed % 7 == 0:
        allowed[0] = 0
    penalty = random.integers(0, 3, (batch, candidates)).astype(np.float32) / 8
    given = {"weight": weight, "allowed": allowed, "penalty": penalty}

    p, order = launch(library, kind, hidden, ranked, **given)

    expected = score_reference(hidden, weight, **arguments, **CALIBRATION)
    np.testing.assert_allclose(p, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(order, cuda.rank_reference(p, allowed, penalty, ranked))


def test_too_many_candidates_are_refused(library: ctypes.CDLL) -> None:
    hidden = np.zeros((1, 4097, 1), dtype=np.float32)
    given = {
        "weight": np.ones(1, dtype=np.float32),
        "allowed": np.ones((1, 4097), dtype=np.uint8),
        "penalty": np.zeros((1, 4097), dtype=np.float32),
    }
    with pytest.raises(RuntimeError, match="3: a size out of range"):
        launch(library, "fp32", hidden, 1, **given)


@pytest.mark.parametrize(
    ("batch", "candidates", "width", "ranked"),
    [(2**31 - 1, 4096, 2**40, 1), (2**31 - 1, 4096, 8, 2**33), (1, 1, 2**62, 1)],
)
def test_sizes_whose_product_overflows_are_refused(
    library: ctypes.CDLL, batch: int, candidates: int, width: int, ranked: int
) -> None:
    nothing = cuda.RankPointers(*[0] * 6)
    with pytest.raises(RuntimeError, match="returned 3"):
        cuda.rank(
            library, nothing, cuda.RankSizes(0, batch, candidates, width, ranked), **CALIBRATION
        )
