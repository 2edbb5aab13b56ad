"""Bodies of the providers' own SDKs, of local servers and of gateways."""

from __future__ import annotations

from collections.abc import Iterator

from tests.conversations.corpus import (
    CHAT,
    COMPLETIONS,
    CONVERSE,
    FACT,
    FILE,
    GEMINI,
    GENERATE,
    MAIL,
    MESSAGES,
    OLLAMA,
    PNG,
    PROOF,
    RESPONSES,
    SALT,
    SCHEMA,
    Entry,
    entry,
    function,
    messages,
    said,
    text,
)

PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def openai() -> Iterator[Entry]:
    """Chat completions, completions and responses."""
    history = (said("user", SALT), said("assistant", "Des rivières."), said("user", MAIL))
    yield entry("chat", CHAT, messages(said("user", PROOF)), PROOF)
    yield entry("chat, history", CHAT, messages(*history), MAIL, context=5)
    yield entry(
        "chat, developer", CHAT, messages(said("developer", "Be brief."), said("user", MAIL)), MAIL
    )
    yield entry(
        "chat, picture", CHAT, messages(said("user", [*text(MAIL), PICTURE])), MAIL, "image"
    )
    yield entry("chat, picture alone", CHAT, messages(said("user", [PICTURE])), "", "image")
    yield entry(
        "chat, schema",
        CHAT,
        messages(said("user", FACT), response_format=FORMAT),
        FACT,
        "json_mode",
        context=10,
    )
    yield entry(
        "chat, JSON",
        CHAT,
        messages(said("user", FACT), response_format={"type": "json_object"}),
        FACT,
        "json_mode",
    )
    yield entry(
        "chat, tools",
        CHAT,
        messages(said("user", MAIL), tools=[function("send")]),
        MAIL,
        "tools",
        context=10,
    )
    yield entry(
        "chat, functions",
        CHAT,
        messages(said("user", MAIL), functions=[{"name": "send"}]),
        MAIL,
        "tools",
    )
    yield entry(
        "chat, prediction",
        CHAT,
        messages(said("user", PROOF), prediction={"type": "content", "content": FILE}),
        PROOF,
        context=500,
    )
    yield entry("completions", COMPLETIONS, {"prompt": SALT, "max_tokens": 50}, SALT)
    yield entry("completions, list", COMPLETIONS, {"prompt": [SALT]}, SALT)
    yield entry(
        "completions, token ids", COMPLETIONS, {"prompt": [9906, 11, 1917, 0]}, "", context=4
    )
    yield entry(
        "completions, suffix",
        COMPLETIONS,
        {"prompt": "def count(boxes):", "suffix": FILE},
        "def count(boxes):",
        context=500,
    )
    yield entry("responses", RESPONSES, {"input": PROOF, "instructions": "Be brief."}, PROOF)
    yield entry(
        "responses, schema",
        RESPONSES,
        {"input": FACT, "text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        FACT,
        "json_mode",
    )
    yield entry(
        "responses, history",
        RESPONSES,
        {"input": MAIL, "previous_response_id": "resp_1"},
        MAIL,
        unknown=("stored history",),
    )
    yield entry(
        "responses, stored prompt",
        RESPONSES,
        {"prompt": {"id": "pmpt_1"}},
        "",
        unknown=("stored prompt",),
    )
    yield entry(
        "responses, screen",
        RESPONSES,
        {
            "input": [
                said("user", MAIL),
                {
                    "type": "computer_call_output",
                    "call_id": "c",
                    "output": {
                        "type": "computer_screenshot",
                        "image_url": PICTURE["image_url"]["url"],
                    },
                },
            ]
        },
        MAIL,
        "image",
    )


def anthropic() -> Iterator[Entry]:
    """Messages, also by way of Bedrock."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    plain = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": FILE},
    }
    limit = {"max_tokens": 500}
    yield entry("messages", MESSAGES, {**messages(said("user", PROOF)), **limit}, PROOF)
    yield entry(
        "messages, system",
        MESSAGES,
        {**messages(said("user", text(MAIL))), **limit, "system": "Be kind."},
        MAIL,
    )
    yield entry(
        "messages, picture",
        MESSAGES,
        {**messages(said("user", [image, *text(SALT)])), **limit},
        SALT,
        "image",
    )
    yield entry(
        "messages, document",
        MESSAGES,
        {**messages(said("user", [plain, *text(SALT)])), **limit},
        SALT,
        context=500,
    )
    yield entry(
        "messages, output_config",
        MESSAGES,
        {
            **messages(said("user", FACT)),
            **limit,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        FACT,
        "json_mode",
    )
    yield entry(
        "messages, servers",
        MESSAGES,
        {**messages(said("user", MAIL)), **limit, "mcp_servers": [{"type": "url", "name": "mail"}]},
        MAIL,
        "tools",
    )
    yield entry(
        "messages, thinking",
        MESSAGES,
        {
            **messages(
                said("user", PROOF),
                said("assistant", [{"type": "thinking", "thinking": FILE}, *text("Yes.")]),
                said("user", MAIL),
            ),
            **limit,
        },
        MAIL,
        context=500,
    )
    yield entry(
        "InvokeModel",
        MESSAGES,
        {**messages(said("user", PROOF)), **limit, "anthropic_version": "bedrock-2023-05-31"},
        PROOF,
    )


def google_and_amazon() -> Iterator[Entry]:
    """Gemini's generateContent and Bedrock's converse."""
    asked = {"role": "user", "parts": [{"text": PROOF}]}
    inline = {"inlineData": {"mimeType": "image/png", "data": PNG}}
    call = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": FILE}}}]}
    answer = {
        "role": "user",
        "parts": [{"functionResponse": {"name": "f", "response": {"r": "ok"}}}],
    }
    yield entry(
        "Gemini",
        GEMINI,
        {"contents": [asked], "systemInstruction": {"parts": [{"text": "Be brief."}]}},
        PROOF,
    )
    yield entry(
        "Gemini, JSON",
        GEMINI,
        {
            "contents": [asked],
            "generationConfig": {"responseMimeType": "application/json", "responseSchema": SCHEMA},
        },
        PROOF,
        "json_mode",
    )
    yield entry(
        "Gemini, picture",
        GEMINI,
        {"contents": [{"role": "user", "parts": [inline, {"text": MAIL}]}]},
        MAIL,
        "image",
    )
    yield entry(
        "Gemini, tool loop",
        GEMINI,
        {"contents": [asked, call, answer], "tools": [{"functionDeclarations": [{"name": "f"}]}]},
        PROOF,
        "tools",
        context=500,
    )
    yield entry(
        "Gemini, cached",
        GEMINI,
        {"contents": [asked], "cachedContent": "cachedContents/1"},
        PROOF,
        unknown=("cached content",),
    )
    block = {"text": PROOF}
    used = said("assistant", [{"toolUse": {"toolUseId": "t", "name": "f", "input": {"a": FILE}}}])
    back = said("user", [{"toolResult": {"toolUseId": "t", "content": [{"text": "ok"}]}}])
    yield entry(
        "Converse",
        CONVERSE,
        messages(
            said("user", [block]), system=[{"text": "Be brief."}], inferenceConfig={"maxTokens": 90}
        ),
        PROOF,
    )
    yield entry(
        "Converse, tool loop",
        CONVERSE,
        messages(
            said("user", [block]), used, back, toolConfig={"tools": [{"toolSpec": {"name": "f"}}]}
        ),
        PROOF,
        "tools",
        context=500,
    )
    yield entry(
        "Converse, picture",
        CONVERSE,
        messages(said("user", [{"image": {"format": "png", "source": {"bytes": PNG}}}, block])),
        PROOF,
        "image",
    )


def dialects() -> Iterator[Entry]:
    """What vLLM, Ollama, OpenRouter and Azure add."""
    asked = said("user", FACT)
    for name, value in {
        "guided_json": SCHEMA,
        "guided_regex": "[a-z]+",
        "guided_choice": ["a", "b"],
        "structured_outputs": {"json": SCHEMA},
    }.items():
        yield entry(f"vLLM, {name}", CHAT, messages(asked, **{name: value}), FACT, "json_mode")
    yield entry(
        "Ollama",
        OLLAMA,
        messages({**asked, "images": [PNG]}, format="json"),
        FACT,
        "image",
        "json_mode",
    )
    yield entry(
        "Ollama, generate",
        GENERATE,
        {"prompt": SALT, "system": "Be brief.", "options": {"num_predict": 9}},
        SALT,
    )
    document = {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
    }
    parsed = said("user", [*text(SALT), document])
    yield entry(
        "OpenRouter", CHAT, messages(asked, models=["a", "b"], transforms=["middle-out"]), FACT
    )
    yield entry("OpenRouter, file", CHAT, messages(parsed, plugins=[{"id": "file-parser"}]), SALT)
    yield entry(
        "Azure, own data",
        CHAT,
        messages(asked, data_sources=[{"type": "azure_search"}]),
        FACT,
        unknown=("data sources",),
    )


def all_entries() -> list[Entry]:
    """Return every body of this module."""
    return [*openai(), *anthropic(), *google_and_amazon(), *dialects()]
