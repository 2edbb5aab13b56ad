"""500 instructions of many kinds, made from templates: short and long, easy and hard."""

from __future__ import annotations

import random

LISTS = {
    "name": "Mara Tomas Irina Piet Yuki Olga Sven Amina Luca Noor",
    "place": "Lisbon Oslo Cairo Lima Hanoi Tbilisi Quito Tallinn Accra Bergen",
    "thing": "apples bolts tickets lemons stamps bricks candles jars",
    "language": "Python Rust Go TypeScript SQL Bash Haskell C",
    "tongue": "French Finnish Swahili Korean Polish Arabic",
    "field": "inflation photosynthesis entropy encryption tectonics insulin zoning turbulence",
    "reader": "child lawyer farmer nurse physicist beginner",
    "function": "sin exp log tanh sqrt arctan",
    "task": "reverse-a-list merge-files rotate-logs validate-an-IBAN parse-dates find-cycles",
    "job": "electrician midwife baker surveyor translator pilot",
}
TEMPLATES = (
    "{name} has {n} {thing} and gives {name} every third one. How many {thing} are left?",
    "Prove that {n}^k - 1 is divisible by {m} for infinitely many k, or show why it is not.",
    "What is the derivative of x^{m} * {function}({n}x)?",
    "Write a {language} program to {task}.",
    "My {language} code to {task} is slow for {n}000 rows. What should I change, and why?",
    "Why does {task} in {language} fail on an empty input?",
    "What is the capital of the country of {place}?",
    "Explain {field} to a {reader} in {m} sentences.",
    'Translate into {tongue}: "{name} will not come to {place} before Monday."',
    "Write an email to {name} that declines an invitation to {place}.",
    "A patient aged {n} has fatigue and a sodium of 12{m}. A) SIADH B) Addison C) heart failure?",
    "May a landlord in {place} keep a deposit of {n} euros because of {thing} on the floor?",
    "Summarize: {long}",
    "Which is larger, {m}^{n} or {n}^{m}? Do not use a calculator.",
    "Suggest a dinner for {m} people from {place}.",
    "Return JSON with all dates in: met {name} on 3.{m}.2019, paid on {m} May.",
    "A {m} kg block slides down a slope of {n} degrees. How fast is it after {m} metres?",
    "Name {m} rivers near {place}, longest first.",
    "Rewrite politely: {name}, your {thing} are late again and I am tired of it.",
    "What does a {job} earn in {place}, and what do they need to learn first?",
    "Hi {name}!",
    "How many permutations of {n} {thing} leave exactly {m} in place?",
    "Compare {field} and {field} for a {reader}.",
    "Is the argument valid: all {thing} are round, {name} is round, so {name} is one of them?",
    "Give {m} headlines about {field} for a {reader} in {place}.",
    "Find the eigenvalues of [[{m}, 1], [{n}, {m}]].",
    "Plan {m} days in {place} with a {reader} who dislikes {thing}.",
    "Which {language} library would you take for {field}, and why not another?",
    "Write a poem of {m} lines about {thing} in {place}.",
    "Refactor {task} in {language} so that {name} can test it without a database.",
    "Derive the variance of {n} draws without replacement, {m} of them {thing}.",
    "What happened in {place} in 18{n}?",
)


def mixed_prompts(count: int = 500, seed: int = 0) -> list[str]:
    """Return instructions, the same ones for a seed."""
    draw = random.Random(seed)

    def filled(template: str) -> str:
        text = template
        while "{" in text:
            before, _, rest = text.partition("{")
            field, _, after = rest.partition("}")
            text = before + value(field) + after
        return text

    def value(field: str) -> str:
        if field == "long":
            days = range(1, draw.randint(3, 50))
            return " ".join(f"Day {i}: {draw.randint(20, 90)} miles." for i in days)
        if field in "nm":
            return str(draw.randint(2, 9) if field == "m" else draw.randint(10, 99))
        return draw.choice(LISTS[field].split()).replace("-", " ")

    return [filled(TEMPLATES[i % len(TEMPLATES)]) for i in range(count)]
