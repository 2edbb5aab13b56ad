"""Find the option that a reply chooses.

Evidence counts in this order, and the first kind that is there decides:

1. a reply that is a JSON object with an answer;
2. the line that was asked for, "The answer is C", in any of the languages of answer_words.json, as
   a line of its own or as the end of the reply; the last one if there are several;
3. marked answers: \\boxed{C}, <answer>C</answer>, [[C]];
4. the same words within a sentence, "I choose C", "C is correct";
5. a first or last line that is a letter, with or without the option's text, or is that text.

A choice may be a letter or the text of an option. Two letters, a letter that no option has, and a
letter that contradicts the text next to it are unreadable: nothing is guessed. Only a window of the
reply is read, and each step looks at a bounded number of places, so time is linear in its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.aptitude.marking.answer_words import answer_words
from engine.aptitude.marking.choices import CONTRADICTORY, ChoiceReader
from engine.aptitude.marking.ordinals import with_letters
from engine.aptitude.marking.plain_text import (
    balanced,
    canonical,
    fold,
    lines_of,
    plain,
    without_markup,
)
from engine.aptitude.marking.reasoning import without_reasoning

HEAD_CHARS, TAIL_CHARS = 400, 1_200  # of a reply, after its reasoning, that are read
MAX_STATEMENTS = 5  # the last ones of a reply that are looked at
ANSWER_KEYS = re.compile(
    r"(?:final|correct|selected|chosen|my)?[_ ]?(?:answer|choice|option|letter|selection|result"
    r"|prediction|response)(?:[_ ]?(?:letter|choice|option|key|id))?"
)
_TAGS = re.compile(
    r"<(?P<tag>(?:final_?)?(?:answer|choice|option|output|result))>(?P<in_tag>[^<>]{0,400})</(?P=tag)>"
    r"|\[(?P<square>(?:final_?)?(?:answer|choice|option))\](?P<in_square>[^\[\]]{0,400})\[/(?P=square)\]"
    r"|\[\[(?P<in_brackets>[^\[\]]{1,200})\]\]|^####(?P<after_hashes>[^#\n]{1,200})$"
    r"|<[|｜]begin_of_box[|｜]>(?P<in_box>[^<>]{0,400})<[|｜]end_of_box[|｜]>",
    re.IGNORECASE | re.MULTILINE,
)
_CONTENTS = ("in_tag", "in_square", "in_brackets", "after_hashes", "in_box")
# A model that is not stopped asks itself the next question, and answers that.
_NEXT_QUESTION = re.compile(
    r"(?:\n|(?<=answer>))\s{0,9}(?:#{1,4} |\*\*)?"
    r"(?:(?:next )?question|q|human|user|problem|problem statement)(?: ?\d{1,4})?(?:\*\*)?[:：]",
    re.IGNORECASE,
)
_LONE_CAPITAL = re.compile(r"(?<![\w'])[A-Z](?![\w'])")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b[ \t]{0,9}")


@dataclass(frozen=True)
class Reading:
    """What a reply chooses. letter: None if unreadable. problem: why, empty if readable."""

    letter: str | None
    problem: str = ""


def extract(reply: str, options: Sequence[str]) -> str | None:
    """Find the letter of the option that `reply` chooses; None if it chooses none, or several."""
    return read_answer(reply, options).letter


def read_answer(reply: str, options: Sequence[str]) -> Reading:
    """Find the letter of the option that `reply` chooses, or say why there is none."""
    if not reply.strip():
        return Reading(None, "empty")
    visible = without_reasoning(reply)
    if visible is None:
        return Reading(None, "ended while reasoning")
    letter = None
    if (following := _NEXT_QUESTION.search(visible)) is not None:
        letter = _Reader(_window(visible[: following.start()]), options).read()
        letter = None if letter == CONTRADICTORY else letter
    letter = letter or _Reader(_window(visible), options).read()
    if letter is None:
        return Reading(None, "chooses no option")
    if letter == CONTRADICTORY:
        return Reading(None, "several options, or one that is not there")
    return Reading(letter)


def _window(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n\n{text[-TAIL_CHARS:]}"


class _Reader(ChoiceReader):
    """Reads one reply. Methods return a letter, CONTRADICTORY, or None if there is nothing."""

    def __init__(self, text: str, options: Sequence[str]) -> None:
        self._raw = _window(plain(text))
        self._given = options
        super().__init__(with_letters(without_markup(self._raw), options), options)

    def read(self) -> str | None:
        """Take the first kind of evidence that is there."""
        if (letter := self._json()) is not None:
            return letter
        within: str | None = None
        for letter, own_line in self._statements():
            if own_line:
                return letter
            within = within or letter
        return self._marked() or within or self._is_right() or self._by_line()

    # 1 JSON

    def _json(self) -> str | None:
        text = self._raw.strip()
        if fenced := re.fullmatch(r"```(?:json)?\s*(\{.*\})\s*```", text, re.DOTALL):
            text = fenced[1]
        if not (text.startswith("{") and text.endswith("}")):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return self._in_object(value) if isinstance(value, dict) else None

    def _in_object(self, value: Mapping[str, Any], depth: int = 2) -> str | None:
        found = set()
        for key, entry in value.items():
            if not (ANSWER_KEYS.fullmatch(fold(key)) or fold(key) in answer_words().answers):
                continue
            if isinstance(entry, list) and len(entry) == 1:
                entry = entry[0]
            if isinstance(entry, dict) and depth:
                found.add(self._in_object(entry, depth - 1))
            elif isinstance(entry, list):
                found.add(CONTRADICTORY)
            elif isinstance(entry, str):
                found.add(self._inside(entry))
        found.discard(None)
        return found.pop() if len(found) == 1 else CONTRADICTORY if found else None

    # 2 and 4 statements

    def _statements(self) -> Iterator[tuple[str, bool]]:
        """Readable statements from the last on, each with whether it is the line asked for."""
        words = answer_words()
        places = [
            *self._places(words.answers, "answer"),
            *self._places(words.options, "option"),
            *self._places(words.verbs, "choose"),
        ]
        end = len(self._text.rstrip())
        for start, after, kind in sorted(set(places), reverse=True)[:MAX_STATEMENTS]:
            clause = self._clause(start)
            if answer_words().denial.search(clause):
                continue
            if (result := self._value(after, kind)) is None:
                continue
            letter, stop = result
            tail = self._text[stop:end].strip(" .):!\n")
            begins = self._begins_line(start)
            yield letter, (begins and kind != "choose") or not tail

    def _places(self, phrases: Sequence[str], kind: str) -> Iterator[tuple[int, int, str]]:
        ascii_only = self._folded.isascii()
        for phrase in phrases:
            if (ascii_only and not phrase.isascii()) or phrase not in self._folded:
                continue
            place = len(self._folded)
            for _ in range(MAX_STATEMENTS):
                place = self._folded.rfind(phrase, 0, place)
                if place < 0:
                    break
                before = self._folded[place - 1 : place]
                if not (phrase[0] < "\u0530" and before.isalpha() and before < "\u0530"):
                    yield place, place + len(phrase), kind

    def _begins_line(self, start: int) -> bool:
        begin = self._text.rfind("\n", 0, start) + 1
        if start - begin > 60:
            return False
        words = answer_words()
        tokens = [t for t in self._tokens(begin, 24) if t.start < start]
        allowed = {
            "wait",
            "correction",
            "no",
            "ok",
            "okay",
            "hmm",
            "sorry",
            "summary",
            "ultimately",
        }
        return all(
            t.native or not t.text[0].isalpha() or t.folded in words.fillers or t.folded in allowed
            for t in tokens
        )

    # 3 marked answers

    def _marked(self) -> str | None:
        """Read the last box, or the last tag if no box is readable."""
        contents = list(self._boxes())
        for i in range(len(contents) - 1, -1, -1):
            letter = self._inside(contents[i][0])
            if letter is None:
                continue
            if i and self._listed(contents[i - 1], contents[i][1]):
                other = self._inside(contents[i - 1][0])
                if other not in (None, letter):
                    return CONTRADICTORY
            return letter
        tags = list(_TAGS.finditer(self._raw))[-MAX_STATEMENTS:]
        for match in reversed(tags):
            inside = next(
                (match[g] for g in _CONTENTS if match[g]),
                "",
            )
            if (letter := self._inside(inside)) is not None:
                return letter
        return None

    def _boxes(self) -> Iterator[tuple[str, int, int]]:
        """The last boxes: content, start, end."""
        for match in list(_BOX.finditer(self._raw))[-MAX_STATEMENTS:]:
            if (box := balanced(self._raw, match.end())) is not None:
                yield box[0], match.start(), box[1]
            elif bare := re.match(r"\(?([A-Za-z0-9])\)?(?!\w)", self._raw[match.end() :][:4]):
                yield bare[1], match.start(), match.end() + bare.end()

    def _listed(self, before: tuple[str, int, int], start: int) -> bool:
        """True if only "or", "and" or a comma stands between two boxes."""
        between = self._raw[before[2] : start].strip(" $,.;&/\\()")
        return "\n" not in between and (not between or fold(between) in answer_words().ors)

    def _inside(self, content: str) -> str | None:
        """Read what a box, tag or field holds."""
        reader = _Reader.__new__(_Reader)
        reader.__dict__.update(self.__dict__)
        reader._raw = plain(content)[:1000]
        reader._text = with_letters(without_markup(reader._raw), self._given)
        reader._folded = fold(reader._text)
        nested = list(reader._boxes())
        if nested and nested[-1][0] != content:
            return reader._inside(nested[-1][0])
        return reader._line(reader._text.replace("{", "").replace("}", "").strip(), lenient=True)

    # 4 "C is correct"

    def _is_right(self) -> str | None:
        for lone in reversed(list(_LONE_CAPITAL.finditer(self._text))[-2 * MAX_STATEMENTS :]):
            start, letter = lone.start(), lone[0]
            match = answer_words().is_right.match(self._folded[start : start + 80])
            if match is None or answer_words().denial.search(self._clause(start)):
                continue
            after = self._folded[start + match.end() : start + match.end() + 8]
            if not re.match(r"\W{0,3}(?:not|wrong|\?)", after):
                return letter if letter in self._letters else CONTRADICTORY
        return None

    # 5 first and last line

    def _by_line(self) -> str | None:
        lines = list(lines_of(self._text))
        boxes = list(_BOX.finditer(self._raw))
        if not lines or (
            boxes and "{" in self._raw[boxes[-1].end() :][:1] and not self._whole(boxes)
        ):
            return None
        first, last = lines[0], lines[-1]
        lone = [re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", line) for line in (first, last)]
        starts = [m[1].upper() for line in lines if (m := _LEADING.match(line))]
        if lone[1] and (len(lines) == 1 or not starts or len(set(starts)) == 1 or len(starts) > 1):
            return self._line(last)
        if len(set(starts)) > 1:
            others = [s for line in lines[1:] if (s := re.fullmatch(r"\W*([A-Za-z])\W*", line))]
            if lone[0] and not others:
                return self._line(first)
            return self._stated(lines) or self._closing(last)
        return self._line(first if lone[0] else last) or self._line(first) or self._closing(last)

    def _whole(self, boxes: Sequence[re.Match[str]]) -> bool:
        return balanced(self._raw, boxes[-1].end()) is not None

    def _stated(self, lines: Sequence[str]) -> str | None:
        """The only option that a line gives with its letter and its whole text."""
        stated = set()
        for line in lines[:MAX_STATEMENTS]:
            match = _LEADING.match(line)
            letter = match[1].upper() if match else ""
            if match and letter in self._letters:
                option = self._options[self._letters.index(letter)]
                if option and canonical(line[match.end() :]) == option:
                    stated.add(letter)
        return stated.pop() if len(stated) == 1 else None

    def _closing(self, line: str) -> str | None:
        """Read a letter in parentheses that ends the line: "so v = 7.5 m/s (C)."."""
        enclosed = re.findall(r"\(([A-Z])\)", line)
        if len(enclosed) == 1 and re.search(r"\([A-Z]\)\W*$", line):
            if answer_words().denial.search(fold(line)):
                return None
            return enclosed[0] if enclosed[0] in self._letters else CONTRADICTORY
        return None

    def _line(self, line: str, *, lenient: bool = False) -> str | None:
        """Read a whole line, or the content of a box, as one choice."""
        reader = _Reader.__new__(_Reader)
        reader.__dict__.update(self.__dict__)
        reader._text = line
        reader._folded = fold(line)
        if (letter := reader._by_text(line)) is not None:
            return letter
        if result := reader._value(0, "line"):
            letter, stop = result
            rest = line[stop:].lstrip()
            ends = not rest or rest[0] in ").:,;!-]|" or canonical(rest) in self._options
            if re.match(r"\)? ?\([A-Z]\)", rest):  # (C) (D)
                return CONTRADICTORY
            if letter == CONTRADICTORY or ends or lenient or _BECAUSE.match(rest):
                return letter
        return None


_BECAUSE = re.compile(r"(?:because|since|as)\b")
_LEADING = re.compile(r"\(?\s{0,3}([A-Za-z])\s{0,3}(?:[).:\]]+(?=\s|$)|$)")
