"""Read single cells of tables and logs: numbers, words for "missing", and lists or JSON that were
written as text.

A cell that looks like a list or an object is decoded or refused, and never read as prose. The
exception is prose that begins with one, such as "[1, 2] + [3] is what in Python?".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_PYTHON_CHARS = 4 << 20  # of a Python list; JSON is limited by the line alone
MAX_DEPTH = 64  # of nested Python lists
UNREADABLE = "holds a list or object that cannot be read"
MAX_LAYERS = 3  # JSON within JSON text within JSON text
MISSING = {
    *("", "-", "--", "—", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null", "nil"),
    *("undefined", "missing", "unknown", r"\n", "?"),
}
WORDS = {
    **dict.fromkeys(("true", "yes", "t", "y", "correct", "right", "pass", "passed"), 1.0),
    **dict.fromkeys(("false", "no", "f", "n", "incorrect", "wrong", "fail", "failed"), 0.0),
}


class CellError(ValueError):
    """A cell cannot be read. The message completes "column C: ..." and never quotes its text."""


def is_missing(value: Any) -> bool:
    """Return True for what a table holds in place of a value: null, NaN, blanks, "n/a" and such."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return len(value) <= 12 and value.strip().lower() in MISSING
    return value is None or (isinstance(value, list | dict) and not value)


# --- numbers ---------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(\d[\d.,'_ ]*|[.,]\d+)(e[+-]?\d+)?")
_FRACTION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?/ ?(\d{1,9}(?:\.\d{1,9})?)")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " ")
_SIGNS = str.maketrans({"\u2212": "-", "\uff05": "%", "\u066a": "%", "\u2019": "'", "\u066b": "."})


def number(value: Any) -> float:
    """Read a number; NaN if the cell is missing.

    Text may hold a percent sign ("87.5%" is 0.875), a fraction ("3/4"), a decimal comma, separators
    of thousands, a dollar sign or USD, and words for right and wrong (1 and 0).

    Raises:
        CellError: it is no number, or one that can be read in two ways ("1,234").
    """
    if is_missing(value):
        return math.nan
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            raise CellError("is a number without bounds") from None
    if not isinstance(value, str):
        if type(value).__name__ in ("Decimal", "float32", "float64", "int64"):
            return float(value)
        raise CellError(f"holds {_kind(value)}, expected a number")
    text = value.translate(_SPACES).translate(_SIGNS).strip().lower()
    if text in WORDS:
        return WORDS[text]
    if len(text) > 64:
        raise CellError("is not a number")
    if part := _FRACTION.fullmatch(text):
        whole = float(part[2])
        if whole == 0:
            raise CellError("is a fraction of zero")
        return float(part[1]) / whole
    text = text.removeprefix("us").removeprefix("$").removesuffix("usd").strip()
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(text):
        raise CellError("is not a number")
    found = float(_with_point(text))
    return found / 100 if percent else found


def score(value: Any) -> float:
    """Read a score in [0, 1]; NaN if the cell is missing. Raises CellError."""
    found = number(value)
    if found < 0 or found > 1:
        hint = f"; for percent, write {found:g}%" if 1 < found <= 100 else ""
        raise CellError(f"is {found:g}, expected 0 to 1{hint}")
    return found


def _with_point(text: str) -> str:
    """Rewrite a number with a decimal point and without separators of thousands."""
    text = re.sub(r"(?<=\d)['_ ](?=\d{3})", "", text)
    comma, point = text.count(","), text.count(".")
    if comma and point:  # the last one is the decimal sign
        thousands = "," if text.rfind(".") > text.rfind(",") else "."
    elif comma + point > 1:
        thousands = "," if comma else "."
    elif comma and re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text):
        raise CellError("can be read as thousands or as a decimal comma; write it without a comma")
    else:
        thousands = ""
    if thousands:
        head = re.split(r"e|" + re.escape("." if thousands == "," else ","), text)[0]
        if not re.fullmatch(rf"[+-]?\d{{1,3}}({re.escape(thousands)}\d{{3}})+", head):
            raise CellError("is not a number")
        text = text.replace(thousands, "")
    text = text.replace(",", ".")
    if text.count(".") > 1 or re.search(r"['_ ]", text):
        raise CellError("is not a number")
    return text


# --- lists and objects as text ---------------------------------------------------------------

_LIST_LIKE = re.compile(r"""\s*(?:[\[({]\s*(?:["'\[({\]})]|[bruBRU]["']|array\()|array\()""")
_BRACKETS = re.compile(r"\s*[\[{].*[\]}]\s*", re.DOTALL)


def decode(value: Any) -> Any:
    """Return the list or object that a text holds, or the value unchanged if it holds none.

    JSON, Python's notation, numpy's (no commas), and JSON as text within JSON.

    Raises:
        CellError: the text begins like a list or an object but cannot be read as one.
    """
    for _ in range(MAX_LAYERS):
        if not isinstance(value, str):
            break
        found = _decode_once(value)
        if found is value:
            break
        value = found
    return value


def _decode_once(text: str) -> Any:
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if not start or start not in _STARTS:
        return text
    if start in '[{"':
        try:
            found = json.loads(text.lstrip("\ufeff"))
        except RecursionError:
            raise CellError("holds JSON that is nested too deeply") from None
        except ValueError:
            found = None
        if isinstance(found, list | dict | str):
            return found
    if start in "\"'b":
        token = _TOKEN.fullmatch(text.strip())
        escaped = token is not None and (start == "b" or "\\" in text)
        return _string(token["text"]) if token and escaped and token["text"] else text
    if not (_LIST_LIKE.match(text) or _BRACKETS.fullmatch(text)):
        return text
    if len(text) > MAX_PYTHON_CHARS:
        raise CellError(f"holds a list of more than {MAX_PYTHON_CHARS} characters; write JSON")
    try:
        found, end = _PythonReader(text).read()
    except CellError:
        if start == "(" or not _LIST_LIKE.match(text):  # such as "[Note] ... [end]" or "{name}"
            return text
        raise
    if isinstance(found, tuple | set):
        found = list(found)
    if text[end:].strip() or not isinstance(found, list | dict):
        return text  # prose that begins with a list
    return found


_STARTS = "[{(\"'ab"
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>[bBrRuU]{0,2}(?:
          '''(?:[^\\]|\\.)*?''' | \"\"\"(?:[^\\]|\\.)*?\"\"\"
        | '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*"))
    | (?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-](?:inf|nan|Infinity)\b)
    | (?P<word>[A-Za-z_][A-Za-z_0-9.]*)
    | (?P<ellipsis>\.\.\.)
    | (?P<sign>[\[\](){},:=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_CONSTANTS = {
    **{"True": True, "False": False, "None": None, "true": True, "false": False, "null": None},
    **{"nan": math.nan, "NaN": math.nan, "inf": math.inf, "Infinity": math.inf},
}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class _PythonReader:
    """Read a Python literal of lists, tuples, sets, dicts, strings, numbers and constants.

    Commas between elements may be missing, as numpy prints arrays: Python itself would join two
    strings into one. Nothing is evaluated but one string token at a time.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> tuple[Any, int]:
        """Return (value, end); raise CellError."""
        return self._value(0), self._at

    def _next(self) -> tuple[str, str]:
        token = _TOKEN.match(self._text, self._at)
        if token is None:
            rest = self._text[self._at :].strip()
            raise CellError(
                UNREADABLE if rest else "holds a list or object that ends in the middle"
            )
        self._at = token.end()
        kind = token.lastgroup or ""
        return kind, token[kind]

    def _peek(self) -> str:
        at = self._at
        try:
            return self._next()[1]
        finally:
            self._at = at

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise CellError(f"holds lists nested more than {MAX_DEPTH} deep")
        kind, token = self._next()
        if kind == "text":
            return _string(token)
        if kind == "number":
            return _constant_number(token)
        if kind == "word" and token in _CONSTANTS:
            return _CONSTANTS[token]
        if kind == "word" and self._peek() == "(":  # array([...], dtype=object), np.float64(0.5)
            return self._call(depth)
        if token in _CLOSING:
            return self._container(token, depth)
        if kind == "ellipsis":
            raise CellError("holds a list that was cut with ...")
        raise CellError(UNREADABLE)

    def _call(self, depth: int) -> Any:
        self._next()
        value = self._value(depth + 1)
        while (token := self._next()[1]) != ")":
            if token in _CLOSING:
                raise CellError(UNREADABLE)
        return value

    def _container(self, opening: str, depth: int) -> Any:
        closing, found = _CLOSING[opening], []
        pairs: dict[Any, Any] = {}
        while self._peek() != closing:
            value = self._value(depth + 1)
            if opening == "{" and self._peek() == ":":
                self._next()
                pairs[value if isinstance(value, str | int | float) else str(value)] = self._value(
                    depth + 1
                )
            else:
                found.append(value)
            if self._peek() == ",":
                self._next()
        self._next()
        if found and pairs:
            raise CellError(UNREADABLE)
        if opening == "{":
            return found or pairs
        return tuple(found) if opening == "(" else found


_ESCAPE = re.compile(
    r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|N\{[^{}]*\}|.)", re.DOTALL
)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""}


def _string(token: str) -> str:
    """Return what a Python string token means; an unknown escape stays as it is, as in Python."""
    prefix = token[: min(token.index(q) for q in "\"'" if q in token)].lower()
    quotes = 3 if token[len(prefix) :][:3] in ('"""', "'''") and len(token) >= 6 else 1
    inside = token[len(prefix) + quotes : -quotes]
    text = inside if "r" in prefix else _ESCAPE.sub(_unescape, inside)
    if "b" not in prefix:
        return text
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        raise CellError("holds bytes that are not UTF-8") from None


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    if code in _SHORT:
        return _SHORT[code]
    if len(code) > 1 and code[0] in "xuU":
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else found[0]
    if code[0] in "01234567":
        return chr(int(code, 8))
    return code if code in "\\'\"" else found[0]


def _constant_number(token: str) -> float:
    try:
        return float(token) if re.search(r"[.eEfn]", token) else int(token)
    except ValueError:  # more digits than int() takes
        raise CellError("holds a list with an unreadable number") from None


# --- text ------------------------------------------------------------------------------------

TEXT_KEYS = ("question", "query", "prompt", "input", "instruction", "text", "content", "problem")


def plain_text(value: Any) -> str:
    """Return the text of a cell that is a string, or a list of strings or of chat messages.

    Several turns are joined by line breaks, without their roles.

    Raises:
        CellError: the cell is missing or holds anything else.
    """
    found = decode(value)
    if isinstance(found, bytes):
        try:
            found = found.decode()
        except UnicodeDecodeError:
            raise CellError("holds bytes that are not UTF-8") from None
    if isinstance(found, str):
        text = found
    elif isinstance(found, bool | int | float) and not is_missing(found):
        text = str(found)
    else:
        text = "\n".join(_texts(found, 0))
    if not text.strip():
        raise CellError("is empty, expected text")
    return text


def _texts(value: Any, depth: int) -> list[str]:
    """List the strings of lists, of messages and of their content parts."""
    if isinstance(value, str):
        return [value]
    if depth < 8 and isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part, depth + 1)]
    if depth < 8 and isinstance(value, Mapping):
        for key in ("messages", "contents", "turns", "content", "parts", "text"):
            if not is_missing(value.get(key)):
                return _texts(value[key], depth + 1)
        known = [key for key in TEXT_KEYS if isinstance(value.get(key), str)]
        if known:
            return [str(value[known[0]])]
    raise CellError(f"holds {_kind(value)} where text is expected")


def _kind(value: Any) -> str:
    names = {"dict": "a JSON object", "NoneType": "null", "str": "text", "list": "a list"}
    kind = type(value).__name__
    return names.get(kind, "a number" if isinstance(value, int | float) else f"a {kind}")
