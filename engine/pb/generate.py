"""Generate this package from proto/; `--check` says whether it is up to date.

python -m engine.pb.generate [--check]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
TARGET = ROOT / "engine" / "pb"
PACKAGES = ("modelsat/v1", "envoy/service/ext_proc/v3", "envoy/service/accesslog/v3")


def generate(folder: Path) -> dict[str, str]:
    """File name -> content of every generated module, for use as `engine.pb.*`."""
    from grpc_tools import protoc

    sources = sorted(str(p) for package in PACKAGES for p in (PROTO / package).glob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    flags = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *flags, *sources])
    if code:
        raise SystemExit(f"protoc failed with exit code {code}")
    # protoc names modules by their .proto path; the descriptors keep it, only the imports move.
    return {
        p.name: p.read_text(encoding="utf-8").replace(
            f"from {package.replace('/', '.')} import", "from engine.pb import"
        )
        for package in PACKAGES
        for p in sorted((folder / package).iterdir())
        if not p.name.endswith("_grpc.py") or "Servicer" in p.read_text(encoding="utf-8")
    }


def main() -> None:
    """Write the generated modules, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
    stale = [
        name
        for name, content in files.items()
        if not (TARGET / name).is_file() or (TARGET / name).read_text("utf-8") != content
    ]
    if check and stale:
        sys.exit(f"engine/pb is not what proto/ says: {stale}; run `make proto`.")
    if not check:
        for name in stale:
            (TARGET / name).write_text(files[name], encoding="utf-8")
        print(f"{len(stale)} of {len(files)} files written")


if __name__ == "__main__":
    main()
