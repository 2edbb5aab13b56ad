"""Reduce typography to plain text: one form for each letter, quote, dash, bracket and markup.

Everything works character by character, so its time is linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_ENCLOSED = ((0x24B6, 26), (0x24D0, 26), (0x1F130, 26), (0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u3164\ufeff\uffa0\u20e3\u0640"
_SAME = {
    **dict.fromkeys("“”„‟«»‹›「」『』〝〞″", '"'),
    **dict.fromkeys("‘’‚‛`´ʼ′＇", "'"),
    **dict.fromkeys("‐‑‒–—―−﹣－ー⸺", "-"),
    **dict.fromkeys("：︰∶꞉ː﹕ःׇ׃։", ":"),
    **dict.fromkeys("【〔〖〚⟨〈《⦗❨❲⟦［｛（﴾", "("),
    **dict.fromkeys("】〕〗〛⟩〉》⦘❩❳⟧］｝）﴿", ")"),
    **dict.fromkeys("。｡।॥۔．․", "."),
    **dict.fromkeys("，、､،﹐", ","),
    **dict.fromkeys("？؟⸮", "?"),
    **dict.fromkeys("！", "!"),
    **dict.fromkeys("→⇒➜➔➡⟶⟹►▶⮕∴✓✔✅☑👉", " > "),
    **dict.fromkeys("\u2028\u2029\x85\x0b\x0c\r", "\n"),
    "\u0e33": "\u0e4d\u0e32",
    "\u0eb3": "\u0ecd\u0eb2",
}
LOOK_ALIKES = str.maketrans("АВЕКМНОРСТХІЅЈΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEKMHOPCTXISJABEZHIKMNOPTX")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|up|md)?|math(?:bf|it|rm|sf|tt|bb|cal|ord|op|strut)?"
    r"|operatorname|bold(?:symbol|math)?|bm|mbox|hbox|fbox|framebox|boxed|underline|emph|left|right"
    r"|displaystyle|bf|it|rm|large|Large|quad|qquad|big|Big|ensuremath|color|textcolor)\b\*?\s{0,9}"
)
_SPACING = re.compile(r"\\[()\[\] ,;:!]")
_MARKUP = re.compile(r"\*|~~|__|</?[a-z]{1,6} ?/?>|^[ \t]{0,9}[>#]{1,9}[ \t]{0,9}", re.MULTILINE)
_LONE = re.compile(r"([\"'`{\[]|\*\*|__) {0,3}([A-Za-z]) {0,3}[.):]?([\"'`}\]]|\*\*|__)(?!\w)")


def _char_table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for first, last in (
        *((0x2000, 0x206F), (0x2070, 0x209F), (0x2100, 0x214F), (0xFF01, 0xFF5E)),
        *((0x2460, 0x24FF), (0x1D400, 0x1D7FF), (0x1F100, 0x1F12F), (0xFB00, 0xFB06)),
        *((0x00A0, 0x00A0), (0x00B2, 0x00B9), (0x3000, 0x3000), (0x200B, 0x200F), (0xA0, 0xA0)),
    ):
        for point in range(first, last + 1):
            plain = unicodedata.normalize("NFKC", chr(point))
            if plain != chr(point):
                table[point] = plain
            if unicodedata.category(chr(point)) == "Cf":
                table[point] = None
    for start, count in _ENCLOSED:
        table |= {start + i: f"({chr(ord('A') + i)})" for i in range(count)}
    table |= {0xE0000 + i: None for i in range(128)} | {0xFE00 + i: None for i in range(16)}
    table |= {ord(c): None for c in _INVISIBLE}
    return table | {ord(c): plain for c, plain in _SAME.items()}


def _fold_table() -> dict[int, str]:
    table = {0x130: "i", 0x131: "i", 0xDF: "s", 0x1E9E: "s", 0x110: "d", 0x111: "d"}
    table |= {0xF8: "o", 0xD8: "o", 0xE6: "a", 0xC6: "a", 0x142: "l", 0x141: "l"}
    for first, last in ((0xC0, 0x24F), (0x370, 0x4FF), (0x622, 0x626), (0x1E00, 0x1FFF)):
        for point in range(first, last + 1):
            base = unicodedata.normalize("NFD", chr(point))[0]
            if base != chr(point):
                table.setdefault(point, base)
    return table


_CHARS = _char_table()
_FOLD = _fold_table()
_MARKS = re.compile("[\u0300-\u036f\u0591-\u05c7\u064b-\u065f]+")


def plain(text: str) -> str:
    """Give every letter, quote, dash, bracket and space one form; drop what is invisible."""
    return text if text.isascii() else _MARKS.sub("", text.translate(_CHARS))


def fold(text: str) -> str:
    """Lower-case and without accents, at the same length: "Élan" is "elan"."""
    return text.lower() if text.isascii() else text.translate(_FOLD).lower()


def without_markup(text: str) -> str:
    """Drop Markdown, LaTeX style and HTML tags of plain text.

    A letter that they, quotes or brackets enclose is put in parentheses: **C**, "C", [C] are (C).
    """
    if "\\" in text:
        text = _SPACING.sub(" ", _STYLE.sub("", text)).replace("\\", "")
    text = text.replace("$", " ")
    text = _LONE.sub(r"(\2)", text)
    return _MARKUP.sub(" ", text).replace('"', "").replace("`", "")


@lru_cache(maxsize=4096)
def canonical_option(option: str) -> str:
    """Reduce the text of an option, as `canonical` does, remembering it."""
    return canonical(option[:2000])


def canonical(text: str) -> str:
    """Reduce words to what must agree when an option is named by its text."""
    bare = fold(without_markup(plain(text)))
    bare = re.sub(r"[{}\"'^]", "", bare)
    return " ".join(bare.split()).strip(" .,;:!()")


def balanced(text: str, start: int, limit: int = 400) -> tuple[str, int] | None:
    """Read {...} at `start`, with balanced braces; returns the content and where it ends.

    None if there is none, or it does not end within `limit` characters.
    """
    depth = 0
    for place in range(start, min(len(text), start + limit)):
        if text[place] in "{}" and text[place - 1 : place] != "\\":
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start + 1 : place], place + 1
        elif not depth:
            return None
    return None


def lines_of(text: str) -> Iterator[str]:
    """The lines that are not blank."""
    return (line.strip() for line in text.split("\n") if line.strip())
