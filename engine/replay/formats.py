"""Where logs keep what replay reads: one row of FORMATS for each program that writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.datasets.cells import CellError, decode, is_missing
from engine.replay import otlp

Columns = Mapping[str, tuple[str, ...]]

# A field is read from the first of these columns that has a value; --map-column sets another.
# body: a whole request body. A dot steps into an object, also into one that is JSON as text.
COLUMNS: Columns = {
    "messages": ("messages",),
    "text": ("text", "prompt", "instruction", "input", "query"),
    "candidate": ("candidate", "model", "selected", "response.model"),
    "cost": ("cost_usd", "cost", "spend"),
    "outcome": ("outcome", "score"),
    "time": ("time", "timestamp", "created", "startTime"),
    "propensity": ("propensity",),
    "decision": ("decision_id",),
    "body": ("body", "request_body", "request", "proxy_server_request"),
    "session": ("session_id", "session"),
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "latency": ("latency_s", "latency_ms", "duration_ms"),
    "reference": ("reference", "expected_output", "expectedOutput", "expected", "ground_truth"),
    "category": ("category",),
    "path": ("path", "request_path"),
}


@dataclass(frozen=True)
class LogFormat:
    """How one program writes its log.

    marks: groups of columns; a record with all of a group has this format. columns: replace those
    of COLUMNS. kinds: (column, values) of records that are requests to an LLM; others are skipped.
    split: turns a record into those of single requests. no_text: what to do if a record has none.
    """

    name: str
    marks: tuple[tuple[str, ...], ...]
    columns: Columns
    kinds: tuple[str, tuple[str, ...]] | None = None
    split: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]] | None = None
    no_text: str = ""


def _langfuse_generations(trace: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the LLM calls of a trace that holds its observations, else the record itself."""
    observations = trace.get("observations")
    listed = observations if isinstance(observations, list) else []
    nested = [o for o in listed if isinstance(o, dict)]
    calls = [o for o in nested if str(o.get("type", "")).upper() == "GENERATION"]
    shared = {k: trace[k] for k in ("sessionId", "scores") if k in trace}
    yield from ({**shared, **call} for call in calls)
    if not calls:
        yield dict(trace)


FORMATS = (
    LogFormat(
        "litellm",  # table LiteLLM_SpendLogs, and the JSON of its logging callbacks
        marks=(
            ("call_type", "startTime"),
            ("model_group", "spend"),
            ("proxy_server_request", "model"),
            ("custom_llm_provider", "startTime"),
        ),
        columns={
            "body": ("proxy_server_request.body", "proxy_server_request"),
            "messages": ("messages",),
            "text": ("prompt",),
            "candidate": ("model_group", "model", "model_id"),
            "cost": ("spend", "response_cost"),
            "time": ("startTime", "start_time"),
            "session": ("session_id", "trace_id"),
            "input_tokens": ("prompt_tokens",),
            "output_tokens": ("completion_tokens",),
            "latency": ("request_duration_ms",),
            "path": (),  # LiteLLM translates between APIs
        },
        kinds=(
            "call_type",
            (
                *("completion", "acompletion", "text_completion", "atext_completion", ""),
                *("responses", "aresponses", "anthropic_messages", "pass_through_endpoint"),
                *("agenerate_content", "generate_content", "allm_passthrough_route"),
                *("agenerate_content_stream", "generate_content_stream"),
            ),
        ),
        no_text="set store_prompts_in_spend_logs in LiteLLM",
    ),
    LogFormat(
        "langfuse",  # exports of observations and traces, from the UI, the API and blob storage
        marks=(
            ("usageDetails",),
            ("costDetails",),
            ("usage_details",),
            ("cost_details",),
            ("calculatedTotalCost",),
            ("traceId", "input"),
            ("trace_id", "input"),
            ("observations", "input"),
            ("observations", "projectId"),
            ("bookmarked", "input"),
        ),
        columns={
            "body": ("input",),
            "messages": (),
            "text": (),
            "candidate": ("model", "providedModelName", "provided_model_name"),
            "cost": (
                *("totalCost", "total_cost", "calculatedTotalCost", "costDetails.total"),
                *("cost_details.total", "providedCostDetails.total"),
            ),
            "outcome": ("scores", "outcome", "score"),
            "time": ("startTime", "start_time", "timestamp"),
            "session": ("sessionId", "session_id"),
            "input_tokens": (
                *("usageDetails.input", "usage_details.input", "usage.input"),
                *("usage.promptTokens", "inputUsage", "promptTokens"),
            ),
            "output_tokens": (
                *("usageDetails.output", "usage_details.output", "usage.output"),
                *("usage.completionTokens", "outputUsage", "completionTokens"),
            ),
            "latency": ("latency",),
        },
        kinds=("type", ("GENERATION", "generation", "")),
        split=_langfuse_generations,
        no_text="export observations with their input",
    ),
    LogFormat(
        "helicone",
        marks=(
            ("request_body", "request_created_at"),
            ("request_body", "response_body"),
            ("request_created_at", "response_created_at"),
            ("request_id", "helicone_user"),
        ),
        columns={
            "body": ("request_body.body", "request_body", "body.request", "request"),
            "messages": ("messages",),
            "text": ("request_prompt", "prompt"),
            "candidate": ("model_override", "request_model", "model", "response_model"),
            "cost": ("costUSD", "cost_usd", "cost"),
            "outcome": ("scores", "feedback_rating"),
            "time": ("request_created_at", "created_at"),
            "session": (
                "properties.Helicone-Session-Id",
                "request_properties.Helicone-Session-Id",
            ),
            "latency": ("delay_ms", "latency_ms"),
        },
        no_text="export with --include-body",
    ),
    LogFormat(
        "openrouter",  # activity and generation exports; its traces are OpenTelemetry's
        marks=(
            ("native_tokens_prompt",),
            ("tokens_prompt", "total_cost"),
            ("tokens_prompt", "cost_total"),
            ("model_permaslug",),
            ("data.native_tokens_prompt",),
        ),
        columns={
            "body": ("request", "input", "data.input"),
            "messages": ("messages",),
            "text": ("prompt",),
            "candidate": ("model", "model_permaslug", "data.model"),
            "cost": ("total_cost", "cost_total", "usage", "data.total_cost"),
            "time": ("created_at", "data.created_at"),
            "session": ("session_id", "data.session_id"),
            "input_tokens": ("tokens_prompt", "data.tokens_prompt"),
            "output_tokens": ("tokens_completion", "data.tokens_completion"),
            "latency": ("generation_time_ms",),
        },
        no_text="this export has no prompts; replay the traces of Broadcast",
    ),
    LogFormat(
        "opentelemetry",  # GenAI conventions old and new, OpenInference, OpenLLMetry, AI SDK
        marks=(
            ("resourceSpans",),
            ("resource_spans",),
            ("resourceLogs",),
            ("attributes", "spanId"),
            ("attributes", "span_id"),
            ("attributes", "context"),
            ("gen_ai.request.model",),
            ("gen_ai.input.messages",),
            ("llm.model_name",),
            ("attributes.gen_ai.request.model",),
            ("attributes.llm.model_name",),
        ),
        columns={
            "body": ("body",),
            "messages": ("messages",),
            "text": (),
            "candidate": (
                *("gen_ai.request.model", "gen_ai.response.model", "llm.model_name"),
                *("llm.request.model", "ai.model.id"),
            ),
            "cost": ("gen_ai.usage.cost", "gen_ai.usage.total_cost", "llm.usage.total_cost"),
            "outcome": ("gen_ai.evaluation.score.value",),
            "time": ("start_time",),
            "session": ("gen_ai.conversation.id", "session.id", "session_id"),
            "input_tokens": (
                *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
                *("llm.token_count.prompt", "llm.usage.prompt_tokens"),
            ),
            "output_tokens": (
                *("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
                *("llm.token_count.completion", "llm.usage.completion_tokens"),
            ),
            "latency": ("latency_s",),
        },
        split=otlp.requests,
        no_text="record the content of messages as attributes or events",
    ),
    LogFormat(
        "modelsat",  # the server's audit log
        marks=(("decision_id", "selected", "probabilities"),),
        columns={"text": ("text",), "candidate": ("selected",), "cost": (), "messages": ()},
        no_text="start the server with --audit-include-text",
    ),
)
PLAIN = LogFormat("plain", (), {})
NAMES = tuple(f.name for f in (*FORMATS, PLAIN))


def log_format(name: str) -> LogFormat:
    """Return the format of that name; raise InvalidInputError if there is none."""
    for known in (*FORMATS, PLAIN):
        if known.name == name:
            return known
    raise InvalidInputError(
        Violation("--format", f"is {name!r}; expected one of {', '.join(NAMES)}.")
    )


def detect(record: Mapping[str, Any]) -> LogFormat:
    """Return the format whose marks a record has; PLAIN if none."""
    for known in FORMATS:
        for group in known.marks:
            if all(name in record or ("." in name and find(record, name)) for name in group):
                return known
    return PLAIN


@dataclass
class FormatReader:
    """Turn records into those of single requests.

    wanted: the format of every record; None detects it record by record. counts: records by format.
    skipped: records that are no request to an LLM.
    """

    wanted: LogFormat | None = None
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def requests(self, record: Mapping[str, Any]) -> Iterator[tuple[LogFormat, Mapping[str, Any]]]:
        """Yield (format, record) for each request that the record holds."""
        form = self.wanted or detect(record)
        self.counts[form.name] = self.counts.get(form.name, 0) + 1
        found = False
        for single in form.split(record) if form.split else (record,):
            if form.kinds:
                column, kinds = form.kinds
                kind = single.get(column)
                if isinstance(kind, str) and not is_missing(kind) and kind not in kinds:
                    continue
            found = True
            yield form, single
        self.skipped += not found


def columns_of(form: LogFormat, columns: Columns) -> Columns:
    """Return the columns of a format, except for those that --map-column sets in `columns`."""
    return {
        name: form.columns.get(name, COLUMNS[name])
        if columns.get(name, COLUMNS[name]) == COLUMNS[name]
        else columns[name]
        for name in COLUMNS
    }


def top_level(columns: Columns) -> set[str]:
    """List the top-level columns of a table that any format or `columns` may need."""
    tables = [columns, COLUMNS, *(f.columns for f in FORMATS)]
    paths = [path for table in tables for some in table.values() for path in some]
    marks = [name for f in FORMATS for group in f.marks for name in group]
    kinds = [f.kinds[0] for f in FORMATS if f.kinds]
    names = [*paths, *marks, *kinds, *otlp.COLUMNS]
    return {*names, *(name.split(".")[0] for name in names)}


def find(record: Mapping[str, Any], path: str) -> Any:
    """Find the value of a path: a column of that name, else a step into an object for each dot.

    An object may be JSON as text, or a list of objects with a `name` and a `value`, as scores are.
    Raises CellError if text on the way is torn JSON.
    """
    value: Any = record.get(path)
    if value is not None or "." not in path:
        return value
    head, _, rest = path.partition(".")
    inner = decode(record.get(head))
    if isinstance(inner, list):
        named = [x for x in inner if isinstance(x, dict) and isinstance(x.get("name"), str)]
        inner = {x["name"]: x.get("value") for x in named}
    return find(inner, rest) if isinstance(inner, Mapping) else None


def first(record: Mapping[str, Any], paths: tuple[str, ...]) -> tuple[str, Any]:
    """Return (path, value) of the first path that has a value; ("", None) if none has."""
    for path in paths:
        try:
            value = find(record, path)
        except CellError:
            continue
        if not is_missing(value):
            return path, value
    return "", None
