"""Write an example of a file of candidates, with every field and the names of all tasks."""

from __future__ import annotations

import json
import tomllib

from engine.datasets.known_tasks import load_task_keywords

HEAD = """\
# Candidates for `modelsat candidates create FILE`, and for `modelsat serve --catalog FILE`.
# Keep what you know and delete the rest: what is left out is unknown, and is never guessed.
# JSON and YAML with the same fields are read as well.

[[candidates]]
id = "my-model"                    # name in decisions: 1 to 63 of a-z 0-9 . _ -
display_name = "My Model, hosted by Example"
context_window = 128000            # tokens
input_usd_per_million = 0.5        # list price in US dollars per million input tokens
output_usd_per_million = 1.5
price_source = "example.com/pricing, 2026-11-27"
mean_output_tokens = 400           # of an answer; if it is unknown, costs are computed with 400
cached_input_usd_per_million = 0.05  # of input tokens from the provider's prompt cache
time_to_first_token_ms = 600       # for policies with max_latency_ms
output_tokens_per_s = 80           # after the first one
features = ["json_mode", "tools"]  # what requests can ask for; words of your own are fine
# A candidate that answers in some APIs only lists them too, such as "openai.chat" and
# "anthropic.messages"; without one of them it gets requests of every API.
modalities = ["image"]             # in addition to text: image, audio, video, file
regions = ["eu"]
tags = ["production"]

# How good it is: any of the tasks below, and tasks of your own. Each has the share of questions
# that it answered correctly, and how many there were. Tasks that are left out get what is usual
# for a candidate of this level.
[candidates.aptitude]
college_mathematics = [0.55, 40]
professional_law = [0.48, 120]
"invoices and receipts" = [0.70, 30]
"""
TAIL = """\

# A model without a test of your own: what was published of it. Both kinds can be given together.
# The benchmarks are listed in docs/how-to/onboard-a-candidate.md.
[[candidates]]
id = "published-model"
context_window = 200000
input_usd_per_million = 3.0
output_usd_per_million = 15.0

[[candidates.figures]]
benchmark = "mmlu_pro"
accuracy = 0.84
source = "https://example.com/model-card"
date = "2026-03-01"

[[candidates.figures]]
benchmark = "gpqa_diamond"
accuracy = 0.78
source = "https://example.com/model-card"
date = "2026-03-01"
"""
FORMS = ("toml", "json")


def template(form: str = "toml") -> str:
    """Return the example. form: one of FORMS; JSON has no comments, so it lists no further task."""
    given = tomllib.loads(HEAD)["candidates"][0]["aptitude"]
    others = "".join(f"# {t} = [0.5, 20]\n" for t in load_task_keywords() if t not in given)
    text = HEAD + others + TAIL
    if form == "json":
        return json.dumps(tomllib.loads(text), indent=1) + "\n"
    return text
