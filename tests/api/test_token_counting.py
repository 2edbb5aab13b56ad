"""Count the tokens of context: text by the tokenizer or by script, media by their sizes."""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path

import pytest
import tokenizers

from engine.api.conversation.media import media_tokens
from engine.api.conversation.tokens import EXACT_CHARS, TokenCount, count_texts
from tools.processes import ROOT

SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text(encoding="utf-8"))
CODE = [
    "def mean(values: list[float]) -> float:\n    return sum(values) / max(1, len(values))\n\n",
    "for (const [key, value] of Object.entries(table)) {\n  console.log(`${key}=${value}`);\n}\n",
    "if (length > UINT32_MAX / sizeof(float)) {\n\treturn ERR_TOO_LARGE; /* overflow */\n}\n",
    "SELECT u.id, COUNT(*) FROM users u JOIN orders o ON o.user_id = u.id GROUP BY 1;\n",
]


class Counter:
    """Counts by the bundle's tokenizer; remembers how much it was given."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def count(self, text: str) -> int:
        self.characters += len(text)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter(
        tokenizers.Tokenizer.from_file(str(ROOT / "artifacts" / "bundle" / "tokenizer.json"))
    )


def long_texts() -> dict[str, str]:
    """Return a text of some 20,000 characters of each kind, with its sentences in random order."""
    r = random.Random(16)
    texts = {
        name: " ".join(r.choices(said, k=20_000 // len(said[0])))
        for name, said in SENTENCES.items()
    }
    rows = [{"id": r.randrange(10**6), "ok": True, "tags": ["a", "b"]} for _ in range(400)]
    texts["code"] = "".join(r.choices(CODE, k=240))
    texts["JSON"] = json.dumps(rows)
    texts["indented JSON"] = json.dumps(rows, indent=4)
    texts["base64"] = base64.b64encode(r.randbytes(15_000)).decode()
    texts["hexadecimal"] = r.randbytes(10_000).hex()
    texts["every kind"] = "\n".join(text[:2000] for text in texts.values())
    return texts


@pytest.mark.parametrize("kind", long_texts())
def test_long_text_is_counted_within_15_percent_of_the_tokenizer(
    kind: str, counter: Counter
) -> None:
    text = long_texts()[kind]
    counted = count_texts([text], counter)
    assert counted.method == "mixed"
    assert counted.tokens == pytest.approx(counter.count(text), rel=0.15)


def test_many_short_texts_count_as_one_long_text(counter: Counter) -> None:
    text = long_texts()["every kind"]
    parts = [text[i : i + 37] for i in range(0, len(text), 37)]
    assert count_texts(parts, counter).tokens == pytest.approx(counter.count(text), rel=0.15)


def test_short_text_is_tokenized_and_without_a_tokenizer_estimated(counter: Counter) -> None:
    said = SENTENCES["Chinese"]
    assert count_texts(said, counter) == TokenCount(counter.count("\n".join(said)), "tokenizer")
    estimated = count_texts(said, None)
    assert estimated.method == "estimate"
    assert estimated.tokens == pytest.approx(counter.count("\n".join(said)), rel=0.3)


def test_hundred_thousand_chinese_characters_do_not_fit_a_window_of_32768(counter: Counter) -> None:
    text = "".join(SENTENCES["Chinese"]) * 2000
    assert count_texts([text[:100_000]], counter).tokens > 60_000


def test_cost_does_not_grow_with_the_text(counter: Counter) -> None:
    """Only a bounded part of a text is tokenized, whatever its length."""
    given = []
    for size in (10**5, 10**6):
        counter.characters = 0
        count_texts(["a few words " * (size // 12)], counter)
        given.append(counter.characters)
    assert given[0] == given[1] <= EXACT_CHARS


def png(width: int, height: int) -> str:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return base64.b64encode(header + b"\x08\x02\0\0\0" + b"\0" * 900).decode()


def gif(width: int, height: int) -> str:
    return base64.b64encode(b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 90).decode()


def jpeg(width: int, height: int) -> str:
    app0 = b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"\0" * 9
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" + b"\0" * 9
    return base64.b64encode(app0 + frame).decode()


def wav(seconds: int) -> str:
    rate = 32_000  # bytes for a second
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate // 2, rate, 2, 16)
    header = b"RIFF" + struct.pack("<I", 36 + seconds * rate) + b"WAVE" + form + b"data"
    return base64.b64encode(
        header + struct.pack("<I", seconds * rate) + bytes(seconds * rate)
    ).decode()


def data_url(mime: str, data: str) -> str:
    return f"data:{mime};base64,{data}"


def chat_image(url: str, **more: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def anthropic_image(**source: str) -> dict[str, object]:
    return {"type": "image", "source": source}


def gemini_data(mime: str, data: str) -> dict[str, object]:
    return {"inlineData": {"mimeType": mime, "data": data}}


REMOTE = "https://a.example/x.png"
LARGE_JPEG = data_url("image/jpeg", jpeg(2048, 4096))


@pytest.mark.parametrize(
    ("provider", "part", "tokens"),
    [
        ("openai", chat_image(data_url("image/png", png(1024, 1024))), 765),
        ("openai", chat_image(REMOTE, detail="low"), 85),
        ("openai", {"type": "input_image", "image_url": LARGE_JPEG}, 1105),
        ("openai", chat_image(REMOTE), 765),
        ("anthropic", anthropic_image(media_type="image/png", data=png(750, 400)), 400),
        ("anthropic", anthropic_image(type="url", url=REMOTE), 1399),
        ("bedrock", {"image": {"format": "gif", "source": {"bytes": gif(75, 100)}}}, 10),
        ("gemini", gemini_data("image/png", png(300, 200)), 258),
        ("gemini", {"inline_data": {"mime_type": "image/jpeg", "data": jpeg(1500, 700)}}, 516),
        ("ollama", png(512, 512), 255),
        ("gemini", gemini_data("audio/wav", wav(3)), 96),
        ("openai", {"type": "input_audio", "input_audio": {"data": wav(2), "format": "wav"}}, 20),
        ("openai", {"type": "file", "file": {"file_id": "file-abc"}}, None),
        ("gemini", {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/x.mp4"}}, None),
        ("openai", None, None),
        ("openai", {"type": "image_url", "image_url": ["not", "a", "url"]}, 765),
    ],
)
def test_media_count_by_their_declared_or_documented_sizes(
    provider: str, part: object, tokens: int | None
) -> None:
    assert media_tokens(provider, part) == tokens


def test_pdf_counts_by_its_pages_or_its_bytes() -> None:
    pages = b"%PDF-1.4\n" + b"<< /Type /Page /Parent 1 0 R >>\n" * 7
    stated = base64.b64encode(pages).decode()
    opaque = base64.b64encode(b"%PDF-1.7" + bytes(200_000)).decode()

    def part(data: str) -> dict[str, object]:
        return {"type": "document", "source": {"media_type": "application/pdf", "data": data}}

    assert media_tokens("anthropic", part(stated)) == 7 * 3000
    assert media_tokens("anthropic", part(opaque)) == 5 * 3000
