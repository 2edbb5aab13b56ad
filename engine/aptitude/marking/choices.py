"""Read the choice that follows "the answer is", or that a line, a box or a field holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.aptitude.marking.answer_words import answer_words
from engine.aptitude.marking.plain_text import LOOK_ALIKES, canonical, canonical_option, fold
from engine.aptitude.questions import LETTERS

MAX_FILLERS = 12  # words between "answer" and the letter
CONTRADICTORY = "?"  # several letters, or one that no option has: the reply is unreadable
# Words of one script each, numbers, single Han and kana characters as a run, and signs.
_TOKEN = re.compile(
    r"\n|\d+(?:[.,]\d+)*|[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+(?:'[A-Za-z\u00c0-\u024f]+)*"
    r"|[\u0370-\u03ff\u1f00-\u1fff]+|[\u0400-\u052f]+|[\u0590-\u08ff]+|[\u0900-\u0dff]+"
    r"|[\u0e00-\u0eff]+|[\u1000-\u109f]+|[\u10a0-\u10ff]+|[\u0530-\u058f]+|[\u1200-\u137f]+"
    r"|[\u1780-\u17ff]+|[\uac00-\ud7af\u1100-\u11ff]+|[\u3040-\u30ff\u3400-\u9fff]|[^\s]"
)


@dataclass(frozen=True)
class _Token:
    text: str
    folded: str
    start: int
    end: int

    @property
    def native(self) -> bool:
        """True for words of scripts that the letters of options cannot be part of."""
        return self.text[0] > "\u024f" and not "\u1e00" <= self.text[0] <= "\u1eff"


class ChoiceReader:
    """Reads choices in one text. Methods return a letter, CONTRADICTORY, or None for nothing."""

    def __init__(self, text: str, options: Sequence[str]) -> None:
        self._text = text
        self._folded = fold(text)
        self._letters = LETTERS[: len(options)]
        self._options = [canonical_option(o) for o in options]
        self._longest = max(map(len, self._options), default=0)

    def _clause(self, start: int) -> str:
        """What stands before `start` in the same clause."""
        before = self._folded[max(0, start - 80) : start]
        return re.split(r"[.,;:!?()\n]", before)[-1]

    def _value(self, start: int, kind: str) -> tuple[str, int] | None:
        """Read the choice that follows `start`: it, and where it ends."""
        words = answer_words()
        tokens = list(self._tokens(start, MAX_FILLERS + 12))
        starts: list[int] = []
        negated = False
        linked = kind in {"choose", "line"}
        lines = 0
        i = 0
        while i < len(tokens) and len(starts) <= MAX_FILLERS:
            token = tokens[i]
            i += 1
            if token.start == start and token.text[0].isalpha() and not starts:
                glued = start > 0 and self._text[start - 1].isalpha()
                if glued and (len(token.text) <= 6 or token.native):  # an ending: answers, cevabı
                    if words.negative_part.search(token.folded):
                        return None
                    starts.append(token.end)
                    linked = linked or token.native
                    continue
            if token.text == "\n":
                lines += 1
                ended = kind == "option" and i > 1 and tokens[i - 2].text == "."
                if lines > 2 or ended or (kind == "choose" and not starts):
                    break
                linked = True
                continue
            if token.text in ":=->(),'." or not token.text[0].isalnum():
                connective = token.text == "," and kind == "line"
                if token.text in "?!;,." and not connective and len(starts) > (token.text == "."):
                    break
                linked = linked or token.text in ":=->"
                continue
            letter = self._letter(tokens, i - 1)
            if letter is not None and letter != "":
                if kind != "choose" and not linked and not self._closes(tokens, i - 1):
                    return None
                if kind == "option" and not linked:
                    return None
                between = self._folded[start : token.start]
                negated = negated or words.negative_part.search(between) is not None
                return self._accept(tokens, i - 1, letter, negated, starts)
            starts.append(token.start)
            if token.folded in words.negatives:
                negated = True
                continue
            if token.native:
                if words.negative_part.search(token.folded):
                    negated = True
                linked = True
                continue
            if token.folded in words.fillers:
                linked = True
                continue
            modifies = token.folded in {"to", "for", "that", "which", "we", "i", "of", "in"}
            if not linked and modifies and (after := self._copula(token.start)) is not None:
                return self._value(after, kind)
            break
        if negated or not linked:
            return None
        for place in dict.fromkeys(starts[:3] + starts[-1:]):
            if (named := self._named(place)) is not None:
                return named
        return None

    def _copula(self, start: int) -> int | None:
        found = re.compile(r"[^.;\n]{1,60}?(?: is | would be | must be | should be |: ?)").match(
            self._folded, start
        )
        return found.end() if found else None

    def _closes(self, tokens: Sequence[_Token], i: int) -> bool:
        """True if nothing but punctuation follows the letter in its line, or it is enclosed."""
        for token in tokens[i + 1 : i + 4]:
            if token.text == "\n" or token.native:
                return True
            if token.text.isalnum() or token.folded in answer_words().ors or token.text == ",":
                return token.folded in answer_words().ors or token.text == ","
        return True

    def _letter(self, tokens: Sequence[_Token], i: int) -> str | None:
        """The letter that token `i` is; "" for a letter that cannot be read as a choice."""
        token = tokens[i]
        text = token.text
        if suffix := re.fullmatch(r"([A-Z])'(?:[dt][iıuü]r|[a-zıü]{1,3})", text):
            if text[2:] in {"m", "d", "s", "t", "ll", "ve", "re"}:
                return None
            text = suffix[1]
        if text in answer_words().ordinals and tokens[i - 1].folded != text and i > 0:
            return answer_words().ordinals[text]
        if len(text) != 1 or not text.isalpha():
            return None
        letter = text.translate(LOOK_ALIKES)
        if not ("A" <= letter <= "Z" or "a" <= letter <= "z"):
            return None
        before = self._text[token.start - 1 : token.start]
        after = self._text[token.end : token.end + 2]
        enclosed = before == "(" and after.lstrip()[:1] == ")"
        if enclosed:
            return letter.upper()
        assigned = before == "=" and all(t.text in ":=>" for t in tokens[:i])  # answer=C
        if before and not assigned and (before in "_^\\+#&%=." or before.isdigit()):
            return None
        if before.isalpha() and before < "\u0530":
            return None
        if (after and after[0] in "'+#^_*=%&") or re.match(r"[-.][A-Za-z0-9]", after):
            whole = letter in self._letters and self._states_option(letter, token.end)
            return letter if whole else None
        following = tokens[i + 1] if i + 1 < len(tokens) else None
        if following is None or following.text == "\n":
            return letter.upper()
        if following.text == "?":
            return ""
        if letter.islower():
            return letter.upper() if following.text in ".,;:)!" else None
        if text != letter and following.native:  # a Cyrillic or Greek word of one letter
            return None
        if following.text in ".,;:)!/(|<>" or following.native:
            return letter if following.start > token.end or not following.text.isdigit() else None
        word = following.folded
        if word in {"=", "["}:
            return None
        known = (
            word in answer_words().continuations
            or word in answer_words().ors
            or word in answer_words().negatives
        )
        if letter == "I" and re.match(
            r"think|would|believe|am|can|cannot|do|don't|have|will", word
        ):
            return None
        if known or (letter in self._letters and self._states_option(letter, token.end)):
            return letter
        return None

    def _states_option(self, letter: str, end: int, text: str | None = None) -> bool:
        rest = canonical(
            (self._text if text is None else text)[end : end + self._longest + 40].split("\n")[0]
        )
        option = self._options[self._letters.index(letter)]
        return bool(option) and rest.startswith(option)

    def _accept(
        self, tokens: Sequence[_Token], i: int, letter: str, negated: bool, starts: Sequence[int]
    ) -> tuple[str, int] | None:
        """Check what follows the letter: a second one, a contradiction, "is wrong"."""
        words = answer_words()
        following = tokens[i + 1 : i + 10]
        if negated:
            for j, token in enumerate(following[:5]):
                if token.folded in words.buts:
                    for k in range(i + j + 2, min(i + j + 6, len(tokens))):
                        if other := self._letter(tokens, k):
                            return self._accept(tokens, k, other, False, starts)
            return None
        if self._second_letter(tokens, i):
            return CONTRADICTORY, tokens[i].end
        rest = [t for t in following if t.text not in "().:"][:3]
        if rest and (
            (
                rest[0].folded in words.negatives
                and rest[0].folded not in {"not", "no", "nicht", "non"}
            )
            or (
                len(rest) > 1
                and rest[0].folded in words.fillers
                and rest[1].folded in words.negatives
            )
            or (rest[0].native and words.negative_part.search(self._native_tail(tokens[i].end)))
        ):
            return None
        if letter not in self._letters:
            placeholder = letter in "XYZ" and len(self._letters) < 20
            return None if placeholder else (CONTRADICTORY, tokens[i].end)
        line = self._text[tokens[i].end :].split("\n", 1)[0][: self._longest + 60]
        if (other_text := re.match(r" ?[).:,-]{1,3} {0,3}(.+)", line)) is not None:
            named = canonical(other_text[1])
            same = [k for k, o in enumerate(self._options) if o and named == o]
            if same and LETTERS[same[0]] != letter and len(same) == 1:
                return CONTRADICTORY, tokens[i].end
            if same:
                return letter, tokens[i].end + len(line)
        if starts:
            place = starts[0] if len(starts) < 2 else starts[-1]
            if (named_too := self._named(place, tokens[i].end)) and named_too[0] != letter:
                return None if len(canonical(self._text[place:][:3])) < 2 else named_too
        return letter, tokens[i].end

    def _native_tail(self, start: int) -> str:
        """The words that end a sentence after its letter, as in Japanese and Korean."""
        return re.split(r"[.,;!\n(]", self._folded[start : start + 16])[0]

    def _second_letter(self, tokens: Sequence[_Token], i: int) -> bool:
        """True if another letter is named with this one: "A or B", "A, B", "A/B"."""
        words = answer_words()
        joined = comma = False
        for j in range(i + 1, min(i + 8, len(tokens))):
            token = tokens[j]
            if token.text in "().'-" and not joined:
                continue
            if token.text in ",;/&+|":
                comma = comma or token.text in ",;"
                joined = joined or token.text not in ",;"
                continue
            if token.folded in words.ors:
                joined = True
                continue
            if not (joined or comma):
                return False
            if token.text in "(" or (token.folded in words.fillers and len(token.text) > 1):
                continue
            letter = token.text.translate(LOOK_ALIKES)
            if len(letter) != 1 or letter.upper() not in LETTERS:
                return False
            after = tokens[j + 1] if j + 1 < len(tokens) else None
            closing = after is None or after.text in "\n,.;:/&)}!]" or after.folded in words.ors
            if joined:
                clause = after is not None and (
                    after.folded in {"is", "was", "can", "would", "has", "does", "cannot", "isn't"}
                    or (letter == "I" and after.text.isalpha() and after.text.islower())
                    or (letter.islower() and not closing)
                )
                return not clause
            return closing and letter.isupper()
        return False

    def _named(self, start: int, end: int | None = None) -> tuple[str, int] | None:
        """Read an option's text that begins at `start`: its letter, and where the line ends."""
        stop = self._text.find("\n", start)
        stop = len(self._text) if stop < 0 else stop
        stop = min(stop, start + self._longest + 120)
        letter = self._by_text(self._text[start : stop if end is None else min(stop, end)])
        return None if letter is None else (letter, stop)

    def _by_text(self, line: str) -> str | None:
        """The option whose text is `line`, or how it begins before more words follow."""
        bare = canonical(line)
        if not bare:
            return None
        trailing = re.search(r"\(([a-z])\)?$|\(([a-z])\)", bare)
        if (same := self._same(bare)) is not None:
            return same
        begins = [
            (len(o), i)
            for i, o in enumerate(self._options)
            if o and bare.startswith(o) and self._ends_option(bare[len(o) :])
        ]
        if not begins:
            return None
        length = max(begins)[0]
        longest = [i for n, i in begins if n == length]
        if len(longest) > 1:
            return None
        rest = bare[length:].strip(" ,.;:")
        joined = rest.split(" ", 1)
        if (
            joined[0] in answer_words().ors
            and len(joined) > 1
            and self._same(joined[1]) is not None
        ):
            return CONTRADICTORY
        if trailing and length <= trailing.start():
            letter = (trailing[1] or trailing[2]).upper()
            if letter in self._letters and letter != LETTERS[longest[0]]:
                return CONTRADICTORY
        return LETTERS[longest[0]]

    def _ends_option(self, rest: str) -> bool:
        if re.match(r"[.,;:!)] |[;:!)]| \(| - ", rest + " "):
            return True
        word = re.match(r" ([^\W\d_]+)", rest)
        return bool(
            word and (word[1] in answer_words().continuations or word[1] in answer_words().ors)
        )

    def _same(self, bare: str) -> str | None:
        same = [i for i, o in enumerate(self._options) if o == bare]
        if not same:
            spaceless = bare.replace(" ", "")
            same = [i for i, o in enumerate(self._options) if o.replace(" ", "") == spaceless]
        if not same:
            same = [i for i, o in enumerate(self._without_unit()) if o == bare]
        return LETTERS[same[0]] if len(same) == 1 else None

    def _without_unit(self) -> list[str]:
        """The numbers of options that differ in nothing else: "5" for "5 m/s"."""
        split = [re.fullmatch(r"(-?\d[\d.,]*) ?(\D+)", o) for o in self._options]
        if any(s is None for s in split) or len({s[2] for s in split if s}) != 1:
            return []
        return [s[1] for s in split if s]

    def _tokens(self, start: int, count: int) -> Iterator[_Token]:
        place = start
        for _ in range(count):
            match = _TOKEN.search(self._text, place)
            if match is None:
                return
            yield _Token(match[0], self._folded[match.start() : match.end()], *match.span())
            place = match.end()
