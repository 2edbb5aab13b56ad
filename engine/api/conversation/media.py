"""Count the tokens of images, audio and files by their sizes, as the providers document them.

Sizes are read from the headers of data that a request holds, never from the network. Of a remote
file or a provider's file ID nothing is known but its kind.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

# OpenAI: 85 tokens, and 170 for each tile of 512 pixels after scaling to fit 2048 x 2048 and the
# shorter side to 768; detail "low" is the 85 alone.
OPENAI_BASE, OPENAI_TILE, OPENAI_TILE_PIXELS = 85, 170, 512
OPENAI_MAX_SIDE, OPENAI_SHORT_SIDE = 2048, 768
# Anthropic: width * height / 750, after scaling the longer side to 1568 pixels.
ANTHROPIC_PIXELS_PER_TOKEN, ANTHROPIC_MAX_SIDE, ANTHROPIC_MAX_TOKENS = 750, 1568, 1600
# Gemini: 258 if both sides are at most 384 pixels, else 258 for each tile of 768; 32 a second of
# audio, 263 a second of video, 258 a page of a PDF.
GEMINI_TILE, GEMINI_SMALL_SIDE, GEMINI_TILE_PIXELS = 258, 384, 768
GEMINI_AUDIO_TOKENS_PER_S, GEMINI_VIDEO_TOKENS_PER_S = 32, 263
OPENAI_AUDIO_TOKENS_PER_S = 10
# Anthropic: 1,500 to 3,000 tokens a page of text, and its image; the lower end.
PDF_PAGE_TOKENS = {"anthropic": 3000, "gemini": 258, "openai": 1000}
BYTES_PER_PDF_PAGE = 50_000  # if no page can be counted
MP3_BYTES_PER_S = 16_000  # 128 kbit/s, if the header is not read
VIDEO_BYTES_PER_S = 250_000  # 2 Mbit/s
TEXT_BYTES_PER_TOKEN = 4
DEFAULT_PIXELS = (1024, 1024)  # of an image whose size is not known: a usual one
HEADER_BYTES = 64 * 1024  # within which JPEG states its size
MAX_PDF_CHARS = 256 * 1024

_DATA_URL = re.compile(r"data:([^,;]{0,100})[^,]{0,200}?(;base64)?,", re.IGNORECASE)
_PAGE = re.compile(rb"/Type\s{0,4}/Page(?![s\w])")
_PAGE_COUNT = re.compile(rb"/Count\s{1,4}(\d{1,6})")
_IMAGES = ("image", "image_url", "input_image")
_AUDIO = ("audio", "input_audio")
_VIDEO = ("video", "video_url", "input_video")
_FILES = ("file", "input_file", "document")
_KINDS = {
    **dict.fromkeys(_IMAGES, "image"),
    **dict.fromkeys(_AUDIO, "audio"),
    **dict.fromkeys(_VIDEO, "video"),
    **dict.fromkeys(_FILES, "file"),
}
_MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)


def media_tokens(provider: str, part: Any) -> int | None:
    """Return the tokens of a content part that is no text.

    Args:
        provider: Whose API the request is for; "anthropic", "gemini" and "bedrock" have counts of
            their own, any other name is counted as OpenAI does.
        part: The content part, or the base64 text of an image alone.

    Returns:
        None if nothing about its size is known: audio, video or a file that the request only
        names. An image that it only names counts as one of 1024 x 1024 pixels.
    """
    family = _family(provider)
    if isinstance(part, str):
        return _image_tokens(family, _decoded(part), "")
    if not isinstance(part, Mapping):
        return None
    kind, mime, data = _content(part)
    if kind == "image":
        return _image_tokens(family, data, _detail(part))
    if data is None:
        return None
    if kind == "audio":
        rate = GEMINI_AUDIO_TOKENS_PER_S if family == "gemini" else OPENAI_AUDIO_TOKENS_PER_S
        return math.ceil(rate * audio_seconds(data, _size(part)))
    if kind == "video":
        return math.ceil(GEMINI_VIDEO_TOKENS_PER_S * _size(part) / VIDEO_BYTES_PER_S)
    if mime.startswith("text/") or mime == "application/json":
        return math.ceil(_size(part) / TEXT_BYTES_PER_TOKEN)
    return _pdf_pages(data, _size(part)) * PDF_PAGE_TOKENS[family]


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels from the first bytes of a PNG, GIF, WebP or JPEG; None if
    they are of none of these."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return _positive(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        return _positive(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    return _jpeg_size(data) if data[:2] == b"\xff\xd8" else None


def audio_seconds(data: bytes, size: int) -> float:
    """Return how long a sound lasts.

    Args:
        data: Its first bytes. Of WAV and MP3 the header states the bytes for a second.
        size: Bytes of the whole.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE" and len(data) >= 32:
        rate = int.from_bytes(data[28:32], "little")
        return max(0, size - 44) / rate if rate else size / MP3_BYTES_PER_S
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + sum((data[6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
    frame = data[at : at + 4]
    is_mpeg1_layer3 = len(frame) == 4 and frame[0] == 0xFF and frame[1] & 0xFE == 0xFA
    kbits = _MP3_KBITS[frame[2] >> 4] if is_mpeg1_layer3 else 0
    return size / (kbits * 125 if kbits else MP3_BYTES_PER_S)


def _family(provider: str) -> str:
    name = provider.lower()
    if "anthropic" in name or "bedrock" in name or "claude" in name:
        return "anthropic"
    return "gemini" if "gemini" in name or "vertex" in name else "openai"


def _image_tokens(family: str, data: bytes | None, detail: str) -> int:
    width, height = (image_size(data) if data else None) or DEFAULT_PIXELS
    if family == "anthropic":
        scale = min(1.0, ANTHROPIC_MAX_SIDE / max(width, height))
        tokens = math.ceil(width * height * scale * scale / ANTHROPIC_PIXELS_PER_TOKEN)
        return min(tokens, ANTHROPIC_MAX_TOKENS)
    if family == "gemini":
        if max(width, height) <= GEMINI_SMALL_SIDE:
            return GEMINI_TILE
        return GEMINI_TILE * _tiles(width, height, GEMINI_TILE_PIXELS)
    if detail == "low":
        return OPENAI_BASE
    scale = min(1.0, OPENAI_MAX_SIDE / max(width, height))
    scale = min(scale, OPENAI_SHORT_SIDE / min(width, height))
    tiles = _tiles(width * scale, height * scale, OPENAI_TILE_PIXELS)
    return OPENAI_BASE + OPENAI_TILE * tiles


def _tiles(width: float, height: float, side: int) -> int:
    return max(1, math.ceil(width / side)) * max(1, math.ceil(height / side))


def _content(part: Mapping[str, Any]) -> tuple[str, str, bytes | None]:
    """Return (kind, MIME type, first bytes or None) of a part in any provider's form."""
    kind, mime = _KINDS.get(_text(part.get("type")), ""), ""
    data = None
    for name, holder in _holders(part):
        kind = kind or _KINDS.get(name, "")
        for key in ("mime_type", "mimeType", "media_type", "format"):
            mime = mime or _text(holder.get(key)).lower()
        for key in ("data", "file_data", "bytes", "url", "image_url"):
            if data is None:
                mime = mime or _data_url_mime(holder.get(key))
                data = _decoded(holder.get(key))
    major = mime.partition("/")[0]
    return kind or (major if major in ("image", "audio", "video") else "file"), mime, data


def _holders(part: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the part, and the objects in it that may hold its data."""
    yield "", part
    for name in (*_KINDS, "source", "inline_data", "inlineData", "file_data", "fileData"):
        if isinstance(holder := part.get(name), Mapping):
            yield name, holder
            if isinstance(source := holder.get("source"), Mapping):
                yield name, source


def _encoded(value: Any) -> str:
    """Return the base64 text of a value; "" for a URL or anything else."""
    text = _text(value)
    if match := _DATA_URL.match(text):
        return text[match.end() :] if match[2] else ""
    return "" if "://" in text[:20] else text


def _decoded(value: Any) -> bytes | None:
    """Return the first bytes of base64 text or of a data URL; None if there are none."""
    encoded = _encoded(value)[: MAX_PDF_CHARS // 4 * 4]
    encoded = encoded.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4)) or None
    except (binascii.Error, ValueError):
        return None


def _size(part: Mapping[str, Any]) -> int:
    """Return the bytes of the whole data."""
    longest = 0
    for _, holder in _holders(part):
        for key in ("data", "file_data", "bytes", "url"):
            encoded = _encoded(holder.get(key))
            longest = max(longest, len(encoded) * 3 // 4 - encoded.count("=", -2))
    return longest


def _data_url_mime(value: Any) -> str:
    match = _DATA_URL.match(_text(value))
    return match[1].lower() if match else ""


def _detail(part: Mapping[str, Any]) -> str:
    return next((d for _, h in _holders(part) if (d := _text(h.get("detail")))), "")


def _pdf_pages(data: bytes, size: int) -> int:
    """Return the pages that a PDF states; by its bytes if it states none, or is compressed."""
    stated = [int(count) for count in _PAGE_COUNT.findall(data)]
    whole = len(data) >= size
    pages = max([*stated, len(_PAGE.findall(data)) if whole else 0], default=0)
    return pages or max(1, math.ceil(size / BYTES_PER_PDF_PAGE))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    form = data[12:16]
    if form == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if form == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width = int.from_bytes(data[26:28], "little") & 0x3FFF
    return _positive(width, int.from_bytes(data[28:30], "little") & 0x3FFF)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= min(len(data), HEADER_BYTES) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return _positive(int.from_bytes(width, "big"), int.from_bytes(height, "big"))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _positive(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width > 0 and height > 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
