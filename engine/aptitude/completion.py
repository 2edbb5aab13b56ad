"""Read what an endpoint answers with status 200: a reply, or an error in its place.

Besides chat completions it reads the forms of other APIs that gateways pass on: lists of parts
(Mistral, Anthropic), the `output` of the responses API, Gemini, Bedrock, Ollama. Reasoning is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CUT = {"length", "max_tokens", "model_length", "max_output_tokens", "token_limit"} | {
    "model_context_window_exceeded",
    "context_length",
    "incomplete",
}
FILTERED = {"content_filter", "content_filtered", "safety", "recitation", "blocklist", "spii"} | {
    "prohibited_content",
    "guardrail_intervened",
    "sensitive",
    "error_toxic",
}
FAILED = {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "failed", "load"} | {
    "network_error",
    "insufficient_system_resource",
    "engine_overloaded",
    "malformed_function_call",
    "unexpected_tool_call",
    "other",
    "in_progress",
    "queued",
    "unload",
}
REASONING_PARTS = {"thinking", "reasoning", "redacted_thinking", "thought", "reasoning_text"}
MAX_DEPTH = 6  # of parts within parts


class FailedReplyError(Exception):
    """The endpoint answered with status 200, but not with a complete reply.

    Its text is the reason. filtered: True if a content filter is it.
    """

    def __init__(self, reason: str, *, filtered: bool = False) -> None:
        super().__init__(reason)
        self.filtered = filtered


@dataclass(frozen=True)
class Completion:
    """A reply. The token counts are None if the endpoint did not report them.

    answer_tokens includes reasoning_tokens.
    """

    text: str
    cut: bool
    prompt_tokens: int | None
    answer_tokens: int | None
    reasoning_tokens: int | None = None


def read_completion(body: Any) -> Completion:
    """Read the decoded JSON of a response.

    Raises:
        FailedReplyError: it holds an error, or is not an answer of any form above.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        raise FailedReplyError("a response that is not a chat completion (no JSON object)")
    _require_no_error(body)
    text, finish = _reply_of(body)
    _require_finished(finish, body)
    if text is None:
        keys = ", ".join(sorted(map(str, body))[:8])
        raise FailedReplyError(f"a response that is not a chat completion (it has {keys})")
    usage = next(
        (u for k in ("usage", "usageMetadata") if isinstance(u := body.get(k), dict)), body
    )
    return Completion(
        text=text,
        cut=finish in CUT,
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens", "inputTokens")
        or _count(usage, "promptTokenCount", "prompt_eval_count"),
        answer_tokens=_count(usage, "completion_tokens", "output_tokens", "outputTokens")
        or _count(usage, "candidatesTokenCount", "eval_count"),
        reasoning_tokens=_reasoning_tokens(usage),
    )


def _reasoning_tokens(usage: Mapping[str, Any]) -> int | None:
    for name in ("completion_tokens_details", "output_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict) and (count := _count(details, "reasoning_tokens")) is not None:
            return count
    return _count(usage, "reasoning_tokens")


def _require_no_error(body: Mapping[str, Any]) -> None:
    holders: list[Any] = [body]
    for name in ("choices", "candidates"):
        entries = body.get(name)
        if isinstance(entries, list):
            holders += entries[:1]
    for holder in holders:
        error = holder.get("error") if isinstance(holder, dict) else None
        if error:
            raise FailedReplyError(f"an error within HTTP 200: {_message(error)}")
    if str(body.get("object")) == "error" or body.get("type") == "error":
        raise FailedReplyError(f"an error within HTTP 200: {_message(body)}")
    if body.get("success") is False:
        raise FailedReplyError(f"an error within HTTP 200: {_message(_first_words(body))}")
    status = body.get("base_resp")  # MiniMax: alongside choices that are empty
    if isinstance(status, dict) and status.get("status_code") not in (None, 0, "0"):
        raise FailedReplyError(
            f"an error within HTTP 200: {status['status_code']}: {status.get('status_msg')}"[:300]
        )
    has_reply = any(k in body for k in ("choices", "candidates", "output", "content", "message"))
    if not has_reply or isinstance(body.get("message"), str):
        for name in ("detail", "message", "msg", "errors"):
            if body.get(name) and not body.get("choices"):
                raise FailedReplyError(f"an error within HTTP 200: {_message(body[name])}")


def _first_words(body: Mapping[str, Any]) -> Any:
    """Return what a body without success says about it."""
    names = ("errors", "error_message", "message", "msg", "detail")
    return next((body[name] for name in names if body.get(name)), "no message")


def _message(error: Any) -> str:
    if isinstance(error, dict):
        parts = [str(error[k]) for k in ("code", "type", "message") if error.get(k) is not None]
        return ": ".join(parts)[:300] or "no message"
    return str(error)[:300]


def _reply_of(body: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the text, None if there is none of a known form, and why the model stopped."""
    choices = body.get("choices")
    if isinstance(choices, list):
        if not choices or not isinstance(choices[0], dict):
            raise FailedReplyError("a response without choices")
        choice = choices[0]
        message = choice.get("message")
        text = _text_of(choice["text"]) if "text" in choice else None
        if isinstance(message, dict):
            text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
        # OpenRouter turns what it does not know into "stop", and keeps the provider's word.
        native = _word(choice.get("native_finish_reason"))
        return text, native if native in FAILED else _word(choice.get("finish_reason"))
    candidates = body.get("candidates")
    if isinstance(candidates, list) or "promptFeedback" in body:
        blocked = body.get("promptFeedback")
        if isinstance(blocked, dict) and blocked.get("blockReason"):
            raise FailedReplyError(f"blocked: {blocked['blockReason']}", filtered=True)
        if not (isinstance(candidates, list) and candidates and isinstance(candidates[0], dict)):
            raise FailedReplyError("a response without candidates")
        content = candidates[0].get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        return _text_of(parts), _word(candidates[0].get("finishReason"))
    output = body.get("output")
    if isinstance(output, list):
        details = body.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return _text_of(output), _word(reason or body.get("status"))
    if isinstance(output, dict):
        return _text_of(output.get("message") or output), _word(body.get("stopReason"))
    if isinstance(inner := body.get("result"), dict) and inner:  # Cloudflare
        return _reply_of(inner)
    for name in ("content", "message", "response", "generated_text", "output_text"):
        if name in body:
            value = body[name]
            value = value.get("content") if isinstance(value, dict) else value
            finish = next((body[k] for k in _FINISHES if body.get(k)), "")
            return _text_of(value), _word(finish)
    return None, ""


_FINISHES = ("stop_reason", "done_reason", "finish_reason", "stopReason")


def _text_of(value: Any, depth: int = 0) -> str:
    """Join the text of parts; reasoning is left out."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < MAX_DEPTH:
        return "".join(_text_of(part, depth + 1) for part in value)
    if isinstance(value, dict) and depth < MAX_DEPTH:
        if str(value.get("type")) in REASONING_PARTS or value.get("thought") is True:
            return ""
        for name in ("text", "content", "value", "refusal"):
            if value.get(name):
                return _text_of(value[name], depth + 1)
    return ""


def _word(reason: Any) -> str:
    if isinstance(reason, dict):  # SGLang: {"type": "abort", "message": ...}
        reason = reason.get("type")
    return str(reason or "").lower()


def _require_finished(finish: str, body: Mapping[str, Any]) -> None:
    if finish in FILTERED:
        raise FailedReplyError(f"finish reason {finish}", filtered=True)
    if finish in FAILED:
        raise FailedReplyError(f"an error within HTTP 200: finish reason {finish}")
    if body.get("done") is False:
        raise FailedReplyError("a part of a stream, although none was asked for")


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
            return value
    return None
