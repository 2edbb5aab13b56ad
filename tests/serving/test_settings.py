"""Settings from flags, environment and a file: precedence, and all errors at once."""

from __future__ import annotations

import socket
from dataclasses import fields
from pathlib import Path

import pytest

from engine.api.errors import BundleError, InvalidInputError
from engine.serving.rpc.listener import bind
from engine.serving.settings import Settings, resolve

NO_FILE = Path()


def test_flags_go_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "modelsat.toml"
    file.write_text(
        "inference_threads = 1\nscore_cache_mb = 2\nmax_queue_size = 3\n"
        'reencode_candidates = true\naudit_log = "a.jsonl"\n'
    )
    environ = {"MODELSAT_SCORE_CACHE_MB": "20", "MODELSAT_MAX_QUEUE_SIZE": "30", "HOME": "/"}
    found = resolve({"max_queue_size": "300", "inference_threads": None}, environ, file)
    s = found.settings
    assert (s.inference_threads, s.score_cache_mb, s.max_queue_size, s.reencode_candidates) == (
        1,
        20,
        300,
        True,
    )
    assert s.audit_log == Path("a.jsonl")
    sources = {n: w for n, w in found.sources.items() if w != "default"}
    assert sources == {
        "inference_threads": str(file),
        "score_cache_mb": "environment",
        "max_queue_size": "flag",
        "reencode_candidates": str(file),
        "audit_log": str(file),
    }
    assert "max_queue_size = 300 (flag)" in found.table()


def test_every_wrong_value_of_every_source_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "modelsat.toml"
    file.write_text('inference_threads = "many"\nno_such = 1\nfallback = "sometimes"\n')
    flags = {
        "address": "nowhere",
        "score_cache_mb": "-1",
        "tls_key": "k.pem",
        "audit_sample_rate": "nan",
    }
    with pytest.raises(InvalidInputError) as caught:
        resolve(flags, {"MODELSAT_SHUTDOWN_GRACE_PERIOD_S": "1.5"}, file)
    named = {v.field for v in caught.value.violations}
    assert named == {
        "--inference-threads",
        "no_such",
        "--fallback",
        "--address",
        "--score-cache-mb",
        "--tls-key",
        "--audit-sample-rate",
        "--shutdown-grace-period-s",
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"extproc_model_alias": "auto,,best"}, ["--extproc-model-alias"]),
        ({"extproc_model_alias": "auto, best one"}, ["--extproc-model-alias"]),
        ({"extproc_model_header": "content-length"}, ["--extproc-model-header"]),
        ({"extproc_model_header": ":path"}, ["--extproc-model-header"]),
        (
            {"extproc_model_header": "x-modelsat-allowed-candidates"},
            ["--extproc-model-header", "x-modelsat-"],
        ),
        (
            {"extproc_max_buffered_mb": "1"},
            ["--extproc-max-buffered-mb", "expected 10 to"],
        ),
        (
            {"metrics_address": "127.0.0.1:9000", "extproc_address": "127.0.0.1:9000"},
            ["--metrics-address", "--extproc-address", "127.0.0.1:9000"],
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_violation(
    flags: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve(flags, {}, NO_FILE)
    (wrong,) = caught.value.violations
    assert all(word in f"{wrong.field} {wrong.description}" for word in words)


def test_free_ports_and_several_aliases_go_together() -> None:
    flags = {
        "address": "127.0.0.1:0",
        "extproc_address": "127.0.0.1:0",
        "extproc_model_alias": "auto, b",
    }
    assert resolve(flags, {}, NO_FILE).settings.extproc_model_alias == "auto, b"


async def test_a_port_that_is_taken_names_its_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(admin_address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BundleError, match="set --admin-address to another"):
            bind(settings, "admin_address", [], [], None)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"missing\.toml"):
        resolve({}, {}, tmp_path / "missing.toml")


def test_defaults_are_valid_and_every_setting_says_what_it_is() -> None:
    assert resolve({}, {}, NO_FILE).settings == Settings()
    assert all(f.metadata["about"] for f in fields(Settings))
