"""How the work on an ask goes: turns that only tell the model to go on, and results that failed.

Both are read from the words of people and programs, so they are good guesses, not facts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from engine.api.conversation.conversation import ConversationTurn
from engine.api.conversation.harness import human_text

RECENT_RESULTS = 10  # of tools, among which failures count: an old failure says little
MAX_REPLY_CHARS = 100  # a longer turn says more than to go on
HEAD_CHARS, TAIL_CHARS = 1_000, 2_000  # of a result; programs say at the end how they ended

# A turn of these words alone, at least one of them of the first line, asks for nothing new.
_GO_ON = frozenset(
    (
        *("continue", "proceed", "resume", "go", "ahead", "carry", "keep", "yes", "yep", "yeah"),
        *("ok", "okay", "sure", "approved", "confirmed", "lgtm", "y", "retry", "again", "finish"),
    )
)
_FILLERS = frozenset(
    (
        *("please", "on", "going", "working", "do", "it", "that", "this", "now", "then", "and"),
        *("thanks", "thank", "you", "try", "next", "step", "with", "the", "task", "work", "from"),
        *("where", "left", "off", "we", "were", "so", "just", "sounds", "good", "great", "perfect"),
        *("fine", "let's", "lets", "your", "implementation", "plan", "same", "way", "more", "all"),
        *("good,", "right", "is", "looks", "nice", "cool", "pls", "to", "i", "agree", "remaining"),
    )
)
_GO_ON_ELSEWHERE = """
    weiter|mach weiter|bitte weiter|weitermachen|fahr fort|fortfahren|ja|ja bitte|nochmal
    continuez|continuer|poursuis|poursuivez|vas-y|oui|oui vas-y|encore|d'accord
    continúa|continua|continuar|sigue|sigue adelante|adelante|sí|si|de acuerdo
    prossiga|prosseguir|continue por favor|sim|avanti|prosegui|procedi|sì|va bene
    ga door|ga verder|verder|doorgaan|fortsätt|fortsett|fortsæt|jatka|kyllä
    kontynuuj|dalej|tak|pokračuj|ano|pokračovať|folytasd|igen|continuă|da
    продолжай|продолжайте|продолжи|дальше|давай|да|хорошо|продовжуй|так|далі
    devam|devam et|evet|tamam|tiếp tục|tiếp|lanjut|lanjutkan|teruskan|ya
    继续|请继续|继续吧|接着|好|好的|是|是的|可以|繼續|請繼續|好的，继续|没问题
    続けて|続けてください|続き|はい|お願いします|계속|계속해|계속하세요|계속해줘|네|예
    जारी रखें|जारी रखो|हाँ|ठीक है|استمر|أكمل|تابع|نعم|ادامه بده|بله|המשך|תמשיך|כן|ต่อ|ดำเนินการต่อ|ใช่
"""
_COMPLAINT = re.compile(
    r"(?:no|nope|hmm|sorry|but|ok|oh)?[,. ]*"
    r"(?:it|that|this|still|the same|same|now it|it's|its|that's|you)?[ ]*"
    r"(?:is |still |just |also |does |did |has |got )*"
    r"(?:(?:not|n't|doesn't|didn't|does not|did not|isn't|don't) ?(?:seem to )?"
    r"(?:work\w*|fix\w*|help\w*|pass\w*|compil\w*|right|correct|build\w*)"
    r"|fail\w*|broken|wrong|incorrect|the same error|same error|same (?:problem|issue|result)"
    r"|an? error|crash\w*|errors?)"
    r"(?: (?:it|again|here|for me|yet|at all|either|now|that|the (?:error|issue|problem)))*"
    r"(?:[,. ]+(?:please )?(?:fix it|fix that|try again|try something else|again))?",
    re.IGNORECASE,
)
_EXIT_STATUS = re.compile(
    r"(?:exit(?:ed)?[ _-]?(?:with )?(?:status|code|value)?|return[ _-]?code|returncode"
    r"|exit status)[\"']?[:= >]{1,3}[\"']?(?:code |status )?(-?\d{1,10})\b",
    re.IGNORECASE,
)
_DIED = ("returned non-zero exit", "command not found", "terminated by signal")
# At the beginning of a line, where a program that fails writes them; in code that was read they are
# elsewhere.
_FAILURE = re.compile(
    r"""^[ \t]{0,8}(?:E[ \t]{1,6})?(?:
        Traceback\ \(most\ recent\ call\ last\)
      | (?:[A-Za-z_]\w{0,60}\.){0,6}[A-Z]\w{0,60}(?:Error|Exception):\ [^\n]
      | <(?:tool_use_)?error>
      | (?:fatal|panic|error|failed|failure|uncaught)(?:\[\w{1,20}\])?:\ [^\n]
      | error\ TS\d{1,5}
      | npm\ (?:ERR!|error)
      | (?:BUILD|BUILDING|COMPILATION|TESTS?)\ FAILED
      | FAILED(?:\ [\w./(\[:-]|$)
      | ---\ FAIL:
      | Segmentation\ fault
      | ={2,60}[ \t].{0,80}\b[1-9]\d{0,6}\ (?:failed|errors?)\b
      | (?:Tests|Test\ Suites):\ .{0,80}\b[1-9]\d{0,6}\ failed
      | test\ result:\ FAILED
      | (?:make|ninja|gmake)(?:\[\d{1,3}\])?:\ \*\*\*
      | (?:[\w./-]{1,60}:\ ){1,3}(?:No\ such\ file|cannot\ |command\ not
            |Permission\ denied|not\ found)
      )""",
    re.MULTILINE | re.VERBOSE,
)
_FIRST_LINE = re.compile(
    r"\s{0,40}(?:an? )?(?:error|exception|failed|failure|the tool (?:call )?failed)\b(?!s? = )",
    re.IGNORECASE,
)


_ELSEWHERE = frozenset(
    phrase.strip() for line in _GO_ON_ELSEWHERE.split("\n") for phrase in line.split("|")
) - {""}


def goes_on(text: str) -> bool:
    """Return True if a human's turn only tells the model to go on, or that the work failed."""
    if len(text) > MAX_REPLY_CHARS:
        return False
    said = _words(text)
    if not said:
        return bool(text.strip())  # a sign or an emoji
    if said in _ELSEWHERE:
        return True
    words = said.replace(",", " ").split()
    is_going_on = all(word in _GO_ON or word in _FILLERS for word in words)
    return (is_going_on and not _GO_ON.isdisjoint(words)) or complains(text)


def complains(text: str) -> bool:
    """Return True if a human's turn only says that the last answer did not work."""
    return len(text) <= MAX_REPLY_CHARS and _COMPLAINT.fullmatch(_words(text)) is not None


def recent_failures(turns: Sequence[ConversationTurn], asked_at: int) -> int:
    """Count what failed since the ask at a position: the last RECENT_RESULTS results of tools, and
    turns in which the human says so."""
    failed, results = 0, 0
    for turn in reversed(turns[asked_at + 1 :]):
        if results == RECENT_RESULTS:
            break
        if turn.role == "tool":
            results += 1
            failed += turn.failed or any(is_failure(part) for part in turn.parts)
        elif turn.role == "user":
            failed += complains(human_text(turn.parts))
    return failed


def is_failure(result: str) -> bool:
    """Return True if a tool's result says that the tool, or the program that it ran, failed."""
    read = result
    if len(result) > HEAD_CHARS + TAIL_CHARS:
        read = f"{result[:HEAD_CHARS]}\n{result[-TAIL_CHARS:]}"
    folded = read.lower()  # plain searches first: patterns that ignore case are slow
    if ("exit" in folded or "return" in folded) and (statuses := _EXIT_STATUS.findall(read)):
        return int(statuses[-1]) != 0
    return (
        any(words in folded for words in _DIED)
        or _FAILURE.search(read) is not None
        or _FIRST_LINE.match(read) is not None
    )


def _words(text: str) -> str:
    """Return the words of a short text, in lower case, without signs at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    kept = "".join(
        c if c.isalnum() or c in " ',-" or unicodedata.combining(c) else " " for c in folded
    )
    return " ".join(kept.split()).strip(" ,-'")
