"""Texts that no data folder holds: everyday prompts, others that look alike, and no prompts at all.

Shapes: none; everything is lists of texts.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
COPIES = 3  # of a prompt with places to fill
NAMES = ("Anna", "Ben", "Chen", "David", "Emma", "Julia", "Leo", "Maria", "Nina", "Omar", "Yuki")
CITIES = ("Berlin", "Cairo", "Lisbon", "London", "Madrid", "Oslo", "Rome", "Seoul", "Toronto")
COUNTRIES = (
    *("Brazil", "Canada", "Egypt", "France", "Germany", "Greece", "India", "Ireland", "Italy"),
    *("Japan", "Kenya", "Mexico", "Norway", "Peru", "Poland", "Spain", "Thailand", "Turkey"),
)
THINGS = ("apples", "bags", "books", "chairs", "cups", "keys", "lamps", "pens", "shirts", "tickets")
PLACES = (("{name}", NAMES), ("{city}", CITIES), ("{country}", COUNTRIES), ("{thing}", THINGS))


def read_prompts(path: Path) -> list[str]:
    """Read a file of one prompt a line, in which "\\n" is a line break and "#" begins a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.replace("\\n", "\n") for line in lines if line and not line.startswith("#")]


def everyday_prompts(seed: int = 0) -> list[str]:
    """Return the everyday prompts for training, those with places to fill COPIES times."""
    draw, found = random.Random(seed), dict[str, None]()  # noqa: S311 - no secret
    for prompt in read_prompts(HERE / "everyday.txt"):
        for _ in range(COPIES if "{" in prompt else 1):
            filled = prompt.replace("{n}", str(draw.randrange(3, 90)))
            filled = filled.replace("{m}", str(draw.randrange(3, 90)))
            for place, words in PLACES:
                filled = filled.replace(place, draw.choice(words))
            found[filled] = None
    return list(found)


def other_prompts() -> list[str]:
    """Return prompts that look like everyday ones and are harder."""
    return read_prompts(HERE / "other.txt")


def unusual_texts(seed: int = 0) -> list[str]:
    """Return texts that are no instructions: random bytes in several codings, logs and dumps."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    texts = []
    for length in (30, 80, 200, 600, 2000):
        for _ in range(8):
            content = draw.randbytes(length)
            texts += [
                content.decode("latin-1"),
                content.decode("utf-8", "replace"),
                content.hex(),
                base64.b64encode(content).decode(),
                "".join(chr(draw.randrange(0x100, 0x3000)) for _ in range(length // 4)),
            ]
    makers = (_service_line, _access_line, _kernel_line, _json_line, _trace_lines, _csv_line)
    for make in makers:
        for lines in (4, 15, 60, 1500):
            texts += ["\n".join(make(draw) for _ in range(lines)) for _ in range(4)]
    return texts


def _time(draw: random.Random) -> str:
    hour, minute, second = draw.randrange(24), draw.randrange(60), draw.randrange(60)
    return f"{hour:02}:{minute:02}:{second:02}"


def _service_line(draw: random.Random) -> str:
    level, part = draw.choice(("INFO", "WARN", "ERROR")), draw.choice(("http", "db", "auth", "job"))
    event = draw.choice(("request finished", "connection reset", "cache miss", "retrying in 5 s"))
    day, number = draw.randrange(10, 29), draw.randrange(16**8)
    return f"2026-05-{day}T{_time(draw)}Z {level} [{part}-{number % 16}] {event} id={number:08x}"


def _access_line(draw: random.Random) -> str:
    address = ".".join(str(draw.randrange(256)) for _ in range(4))
    path, status = draw.choice(("login", "api/items", "app.js")), draw.choice((200, 301, 404, 500))
    return f'{address} - - [12/Mar/2026:{_time(draw)} +0000] "GET /{path} HTTP/1.1" {status} 512'


def _kernel_line(draw: random.Random) -> str:
    name, number = draw.choice(("kernel", "sshd", "systemd", "cron")), draw.randrange(99999)
    event = draw.choice(("Started session", "link is up", "Out of memory: killed process"))
    return f"Mar {draw.randrange(10, 29)} {_time(draw)} host{number % 9} {name}[{number}]: {event}"


def _json_line(draw: random.Random) -> str:
    level, event = draw.choice(("info", "warn")), draw.choice(("scrape failed", "leader elected"))
    return json.dumps({"ts": draw.random() * 1e9, "level": level, "msg": event})


def _trace_lines(draw: random.Random) -> str:
    name, line = "".join(draw.choices("abcdefgh", k=5)), draw.randrange(900)
    return f'  File "/srv/{name}.py", line {line}, in {draw.choice(("run", "load", "save"))}'


def _csv_line(draw: random.Random) -> str:
    return ",".join(f"{draw.random() * 1000:.4f}" for _ in range(8))
