"""The software bill of materials lists what the image installs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tools.processes import ROOT


def test_bill_lists_every_package_of_the_image_with_its_hashes() -> None:
    lock = ROOT / "requirements" / "image.txt"
    command = [sys.executable, "-m", "tools.sbom", str(lock)]
    bill = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    pins = re.findall(r"^(\S+)==(\S+)", lock.read_text(encoding="utf-8"), re.M)
    assert {(c["name"], c["version"]) for c in bill["components"]} == set(pins)
    assert all(c["hashes"] and c["purl"].startswith("pkg:pypi/") for c in bill["components"])
    (product,) = (d for d in bill["dependencies"] if d["ref"] == "modelsat")
    assert len(product["dependsOn"]) == len(pins)
