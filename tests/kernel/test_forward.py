"""Test every path of the fused forward pass against the scalar reference, and it against NumPy."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cpp_ext.forward
from cpp_ext.forward import Forward, ForwardError, _load, paths
from engine.bundle.types import Float32Array, Int64Array
from export.onnx.ops import Int8, LlamaConfig
from export.packed import NUMBERS, Number, to_bf16, write_packed
from export.reference import hidden_row, keys_values
from tests.support.tiny_llama import tokenizer
from tools.processes import ROOT
from training.weights.base import Base

VOCABULARY, POSITIONS = 97, 330
PROMPT = np.array([5, 17, 60])
HEAD = {"eps": 1e-5, "scale": 0.4, "offset": -0.1}
# Of a row, relative to its length; measured .069 and .018. Paths round alike but add in another
# order, so that now and then a byte falls on the other side, and AMX keeps keys and values in bf16.
TOLERANCE: dict[Number, float] = {"int8": 0.1, "bf16": 0.03}
# If no rounding differs, which depends on the numbers drawn: all paths but AMX on two layers.
EXACT = 1e-5


def number_of(path: str) -> Number:
    return "bf16" if path.endswith("bf16") else "int8"


def compiled() -> list[str]:
    """The paths of this machine, best first; a case that skips or fails if there is no library."""
    return [path for path in paths() if path != "scalar"] or ["none"]


@pytest.fixture(scope="module", params=compiled())
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "none":
        reason = cpp_ext.forward.implementation()
        if os.environ.get("MODELSAT_REQUIRE_KERNEL") == "1":
            pytest.fail(f"MODELSAT_REQUIRE_KERNEL=1, but {reason}")
        pytest.skip(reason)
    return name


@cache
def base(width: int, heads: int, kv_heads: int, head_width: int, inner: int, layers: int) -> Base:
    """Random weights of these sizes."""
    config = {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_width, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": VOCABULARY,
    }  # fmt: skip
    random = np.random.default_rng(width)
    sizes = {
        "self_attn.q_proj": (heads * head_width, width),
        "self_attn.k_proj": (kv_heads * head_width, width),
        "self_attn.v_proj": (kv_heads * head_width, width),
        "self_attn.o_proj": (width, heads * head_width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    arrays = {"model.embed_tokens.weight": random.standard_normal((VOCABULARY, width))}
    for layer in range(layers):
        for name, size in sizes.items():
            drawn = random.standard_normal(size)
            drawn = drawn / np.sqrt(size[-1]) if len(size) == 2 else 1 + 0.2 * drawn
            arrays[f"model.layers.{layer}.{name}.weight"] = drawn
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Base(config, floats, tokenizer())


BACKBONES = {  # width, heads, key/value heads, head width, inner, layers
    "plain": (128, 4, 2, 32, 192, 2),
    "every size padded": (72, 3, 1, 16, 100, 2),
    "wide heads": (64, 2, 2, 128, 64, 1),
    "three tiles a head": (96, 2, 1, 96, 128, 1),
    "deep": (64, 4, 4, 64, 128, 5),
}
SIZES = BACKBONES | {"many heads": (64, 256, 1, 32, 64, 2), "large heads": (64, 16, 16, 256, 64, 2)}


@cache
def weights_file(backbone: str, number: Number, cached: bool = True) -> Path:
    made = base(*SIZES[backbone])
    config = LlamaConfig.of(made.config)
    prompt = PROMPT if cached else PROMPT[:0]
    constants = keys_values(config, made.arrays, prompt) if cached else ()
    file = Path(mkdtemp()) / f"{number}.fused"
    write_packed(
        config, made.arrays, file,
        number=number, prompt=prompt, cached=constants, positions=POSITIONS,
    )  # fmt: skip
    return file


@cache
def opened(backbone: str, number: Number, path: str, threads: int, cached: bool = True) -> Forward:
    return Forward(weights_file(backbone, number, cached), path, threads)


def draw_prompts(lengths: Sequence[int], seed: int = 0) -> list[Int64Array]:
    """Prompts of so many tokens after the inquiry prompt."""
    random = np.random.default_rng(seed)
    return [np.concatenate([PROMPT, random.integers(0, VOCABULARY, n)]) for n in lengths]


def draw_table(rows: int, width: int, seed: int = 1) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def hidden(forward: Forward, prompts: list[Int64Array], table: Float32Array) -> Float32Array:
    """(B, 1 + M, D), the null candidate's row first."""
    weight = np.zeros(forward.width, np.float32)
    found = forward.run(prompts, table, np.arange(len(table)), weight, keep_hidden=True, **HEAD)
    assert found.hidden is not None
    return np.concatenate([found.null_rows[:, None], found.hidden], axis=1)


def agree(found: Float32Array, expected: Float32Array, number: Number) -> None:
    assert found.shape == expected.shape
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < TOLERANCE[number]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("number", NUMBERS)
def test_scalar_reference_matches_numpy(backbone: str, number: Number) -> None:
    """With the rounded weights, so that only the rounding of activations differs."""
    if not paths():
        pytest.skip(cpp_ext.forward.implementation())
    made = base(*BACKBONES[backbone])
    config = LlamaConfig.of(made.config)
    (prompt,), table = draw_prompts([9]), draw_table(3, config.width)
    found = hidden(opened(backbone, number, "scalar", 1), [prompt], table)[0]
    arrays = dict(made.arrays)
    if number == "bf16":
        bits = {k: to_bf16(a).astype(np.uint32) << 16 for k, a in arrays.items() if a.ndim == 2}
        arrays |= {k: b.view(np.float32) for k, b in bits.items()}
    rows = np.concatenate([np.zeros((1, config.width), np.float32), table])
    expected = np.stack([hidden_row(config, arrays, prompt, row) for row in rows])
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < (0.1 if number == "int8" else 0.02)


@given(
    backbone=st.sampled_from(sorted(BACKBONES)),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    candidates=st.integers(0, 40),
    threads=st.integers(1, 4),
    cached=st.booleans(),
    seed=st.integers(0, 9),
)
@example("plain", [1], 1, 1, True, 0)  # one token, one candidate
@example("every size padded", [0, 1, 31, 32, 33], 0, 2, True, 0)
@example("plain", [320], 3, 2, True, 0)  # the longest instruction
@settings(max_examples=12, deadline=None)
def test_path_matches_scalar_reference(
    path: str, backbone: str, lengths: list[int], candidates: int, threads: int, cached: bool,
    seed: int,
) -> None:  # fmt: skip
    number = number_of(path)
    lengths = lengths if cached else [n + 1 for n in lengths]
    prompts = draw_prompts(lengths, seed)
    table = draw_table(candidates, BACKBONES[backbone][0], seed)
    found = hidden(opened(backbone, number, path, threads, cached), prompts, table)
    expected = hidden(opened(backbone, number, "scalar", 1, cached), prompts, table)
    agree(found, expected, number)


def test_products_and_masks_are_exact_where_attention_is_in_floats(path: str) -> None:
    """A mask or a weight that is off by one moves a row by more than rounding does."""
    if number_of(path) == "bf16" or path.startswith("amx"):
        pytest.skip("rounds more often than the reference")
    for lengths in ([0, 1, 31, 32], [33, 60, 7]):
        prompts, table = draw_prompts(lengths, seed=7), draw_table(20, 64)
        found = hidden(opened("wide heads", "int8", path, 2), prompts, table)
        expected = hidden(opened("wide heads", "int8", "scalar", 1), prompts, table)
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * np.abs(expected).max())


def test_a_thousand_candidates_take_several_passes(path: str) -> None:
    number, table = number_of(path), draw_table(1000, 64)
    prompts = draw_prompts([3, 40])
    found = hidden(opened("deep", number, path, 2), prompts, table)
    some = [0, 1, 511, 512, 513, 1000]
    rows = table[[i - 1 for i in some[1:]]]
    expected = hidden(opened("deep", number, "scalar", 1), prompts, rows)
    agree(found[:, some], expected, number)


def test_many_short_requests_take_several_passes(path: str) -> None:
    """A step of attention counts a unit for each head and 16 rows, of which a pass has a limit."""
    forward = opened("many heads", number_of(path), path, 1)
    prompts, table = draw_prompts([1] * 64), draw_table(0, 64)
    together = hidden(forward, prompts, table)
    np.testing.assert_array_equal(hidden(forward, prompts[-1:], table)[0], together[-1])


def test_results_are_right_after_memory_ran_out(path: str) -> None:
    """In a process of its own, which has no memory that other tests have freed."""
    code = f"from tests.kernel.test_forward import run_out_of_memory as run; run({path!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def run_out_of_memory(path: str) -> None:
    """Wherever it ran out: the inquiry prompt's keys must be placed again, and sizes must not stay
    those of the request that failed."""
    number, table, one = number_of(path), draw_table(2, 64), draw_prompts([3])
    expected = hidden(opened("large heads", number, path, 1), one, table)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    errors = []
    # The main thread's stack grows when it is used, which would fail under the limit.
    thread = ThreadPoolExecutor(1)
    thread.submit(int).result()
    for room in range(0, 80 << 20, 4 << 20):
        forward = Forward(weights_file("large heads", number), path, 1)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
            thread.submit(hidden, forward, draw_prompts([320] * 3), table).result()
        except ForwardError as error:
            errors.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        np.testing.assert_array_equal(hidden(forward, one, table), expected)
    assert "out of memory" in "".join(errors)


def test_a_row_depends_on_nothing_else_in_its_batch(path: str) -> None:
    """Bit by bit: on no other request or candidate, on their order, or on the number of threads."""
    number = number_of(path)
    prompts, table = draw_prompts([1, 70, 33, 0, 200]), draw_table(60, 128)
    together = hidden(opened("plain", number, path, 2), prompts, table)
    for i, prompt in enumerate(prompts):
        alone = opened("plain", number, path, 1)
        np.testing.assert_array_equal(hidden(alone, [prompt], table)[0], together[i])
        few = hidden(alone, [prompt], table[[40, 3]])[0]
        np.testing.assert_array_equal(few, together[i][[0, 41, 4]])
    turned = hidden(opened("plain", number, path, 3), prompts[::-1], table)
    np.testing.assert_array_equal(turned[::-1], together)


def test_shared_weights_give_the_same_rows(path: str) -> None:
    number = number_of(path)
    prompts, table = draw_prompts([9]), draw_table(4, 128)
    shared = Forward(weights_file("plain", number), path, 2, share=True, affinity=False)
    own = hidden(opened("plain", number, path, 2), prompts, table)
    np.testing.assert_array_equal(hidden(shared, prompts, table), own)


def test_nan_in_a_candidate_is_its_own(path: str) -> None:
    forward = opened("plain", number_of(path), path, 2)
    prompts, table = draw_prompts([20]), draw_table(5, 128)
    weight = np.ones(128, np.float32)
    clean = forward.run(prompts, table, np.arange(5), weight, **HEAD).p
    table[2, 7] = np.nan
    found = forward.run(prompts, table, np.arange(5), weight, **HEAD).p
    assert np.isnan(found[0, 2])
    np.testing.assert_array_equal(np.delete(found[0], 2), np.delete(clean[0], 2))


def test_probability_is_the_scoring_kernels(path: str) -> None:
    forward = opened("plain", number_of(path), path, 2)
    prompts, table = draw_prompts([20, 5]), draw_table(5, 128)
    weight = np.linspace(-1, 1, 128).astype(np.float32)
    found = forward.run(prompts, table, np.array([4, 0, 4]), weight, keep_hidden=True, **HEAD)
    assert found.hidden is not None
    expected = cpp_ext.score(found.hidden, weight, **HEAD)
    np.testing.assert_allclose(found.p, expected, rtol=0, atol=1e-6)
    assert np.ptp(found.p[:, 0]) > 0
    np.testing.assert_array_equal(found.p[:, 0], found.p[:, 2])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tokens": [np.array([5, 17, 60, VOCABULARY])]}, "outside of the vocabulary"),
        ({"tokens": [np.array([5, 17, 60, -1])]}, "outside of the vocabulary"),
        ({"tokens": [np.array([5, 18, 60, 4])]}, "do not begin with the inquiry prompt"),
        ({"tokens": [PROMPT[:2]]}, "a size that is negative or too large"),
        ({"tokens": [np.resize(PROMPT, POSITIONS)]}, "more tokens than the file has positions"),
        ({"rows": np.array([0, 3])}, "a row outside of the table"),
        ({"rows": np.array([-1])}, "a row outside of the table"),
    ],
)
def test_bad_request_is_refused_and_the_next_one_served(
    path: str, change: dict[str, list[Int64Array]], expected: str
) -> None:
    forward = opened("plain", number_of(path), path, 2)
    good = {
        "tokens": draw_prompts([4]), "table": draw_table(3, 128),
        "rows": np.arange(3), "weight": np.ones(128, np.float32),
    }  # fmt: skip
    with pytest.raises(ForwardError, match=expected):
        forward.run(**{**good, **change}, **HEAD)  # type: ignore[arg-type]
    assert np.isfinite(forward.run(**good, **HEAD).p).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "magic", "sizes"])
def test_damaged_file_is_refused(path: str, tmp_path: Path, damage: str) -> None:
    content = bytearray(weights_file("plain", number_of(path)).read_bytes())
    changed = {
        "missing": None,
        "empty": b"",
        "truncated": content[:-100],
        "longer": content + b"\0" * 64,
        "magic": b"X" + content[1:],
        "sizes": content[:24] + b"\xff\xff\xff\x7f" * 4 + content[40:],
    }[damage]
    file = tmp_path / "backbone.fused"
    if changed is not None:
        file.write_bytes(changed)
    with pytest.raises(ForwardError, match="missing, damaged or of another version"):
        Forward(file, path, 2)


def test_the_test_at_start_changes_no_result(path: str) -> None:
    """It computes two layers; memory that it leaves must not be taken for that of all of them."""
    number, prompts, table = number_of(path), draw_prompts([5]), draw_table(3, 64)
    forward = Forward(weights_file("deep", number), path, 1)
    forward.test()
    expected = hidden(opened("deep", number, path, 1), prompts, table)
    np.testing.assert_array_equal(hidden(forward, prompts, table), expected)


def test_a_path_that_computes_something_else_is_found(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong sums of columns, which the plain loops do not read, stand for a CPU that goes wrong."""
    number = number_of(path)
    opened("plain", number, path, 2).test()
    if number == "bf16":
        pytest.skip("bf16 has no number that the path reads and the plain loops do not")
    monkeypatch.setattr(Int8, "ZERO", 120)
    made = base(*BACKBONES["plain"])
    config = LlamaConfig.of(made.config)
    cached = keys_values(config, made.arrays, PROMPT)
    write_packed(
        config, made.arrays, tmp_path / "wrong.fused",
        number=number, prompt=PROMPT, cached=cached, positions=POSITIONS,
    )  # fmt: skip
    with pytest.raises(ForwardError, match="differ from those of plain loops"):
        Forward(tmp_path / "wrong.fused", path, 2).test()


def test_a_file_name_of_any_bytes_is_opened(path: str, tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.fused"))
    file.symlink_to(weights_file("plain", number_of(path)))
    assert Forward(file, path).path == path


def test_a_file_that_is_overwritten_changes_nothing(path: str, tmp_path: Path) -> None:
    """A mapped file would end the process with SIGBUS where it was truncated."""
    file = tmp_path / "backbone.fused"
    file.write_bytes(weights_file("plain", number_of(path)).read_bytes())
    forward = Forward(file, path, 2)
    prompts, table = draw_prompts([9]), draw_table(4, 128)
    before = hidden(forward, prompts, table)
    file.write_bytes(b"")
    np.testing.assert_array_equal(hidden(forward, prompts, table), before)


def test_path_of_another_number_format_is_refused(path: str) -> None:
    other: Number = "int8" if number_of(path) == "bf16" else "bf16"
    with pytest.raises(ForwardError, match="no such path"):
        Forward(weights_file("plain", other), path)


def test_library_that_is_missing_or_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = _load(tmp_path)
    assert missing == f"no _forward*.so in {tmp_path}"
    (tmp_path / "_forward.so").write_bytes(b"not a library")
    assert "_forward.so does not load" in _load(tmp_path)
    monkeypatch.setattr(cpp_ext.forward, "_library", lambda: missing)
    assert paths() == []
    with pytest.raises(ForwardError, match="no _forward"):
        Forward(tmp_path / "backbone.fused")
