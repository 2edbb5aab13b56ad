"""What the server is told at start: flags before environment before a file before defaults.

A field's name is its key in the file (TOML), `--its-name` on the command line and MODELSAT_ITS_NAME
in the environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from engine.api.candidate import ID_PATTERN
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES, MIB
from engine.bundle.manifest import Device
from engine.registry.stores.base import without_password

ENVIRONMENT = "MODELSAT_"
MILLION = 1_000_000
NO_FILE = Path()
BUNDLE, OUTCOMES = Path("artifacts/bundle"), Path("artifacts/outcomes.sqlite")
LEVELS = ("debug", "info", "warning", "error")
HEADER_PATTERN = re.compile(r"[a-z0-9-]{1,100}")
HEADER_VALUE = re.compile(r"[!-~]{1,256}")
# What another value of theirs would break.
TAKEN_HEADERS = (
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
)
LISTENING = ("address", "admin_address", "metrics_address", "console_address", "extproc_address")
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _of(default: Any, about: str, *, low: float = 0, high: float = 0, among: Any = ()) -> Any:
    """A field. low, high: bounds of a number. among: the allowed words."""
    about_it = {"about": about, "low": low, "high": high, "among": tuple(among)}
    return field(default=default, metadata=about_it)


@dataclass(frozen=True)
class Settings:
    """Addresses are HOST:PORT, port 0 takes a free one; an empty one is off. A path that is empty
    is none."""

    bundle: Path = _of(BUNDLE, "folder that `make export` wrote")
    address: str = _of("127.0.0.1:50051", "HOST:PORT of RouterService; port 0 takes a free one")
    admin_address: str = _of("", "HOST:PORT of CandidateService; empty means beside RouterService")
    metrics_address: str = _of("", "HOST:PORT of Prometheus' /metrics; empty serves none")
    console_address: str = _of("", "HOST:PORT of the read-only web console; empty serves none")
    extproc_address: str = _of("", "HOST:PORT of Envoy's ExternalProcessor; empty serves none")
    extproc_model_alias: str = _of("auto", "model that asks for a choice; several with commas")
    extproc_model_header: str = _of("x-selected-model", "request header with the model, set by us")
    extproc_header_prefix: str = _of(
        "x-modelsat-", "of the request headers with the decision's id and a caller's policy"
    )
    extproc_model_map: Path = _of(
        NO_FILE, "JSON object: candidate id -> its upstream's name for it"
    )
    extproc_max_body_bytes: int = _of(10 * MIB, "of one HTTP request", low=1, high=16 * MIB)
    extproc_max_buffered_mb: int = _of(
        256, "of HTTP bodies that are being answered, all together", low=1, high=MILLION
    )
    extproc_timeout_ms: int = _of(500, "from the whole body to the choice", low=1, high=MILLION)
    extproc_body_timeout_s: int = _of(
        60, "for the whole body to come (FULL_DUPLEX_STREAMED)", low=1, high=3600
    )
    extproc_on_unparsable: str = _of(
        "pass", "what to do with bodies that are compressed or no JSON", among=("pass", "refuse")
    )
    extproc_no_capability_check: bool = _of(
        False, "do not require the tools, JSON mode and modalities that a body uses"
    )
    candidates_db: str = _of(
        "artifacts/candidates.sqlite", "SQLite file or postgresql:// of the candidates"
    )
    outcomes_db: Path = _of(OUTCOMES, "SQLite file of recorded outcomes")
    device: str = _of("auto", "what scores", among=("auto", *get_args(Device)))
    inference_threads: int = _of(0, "of the forward pass; 0 = one per core", high=1024)
    max_queue_size: int = _of(256, "requests in the queue", low=1, high=100_000)
    score_cache_mb: int = _of(16, "of known probabilities; 0 keeps none", high=MILLION)
    max_text_bytes: int = _of(512 * 1024, "of one instruction", low=1, high=MAX_MESSAGE_BYTES)
    reencode_candidates: bool = _of(False, "bring a store of another encoder to this one")
    revision_history_limit: int = _of(
        100, "states of the table to roll back to", low=1, high=MILLION
    )
    max_recorded_outcomes: int = _of(
        100_000, "recorded outcomes; the oldest go first", low=1, high=100 * MILLION
    )
    fallback: str = _of(
        "off",
        "when the static ranking answers: never, when the deadline is near, or also when the queue"
        " is full",
        among=("off", "deadline", "overload"),
    )
    default_candidate: str = _of("", "id chosen on abstention; empty takes the ranking's first")
    switching_margin: float = _of(
        0.05, "utility that another candidate must gain to end a session's"
    )
    session_ttl_s: int = _of(1800, "seconds a session is remembered", low=1, high=MILLION)
    max_sessions: int = _of(10_000, "sessions remembered", high=10 * MILLION)
    tls_certificate: Path = _of(NO_FILE, "PEM chain; with it the server speaks TLS only")
    tls_key: Path = _of(NO_FILE, "PEM private key of the certificate")
    tls_client_ca: Path = _of(
        NO_FILE, "PEM of the authority whose client certificates are required"
    )
    auth_tokens_file: Path = _of(
        NO_FILE, "JSON file of bearer tokens and roles; without it anyone may call"
    )
    max_connection_age_s: int = _of(
        0, "seconds after which a client is asked to connect anew; 0 = never", high=MILLION
    )
    shutdown_grace_period_s: int = _of(
        10, "seconds from SIGTERM to the end at the latest", high=3600
    )
    log_format: str = _of("text", "of the log on stderr", among=("text", "json"))
    log_level: str = _of("info", "lowest that is logged", among=LEVELS)
    otlp_endpoint: str = _of("", "HOST:PORT of an OTLP collector (gRPC); empty sends no traces")
    audit_log: Path = _of(NO_FILE, "JSON lines file for a sample of decisions; empty keeps none")
    audit_sample_rate: float = _of(0.01, "of decisions in the audit file", high=1)
    audit_include_text: bool = _of(False, "write the instruction into the audit file too")

    def check(self) -> None:
        """Raise one InvalidInputError that lists every wrong value."""
        problems = [p for f in fields(self) for p in _check(f, getattr(self, f.name))]
        if bool(self.tls_certificate.name) != bool(self.tls_key.name):
            problems.append(Violation("--tls-key", "and --tls-certificate go together; give both."))
        if self.tls_client_ca.name and not self.tls_certificate.name:
            problems.append(Violation("--tls-client-ca", "needs --tls-certificate and --tls-key."))
        if self.default_candidate and not ID_PATTERN.fullmatch(self.default_candidate):
            problems.append(Violation("--default-candidate", "is no candidate id."))
        problems += [*_check_gateway(self), *_check_addresses(self)]
        if problems:
            raise InvalidInputError(*problems)


@dataclass(frozen=True)
class Resolved:
    """sources: field -> "flag", "environment", the file's path or "default"."""

    settings: Settings
    sources: Mapping[str, str]

    def table(self) -> str:
        """A line for each setting that is not a default; tokens and keys are files, never shown."""
        told = [(n, s) for n, s in self.sources.items() if s != "default"]
        shown = {
            **vars(self.settings),
            "candidates_db": without_password(self.settings.candidates_db),
        }
        return "\n".join(f"  {n} = {shown[n]} ({s})" for n, s in told)


def resolve(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path) -> Resolved:
    """flags: field -> text, None where it was not given. file: TOML; an empty path means none.

    Raises one InvalidInputError that lists every wrong value of every source.
    """
    values: dict[str, Any] = {}
    sources = {f.name: "default" for f in fields(Settings)}
    problems: list[Violation] = []
    told = {k.removeprefix(ENVIRONMENT).lower(): v for k, v in environ.items() if _ours(k)}
    layers = ((str(file), _read(file)), ("environment", told), ("flag", flags))
    known = {f.name: f for f in fields(Settings)}
    for source, layer in layers:
        for name, raw in layer.items():
            if raw is None:
                continue
            if name not in known:
                problems.append(Violation(name, f"in {source} is no setting of this version."))
                continue
            try:
                values[name], sources[name] = _parse(known[name].default, raw), source
            except ValueError as error:
                problems.append(Violation(flag(name), f"in {source} is {str(raw)[:80]!r}; {error}"))
    settings = Settings(**values)
    try:
        settings.check()
    except InvalidInputError as error:
        problems += error.violations
    if problems:
        raise InvalidInputError(*problems)
    return Resolved(settings, sources)


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def _ours(name: str) -> bool:
    return name.startswith(ENVIRONMENT) and name.removeprefix(ENVIRONMENT) not in _OF_OTHERS


# Of the command line, the clients and the tests.
_OF_OTHERS = ("CONFIG", "TOKEN", "REQUIRE_KERNEL", "REQUIRE_TOOLS")


def _read(file: Path) -> Mapping[str, Any]:
    if not file.name:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            Violation("--config", f"is {file}, which is no readable TOML ({error}).")
        ) from error


def _parse(default: Any, raw: Any) -> Any:
    """`raw` as the type of `default`; raises ValueError with what was expected."""
    kind = type(default)
    if kind is bool:
        word = str(raw).lower()
        if word not in WORDS:
            raise ValueError(f"expected one of {sorted(WORDS)}.")
        return WORDS[word]
    if isinstance(default, Path):
        return Path(str(raw)) if str(raw) else Path()
    if kind in (int, float) and isinstance(raw, bool):
        raise ValueError("expected a number.")
    try:
        return kind(raw)
    except (TypeError, ValueError):
        raise ValueError(f"expected {'a whole' if kind is int else 'a'} number.") from None


def _check_gateway(settings: Settings) -> list[Violation]:
    """What Envoy and its clients see."""
    problems = []
    for name in ("extproc_model_header", "extproc_header_prefix"):
        if not HEADER_PATTERN.fullmatch(getattr(settings, name)):
            wrong = "is no header name; expected a-z, 0-9 and dashes."
            problems.append(Violation(flag(name), wrong))
    header, prefix = settings.extproc_model_header, settings.extproc_header_prefix
    if header in TAKEN_HEADERS or header.startswith(prefix):
        wrong = f"is {header!r}; expected none of HTTP's own and none that begins with {prefix!r}."
        problems.append(Violation("--extproc-model-header", wrong))
    if not all(HEADER_VALUE.fullmatch(a.strip()) for a in settings.extproc_model_alias.split(",")):
        wrong = f"is {settings.extproc_model_alias!r}; expected names without spaces, with commas."
        problems.append(Violation("--extproc-model-alias", wrong))
    if settings.extproc_max_buffered_mb * MIB < settings.extproc_max_body_bytes:
        wrong = f"is {settings.extproc_max_buffered_mb} MiB, less than --extproc-max-body-bytes."
        problems.append(Violation("--extproc-max-buffered-mb", wrong))
    return problems


def _check_addresses(settings: Settings) -> list[Violation]:
    given = [(name, getattr(settings, name)) for name in LISTENING if getattr(settings, name)]
    return [
        Violation(flag(second), f"is {address}, and so is {flag(first)}; give each its own.")
        for i, (second, address) in enumerate(given)
        for first, other in given[:i]
        if address == other and not address.endswith(":0")
    ]


def _check(f: Any, value: Any) -> list[Violation]:
    about = f.metadata
    if about["among"] and value not in about["among"]:
        return [Violation(flag(f.name), f"is {value!r}; expected one of {about['among']}.")]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    high = about["high"] or float("inf")
    if number and not about["low"] <= value <= high:
        bound = f"{about['low']} to {about['high']}" if about["high"] else f"{about['low']} or more"
        return [Violation(flag(f.name), f"is {value}; expected {bound}.")]
    if f.name.endswith("address") and (value or f.name == "address"):
        port = re.fullmatch(r".+:(\d{1,5})", value)
        if port is None or int(port[1]) > 65535:
            return [Violation(flag(f.name), f"is {value!r}; expected HOST:PORT, as 0.0.0.0:50051.")]
    return []
