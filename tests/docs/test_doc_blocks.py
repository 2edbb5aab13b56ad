"""Blocks are read as pages mark them, and a block that fails is never taken for one that worked."""

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
shown, not run
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


def test_a_server_that_names_no_address_is_awaited_on_the_default_port() -> None:
    assert Block(1, "make serve SERVE='--extproc-address 127.0.0.1:50052'").ports == (50051, 50052)
    assert Block(1, "modelsat serve --address 127.0.0.1:50071").ports == (50071,)


def test_a_page_is_one_shell(tmp_path: Path) -> None:
    with shell(tmp_path, tmp_path, os.environ) as running:
        running.run(Block(1, "word=kept; cd /\n"), 10)
        running.run(Block(2, f'echo "$PWD $word" > {tmp_path}/said\n'), 10)
    assert (tmp_path / "said").read_text() == "/ kept\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("false\necho went on\n", "status 1"),
        ("false | cat\n", "status 1"),
        ("exit 3\n", "status 3"),
        ("echo seen; sleep 60\n", "not done after"),
    ],
)
def test_a_block_that_fails_is_an_error_with_its_output(
    tmp_path: Path, text: str, said: str
) -> None:
    with (
        shell(tmp_path, tmp_path, os.environ) as running,
        pytest.raises(BlockFailedError, match=said) as error,
    ):
        running.run(Block(1, text), 0.5)
    assert "\nwent on\n" not in str(error.value).partition("ends with")[2]


def test_what_stays_is_awaited_and_stopped(tmp_path: Path) -> None:
    port = free_port()
    listen = f"sleep 0.3\npython3 -m http.server --bind 127.0.0.1 {port} # 127.0.0.1:{port}\n"
    with shell(tmp_path, tmp_path, os.environ) as running:
        running.run(Block(1, listen, background=True), 20)
        with pytest.raises(BlockFailedError, match=f"port {port}"):
            require_free([Block(1, listen, background=True)])
    require_free([Block(1, listen, background=True)])


def test_what_should_stay_and_ends_is_an_error(tmp_path: Path) -> None:
    text = f"echo no such thing; exit 1 # 127.0.0.1:{free_port()}\n"
    with (
        shell(tmp_path, tmp_path, os.environ) as running,
        pytest.raises(BlockFailedError, match="ended before it was ready") as error,
    ):
        running.run(Block(1, text, background=True), 30)
    assert "no such thing" in str(error.value)


def test_a_page_starts_nothing_on_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        page = [Block(7, f"modelsat serve --address 127.0.0.1:{port}", background=True)]
        with pytest.raises(BlockFailedError, match=f"line 7: something listens on port {port}"):
            require_free(page)
