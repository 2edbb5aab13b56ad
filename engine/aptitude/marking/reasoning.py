"""Cut the reasoning that some models show before their answer, in the notations of their templates.

A section that is closed is cut. One that was opened and not closed is a reply that ended while the
model was still thinking: it holds no answer, whatever it says.

Notations (W: think, thinking, thought, reasoning and the like):

    <W> ... </W>, also with a prefix (<seed:think>), with attributes, and as &lt;W&gt;
    [W] ... [/W]                                       Mistral
    ◁W▷ ... ◁/W▷                                       Kimi
    <|begin_of_W|> ... <|end_of_W|>, <|START_W|> ...   OpenThinker, Cohere, and others
    <|channel|>analysis ... <|channel|>final           the harmony format, also without its tokens
    <|channel>W ... <channel|>, <unused94> ... <unused95>   Gemma
    Here is my thought process: ... Here is my response:    Granite
    Here are my reasoning steps: ... [BEGIN FINAL RESPONSE] Apriel
    <start_working_out> ... <end_working_out>          recipes of reinforcement learning
    Thinking... ... ...done thinking.                       the command line of Ollama
    <details type="reasoning"> ... </details>               chat front ends
    <work> ... </work>                                      prompts that ask for a working
    **Thinking:** ... **Answer:**                           headings in Markdown
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORD = (
    r"(?:ant|deep|[a-z]{1,20}_)?think(?:ing)?(?:_\w{1,60})?|internal(?:_\w{1,20})?|scratch|思考|推理"
    r"|thoughts?|thought_process|reason(?:ing)?(?:_content)?"
    r"|analysis|reflection|scratch_?pad|inner_monologue|cot|chain_of_thought|deliberation"
    r"|(?:scratch_?)?work(?:ings?)?|plan(?:ning)?|brainstorm(?:ing)?|ponder(?:ing)?|cogitation"
)
_BRACKETED = r"(?:assistant_)?think(?:ing)?|thoughts?|reasoning|思考|推理"
# Every alternative begins with a literal, and no repetition is open-ended: time is linear.
_MARKERS = re.compile(
    rf"< ?(?P<tag_end>/?) ?(?:[a-z]{{1,12}}:)?(?:{_WORD})(?:\s[^<>]{{0,80}})?>"
    rf"|<[|｜](?:{_BRACKETED})_(?P<side>start|begin|end)[|｜]>"
    rf"|<[|｜](?P<token_end>/|end_?(?:of_?)?|)(?:begin_?(?:of_?)?|start_?(?:of_?)?)?"
    rf"(?:{_WORD})[|｜]>"
    r"|<[|｜](?P<channel>channel)[|｜]>\s{0,8}(?P<channel_name>[a-z]{1,20})"
    rf"|<[|｜]channel>\s{{0,8}}(?P<gemma>{_WORD}|final)"
    r"|(?P<gemma_end><channel[|｜]>)"
    r"|<unused(?P<unused>9[45])>"
    rf"|[\[{{【](?P<bracket_end>/?)(?:{_BRACKETED})[\]}}】]"
    rf"|[◁⟨〈《](?P<triangle_end>/?)(?:{_WORD})[▷⟩〉》]"
    r"|(?P<response><[|｜](?:begin_?(?:of_?)?|start_?(?:of_?)?)(?:solution|response|answer)[|｜]>"
    r"|\[begin final response\]|<response>)"
    r"|here(?P<spoken>'s|’s| is| are)(?: is)? my (?P<spoken_of>thought process|thinking process"
    r"|reasoning(?: steps| process)?|response):"
    r"|<details\s[^<>]{0,80}?type=[\"']?(?P<details>reasoning|thinking)[^<>]{0,80}>"
    r"|(?P<summary><details>\s{0,9}<summary>[^<]{0,40}(?:thinking|reasoning|thought)[^<]{0,40}<)"
    r"|(?P<details_end></details>)"
    r"|(?P<fence>```(?:thinking|thought|think|reasoning)\b)|(?P<fence_end>```)"
    r"|<(?P<working>start|end)_working_out>"
    r"|(?P<done>\.\.\.\s?done thinking\.)"
)
_KIND = re.compile(
    "think|thought|internal|思考|推理|reason|analysis|reflection|scratch|inner|cot|chain|deliber"
    "|plan|brainstorm|ponder|cogit|work"
)
# Every marker has one of these words.
_HINTS = (
    *("think", "thought", "reason", "analysis", "reflection", "scratch", "inner", "internal"),
    *("cot>", "cot|", "cot]", "cot▷", "<cot", "chain_of", "deliber", "思考", "推理", "channel"),
    *("<unused9", "solution", "response", "answer|", "answer｜"),
    *(
        "<work",
        "</work",
        "work>",
        "working>",
        "<plan",
        "planning>",
        "brainstorm",
        "ponder",
        "cogitation",
        "working_out",
    ),
)
_LEADING = re.compile(r"\s*(?:thinking\.\.\.\s*\n|(?P<harmony>analysis)(?=[A-Z]))", re.IGNORECASE)
# A heading such as **Thinking:** or ## Thought process, at the beginning of a reply.
_HEADED = r"(?:my )?(?:thinking|thoughts?|(?:thought|thinking) process|internal monologue|working)"
_HEADING = re.compile(
    rf"\s{{0,20}}(?:(?:\*\*|__){_HEADED}[ \t]{{0,9}}:?[ \t]{{0,9}}(?:\*\*|__):?"
    rf"|#{{1,6}}[ \t]+{_HEADED}[ \t]{{0,9}}:?[ \t]{{0,9}}(?:\n|$))",
    re.IGNORECASE,
)
# The next heading, or a line such as "Answer: C".
_NEXT_HEADING = re.compile(
    r"^[ \t]{0,3}(?:(?:\*\*|__)[^*_\n]{1,60}(?:\*\*|__)|#{1,6}[ \t]"
    r"|[^\W\d_]{2,20}(?: [^\W\d_]{2,20})?[ \t]?[:：=][ \t]{0,3}[(*]{0,3}[A-Z]\b)",
    re.MULTILINE,
)
_CONCLUSION = re.compile(
    r"\n\n\s{0,20}(?:(?:(?:so|thus|therefore|hence),? )?(?:the |my )?"
    r"(?:final |correct |best )?(?:answer|choice|option)\b|\(?[A-Z]\)?[.):]?\s*$|\\boxed)",
    re.IGNORECASE,
)
_HARMONY_FINAL = "assistantfinal"
_OUTER_TOKENS = re.compile(
    r"<[|｜](?:end_?of_?(?:solution|response|answer|text|turn)|end_?(?:response|answer)|start"
    r"|end|return|message|channel|im_end|eot_id|endoftext)[|｜]>|<end_of_turn>|</s>"
    r"|\[end final response\]|</response>",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Marker:
    """family: of the notation. kind: "open", "close", or "answer", which closes all sections."""

    start: int
    end: int
    family: str
    kind: str


def without_reasoning(reply: str) -> str | None:
    """Cut the reasoning sections of `reply`; None if one was opened and never closed.

    The text before a closing mark that nothing opened is reasoning too: some chat templates write
    the opening mark themselves.
    """
    text = reply.replace("&lt;", "<").replace("&gt;", ">") if "&lt;" in reply else reply
    text = text.replace("＜", "<").replace("＞", ">") if "＜" in text else text
    if (heading := _HEADING.match(text)) is not None:
        begin = _end_of_headed(text, heading.end())
        if begin < 0:
            return None
        text = text[begin:]
    leading = _LEADING.match(text)
    if leading and leading["harmony"] and text[leading.end("harmony")].isupper():
        final = text.lower().rfind(_HARMONY_FINAL)
        return None if final < 0 else text[final + len(_HARMONY_FINAL) :]
    opened = ["ollama"] if leading and not leading["harmony"] else []
    visible: list[str] = []
    position = leading.end() if opened and leading else 0
    for marker in _markers(text):
        if marker.kind == "open":
            if not opened:
                visible.append(text[position : marker.start])
            if marker.family not in opened:
                opened.append(marker.family)
        elif marker.kind == "answer":
            visible, opened = [], []
        elif marker.family in opened:
            del opened[opened.index(marker.family) :]
        elif opened or marker.family in {"details", "fence"}:
            continue
        else:
            visible = []
        position = marker.end
    if opened:
        return None
    return _OUTER_TOKENS.sub(" ", "".join([*visible, text[position:]]))


def _end_of_headed(text: str, at: int) -> int:
    """Return where a section under a heading ends: at the next heading, or at a last paragraph
    that begins as an answer does; -1 if there is neither."""
    if (following := _NEXT_HEADING.search(text, at)) is not None:
        return following.start()
    paragraphs = text.rstrip()
    start = paragraphs.rfind("\n\n")
    if start > at and paragraphs[at:start].strip() and _CONCLUSION.match(paragraphs, start):
        return start
    return -1


def _markers(text: str) -> Iterator[_Marker]:
    lowered = text.lower()
    if len(lowered) != len(text):  # one character in all of Unicode grows when lowered
        lowered = text.translate({0x130: "i"}).lower()
    if not any(word in lowered for word in _HINTS):  # most replies; far faster than the search
        return
    for match in _MARKERS.finditer(lowered):
        named = match.groupdict()
        family, kind = match.lastgroup or "", "open"
        if (name := named["channel_name"]) is not None:
            family, kind = "harmony", "answer" if name == "final" else "open"
        elif (name := named["gemma"]) is not None:
            family, kind = "gemma", "answer" if name == "final" else "open"
        elif named["gemma_end"] is not None:
            family, kind = "gemma", "close"
        elif named["unused"] is not None:
            family, kind = "unused", "open" if named["unused"] == "94" else "close"
        elif named["response"] is not None:
            kind = "answer"
        elif named["spoken"] is not None:
            family, kind = "spoken", "answer" if named["spoken_of"] == "response" else "open"
            if lowered[max(0, match.start() - 9) : match.start()].split("\n")[-1].strip(" *#"):
                continue  # in the middle of a sentence
        elif named["details"] is not None or named["details_end"] is not None:
            family, kind = "details", "open" if named["details"] else "close"
        elif named["summary"] is not None:
            family = "details"
        elif named["fence"] is not None or named["fence_end"] is not None:
            family, kind = "fence", "open" if named["fence"] else "close"
        elif named["side"] is not None:
            family, kind = "token", "close" if named["side"] == "end" else "open"
        elif named["working"] is not None:
            family, kind = "working", "open" if named["working"] == "start" else "close"
        elif named["done"] is not None:
            family, kind = "ollama", "close"
        else:
            family, kind = _pair(match)
        yield _Marker(match.start(), match.end(), family, kind)


def _pair(match: re.Match[str]) -> tuple[str, str]:
    """Read a marker of a pair such as <think> and </think>: its family and kind."""
    for name in ("tag_end", "token_end", "bracket_end", "triangle_end"):
        if (closing := match[name]) is not None:
            word = _KIND.search(match[0])
            # thinking, thought and think close each other: models mix them up.
            group = word[0] if word else ""
            group = "think" if group == "thought" else group
            return f"{name}:{group}", "close" if closing else "open"
    raise AssertionError(match)
