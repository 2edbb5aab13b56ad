"""Write a software bill of materials (CycloneDX 1.6, JSON) from a lock.

python tools/sbom.py requirements/image.txt > dist/modelsat.cdx.json
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from engine import __version__

PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*)")


def read_components(lock: str) -> list[Component]:
    """Read the packages of a lock, with the sha256 of each file that it accepts."""
    return [
        Component(
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name.lower().replace("_", "-"), version),
            bom_ref=f"{name}=={version}",
            hashes=[
                HashType(alg=HashAlgorithm.SHA_256, content=value)
                for value in re.findall(r"[0-9a-f]{64}", hashes)
            ],
        )
        for name, version, hashes in PIN.findall(lock.replace("\\\n", ""))
    ]


def main() -> None:
    """Print the bill of one lock."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lock", type=Path, help="file of requirements/")
    components = read_components(parser.parse_args().lock.read_text(encoding="utf-8"))
    product = Component(
        name="modelsat", version=__version__, type=ComponentType.APPLICATION, bom_ref="modelsat"
    )
    bom = Bom(components=components)
    bom.metadata.component = product
    bom.register_dependency(product, components)
    print(JsonV1Dot6(bom).output_as_string(indent=1))


if __name__ == "__main__":
    main()
