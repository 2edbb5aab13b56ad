"""Settings from flags, environment and a file: precedence, and all errors at once."""

from __future__ import annotations

import json
import socket
from dataclasses import fields
from pathlib import Path

import pytest

from engine.api.errors import BundleError, InvalidInputError, StoreError
from engine.cli.main import main as cli
from engine.registry.opening import open_store
from engine.serving import setting_values
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
        ({"console_hosts": "https://a.example"}, ["--console-hosts"]),
        ({"console_hosts": "a.example:8071"}, ["--console-hosts"]),
        ({"console_hosts": "*.example"}, ["--console-hosts"]),
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


# --- a mistyped value never fails open ----------------------------------------------------------

PASSWORD = "hunter2"
STORES_THAT_ARE_NONE = [
    f"postgresql+asyncpg://u:{PASSWORD}@127.0.0.1:1/db",
    f"POSTGRESQL://u:{PASSWORD}@db/x",
    f'"postgresql://u:{PASSWORD}@db/x"',
    f"jdbc:postgresql://db/x?password={PASSWORD}",
    f"mysql://u:{PASSWORD}@db/x",
    "sqlite:////var/x.db",
    "sqlite:x.db",
    "file:x.db?mode=rw",
    f"cockroachdb://u:{PASSWORD}@db/x",
    f"postgresql:/u:{PASSWORD}@db/x",
    f"postgres//u:{PASSWORD}@db/x",
    f"u:{PASSWORD}@db:5432/x",
    f"//u:{PASSWORD}@db/x",
    f"host=db dbname=x password={PASSWORD}",
    f"postgresql\uff1a//u:{PASSWORD}@db/x",
    f"postgresql://u:{PASSWORD}@db/x\npostgresql://other",
    "",
    "  ",
]


@pytest.mark.parametrize("store", STORES_THAT_ARE_NONE)
@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_a_store_of_an_unknown_kind_is_refused_without_its_password(
    store: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("" if source != "file" else f"candidates_db = {json.dumps(store)}\n")
    flags = {"candidates_db": store} if source == "flag" else {}
    environ = {"MODELSAT_CANDIDATES_DB": store} if source == "environment" else {}
    with pytest.raises(InvalidInputError, match="--candidates-db") as caught:
        resolve(flags, environ, config)
    assert PASSWORD not in str(caught.value)
    assert "postgresql://" in str(caught.value)
    with pytest.raises(StoreError) as refused:
        open_store(store, "encoder", 4, None, 1)
    with pytest.raises(SystemExit):
        cli(["store", "backup", str(tmp_path / "copy"), "--candidates-db", store])
    assert PASSWORD not in str(refused.value) + capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["c.toml"]


@pytest.mark.parametrize(
    "store", ["a.sqlite", "/var/lib/a:b.sqlite", "./a:b", "postgresql://u:p@db/x", "postgres://db"]
)
def test_blanks_around_a_store_are_no_part_of_it(store: str) -> None:
    assert resolve({"candidates_db": f" {store}\n"}, {}, NO_FILE).settings.candidates_db == store


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MODELSAT_AUTH_TOKENS_FILE", ""),
        ("MODELSAT_AUTH_TOKENS_FILE", " "),
        ("MODELSAT_AUTH_TOKENS_FILE", "/"),
        ("MODELSAT_AUTH_TOKENS_FILE", '"tokens.json"'),
        ("MODELSAT_AUTH_TOKENS_FILE", "file:///etc/tokens.json"),
        ("MODELSAT_TLS_CLIENT_CA", ""),
        ("MODELSAT_TLS_CERTIFICATE", "."),
        ("MODELSAT_TLS_KEY", "\t"),
        ("Modelsat_Auth_Tokens_File", "tokens.json"),
        ("MODELSAT_AUTH_TOKEN_FILE", "tokens.json"),
        ("MODELSAT_OUTCOMES_DB", f"postgresql+asyncpg://u:{PASSWORD}@db/x"),
        ("MODELSAT_AUDIT_LOG", f"postgresql://u:{PASSWORD}@db/x"),
        ("MODELSAT_ADDRESS", f"http://u:{PASSWORD}@0.0.0.0:50051"),
        ("MODELSAT_OTLP_ENDPOINT", "http://collector:4317"),
        ("MODELSAT_ADDRESS", "0.0.0.0:99999"),
        ("MODELSAT_AUDIT_INCLUDE_TEXT", "off"),
        ("MODELSAT_SWITCHING_MARGIN", "inf"),
    ],
)
def test_a_mistyped_variable_is_refused(variable: str, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve({}, {variable: text}, NO_FILE)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['auth_tokens_file = ""', "auth_tokens_file = []", "candidates_db = 5", "max_queue_size = 2.5"],
)
def test_a_value_of_another_type_in_the_file_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(line)
    with pytest.raises(InvalidInputError):
        resolve({}, {}, file)


def test_blanks_around_values_are_no_part_of_them() -> None:
    environ = {"MODELSAT_ADDRESS": " [::1]:0\n", "MODELSAT_AUTH_TOKENS_FILE": "/t.json\r\n"}
    found = resolve({}, environ, NO_FILE).settings
    assert (found.address, found.auth_tokens_file) == ("[::1]:0", Path("/t.json"))


def test_an_empty_last_table_file_turns_it_off() -> None:
    assert setting_values.parse("last_table_file", Path("x"), "") == Path()
    with pytest.raises(ValueError, match="is empty"):
        setting_values.parse("outcomes_db", Path("x"), "")
