"""Register and delete a candidate while a server routes, and show that it is chosen in between.

make demo
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from engine.api.policy import Policy
from engine.registry.catalog import read_catalog
from modelsat import Client
from tools.processes import BUNDLE, serving

NEWCOMER = Path(__file__).parent / "candidates" / "calculus-tutor.json"
MATHEMATICS = (
    "If 3x + 7 = 22, what is x?",
    "Find the limit of (1 - cos x) / x^2 as x approaches 0.",
)
OTHERS = (
    "Is a verbal contract for the sale of land enforceable?",
    "Which treaty ended the Thirty Years' War?",
    "A patient presents with fever, a stiff neck and photophobia. What is the likely diagnosis?",
)
INSTRUCTIONS = MATHEMATICS + OTHERS
CONNECTIONS = 4


class Load(threading.Thread):
    """Routes continuously until stopped; counts decisions by revision, keeps the first error."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._halt = stop
        self.revisions: Counter[int] = Counter()
        self.error: Exception | None = None

    def run(self) -> None:
        """See threading.Thread."""
        try:
            with Client(self._address) as client:
                while not self._halt.is_set():
                    self.revisions[client.route("Hi").revision] += 1
        except Exception as error:  # noqa: BLE001 - any failure is reported at the end
            self.error = error


def show(client: Client, policy: Policy) -> list[str]:
    """Route INSTRUCTIONS, print each choice, return the chosen ids."""
    chosen = []
    for text in INSTRUCTIONS:
        decision = client.route(text, policy)
        best = decision.ranking[0]
        chosen.append(decision.selected)
        print(f"  {chosen[-1]:26} p {best.probability:.3f}   {text}")
    return chosen


def main() -> int:
    """Run the demo; returns 1 if the newcomer was chosen wrongly or a call failed."""
    (newcomer,) = read_catalog(NEWCOMER)
    policy = Policy("willingness_to_pay_usd", 0.001)  # at which the cheap specialist beats the best
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "candidates.sqlite"
        with serving(store, bundle=BUNDLE) as server, Client(server.address) as client:
            print(server.printed().strip())
            print("\nThe candidates, highest probability:")
            before = show(client, policy)
            stop = threading.Event()
            loads = [Load(server.address, stop) for _ in range(CONNECTIONS)]
            for load in loads:
                load.start()
            client.create_candidate(newcomer)
            print(f"\n{newcomer.id} registered while {CONNECTIONS} connections route:")
            during = show(client, policy)
            client.delete_candidate(newcomer.id)
            print(f"\n{newcomer.id} deleted:")
            after = show(client, policy)
            stop.set()
            for load in loads:
                load.join()
    return verdict(newcomer.id, before, during, after, loads)


def verdict(
    newcomer: str, before: list[str], during: list[str], after: list[str], loads: list[Load]
) -> int:
    """Print whether the newcomer was chosen for mathematics only, and only while registered."""
    decisions = sum((load.revisions for load in loads), Counter[int]())
    failed = [load.error for load in loads if load.error is not None]
    print(
        f"\n{decisions.total()} calls in the meantime, {len(failed)} failed;"
        f" by revision {dict(sorted(decisions.items()))}"
    )
    expected = [newcomer] * len(MATHEMATICS)
    only_mathematics = (
        during[: len(expected)] == expected and newcomer not in during[len(expected) :]
    )
    if failed or not only_mathematics or newcomer in before + after:
        print(f"error: chosen {before} / {during} / {after}; failed: {failed}", file=sys.stderr)
        return 1
    print(f"{newcomer} was chosen for mathematics only, and only while it was registered.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
