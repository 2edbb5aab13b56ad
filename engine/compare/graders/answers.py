"""Grade a reply by comparing it with a reference: exact, numeric, contains, choice, regex, schema.

An instruction may have several references; one that matches is enough. Only what the model shows
counts: its reasoning is cut first. Where a reply has to be one short answer, the answer that it
states ("The answer is 42", \\boxed{42}, <answer>42</answer>, #### 42) comes before its last line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.answers import ANSWER_KEYS, MAX_STATEMENTS, read_answer
from engine.aptitude.marking.answer_words import answer_words
from engine.aptitude.marking.plain_text import balanced, canonical, fold, lines_of, plain
from engine.aptitude.questions import options_of
from engine.compare.sampling.instructions import LoggedInstruction

MAX_CHARS = 100_000  # of a reply that are read, from its end
MAX_STATED = 400  # characters of a stated answer
TOLERANCE = 1e-6  # relative, of two equal numbers
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}(?=\{)")
_TAG = re.compile(
    r"<(final_?answer|answer|result)>([^<>]{0,400})</\1>|^#### ?([^\n#]{1,400})$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=\w)[.!](?=\s+\S)|。")
_LEAD = re.compile(
    r"\W{0,6}(?:is|are|was|equals|lautet|es|est|è|é|是|为|為|は)?[\s:=*_：\"'`]{0,9}"
)


class NoReferenceError(Exception):
    """The grader needs a reference, and the instruction has none that it can use."""


AnswerCheck = Callable[[LoggedInstruction, str], bool]


@dataclass(frozen=True)
class AnswerOptions:
    """Settings of the graders below.

    pattern: regular expression in place of references. schema: JSON schema for instructions without
    one. tolerance: relative, of numbers.
    """

    pattern: str = ""
    schema: Mapping[str, Any] | None = None
    tolerance: float = TOLERANCE


def answer_check(name: str, options: AnswerOptions) -> AnswerCheck:
    """Return (instruction, visible reply) -> whether the reply is right.

    The check raises NoReferenceError if the instruction lacks what it compares with.

    Raises:
        InvalidInputError: the pattern or schema is invalid.
    """
    if name == "numeric":
        return lambda instruction, reply: is_number(instruction, reply, options.tolerance)
    if name == "regex":
        given = _compiled("--pattern", options.pattern) if options.pattern else None
        return lambda instruction, reply: matches(instruction, reply, given)
    if name == "json-schema":
        if options.schema is not None:
            check_schema("--schema", options.schema)
        return lambda instruction, reply: fits_schema(instruction, reply, options.schema)
    return {"exact": is_exact, "contains": contains, "choice": is_choice}[name]


ANSWER_GRADERS = ("exact", "numeric", "contains", "choice", "regex", "json-schema")


def final_answer(reply: str) -> str:
    """Find the short answer of a reply: the last one that it states, else its last line."""
    reply = plain(reply)
    return _stated(reply) or next(reversed(list(lines_of(reply))), "")


def _stated(reply: str) -> str:
    """Read an answer in a JSON object, a box or tag, or the words "the answer is"; "" if none."""
    if in_json := _answer_in_json(reply):
        return in_json
    marked = [(m.start(), m[2] or m[3] or "") for m in _TAG.finditer(reply)]
    for match in _BOX.finditer(reply):
        if box := balanced(reply, match.end(), MAX_STATED):
            marked.append((match.start(), box[0]))
    if marked:
        return max(marked)[1].strip()
    folded = fold(reply)
    for place, after in sorted(_answer_words(folded), reverse=True):
        if folded[place - 1 : place].isalpha():
            continue
        line = reply[after:].split("\n", 1)[0]
        lead = _LEAD.match(line)
        rest = line[lead.end() :].strip(" *_") if lead and lead[0].strip() else ""
        if rest and not answer_words().denial.match(fold(rest)):
            return rest[:MAX_STATED]
    return ""


def _answer_words(folded: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the last few places of each word for "answer"."""
    for word in answer_words().answers:
        place = len(folded)
        for _ in range(MAX_STATEMENTS):
            place = folded.rfind(word, 0, place)
            if place < 0:
                break
            yield place, place + len(word)


def _answer_in_json(reply: str) -> str:
    found, value = _json_in(reply)
    if not found or not isinstance(value, dict):
        return ""
    answers = [v for k, v in value.items() if ANSWER_KEYS.fullmatch(fold(str(k)))]
    return (
        str(answers[0]) if len(answers) == 1 and isinstance(answers[0], str | int | float) else ""
    )


def is_exact(instruction: LoggedInstruction, reply: str) -> bool:
    """True if the reply, or its final answer, is a reference, but for case, markup and spaces."""
    answer = final_answer(reply)
    found = {_normalized(text) for text in (reply, answer, _SENTENCE_END.split(answer)[0])}
    return any(_normalized(reference) in found for reference in _texts(instruction))


def contains(instruction: LoggedInstruction, reply: str) -> bool:
    """True if a reference stands in the reply as whole words, but for case, markup and spaces."""
    text = _normalized(reply)
    for reference in map(_normalized, _texts(instruction)):
        begin, end = (r"(?<!\w)" if reference[:1].isalnum() else ""), ""
        if reference[-1:].isascii() and reference[-1:].isalnum():
            end = r"(?!\w)"
        if not reference[:1].isascii():
            begin = ""  # many scripts write no spaces between words
        if re.search(f"{begin}{re.escape(reference)}{end}", text):
            return True
    return False


def is_choice(instruction: LoggedInstruction, reply: str) -> bool:
    """True if the reply chooses the option whose letter is a reference.

    The options are the lines of the instruction that begin "A. ", "B. " and so on.
    """
    options = options_of(instruction.text)
    letters = [t.strip(" ().").upper() for t in _texts(instruction)]
    if len(options) < 2 or not all(len(letter) == 1 for letter in letters):
        raise NoReferenceError('no options "A. ", "B. " with a letter as the reference')
    return read_answer(reply, options).letter in letters


def matches(instruction: LoggedInstruction, reply: str, given: re.Pattern[str] | None) -> bool:
    """True if the pattern `given`, or the reference if it is None, is found in the reply."""
    if given is not None:
        return given.search(reply[-MAX_CHARS:]) is not None
    patterns = [_compiled("reference", text) for text in _texts(instruction)]
    return any(pattern.search(reply[-MAX_CHARS:]) for pattern in patterns)


def _compiled(field: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            Violation(field, f"is not a regular expression ({error}).")
        ) from error


def _texts(instruction: LoggedInstruction) -> list[str]:
    texts = [r for r in instruction.references if isinstance(r, str) and r.strip()]
    if not texts:
        raise NoReferenceError("no reference")
    return texts


def _normalized(text: str) -> str:
    return canonical(text[-MAX_CHARS:]) or " ".join(text.split())


# --- numbers ---------------------------------------------------------------------------------

_FRACTION = (
    r"\\[dt]?frac\{?\s{0,3}(?P<over>\d{1,12})\s{0,3}\}?\{\s{0,3}(?P<under>\d{1,12})\s{0,3}\}"
)
_NUMBER = re.compile(
    rf"(?P<sign>[+-])?(?:{_FRACTION}"
    r"|(?P<number>\d{1,3}(?:[,' ]\d{3}){1,9}(?!\d)(?:\.\d{1,30})?|\d{1,40}(?:[.,]\d{1,40})?"
    r"|\.\d{1,40})"
    r"(?:\s?/\s?(?P<divisor>\d{1,12})(?![\d/]))?"
    r"(?:[eE](?P<e>[+-]?\d{1,3})|\s?(?:×|\\times|\*|x)\s?10\^\{?(?P<power>[+-]?\d{1,3})\}?)?)"
    r"\s?\\?(?P<percent>%)?"
)


def is_number(instruction: LoggedInstruction, reply: str, tolerance: float = TOLERANCE) -> bool:
    """True if the number that the reply answers with equals a reference.

    It is the first number of the stated answer, else the last one of the reply. "1,234" is taken
    both ways, and 50% is .5 as well as 50.
    """
    wanted = [right for text in _texts(instruction) for right in _answer_readings(text)]
    if not wanted:
        raise NoReferenceError("no number as the reference")
    return any(
        math.isclose(value, right, rel_tol=tolerance, abs_tol=1e-12)
        for value in _answer_readings(reply)
        for right in wanted
    )


def _answer_readings(text: str) -> tuple[float, ...]:
    """Read the number that a reply, or a worked solution, answers with; () if there is none."""
    answer = final_answer(text)
    in_answer = numbers_in(answer.rpartition("=")[2])
    is_stated = answer != next(reversed(list(lines_of(plain(text)))), "")
    if in_answer and (is_stated or len(in_answer) == 1):
        return in_answer[0]
    in_text = numbers_in(text)
    return in_text[-1] if in_text else ()


def numbers_in(text: str) -> list[tuple[float, ...]]:
    """Read the numbers of a text in order, each with all its readings."""
    text = plain(text[-MAX_CHARS:]).replace("\\,", "").replace("\\!", "").replace("{,}", ",")
    return [_readings(match) for match in _NUMBER.finditer(text)]


def _readings(match: re.Match[str]) -> tuple[float, ...]:
    before = match.string[max(0, match.start() - 1) : match.start()]
    # A hyphen after a letter or a digit joins words or ranges and is no sign.
    sign = -1.0 if (match["sign"] or "").startswith("-") and not before.isalnum() else 1.0
    if match["over"]:
        under = float(match["under"])
        return (sign * float(match["over"]) / under,) if under else ()
    text = match["number"]
    bare = re.sub(r"[' ]", "", text)
    readings = {float(re.sub(r",(?=\d{3}(?:\D|$))", "", bare).replace(",", "."))}
    if re.fullmatch(r"\d{1,40},\d{1,40}", bare):
        readings.add(float(bare.replace(",", ".")))
    scale = float(f"1e{match['e'] or match['power'] or 0}")  # infinite beyond 308
    if match["divisor"]:
        divisor = float(match["divisor"])
        return tuple(sign * value / divisor for value in sorted(readings)) if divisor else ()
    scaled = [sign * value * scale for value in sorted(readings)]
    values = [value for value in scaled if math.isfinite(value)]
    return tuple(values + [value / 100 for value in values] if match["percent"] else values)


# --- JSON ------------------------------------------------------------------------------------

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?```", re.DOTALL)


def fits_schema(
    instruction: LoggedInstruction, reply: str, given: Mapping[str, Any] | None
) -> bool:
    """True if the reply is JSON, alone or in a code block, that the schema accepts.

    The schema is the reference, else that of the request's response_format, else `given`.
    """
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    schemas = [r for r in instruction.references if isinstance(r, Mapping)]
    asked = (instruction.response_format or {}).get("json_schema")
    if not schemas and isinstance(asked, Mapping) and isinstance(asked.get("schema"), Mapping):
        schemas = [asked["schema"]]
    if not schemas and given is not None:
        schemas = [given]
    if not schemas:
        raise NoReferenceError("no JSON schema")
    found, value = _json_in(reply)
    if not found:
        return False
    for schema in schemas:
        check_schema("reference", schema)
        # The empty registry fetches nothing from a network.
        validator = validator_for(schema)(schema, registry=Registry())
        try:
            if validator.is_valid(value):
                return True
        except (Unresolvable, RecursionError) as error:
            problem = f"has a $ref that is not in the schema itself ({type(error).__name__})."
            raise InvalidInputError(Violation("JSON schema", problem)) from error
    return False


def check_schema(field: str, schema: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if `schema` is not a JSON schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except (SchemaError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InvalidInputError(Violation(field, f"is not a JSON schema ({reason}).")) from error


def _json_in(reply: str) -> tuple[bool, Any]:
    text = reply.strip()
    fenced = _FENCED.findall(text[:MAX_CHARS])
    for part in (text, fenced[0] if len(fenced) == 1 else ""):
        try:
            return True, json.loads(part)
        except (ValueError, RecursionError):
            continue
    return False, None
