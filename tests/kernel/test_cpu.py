"""Test every instruction set of the scoring kernel on this CPU against the float64 reference."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cpp_ext
from cpp_ext import _Kernel, _kernel, _load, score, score_reference

# The largest measured error on random rows up to 4,096 wide is 5.4e-7 (scalar; AVX2 3.6e-7).
# Dropping or misreading one element of such a row changes p by about 1e-2.
TOLERANCE = 2e-6
CALIBRATION = {"eps": 1e-5, "scale": 1.7, "offset": -0.4}
DTYPES = ["fp32", "fp16", "bf16"]


def compiled() -> _Kernel:
    kernel = _kernel()
    if isinstance(kernel, _Kernel):
        return kernel
    if os.environ.get("MODELSAT_REQUIRE_KERNEL") == "1":
        pytest.fail(f"MODELSAT_REQUIRE_KERNEL=1, but {kernel}")
    pytest.skip(f"the scoring kernel is not built: {kernel}")


def available() -> list[str]:
    kernel = _kernel()
    if isinstance(kernel, str):
        return ["compiled"]  # one case, which compiled() skips or fails
    names = ["avx512f", "avx2", "neon", "scalar"]
    found = [name for name in names if kernel.set_isa(name.encode()) == 0]
    kernel.set_isa(None)
    return found


@contextmanager
def forced(isa: str) -> Iterator[_Kernel]:
    kernel = compiled()
    assert kernel.set_isa(isa.encode()) == 0
    try:
        assert cpp_ext.implementation() == f"c++ {isa}"
        yield kernel
    finally:
        kernel.set_isa(None)


@pytest.fixture(scope="module", params=available())  # hypothesis wants a scope above function
def isa(request: pytest.FixtureRequest) -> str:
    """An instruction set that this CPU has; the test selects it."""
    compiled()
    name: str = request.param
    return name


def as_dtype(rows: np.ndarray, kind: str) -> tuple[np.ndarray, dict[str, Any]]:
    if kind == "bf16":
        return (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), {"dtype": "bf16"}
    if kind == "fp16":
        return np.clip(rows, -65504, 65504).astype(np.float16), {}
    return rows.astype(np.float32), {}


def draw(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of size 1, and a weight that gives logits of size 1, where sigmoid is steepest."""
    random = np.random.default_rng(seed)
    width = shape[-1]
    weight = random.standard_normal(width) / np.sqrt(max(width, 1))
    return random.standard_normal(shape), weight.astype(np.float32)


def agree(hidden: np.ndarray, weight: np.ndarray, **arguments: Any) -> np.ndarray:
    found = score(hidden, weight, **arguments)
    expected = score_reference(hidden, weight, **arguments)
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    return found


SHAPES = st.tuples(  # B, M, D; odd widths leave remainders of every length
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(1, 150) | st.sampled_from([576, 577, 960, 1023, 4096]),
)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    kind=st.sampled_from(DTYPES),
    size=st.sampled_from([0.0, 1e-42, 1e-4, 1.0, 1e4]),
)
@example(0, (2, 3, 1), "fp16", 1.0)
@example(0, (0, 3, 17), "bf16", 1.0)
@example(0, (2, 0, 64), "fp32", 1.0)
@settings(max_examples=150, deadline=None)
def test_kernel_matches_reference(
    isa: str, seed: int, shape: tuple[int, int, int], kind: str, size: float
) -> None:
    rows, weight = draw(seed, *shape)
    hidden, dtype = as_dtype(rows * size, kind)
    with forced(isa):
        agree(hidden, weight, **CALIBRATION, **dtype)


def test_every_fp16_and_bf16_value_is_widened_exactly(isa: str) -> None:
    # Widths 8 and 16 use vectors, width 1 the scalar remainder. x / sqrt(x^2 + eps) distinguishes
    # values near sqrt(eps): subnormal halves, halves near 1, the largest halves.
    bits = np.arange(2**16, dtype=np.uint16)
    encodings: list[tuple[np.ndarray, dict[str, Any]]] = [
        (bits.view(np.float16), {}),
        (bits, {"dtype": "bf16"}),
    ]
    for hidden, dtype in encodings:
        for width, eps in itertools.product((1, 8, 16), (1e-13, 1.0, 1e9)):
            rows, weight = hidden.reshape(1, -1, width), np.ones(width, np.float32)
            with forced(isa):
                agree(rows, weight, eps=eps, scale=1.0, offset=0.0, **dtype)


@pytest.mark.parametrize("kind", DTYPES)
def test_nan_affects_only_its_candidate(isa: str, kind: str) -> None:
    rows, weight = draw(1, 2, 6, 37)
    for place, value in ((0, np.nan), (36, np.inf)):
        rows[1, 3, place] = value
        hidden, dtype = as_dtype(rows, kind)
        if kind == "fp16":
            hidden[1, 3, place] = value
        with forced(isa):
            found = agree(hidden, weight, **CALIBRATION, **dtype)
        assert np.argwhere(np.isnan(found)).tolist() == [[1, 3]]


def test_extreme_rows_and_logits_stay_between_0_and_1(isa: str) -> None:
    largest = float(np.finfo(np.float32).max)
    rows, weight = draw(2, 1, 5, 45)
    rows *= np.array([0, 1e-42, 1e4, 1e25, largest / 8])[None, :, None]
    hidden = rows.astype(np.float32)
    saturating = [(1e4, -30.0), (largest, largest), (-largest, 0.0)]
    with forced(isa):
        for scale, offset in saturating:
            found = score(hidden, weight, eps=1e-5, scale=scale, offset=offset)
            assert ((found >= 0) & (found <= 1)).all()
        agree(hidden, weight, **CALIBRATION)  # the squares of two rows overflow fp32
        assert score(hidden[:, :1], weight, eps=1e-5, scale=1.0, offset=0.0) == 0.5


def test_small_probabilities_keep_their_digits(isa: str) -> None:
    rows, weight = draw(3, 1, 50, 576)
    arguments: dict[str, Any] = {"eps": 1e-5, "scale": 1.0, "offset": -60.0}
    hidden = rows.astype(np.float32)
    with forced(isa):
        found = score(hidden, weight, **arguments)
    np.testing.assert_allclose(found, score_reference(hidden, weight, **arguments), rtol=1e-6)


def test_strided_misaligned_and_read_only_input(isa: str) -> None:
    rows, weight = draw(4, 3, 8, 66)
    whole = rows.astype(np.float32)
    strided, weights = whole[::2, ::-2, ::3], np.repeat(weight[:22], 2)[::2]
    buffer = b"." + whole.tobytes()
    misaligned = np.frombuffer(buffer, np.float32, whole.size, offset=1).reshape(whole.shape)
    with forced(isa):
        agree(strided, weights, **CALIBRATION)
        np.testing.assert_array_equal(
            agree(misaligned, weight, **CALIBRATION), score(whole, weight, **CALIBRATION)
        )


def test_reference_matches_the_formula() -> None:
    hidden = np.array([[[3.0, 4.0], [0.0, 2.0]]], np.float32)
    weight = np.array([1.0, -1.0], np.float32)
    logits = np.array([-1 / np.sqrt(12.5 + 0.5), -2 / np.sqrt(2 + 0.5)])
    expected = 1 / (1 + np.exp(-(2 * logits + 1)))
    found = score_reference(hidden, weight, eps=0.5, scale=2.0, offset=1.0)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-7)


ROWS, WEIGHT = np.zeros((2, 6, 4), np.float32), np.zeros(4, np.float32)


@pytest.mark.parametrize("function", [score, score_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ROWS[0]}, r"hidden has 2 dimensions, expected 3"),
        ({"hidden": ROWS.astype(np.float64)}, r"hidden is float64, expected float32, float16"),
        ({"hidden": ROWS.astype(np.uint16)}, r"hidden is uint16, expected .* dtype='bf16'"),
        ({"hidden": ROWS.astype(">f4")}, r"hidden is >f4, expected float32"),
        ({"hidden": ROWS[..., :0]}, r"hidden has width 0, expected at least 1"),
        ({"dtype": "bf16"}, r"hidden is float32, expected uint16"),
        ({"dtype": "fp8"}, r"dtype is 'fp8', expected None or 'bf16'"),
        ({"weight": WEIGHT[:3]}, r"weight is float32 \(3,\), expected float32 \(4,\)"),
        ({"weight": WEIGHT.astype(np.float64)}, r"weight is float64 \(4,\), expected float32"),
        ({"eps": 0.0}, r"eps is 0.0, expected a finite fp32 number of at least 1.18e-38"),
        ({"eps": np.nan}, r"eps is nan, expected"),
        ({"scale": 1e39}, r"scale is 1e\+39, expected a finite fp32 number$"),
        ({"offset": -np.inf}, r"offset is -inf, expected"),
    ],
)
def test_invalid_arguments_are_named(function: Any, change: dict[str, Any], message: str) -> None:
    good = {"hidden": ROWS, "weight": WEIGHT, **CALIBRATION}
    with pytest.raises(ValueError, match=message):
        function(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"hidden": None}, 1),
        ({"weight": None}, 1),
        ({"probability": None}, 1),
        ({"hidden": None, "weight": None, "probability": None, "batch": 0}, 0),
        ({"dtype": 3}, 2),
        ({"dtype": -1}, 2),
        ({"batch": -1}, 3),
        ({"candidates": -1}, 3),
        ({"width": 0}, 3),
        ({"batch": 2**32, "candidates": 2**32}, 3),  # the product is 0 in 64 bits
        ({"batch": 2**31, "candidates": 2**32}, 3),
        ({"candidates": 2**62, "width": 2**62}, 3),
        ({"batch": 2**21, "candidates": 2**20, "width": 2**20}, 3),  # elements fit, bytes do not
        ({"width": 2**63 - 1}, 3),
        ({"dtype": 1, "width": 2**62}, 3),
        ({"batch": 0, "candidates": 2**63 - 1, "width": 2**63 - 1}, 0),
    ],
)
def test_error_codes_of_the_c_abi(change: dict[str, Any], code: int) -> None:
    out = np.full(12, 7.0, np.float32)
    good = {
        "hidden": ROWS.ctypes.data, "dtype": 0, "batch": 2, "candidates": 6,
        "width": 4, "weight": WEIGHT.ctypes.data, "eps": 1e-5, "scale": 1.0, "offset": 0.0,
        "probability": out.ctypes.data,
    }  # fmt: skip
    assert compiled().score(*{**good, **change}.values()) == code
    assert (out == (7.0 if change else 0.5)).all()


def test_unknown_instruction_set_changes_nothing() -> None:
    kernel = compiled()
    before = cpp_ext.implementation()
    assert kernel.set_isa(b"sse9") == 1
    assert cpp_ext.implementation() == before == f"c++ {available()[0]}"


def test_library_of_another_abi_version_is_not_called(tmp_path: Path) -> None:
    source, library = tmp_path / "old.c", tmp_path / "_kernel.so"
    source.write_text("int modelsat_abi_version(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert _load(tmp_path) == (
        f"_kernel.so has ABI version 1, expected {cpp_ext.ABI_VERSION}; build it again"
    )


def test_numpy_is_used_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _load(tmp_path)
    assert missing == f"no _kernel*.so in {tmp_path}"
    (tmp_path / "_kernel.so").write_bytes(b"not a library")
    assert "_kernel.so does not load" in str(_load(tmp_path))
    monkeypatch.setattr(cpp_ext, "_kernel", lambda: missing)
    assert cpp_ext.implementation() == f"numpy (no compiled kernel: {missing})"
    assert (score(ROWS, WEIGHT, eps=1e-5, scale=1.0, offset=0.0) == 0.5).all()
