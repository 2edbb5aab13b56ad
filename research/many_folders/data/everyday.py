"""Generate everyday prompts that hardly any model fails; no data set is used.

    python -m research.many_folders.data.everyday --out FILE

The templates cover twelve languages: facts, small talk, rewriting, simple code, arithmetic,
extraction. They have no measured outcomes. Training assumes success
(research/many_folders/run.py), because
benchmarks leave out what every model can do. Test prompts are written separately and only measure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

# names, cities, things, tongues: words. countries, training: by language. test: whole prompts.
TEMPLATES = json.loads(Path(__file__).with_name("everyday_templates.json").read_text("utf-8"))
TEST: list[str] = TEMPLATES["test"]


def made(count: int, seed: int = 0) -> list[str]:
    """`count` distinct prompts from the templates."""
    random = np.random.default_rng(seed)

    def one(words: list[str]) -> str:
        return str(words[random.integers(len(words))])

    training = TEMPLATES["training"]
    tongues, found = list(training), dict[str, None]()
    for _ in range(20 * count):
        tongue = "en" if random.random() < 0.3 else one(tongues)
        text = one(training[tongue]).format(
            country=one(TEMPLATES["countries"][tongue]),
            tongue=one(TEMPLATES["tongues"]),
            name=one(TEMPLATES["names"]),
            city=one(TEMPLATES["cities"]),
            thing=one(TEMPLATES["things"]),
            n=random.integers(2, 90),
            m=random.integers(2, 90),
        )
        found[text] = None
        if len(found) == count:
            break
    return list(found)


def main() -> None:
    """Write a JSON object of `train` and `test` prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1500)
    arguments = parser.parse_args()
    prompts = {"train": made(arguments.count), "test": TEST}
    text = json.dumps(prompts, ensure_ascii=False, indent=0)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(len(prompts["train"]), len(TEST))


if __name__ == "__main__":
    main()
