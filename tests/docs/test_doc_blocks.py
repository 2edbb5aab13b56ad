"""Blocks are read with their marks, and a block that fails is always reported."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tools.docs.doc_blocks import Block, BlockFailedError, blocks, require_free, shell
from tools.processes import free_port

PAGE = """# Title

```bash
one
two
```

- in a list:

    <!-- background -->
    ```bash
    serve --port 8001
    ```

<!-- not run: needs a cluster -->
```bash
kubectl
```

````text
```bash
displayed, not run
```
````

```python
print()
```
"""


def test_blocks_are_read_with_their_marks() -> None:
    first, second, third = blocks(PAGE)
    assert first == Block(3, "one\ntwo\n")
    assert (second.background, second.ports) == (True, (8001,))
    assert third.not_run == "needs a cluster"


@pytest.mark.parametrize("mark", ["<!-- not run: -->", "<!-- not run -->", "<!-- backgruond -->"])
def test_a_mark_without_a_reason_or_meaning_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(f"{mark}\n```bash\nls\n```\n")


def test_a_server_without_an_address_is_expected_on_the_default_port() -> None:
    assert Block(1, "make serve SERVE='--extproc-address 127.0.0.1:50052'").ports == (50051, 50052)
    assert Block(1, "modelsat serve --address 127.0.0.1:50071").ports == (50071,)


def test_the_blocks_of_a_page_share_one_shell(tmp_path: Path) -> None:
    with shell(tmp_path, tmp_path, os.environ) as running:
        running.run(Block(1, "word=remembered; cd /\n"), 10)
        running.run(Block(2, f'echo "$PWD $word" > {tmp_path}/output\n'), 10)
    assert (tmp_path / "output").read_text() == "/ remembered\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("false\necho went on\n", "status 1"),
        ("false | cat\n", "status 1"),
        ("exit 3\n", "status 3"),
        ("echo seen; sleep 60\n", "not done after"),
    ],
)
def test_a_failing_block_is_an_error_with_its_output(
    tmp_path: Path, text: str, message: str
) -> None:
    with (
        shell(tmp_path, tmp_path, os.environ) as running,
        pytest.raises(BlockFailedError, match=message) as error,
    ):
        running.run(Block(1, text), 0.5)
    assert "\nwent on\n" not in str(error.value).partition("ends with")[2]


def test_a_background_block_is_awaited_and_stopped(tmp_path: Path) -> None:
    port = free_port()
    listen = f"sleep 0.3\npython3 -m http.server --bind 127.0.0.1 {port} # 127.0.0.1:{port}\n"
    with shell(tmp_path, tmp_path, os.environ) as running:
        running.run(Block(1, listen, background=True), 20)
        with pytest.raises(BlockFailedError, match=f"port {port} of"):
            require_free([Block(1, listen, background=True)])
    require_free([Block(1, listen, background=True)])


def test_a_background_block_that_ends_is_an_error(tmp_path: Path) -> None:
    text = f"echo no such thing; exit 1 # 127.0.0.1:{free_port()}\n"
    with (
        shell(tmp_path, tmp_path, os.environ) as running,
        pytest.raises(BlockFailedError, match="ended before it was ready") as error,
    ):
        running.run(Block(1, text, background=True), 30)
    assert "no such thing" in str(error.value)


def test_a_page_is_refused_if_its_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        page = [Block(7, f"modelsat serve --address 127.0.0.1:{port}", background=True)]
        with pytest.raises(BlockFailedError, match=f"line 7: port {port} "):
            require_free(page)
