"""Draw the terminal picture of the README: a real answer of the shipped model.

python -m tools.docs.readme_screenshot "If 3x + 7 = 22, what is x?" docs/images/route.svg
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from engine.cli.route import print_decision
from modelsat import Client
from tools.processes import serving

ROWS = 14  # that are shown


def main() -> None:
    """Route the text of the first argument, and write the picture to the second."""
    text, target = sys.argv[1:]
    console = Console(record=True, width=92, file=io.StringIO(), highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "candidates.sqlite"
        with serving(store) as server, Client(server.address) as client:
            for i in range(5):  # warm up, but not with this text
                client.route(f"{text} {i}")
            console.print(f'$ modelsat route "{text}"')
            decision = client.route(text)
            print_decision(replace(decision, ranking=decision.ranking[:ROWS]), console)
            console.print(f"({len(decision.ranking) - ROWS} candidates more)")
    svg = console.export_svg(title="modelsat")
    # rich refers to a web font on another host; any monospace font will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    Path(target).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
