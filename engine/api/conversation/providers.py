"""Where each provider's request format keeps the ask, the context, needs, limits and hints.

One row per format. Names are in snake_case; the camelCase spelling of each is read as well, because
Gemini and Bedrock accept or use it. Dotted names are paths. A body is read by every row that has
one of its fields: dialects mix (Anthropic's blocks come through chat completions, vLLM's fields
through every OpenAI format), and no field means two things that its value cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]


@dataclass(frozen=True)
class RequestFormat:
    """What the fields of one request format mean.

    Attributes:
        name: Name of the format.
        paths: Endings of the HTTP paths that take it.
        system: Standing instructions, as text or parts: context.
        turns: Lists of turns; the ask is the last human one.
        prompts: Text without turns: the ask.
        answers_so_far: Text that the model continues or edits: context.
        tools: If set, the model must support tools. They are context.
        structured: If it asks for a format, the model must support JSON mode. It is context.
        output_limits: Limits on the reply's tokens, in order of precedence.
        stored: Text that the provider adds: (field, what it is called). Its size is unknown.
        sessions: Hints that name the session, in order of precedence.
    """

    name: str
    paths: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    answers_so_far: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    structured: tuple[str, ...] = ()
    output_limits: tuple[str, ...] = ()
    stored: tuple[tuple[str, str], ...] = ()
    sessions: tuple[str, ...] = ()


FORMATS = (
    RequestFormat(
        "openai.chat",  # also Azure, Mistral, Groq, vLLM, SGLang, llama.cpp and Ollama's /v1
        paths=("/chat/completions",),
        turns=("messages",),
        answers_so_far=("prediction",),
        tools=("tools", "functions"),
        structured=("response_format",),
        output_limits=("max_completion_tokens", "max_tokens"),
    ),
    RequestFormat(
        "openai.completions",
        paths=("/completions",),
        prompts=("prompt",),
        answers_so_far=("suffix",),
        output_limits=("max_tokens",),
    ),
    RequestFormat(
        "openai.responses",
        paths=("/responses",),
        system=("instructions",),
        turns=("input",),
        tools=("tools",),
        structured=("text.format",),
        output_limits=("max_output_tokens",),
        stored=(
            ("previous_response_id", "stored history"),
            ("conversation", "stored history"),
            ("prompt.id", "stored prompt"),
        ),
        sessions=("conversation.id", "conversation"),
    ),
    RequestFormat(
        "anthropic.messages",  # also Bedrock's InvokeModel and Vertex's rawPredict
        paths=(
            "/messages",
            ":rawPredict",
            ":streamRawPredict",
            "/invoke",
            "/invoke-with-response-stream",
        ),
        system=("system",),
        turns=("messages",),
        tools=("tools", "mcp_servers"),
        structured=("output_config.format", "output_format"),
        output_limits=("max_tokens",),
        stored=(("container", "stored container"),),
        sessions=("metadata.user_id",),
    ),
    RequestFormat(
        "anthropic.complete",
        paths=("/complete",),
        prompts=("prompt",),
        output_limits=("max_tokens_to_sample",),
    ),
    RequestFormat(
        "gemini.generateContent",  # also Vertex
        paths=(":generateContent", ":streamGenerateContent"),
        system=("system_instruction",),
        turns=("contents",),
        tools=("tools",),
        structured=(
            "generation_config.response_mime_type",
            "generation_config.response_schema",
            "generation_config.response_json_schema",
        ),
        output_limits=("generation_config.max_output_tokens",),
        stored=(("cached_content", "cached content"),),
    ),
    RequestFormat(
        "gemini.interactions",
        paths=("/interactions",),
        system=("system_instruction",),
        turns=("input",),
        tools=("tools",),
        structured=("response_format", "response_mime_type"),
        output_limits=("generation_config.max_output_tokens",),
        stored=(("previous_interaction_id", "stored history"),),
    ),
    RequestFormat(
        "bedrock.converse",
        paths=("/converse", "/converse-stream"),
        system=("system",),
        turns=("messages",),
        tools=("tool_config.tools",),
        structured=("output_config.text_format",),
        output_limits=("inference_config.max_tokens",),
        stored=(("prompt_variables", "stored prompt"),),
    ),
    RequestFormat(
        "ollama",
        paths=("/api/chat", "/api/generate"),
        system=("system",),
        turns=("messages",),
        prompts=("prompt",),
        answers_so_far=("suffix",),
        tools=("tools",),
        structured=("format",),
        output_limits=("options.num_predict",),
        stored=(("context", "stored history"),),
    ),
    RequestFormat(
        "vllm",  # and SGLang, llama.cpp, TGI: what they add to OpenAI's formats
        answers_so_far=("documents",),
        structured=(
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
            "structural_tag",
            "json_schema",
            "grammar",
            "regex",
            "ebnf",
            "nvext.guided_json",
            "nvext.guided_regex",
            "nvext.guided_choice",
            "nvext.guided_grammar",
        ),
    ),
    RequestFormat(
        "text-generation",  # TGI, SageMaker and Bedrock's Titan
        prompts=("inputs", "input_text"),
        output_limits=("parameters.max_new_tokens", "text_generation_config.max_token_count"),
    ),
    RequestFormat("cohere.chat", turns=("chat_history",), prompts=("message",)),
    RequestFormat("openrouter", sessions=("session_id",)),
    RequestFormat("azure", stored=(("data_sources", "data sources"),)),
    RequestFormat("litellm", sessions=("litellm_session_id", "metadata.session_id")),
)


def fields(attribute: str) -> tuple[Path, ...]:
    """Return the paths that an attribute holds in any row, in order and without repetition."""
    return tuple(
        dict.fromkeys(tuple(name.split(".")) for row in FORMATS for name in getattr(row, attribute))
    )


SYSTEM, TURNS, PROMPTS = fields("system"), fields("turns"), fields("prompts")
ANSWERS_SO_FAR, TOOLS = fields("answers_so_far"), fields("tools")
STRUCTURED, OUTPUT_LIMITS = fields("structured"), fields("output_limits")
STORED = {tuple(name.split(".")): words for row in FORMATS for name, words in row.stored}
SESSIONS = fields("sessions")
# Parameters, ids and credentials: no text that the model reads, however long.
IGNORED = frozenset(
    (
        *("model", "models", "user", "metadata", "safety_identifier", "prompt_cache_key", "id"),
        *("data_sources", "provider", "route", "logit_bias", "stream_options", "extra_headers"),
        *("anthropic_version", "anthropic_beta", "session_id", "previous_response_id", "options"),
        *(
            "previous_interaction_id",
            "conversation",
            "container",
            "cached_content",
            "guardrail_config",
        ),
        *("request_metadata", "safety_settings", "thinking", "reasoning", "cache_control", "store"),
        *("stop", "stop_sequences", "modalities", "include", "plugins", "transforms", "context"),
        *("context_management", "api_key", "betas", "labels", "additional_model_request_fields"),
    )
)

# Type of a content part -> what the model must read. Bedrock's parts are named by a key instead.
MODALITIES: Mapping[str, str] = {
    **dict.fromkeys(("image_url", "input_image", "image", "image_file"), "image"),
    **dict.fromkeys(("computer_screenshot", "screenshot"), "image"),
    **dict.fromkeys(("input_audio", "audio", "audio_url"), "audio"),
    **dict.fromkeys(("video_url", "input_video", "video"), "video"),
    **dict.fromkeys(
        ("input_file", "file", "document", "container_upload", "file_url", "document_url"), "file"
    ),
}
# Types of parts and items whose text is what a tool said.
TOOL_RESULTS = frozenset(
    (
        *("tool_result", "function_call_output", "custom_tool_call_output", "computer_call_output"),
        *("local_shell_call_output", "shell_call_output", "apply_patch_call_output", "mcp_call"),
        *("web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result"),
        *("bash_code_execution_tool_result", "text_editor_code_execution_tool_result"),
        *("mcp_tool_result", "tool_search_tool_result", "mcp_approval_response"),
        *("function_result", "mcp_server_tool_result", "tool_search_output"),
    )
)
# Types of items without a role that no tool said.
ITEM_ROLES: Mapping[str, str] = {
    "user_input": "user",
    **dict.fromkeys(("model_output", "thought", "item_reference"), "assistant"),
    **dict.fromkeys(("compaction", "compaction_summary", "image_generation_call"), "assistant"),
    "compaction_trigger": "system",
}
# Types of parts whose text the user hands over, or a harness: sources and summaries, not the ask.
SOURCES = frozenset(("search_result", "compaction"))
# Keys of parts without a type, in Gemini and Bedrock.
TOOL_RESULT_KEYS = ("function_response", "tool_result", "code_execution_result")


def camel(name: str) -> str:
    """Return the camelCase spelling of a snake_case name."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def get(value: Any, name: str) -> Any:
    """Return the field of a mapping in either spelling; None if it is not there."""
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value[name]
    return value.get(_CAMEL.get(name) or _CAMEL.setdefault(name, camel(name)))


def follow(body: Any, path: Path) -> Any:
    """Return the value at a path; None if it is not there."""
    for name in path:
        body = get(body, name)
    return body


def api_of(path: str) -> str:
    """Return the API that a path belongs to, one of APIS; "" if it is of none.

    path: plain, without a query. /v1/messages/count_tokens belongs to the API of /v1/messages.
    """
    folded = path.casefold()
    for row in FORMATS:  # "/chat/completions" before "/completions"
        for end in row.paths:
            end = end.casefold()
            if folded.endswith(end) or (end.startswith("/") and f"{end}/" in folded):
                return row.name.lower()
    return ""


def provider_of(path: str, body: Mapping[str, Any]) -> str:
    """Return whose sizes of images apply: "anthropic", "gemini", "bedrock", "ollama", "openai"."""
    path = path.partition("?")[0].rstrip("/")
    for row in FORMATS:
        # "/chat/completions" ends with "/completions" too: the longer one comes first.
        if row.paths and path.endswith(row.paths):
            return row.name.partition(".")[0]
    if get(body, "contents") is not None:
        return "gemini"
    if get(body, "inference_config") is not None or get(body, "tool_config") is not None:
        return "bedrock"
    if "anthropic_version" in body or body.get("system") is not None:
        return "anthropic"
    return "openai"


def texts_of_other_fields(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield fields that no row names and that are not parameters."""
    for name, value in body.items():
        if isinstance(name, str) and name not in _KNOWN:
            yield name, value


# Names of APIs, in the spelling of features: a candidate that lists some answers in those only.
APIS = frozenset(row.name.lower() for row in FORMATS if row.paths)
_CAMEL: dict[str, str] = {}
_KNOWN = (
    IGNORED
    | {
        spelling
        for paths in (SYSTEM, TURNS, PROMPTS, ANSWERS_SO_FAR, TOOLS, STRUCTURED, OUTPUT_LIMITS)
        for path in paths
        for spelling in (path[0], camel(path[0]))
    }
    | {camel(name) for name in IGNORED}
)
