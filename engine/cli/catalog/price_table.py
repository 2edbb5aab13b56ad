"""Renew prices, context windows and capabilities of candidates from LiteLLM's price table.

The table is a JSON file in LiteLLM's wheel on PyPI: model -> prices per token, limits, abilities. A
candidate names its entry at the end of its price_source, "..., entry NAME"; without it, its ID is
looked up. What the table does not say stays unknown.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.api.candidate import Candidate
from engine.api.errors import InvalidInputError, Violation

IN_WHEEL = "litellm/model_prices_and_context_window_backup.json"
ENTRY = re.compile(r", entry (\S+)$")
MODES = {"chat", "responses", "completion"}
FEATURES = {
    "supports_function_calling": "tools",
    "supports_response_schema": "json_mode",
    "supports_reasoning": "reasoning",
}
MODALITIES = {
    "supports_vision": "image",
    "supports_pdf_input": "file",
    "supports_audio_input": "audio",
    "supports_video_input": "video",
}


@dataclass(frozen=True)
class PriceTable:
    """A table. version: of LiteLLM. date: when it was fetched; wheels do not say when they were
    built."""

    entries: Mapping[str, Mapping[str, Any]]
    version: str
    date: str

    @property
    def source(self) -> str:
        """What a price_source says of it."""
        return f"LiteLLM's price table, litellm {self.version}, fetched {self.date}"


def read_wheel(path: Path, date: str) -> PriceTable:
    """Read the table in a wheel of LiteLLM; raise InvalidInputError if there is none."""
    try:
        with zipfile.ZipFile(path) as wheel:
            entries = json.loads(wheel.read(IN_WHEEL))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        problem = f"is not a wheel of LiteLLM with a price table ({error})."
        raise InvalidInputError(Violation(str(path), problem)) from error
    version = path.name.split("-")[1] if path.name.count("-") > 1 else "unknown"
    return PriceTable(entries, version, date)


def fetch_newest() -> PriceTable:
    """Download the newest wheel of LiteLLM with pip and read its table.

    Raises:
        InvalidInputError: pip could not download it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--only-binary", ":all:", "--no-cache-dir", "-d", folder, "litellm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("litellm-*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            problem = f"could not be downloaded ({reason}); give a wheel with --wheel FILE."
            raise InvalidInputError(Violation("litellm", problem))
        return read_wheel(wheels[0], datetime.datetime.now(datetime.UTC).date().isoformat())


def renewed(candidate: Candidate, table: PriceTable) -> Candidate | None:
    """Return the candidate with what the table says of it; None if it has no entry for it, or an
    entry without a price that is known."""
    named = ENTRY.search(candidate.price_source)
    name = named[1] if named else candidate.id
    entry = table.entries.get(name)
    if entry is None or entry.get("mode") not in MODES:
        return None
    prices = [_per_million(entry.get(f"{way}_cost_per_token")) for way in ("input", "output")]
    known = candidate.input_usd_per_million, candidate.output_usd_per_million
    if any(old is not None and new is None for old, new in zip(known, prices, strict=True)):
        return None
    cached = _per_million(entry.get("cache_read_input_token_cost"))
    window = entry.get("max_input_tokens")
    return replace(
        candidate,
        input_usd_per_million=prices[0],
        output_usd_per_million=prices[1],
        cached_input_usd_per_million=cached or candidate.cached_input_usd_per_million,
        context_window=int(window) if window else candidate.context_window,
        features=_words(candidate.features, FEATURES, entry),
        modalities=_words(candidate.modalities, MODALITIES, entry),
        price_source=f"{table.source}, entry {name}",
    )


def _per_million(per_token: float | None) -> float | None:
    # The table is full of 0 for free tiers and what was never filled in; neither is a list price.
    return round(per_token * 1e6, 6) if per_token else None


def _words(
    words: Sequence[str], known: Mapping[str, str], entry: Mapping[str, Any]
) -> tuple[str, ...]:
    """Take the words that the table decides from it, and keep the others."""
    kept = {word for word in words if word not in known.values()}
    stated = {word for key, word in known.items() if entry.get(key)}
    return tuple(sorted(kept | stated))
