"""Check the English of documentation, comments, messages and names.

    python tools/ci/prose.py [FILE ...]

Two checks: the words of banned_words.txt, and spelling by codespell, which accepts the words of
spelling_allow.txt. Without a FILE all files that git tracks are checked. Each finding is one line,
`FILE:LINE: WORD -> SUGGESTION`; the exit status is 1 if there is any.

Of Markdown everything outside of code is read; of Python, C++, protos and JavaScript comments,
strings and names; of other text files every line. A line that must quote a banned word ends with a
comment `prose: ignore`.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
IGNORE = "prose: ignore"
# Decisions and released versions are history and keep their words; the rest is generated, or is
# data that others wrote.
EXEMPT = (
    "CHANGELOG.md",
    "LICENSE",
    "docs/adr/*",
    "engine/pb/*",
    "requirements/*",
    "tools/ci/banned_words.txt",
    "tools/ci/spelling_allow.txt",
    "tests/docs/test_prose.py",
    "tests/support/instructions.txt",
    "tests/support/everyday_prompts.txt",  # in twelve languages, as the next ones
    "training/difficulty/*.txt",
    "research/many_folders/data/everyday.py",
    "research/many_folders/data/scenes.py",
    "*package-lock.json",
)
CODE = {".py", ".cc", ".cu", ".h", ".proto", ".js", ".mjs", ".go"}
TEXT = {".md", ".html", ".css", ".yml", ".yaml", ".toml", ".sh", ".cff", ".tpl", ".txt"}
TEXT_NAMES = {"Makefile", "Dockerfile", "CODEOWNERS", "check", "check-inside", "run", "audit"}
DATA = {".json"}  # read as text below deploy/ alone: dashboards and chart schemas are written by us

Lines = dict[int, str]  # line number -> text of it that is checked


@dataclass(frozen=True)
class Rule:
    """One line of banned_words.txt. names: also searched for in identifiers."""

    pattern: re.Pattern[str]
    suggestion: str
    names: bool


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where."""

    file: str
    line: int
    word: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word} -> {self.suggestion}"


@dataclass(frozen=True)
class Vocabulary:
    """The content of banned_words.txt."""

    rules: tuple[Rule, ...]
    allowed: re.Pattern[str]


def load_vocabulary(path: Path = HERE / "banned_words.txt") -> Vocabulary:
    """Parse the list. Raises ValueError with the number of a line that is not understood."""
    rules: list[Rule] = []
    allowed: list[str] = []
    section = ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text in ("[everywhere]", "[prose]", "[allow]"):
            section = text
        elif section == "[allow]":
            allowed.append(text)
        elif section and " -> " in text:
            words, suggestion = text.split(" -> ", 1)
            rules.append(Rule(_pattern(words), suggestion, section == "[everywhere]"))
        else:
            raise ValueError(f"{path.name}:{number}: expected a section or WORD -> SUGGESTION")
    return Vocabulary(tuple(rules), _pattern(",".join(allowed)))


def _pattern(words: str) -> re.Pattern[str]:
    """Whole words only; letters alone make a word, so that `_` and digits end one."""
    forms = [re.escape(w.strip()).replace(r"\ ", r"[\s-]+") for w in words.split(",")]
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(forms)})(?![A-Za-z])", re.IGNORECASE)


def check_file(path: Path, name: str, vocabulary: Vocabulary) -> list[Finding]:
    """Find the banned words of one file. name: what findings call it."""
    if not is_checked(name):
        return []
    text = path.read_text("utf-8", "replace")
    suffix = path.suffix
    prose, names = {".md": markdown_lines, ".py": python_lines}.get(
        suffix, code_lines if suffix in CODE else text_lines
    )(text)
    ignored = {n for n, line in enumerate(text.splitlines(), start=1) if IGNORE in line}
    found = [
        *_search(name, prose, vocabulary, vocabulary.rules),
        *_search(name, names, vocabulary, [rule for rule in vocabulary.rules if rule.names]),
    ]
    return sorted({f for f in found if f.line not in ignored}, key=lambda f: (f.line, f.word))


def _search(
    name: str, lines: Lines, vocabulary: Vocabulary, rules: Iterable[Rule]
) -> Iterator[Finding]:
    """Search the lines as one text, so that a phrase is found across a line break."""
    numbers = sorted(lines)
    text = "\n".join(vocabulary.allowed.sub("", lines[n]) for n in numbers)
    for rule in rules:
        for match in rule.pattern.finditer(text):
            line = numbers[text.count("\n", 0, match.start())]
            yield Finding(name, line, " ".join(match[0].split()), rule.suggestion)


def is_checked(name: str) -> bool:
    """True for text that this project wrote itself."""
    path = PurePath(name)
    if any(path.match(pattern) or name == pattern for pattern in EXEMPT):
        return False
    if path.suffix in DATA:
        return path.parts[0] == "deploy"
    return path.suffix in CODE | TEXT or path.name in TEXT_NAMES


def text_lines(text: str) -> tuple[Lines, Lines]:
    """Every line is prose; there are no names."""
    return dict(enumerate(text.splitlines(), start=1)), {}


def markdown_lines(text: str) -> tuple[Lines, Lines]:
    """Leave out fenced and indented code, code spans, link targets and URLs."""
    lines: Lines = {}
    fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        elif not fence and not re.match(r"(?: {4}|\t)(?![-*\d ])", line):
            lines[number] = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", line)
    return lines, {}


def python_lines(text: str) -> tuple[Lines, Lines]:
    """Comments and strings are prose; names are split into words."""
    prose: Lines = {}
    names: Lines = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        number = token.start[0]
        if token.type == tokenize.NAME:
            names[number] = f"{names.get(number, '')} {split_name(token.string)}"
        elif token.type == tokenize.COMMENT or "STRING" in tokenize.tok_name[token.type]:
            for offset, line in enumerate(token.string.splitlines()):
                prose[number + offset] = f"{prose.get(number + offset, '')} {line}"
    return prose, names


def code_lines(text: str) -> tuple[Lines, Lines]:
    """Whole lines are prose and names alike: comments and strings need no parser for that."""
    lines = dict(enumerate(text.splitlines(), start=1))
    return lines, {number: split_name(line) for number, line in lines.items()}


def split_name(name: str) -> str:
    """Separate the words of a camelCase or snake_case name by spaces."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


def check_spelling(paths: list[Path], names: list[str]) -> list[str]:
    """Run codespell over the files; its findings in the form of ours."""
    shown = {str(path): name for path, name in zip(paths, names, strict=True)}
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words"]
    command += [str(HERE / "spelling_allow.txt"), *shown]
    if not shown:
        return []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and not done.stdout:
        raise RuntimeError(f"codespell failed: {done.stderr.strip()}")
    findings = []
    for line in done.stdout.splitlines():
        path, _, rest = line.partition(":")
        findings.append(f"{shown.get(path, path)}:{rest.replace(' ==> ', ' -> ')}")
    return findings


def tracked_files() -> list[Path]:
    """Every file that git knows of."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def main(arguments: list[str]) -> int:
    """Print the findings; 1 if there is any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all tracked")
    parser.add_argument("--count", action="store_true", help="print findings per word, not each")
    parsed = parser.parse_args(arguments)
    files = [p.resolve() for p in parsed.files] or tracked_files()
    named = [
        (path, str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name))
        for path in files
        if path.is_file() and not path.is_symlink()
    ]
    named = [(path, name) for path, name in named if is_checked(name)]
    vocabulary = load_vocabulary()
    banned = [f for path, name in named for f in check_file(path, name, vocabulary)]
    misspelt = check_spelling([path for path, _ in named], [name for _, name in named])
    if parsed.count:
        words = [f.word.lower() for f in banned]
        for word in sorted(set(words), key=words.count, reverse=True):
            print(f"{words.count(word):5} {word}")
    else:
        print(*banned, *misspelt, sep="\n", end="\n" if banned or misspelt else "")
    print(
        f"{len(named)} files: {len(banned)} banned words, {len(misspelt)} spelling mistakes",
        file=sys.stderr,
    )
    return 1 if banned or misspelt else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
