"""mkdocs hooks: generate pages, expand folders in `nav`, and rewrite links to files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs import api, commands

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = {
    "reference/commands.md": commands.page,
    "reference/api.md": api.page,
}
# Pages of the site whose source is outside of docs/.
ELSEWHERE = {"index.md": ROOT / "README.md", "model-card.md": ROOT / "pretrained" / "README.md"}
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each folder in `nav` with the pages in it."""
    config.nav = [_expanded(entry) for entry in config.nav or []]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_expanded(one) for one in entry]
    if entry.endswith("/"):
        return sorted(str(p.relative_to(DOCS)) for p in (DOCS / entry).glob("*.md"))
    return entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source is not a file in docs/."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    for name, source in ELSEWHERE.items():
        files.append(File.generated(config, name, content=source.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links point to pages of the site, and show the path of a file that is not on it."""
    here = ELSEWHERE.get(page.file.src_uri, DOCS / page.file.src_uri).parent
    return _LINK.sub(lambda link: _relinked(link, here, page.file, files), markdown)


def _relinked(link: re.Match[str], here: Path, origin: File, files: Files) -> str:
    label, target, anchor = link[1], link[2], link[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    path = (here / target).resolve()
    moved = {source: name for name, source in ELSEWHERE.items()}
    if path in moved or path.is_relative_to(DOCS):
        found = files.get_file_from_path(moved.get(path) or str(path.relative_to(DOCS)))
        up = "../" * origin.src_uri.count("/")
        return f"{label}({up}{found.src_uri}{anchor})" if found else link[0]
    if path.exists():  # code and configuration are not on the site
        return f"`{path.relative_to(ROOT)}`"
    return link[0]
