"""Marking: what counts as an answer, in which order, in which notation, and what does not."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.aptitude.answers import extract, read_answer
from engine.aptitude.marking.reasoning import without_reasoning

SPEEDS = ("5 m/s", "6 m/s", "7.5 m/s", "8 m/s")
CITIES = ("Paris", "London", "Rome", "The right of way")

LINE_BEFORE_BOX = [
    "So v = $\\boxed{7.5}$.\n\nThe answer is C",
    "$$\\boxed{7.5\\ \\text{m/s}}$$\n\nThe answer is C.",
    "We get \\boxed{A} in other units.\n\n**Answer: C**",
    "The answer is C.\n\nAs a check, \\boxed{6 m/s} is what the average gives.",
    "\\fbox{5 m/s} is the start.\nTherefore, the correct option is (C).",
    "Final answer: C\nThe box \\boxed{B} only restates the given speed.",
]
BOXES = [
    r"$\boxed{\textbf{(C)}\ 7.5}$",
    r"\boxed{\text{C}}",
    r"\boxed{\mathbf{C}}",
    r"Thus \fbox{C}.",
    r"\boxed{\boxed{C}}",
    r"\boxed{{C}}",
    r"\boxed{\text{The answer is } \mathrm{C}}",
    r"\boxed{7.5}",
    r"\boxed{7.5\,\mathrm{m/s}}",
    r"\boxed{\text{C. } 7.5\ \text{m/s}}",
    "<answer>C</answer>",
    "Hence.\n<final_answer>(C)</final_answer>",
    "[[C]]",
    "#### C",
    "<|begin_of_box|>C<|end_of_box|>",
]
NOTATIONS = [
    r"The answer is \(C\).",
    "The answer is $C$.",
    "The answer is \u200bC",
    "The answer is\u00a0C",
    "The answer is Ｃ",
    "The answer is Ⓒ.",
    "The answer is 🅒.",
    "The answer is 𝐂.",
    "The answer is ⒞",
    "The answer is С.",  # Cyrillic
    "**Answer - C**",
    "Answer – C",
    "*Answer:* `C`",
    "The answer is “C”.",
    "The answer is «C».",
    "The answer is 【C】",
    "The answer is [C].",
    "__C__",
    "> C",
    "### Answer\n\n**C**",
    "Answer → C",
    "Therefore, C.",
    "It's C.",
    "so v = 7.5 m/s (C).",
    "7.5 m/s",
    "The answer is 7.5 m/s.",
    "C because the distance is 15 m",
    "C 7.5 m/s",
    "I think C",
    "C. 7.5 m/s\n\nReasoning: ...\nA. 5 m/s is too slow.\nB. 6 m/s is too slow",
    "C\n\nExplanation: the distance divided by the time.",
    "**C) 7.5 m/s**\n\nA) and B) ignore the slope.",
    '{"answer": "C"}',
    '```json\n{"reasoning": "the answer is A at first", "answer": "C"}\n```',
    '{"answer": {"letter": "C", "text": "7.5 m/s"}}',
    '{"final_answer": ["C"], "confidence": 0.9}',
    "The answer is not A but C.",
    "The answer is C, not B.",
    "The answer is C rather than B.",
    "A is wrong. C is correct.",
    "My final choice: C",
    "The best answer to this question is C.",
    "Answer=C",
    "final_answer = (C)",
    "answer==C",
    "Respuesta=C",
    "答案=C",
    "the third option, C",
    "The correct answer is the third option.",
    "I would go with the 3rd choice (C).",
    "Die dritte Option, C",
    "Réponse : la troisième option",
    "[ANSWER]C[/ANSWER]",
    "ANSWER: C,",
    "Antwort:\n\nAntwort: C",
    "Answer: Let's think step by step. The slope is 3.\nAnswer: C",
]
# What follows an answer is a question that the model asked itself.
RUN_ON = [
    "C\n\nQuestion: How fast is the train?\nA. 5 m/s\nB. 6 m/s\nAnswer: A",
    "Answer: C\n\nQ: How fast is the train?\nAnswer: B",
    "The answer is C.\n\n**Question 2:** Which one is faster?\n\nThe answer is A.",
    "<answer>C</answer>Human: In a school there are 30 pupils.\n<answer>B</answer>",
    "Answer: C\nUser: And now?\nAnswer: D",
]
LANGUAGES = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))
NO_CHOICE = [
    "The answer is A or C.",
    "Answer: A, C",
    "Answer: A/C",
    "Answer: A;C",
    "Answer: A | C",
    "答えはCではない",
    "정답은 C가 아닙니다",
    "A resposta não é C.",
    "答案可能是C",
    "The answer is A & C.",
    *LANGUAGES["several"],
    "答案是A和C",
    r"\boxed{A}, \boxed{C}",
    r"\boxed{A, C}",
    '{"answer": ["A", "C"]}',
    '{"answer": "A", "final_answer": "C"}',
    "The answer is not C.",
    "C is wrong.",
    "Option C is incorrect.",
    "答案不是C",
    "Ответ не C.",
    "La respuesta no es C.",
    "The answer is C?",
    "If the answer is C, the speed would be negative.",
    "The wrong answer is C.",
    "I don't think the answer is C.",
    "The answer is G.",
    "The answer is C. 5 m/s",
    "Answer: A prime number divides the distance.",
    "Ответ: В этом случае скорость растёт.",
    "Answer: I don't know.",
    "Answer: C++ is needed here.",
    "The answer depends on whether C holds.",
    "5 m/s or 7.5 m/s",
    "(C) (D)",
    "Answer = A + C",
    "The answer is the third option, B.",
    "The answer is the ninth option.",
    "The first option that fits is hard to find.",
    "Let me check each option.\nA: no\nB: no\nC: yes\nD: no",
    "Answer: None of the above",
    "A. 5 m/s\nB. 6 m/s\nC. 7.5 m/s\nD. 8 m/s",
    "I cannot help with that.",
    r"\boxed{",
    r"\boxed{C",
    "",
]
THINKING = [
    ("<think>", "</think>"),
    ("<THINKING>", "</THINKING>"),
    ('<reasoning effort="high">', "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<analysis>", "</analysis>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("Here is my thought process:\n", "\nHere is my response:\n"),
    ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    ("Thinking...\n", "\n...done thinking.\n"),
    ("analysisWe look. ", "assistantfinal"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("＜think＞", "＜/think＞"),
    ("{think}", "{/think}"),
    ("【思考】", "【/思考】"),
    ("<internal_monologue>", "</internal_monologue>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<deepthink>", "</deepthink>"),
    ("<planning>", "</planning>"),
    ("<start_working_out>", "<end_working_out>"),
    ("〈think〉", "〈/think〉"),
    ("<|think_start|>", "<|think_end|>"),
    ("```thinking\n", "\n```\n"),
    ("<details>\n<summary>Thinking</summary>\n", "</details>\n"),
    ('<details type="reasoning" done="true">', "</details>"),
    ("<work>", "</work>"),
    ("<workings>\n", "\n</workings>\n"),
    ("<scratch_work>", "</scratch_work>"),
    ("**Thinking:** ", "\n\n**Answer:** "),
    ("**Thinking**\n\n", "\n\n**Final answer**\n\n"),
    ("## Thought process\n", "\n## Answer\n"),
    ("__My thinking__: ", "\n\n"),
]


@pytest.mark.parametrize("reply", LINE_BEFORE_BOX)
def test_the_line_that_was_asked_for_comes_before_boxes(reply: str) -> None:
    assert extract(reply, SPEEDS) == "C"


@pytest.mark.parametrize("reply", BOXES)
def test_boxes_and_tags_are_read_with_balanced_braces(reply: str) -> None:
    assert extract(reply, SPEEDS) == "C"
    assert extract(f"At first the answer is A, it seems.\n{reply}", SPEEDS) == "C"


@pytest.mark.parametrize("reply", NOTATIONS)
def test_typographic_forms_are_read(reply: str) -> None:
    assert extract(reply, SPEEDS) == "C"


@pytest.mark.parametrize("reply", LANGUAGES["one"].values(), ids=LANGUAGES["one"])
def test_languages_are_read(reply: str) -> None:
    assert extract(reply, SPEEDS) == "C"
    assert extract(f"7.5 = 15 / 2\n\n**{reply}**\n", SPEEDS) == "C"


@pytest.mark.parametrize("reply", RUN_ON)
def test_an_answer_to_a_question_of_the_models_own_does_not_count(reply: str) -> None:
    assert extract(reply, SPEEDS) == "C"


def test_a_question_that_is_repeated_before_the_answer_is_no_end() -> None:
    assert extract("Let me restate it.\nQuestion: How fast?\nThe answer is C.", SPEEDS) == "C"


@pytest.mark.parametrize("reply", NO_CHOICE)
def test_what_chooses_nothing_or_several_is_unreadable(reply: str) -> None:
    reading = read_answer(reply, SPEEDS)
    assert reading.letter is None
    assert reading.problem


def test_the_text_of_an_option_is_a_choice() -> None:
    replies = {
        "The answer is Rome.": "C",
        "Rome, because the treaty was signed there.": "C",
        "The answer is the right of way.": "D",
        "The answer is Paris or Rome.": None,
        "Answer: Rome (A)": None,
        "Rome": "C",
    }
    assert {reply: extract(reply, CITIES) for reply in replies} == replies


@pytest.mark.parametrize(("opening", "closing"), THINKING)
def test_closed_reasoning_is_cut_and_open_reasoning_is_no_answer(
    opening: str, closing: str
) -> None:
    thought = "At first sight the answer is A. But let me"
    assert extract(f"{opening}{thought}", SPEEDS) is None
    assert extract(f"{opening}{thought}\n\\boxed{{B}}\nThe answer is B.", SPEEDS) is None
    assert extract(f"{opening}{thought}{closing}The answer is C.", SPEEDS) == "C"
    assert extract(f"{opening}The answer is A.{closing}I cannot say.", SPEEDS) is None


def test_sections_that_overlap_or_lack_an_opening_mark() -> None:
    assert extract("perhaps A</think>\nC", SPEEDS) == "C"
    assert extract("<think>a<think>b</think>c</think>The answer is C", SPEEDS) == "C"
    assert extract("<reasoning><think>A</think> Answer: A", SPEEDS) is None
    assert extract("The answer is C.\n<think>Let me check: A</think>", SPEEDS) == "C"
    assert without_reasoning("no sections at all") == "no sections at all"


HOSTILE = [
    lambda n: "\\boxed{" + " " * n + "x",
    lambda n: "\\boxed{" * (n // 7),
    lambda n: "{" * n,
    lambda n: "The answer is " * (n // 14),
    lambda n: "<think>" * (n // 7),
    lambda n: "<" * n,
    lambda n: "[" * n,
    lambda n: "A or " * (n // 5),
    lambda n: "(" * n + "A" + ")" * n,
    lambda n: "\n" * n + "A.",
    lambda n: "答案" * (n // 2),
    lambda n: "ﷺ" * n,
    lambda n: "a\u0301\u0316" * (n // 3),
    lambda n: "here is my " * (n // 11),
    lambda n: "<details " * (n // 9),
    lambda n: '{"answer":' * (n // 10),
    lambda n: "answer " + "to the " * (n // 7),
    lambda n: "A is correct? " * (n // 14),
    lambda n: "<|channel|>" * (n // 11),
    lambda n: "Ⓒ" * n,
    lambda n: "# Thinking" + " " * n + "x",
    lambda n: "**Thought process" + "\t" * n + "x",
    lambda n: "__Working" + " :" * (n // 2) + " " * n,
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_marking_takes_time_linear_in_the_reply(hostile: object) -> None:
    """Processor time of a reply eight times as long, against super-linear growth (64 and more)."""

    def seconds(length: int) -> float:
        reply = hostile(length)  # type: ignore[operator]
        taken = []
        for _ in range(3):
            begun = time.process_time()
            extract(reply, SPEEDS)
            taken.append(time.process_time() - begun)
        return min(taken)

    seconds(8_000)
    assert seconds(128_000) < 32 * max(seconds(16_000), 0.002)


SIGNS = [*"ABCDEFI.,:;()[]{}\\$*\n \"'<>?", *"是不答选", *"ВСв", "\u200b", "Ⓒ", "7.5"]
PHRASES = "\\boxed{|answer|The answer is |is|or|not|the |<think>|</think>|correct|option "
WORDS = st.sampled_from([*SIGNS, *PHRASES.split("|")])


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map("".join)))
def test_marking_never_raises_and_names_only_options(reply: str) -> None:
    letter = extract(reply, SPEEDS)
    assert letter is None or letter in "ABCD"


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        alphabet=st.characters(exclude_categories=("Lu", "Ll", "Lt", "So", "No", "Lo")), max_size=80
    )
)
def test_text_without_letters_never_becomes_an_answer(reply: str) -> None:
    assert extract(reply, ("one", "two", "three", "four")) is None


def test_an_answer_survives_any_text_before_it() -> None:
    random.seed(5)
    parts = [
        "We add 2 and 3. ",
        "Option A says 5. ",
        "x = \\frac{1}{2} ",
        "B is too small. ",
        "\n\n",
    ]
    for letter in "ABCD":
        before = "".join(random.choices(parts, k=30))
        assert extract(f"{before}\nThe answer is {letter}.", SPEEDS) == letter
