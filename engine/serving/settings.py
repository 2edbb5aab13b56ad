"""Settings of the server: flags override environment variables, those a file, that the defaults.

A field's name is its key in the file (TOML), `--its-name` on the command line and MODELSAT_ITS_NAME
in the environment.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from engine.api.candidate import ID_PATTERN
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES, MIB
from engine.api.overrides import OVERRIDE_PREFIX
from engine.api.text_files import read_utf8
from engine.bundle.manifest import Device
from engine.registry.stores.base import without_password
from engine.serving.setting_values import (
    STORES,
    address_problem,
    is_loopback,
    parse,
    quotable,
    variables,
)

MILLION = 1_000_000
EXTPROC_MAX_BODY_BYTES = 10 * MIB  # of one HTTP request
EXTPROC_MAX_FALLBACKS = 8
NO_FILE = Path()
BUNDLE, OUTCOMES = Path("artifacts/bundle"), Path("artifacts/outcomes.sqlite")
LAST_TABLE = Path("artifacts/last-table.json")
LEVELS = ("debug", "info", "warning", "error")
HEADER_PATTERN = re.compile(r"[a-z0-9-]{1,100}")
HEADER_VALUE = re.compile(r"[!-~]{1,256}")
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# Headers that HTTP itself depends on.
HTTP_HEADERS = (
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
)
GRPC_ADDRESSES = ("address", "admin_address", "extproc_address")
ADDRESSES = ("address", "admin_address", "metrics_address", "console_address", "extproc_address")


def _of(default: Any, about: str, *, low: float = 0, high: float = 0, among: Any = ()) -> Any:
    """Define a setting. about: its help. low, high: bounds of a number. among: allowed values."""
    metadata = {"about": about, "low": low, "high": high, "among": tuple(among)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Addresses are HOST:PORT; port 0 takes a free one, an empty address is off. An empty path is
    none."""

    bundle: Path = _of(BUNDLE, "Bundle to serve: the folder that `make export` wrote.")
    address: str = _of("127.0.0.1:50051", "HOST:PORT of RouterService; port 0 takes a free port.")
    admin_address: str = _of(
        "", "HOST:PORT of CandidateService and AdaptationService; empty: on --address too."
    )
    metrics_address: str = _of("", "HOST:PORT of Prometheus' /metrics; empty turns it off.")
    console_address: str = _of("", "HOST:PORT of the read-only web console; empty turns it off.")
    console_hosts: str = _of(
        "", "Host names that browsers reach the console by; separate several by commas."
    )
    extproc_address: str = _of(
        "", "HOST:PORT of Envoy's ExternalProcessor service; empty turns it off."
    )
    extproc_model_alias: str = _of(
        "auto", "Value of `model` that asks for routing; separate several by commas."
    )
    extproc_model_header: str = _of(
        "x-selected-model", "Request header that is set to the selected model."
    )
    extproc_model_map: Path = _of(
        NO_FILE, "JSON file: object of candidate ID -> the upstream's name for that model."
    )
    extproc_fallbacks: int = _of(
        0,
        "Number of next candidates of the ranking to name in request headers, x-modelsat-fallback-1"
        " and so on, for the gateway to try if an upstream fails.",
        high=EXTPROC_MAX_FALLBACKS,
    )
    extproc_max_buffered_mb: int = _of(
        256,
        "Limit on all HTTP bodies in memory, in MiB; above it requests get 503.",
        low=EXTPROC_MAX_BODY_BYTES // MIB,
        high=MILLION,
    )
    extproc_timeout_ms: int = _of(
        500, "Time-out from the complete body to the decision, in ms.", low=1, high=MILLION
    )
    extproc_on_unparsable: str = _of(
        "pass",
        "Bodies that are compressed or not JSON: pass them on unrouted, or reject them with 415.",
        among=("pass", "reject"),
    )
    extproc_no_capability_check: bool = _of(
        False,
        "Do not require candidates to support the API, tools, JSON mode and modalities of a body.",
    )
    candidates_db: str = _of(
        "artifacts/candidates.sqlite", "Candidate store: an SQLite file or a postgresql:// URL."
    )
    catalog: str = _of(
        "default",
        "Candidates of a new store: default (those of the bundle), none, or a file of candidates"
        " as `modelsat candidates template` writes.",
    )
    last_table_file: Path = _of(
        LAST_TABLE, "File of the last table, for a start while PostgreSQL is away; empty for none."
    )
    outcomes_db: str = _of(
        str(OUTCOMES),
        "Store of recorded outcomes and of sessions: an SQLite file or a postgresql:// URL.",
    )
    device: str = _of(
        "auto",
        "Inference device (auto tries tensorrt, cuda, cpu; cpu tries cpu-fused, cpu-onnx).",
        among=("auto", *get_args(Device)),
    )
    inference_threads: int = _of(
        0, "CPU threads for the forward pass; 0 takes one per core.", high=1024
    )
    max_queue_size: int = _of(
        256, "Requests that may wait for a forward pass; more are refused.", low=1, high=100_000
    )
    max_queue_share: float = _of(
        1.0,
        "Largest share of the queue that one principal may fill; they take turns in any case.",
        low=0.001,
        high=1,
    )
    score_cache_mb: int = _of(
        16, "Memory for cached probabilities, in MiB; 0 turns the cache off.", high=MILLION
    )
    max_text_bytes: int = _of(
        512 * 1024, "Limit on the text of one request, in bytes.", low=1, high=MAX_MESSAGE_BYTES
    )
    reencode_candidates: bool = _of(
        False, "If the store was written with another bundle's encoder, encode it again at start."
    )
    revision_history_limit: int = _of(
        100, "Revisions of the candidate table kept for rollback.", low=1, high=MILLION
    )
    max_recorded_outcomes: int = _of(
        100_000,
        "Recorded outcomes kept; then the oldest are deleted of the caller who has most.",
        low=1,
        high=100 * MILLION,
    )
    max_outcome_age_days: int = _of(
        365, "Days after which recorded outcomes are deleted; 0 keeps them.", high=36_500
    )
    memory_instructions: int = _of(
        20_000,
        "Instructions whose outcomes correct probabilities; then the oldest are forgotten of the"
        " caller who has most.",
        low=1,
        high=MILLION,
    )
    memory_mib: int = _of(
        64,
        "Limit on the embeddings and log-odds of those, in MiB; 0 turns adaptation off, and keeps"
        " what is stored.",
        high=MILLION,
    )
    decisions_mib: int = _of(
        64,
        "Memory for recent decisions, in MiB, so that outcomes need no text; 0 keeps none.",
        high=MILLION,
    )
    decisions_max_age_minutes: int = _of(
        120, "Minutes for which a decision is remembered.", low=1, high=MILLION
    )
    fallback: str = _of(
        "off",
        "When to rank by mean accuracy instead of scores: off = never, deadline = when the"
        " deadline is too near to score, overload = then and when the queue is full.",
        among=("off", "deadline", "overload"),
    )
    default_candidate: str = _of(
        "", "ID of the candidate selected on abstention; empty selects the ranking's first."
    )
    switching_margin: float = _of(
        0.05, "Minimum utility gain before a session switches candidates."
    )
    willingness_to_pay_usd: float = _of(
        math.inf,
        "US dollars that a success is worth, for requests without an objective (0.001 to 1 for"
        " chats; see `modelsat calibrate`); inf weighs no costs.",
        low=1e-9,
    )
    confidence: float = _of(
        0.5,
        "With remembered outcomes: standard errors by which a candidate must be better than the one"
        " that is best on average to be selected in its place; 0 selects the ranking's first.",
        high=100,
    )
    escalate_after_failures: int = _of(
        0,
        "In a tool loop: how many of the last 10 results must have failed until the most probable"
        " candidate is chosen; 0 keeps the session's candidate whatever fails.",
        high=10,
    )
    exploration_share: float = _of(
        0.0, "Share of requests for which another candidate is drawn, to learn from it.", high=1
    )
    exploration_max_loss: float = _of(
        0.05, "Utility below the selected candidate's that a drawn one may have at most."
    )
    set_aside_failures: int = _of(
        3,
        "Reported failures in a row after which a candidate is set aside; 0 never sets one aside.",
        high=MILLION,
    )
    set_aside_s: float = _of(
        30.0,
        "Seconds of its first pause; after each further failure it is twice as long, up to 600.",
        low=0.1,
        high=600,
    )
    session_ttl_s: int = _of(
        1800, "Seconds after its last use at which a session expires.", low=1, high=MILLION
    )
    max_sessions: int = _of(
        10_000, "Sessions kept; the least recently used are dropped first.", high=10 * MILLION
    )
    tls_certificate: Path = _of(
        NO_FILE, "PEM certificate chain; turns TLS on for every address but --metrics-address."
    )
    tls_key: Path = _of(NO_FILE, "PEM private key of the certificate, without a passphrase.")
    tls_client_ca: Path = _of(
        NO_FILE, "PEM certificate authority; clients must present a certificate from it (mTLS)."
    )
    auth_tokens_file: Path = _of(
        NO_FILE, "JSON file of bearer tokens and roles; without it every client has access."
    )
    allow_anonymous: bool = _of(
        False,
        "Serve addresses that other machines can reach without tokens or client certificates.",
    )
    max_connections: int = _of(
        0,
        "Connections of one gRPC address; 0 for 4096, or what the limit on open files allows.",
        high=MILLION,
    )
    max_connection_idle_s: int = _of(
        300, "Seconds without a call after which a connection is closed.", low=1, high=MILLION
    )
    max_connection_age_s: int = _of(
        0, "Seconds after which clients are asked to reconnect; 0 for never.", high=MILLION
    )
    shutdown_grace_period_s: int = _of(
        10, "Seconds from SIGTERM until calls in flight are cancelled.", high=3600
    )
    log_format: str = _of("text", "Format of the log on stderr.", among=("text", "json"))
    log_level: str = _of("info", "Lowest level that is logged.", among=LEVELS)
    otlp_endpoint: str = _of(
        "", "HOST:PORT of an OTLP collector (gRPC) for traces; empty turns tracing off."
    )
    audit_log: Path = _of(NO_FILE, "JSON lines file for a sample of decisions; empty turns it off.")
    audit_sample_rate: float = _of(0.01, "Share of decisions in the audit log, 0 to 1.", high=1)
    audit_include_text: bool = _of(
        False, "Write instructions into the audit log, and show them in the console."
    )

    changes_log: Path = _of(
        NO_FILE,
        "JSON lines file for every change of candidates and who made it; empty turns it off.",
    )

    def check(self) -> None:
        """Raise one InvalidInputError that lists every invalid value."""
        violations = [v for f in fields(self) for v in _check(f, getattr(self, f.name))]
        if bool(self.tls_certificate.name) != bool(self.tls_key.name):
            violations.append(Violation("--tls-key", "needs --tls-certificate, and vice versa."))
        if self.tls_client_ca.name and not self.tls_certificate.name:
            violations.append(
                Violation("--tls-client-ca", "needs --tls-certificate and --tls-key.")
            )
        if self.default_candidate and not ID_PATTERN.fullmatch(self.default_candidate):
            violations.append(Violation("--default-candidate", "is not a valid candidate ID."))
        violations += [*_check_extproc(self), *_check_addresses(self), *_check_access(self)]
        violations += _check_console(self)
        if violations:
            raise InvalidInputError(*violations)

    def console_host_names(self) -> list[str]:
        """Return the names of console_hosts in lower case."""
        return [name.strip().lower() for name in self.console_hosts.split(",") if name.strip()]


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings, and where each comes from.

    sources: field -> "flag", "environment", the file's path or "default".
    """

    settings: Settings
    sources: Mapping[str, str]

    def table(self) -> str:
        """Return a line for each setting that is not a default. Tokens and keys are in files, so
        no line shows one."""
        values = vars(self.settings) | {
            name: without_password(getattr(self.settings, name)) for name in STORES
        }
        return "\n".join(
            f"  {name} = {values[name]} ({source})"
            for name, source in self.sources.items()
            if source != "default"
        )


def resolve(
    flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path
) -> ResolvedSettings:
    """Combine all sources of settings.

    Args:
        flags: field -> text, None if the flag was not given.
        environ: of the process; only variables that begin with MODELSAT_ matter.
        file: TOML; an empty path means none.

    Raises:
        InvalidInputError: lists every invalid value of every source.
    """
    values: dict[str, Any] = {}
    sources = {f.name: "default" for f in fields(Settings)}
    violations: list[Violation] = []
    defaults = {f.name: f.default for f in fields(Settings)}
    for source, layer in (
        (str(file), _read(file)),
        ("environment", variables(environ)),
        ("flag", flags),
    ):
        for name, raw in layer.items():
            if raw is None:
                continue
            if name not in defaults:
                shown = f"MODELSAT_{name.upper()}" if source == "environment" else name
                problem = f"in {source} is not a setting of this version."
                violations.append(Violation(shown, problem))
                continue
            try:
                values[name], sources[name] = parse(name, defaults[name], raw), source
            except ValueError as error:
                said = f"is {str(raw)[:80]!r}; " if quotable(name, raw) else ""
                problem = f"in {source} {said}{error}"
                violations.append(Violation(flag(name), problem))
    settings = Settings(**values)
    try:
        settings.check()
    except InvalidInputError as error:
        violations += error.violations
    if violations:
        raise InvalidInputError(*violations)
    return ResolvedSettings(settings, sources)


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def _read(file: Path) -> Mapping[str, Any]:
    if not file.name:
        return {}
    try:
        return tomllib.loads(read_utf8(file))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            Violation("--config", f"is {file}, which is not readable TOML ({error}).")
        ) from error


def _check_extproc(settings: Settings) -> list[Violation]:
    """Check what Envoy and its clients depend on."""
    violations = []
    header, alias = settings.extproc_model_header, settings.extproc_model_alias
    if not HEADER_PATTERN.fullmatch(header):
        problem = "is not a valid header name; expected a-z, 0-9 and dashes."
        violations.append(Violation("--extproc-model-header", problem))
    elif header in HTTP_HEADERS or header.startswith(OVERRIDE_PREFIX):
        problem = (
            f"is {header!r}; expected none of HTTP's own, and none that begins with"
            f" {OVERRIDE_PREFIX!r}."
        )
        violations.append(Violation("--extproc-model-header", problem))
    if not all(HEADER_VALUE.fullmatch(name.strip()) for name in alias.split(",")):
        problem = f"is {alias!r}; expected names without spaces, separated by commas."
        violations.append(Violation("--extproc-model-alias", problem))
    return violations


def _check_console(settings: Settings) -> list[Violation]:
    """Refuse what no browser sends as a Host: it would never match."""
    if all(HOST_NAME.fullmatch(name) for name in settings.console_host_names()):
        return []
    problem = (
        f"is {settings.console_hosts!r}; expected names like console.example.com, without scheme,"
        " port or wildcard, separated by commas."
    )
    return [Violation("--console-hosts", problem)]


def _check_access(settings: Settings) -> list[Violation]:
    """Refuse to serve other machines without asking who calls, unless that was asked for."""
    if settings.auth_tokens_file.name or settings.tls_client_ca.name or settings.allow_anonymous:
        return []
    named = [(name, getattr(settings, name)) for name in GRPC_ADDRESSES]
    return [
        Violation(
            flag(name),
            f"is {address}, which other machines can reach, and nothing asks who calls; set"
            " --auth-tokens-file (`modelsat token` makes tokens) or --tls-client-ca, or"
            " --allow-anonymous to serve anyone.",
        )
        for name, address in named
        if address and not address_problem(address) and not is_loopback(address)
    ]


def _check_addresses(settings: Settings) -> list[Violation]:
    used = [(name, getattr(settings, name)) for name in ADDRESSES if getattr(settings, name)]
    return [
        Violation(flag(second), f"is {address}, and so is {flag(first)}; give each its own.")
        for i, (second, address) in enumerate(used)
        for first, other in used[:i]
        if address == other and not address.endswith(":0")
    ]


def _check(f: Any, value: Any) -> list[Violation]:
    among, low, high = f.metadata["among"], f.metadata["low"], f.metadata["high"]
    if among and value not in among:
        return [Violation(flag(f.name), f"is {value!r}; expected one of {among}.")]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not low <= value <= (high or float("inf")):
        bounds = f"{low} to {high}" if high else f"{low} or more"
        return [Violation(flag(f.name), f"is {value}; expected {bounds}.")]
    is_address = f.name.endswith(("address", "endpoint")) and (value or f.name == "address")
    if is_address and (problem := address_problem(value)):
        return [Violation(flag(f.name), problem)]
    return []
