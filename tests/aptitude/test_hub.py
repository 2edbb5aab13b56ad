"""Questions of the Hugging Face hub: Parquet in their real columns, from a hub served here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from examples.fake_llm import make_questions
from tools.processes import ROOT

pyarrow = pytest.importorskip("pyarrow", reason="the extra aptitude is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_mmlu(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """cais/mmlu: answer is a class label, a number."""
    return [
        {
            "question": row["text"].split("\n")[0],
            "subject": row["mmlu_subject"],
            "choices": [line[3:] for line in row["text"].split("\n")[1:]],
            "answer": "ABCD".index(row["answer"]),
        }
        for row in rows
    ]


def as_mmlu_pro(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """TIGER-Lab/MMLU-Pro: the subject is in src, where the question came from MMLU."""
    return [
        {
            "question_id": i,
            "question": row["question"],
            "options": row["choices"],
            "answer": "ABCD"[row["answer"]],
            "answer_index": row["answer"],
            "cot_content": "",
            "category": "other",
            "src": f"ori_mmlu-{row['subject']}" if i % 2 else "stemez-Physics",
        }
        for i, row in enumerate(as_mmlu(rows))
    ]


@contextmanager
def hub(dataset: str, files: dict[str, bytes]) -> Iterator[str]:
    """The two calls that the hub's client makes: what there is, and a file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            name = path.split(f"/datasets/{dataset}/resolve/")[-1].partition("/")[2]
            name = name.replace("%2F", "/")
            listing = {"id": dataset, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            if path.startswith(f"/api/datasets/{dataset}"):
                tree = [
                    {"type": "file", "path": f, "size": len(c), "oid": COMMIT}
                    for f, c in files.items()
                ]
                content = json.dumps(tree if "/tree/" in path else listing).encode()
            elif name in files:
                content = files[name]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("dataset", "file", "expected"),
    [
        ("cais/mmlu", "all/test-00000-of-00001.parquet", 2 * 6),
        ("TIGER-Lab/MMLU-Pro", "data/test-00000-of-00001.parquet", 2 * 3),
    ],
)
def test_hub_data_set_is_read(dataset: str, file: str, expected: int, tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = make_questions(["anatomy", "astronomy"], 6)
    shaped = as_mmlu(rows) if "cais" in dataset else as_mmlu_pro(rows)
    hidden = {**shaped[1], "answer": -1 if "cais" in dataset else "Z"}  # a test's answer withheld
    table = pyarrow.Table.from_pylist([*shaped, hidden])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    content = (tmp_path / "test.parquet").read_bytes()
    files = {"README.md": b"", "dev/dev-00000-of-00001.parquet": b"", file: content}
    command = [
        sys.executable,
        "-m",
        "engine.cli.main",
        "aptitude",
        "run",
        "--model",
        "x",
        "--dry-run",
    ]
    command += ["--base-url", "http://127.0.0.1:9/v1", "--questions", dataset]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        whole = [*command, *more]
        return subprocess.run(
            whole, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
        )

    with hub(dataset, files) as url:
        environ = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")}
        done = run()
        missing = run("--questions", "no-such/set")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: --questions: no-such/set could not be read")
    assert f"{expected} questions to x" in done.stdout, done.stdout + done.stderr
