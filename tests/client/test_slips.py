"""Likely slips of a caller are named, and hints of any form are taken."""

from __future__ import annotations

import argparse

import pytest

from engine.api.policy import MAX_SESSION_CHARS, session_name
from engine.cli.aptitude_flags import add_arguments, candidate_from
from engine.client.channel import Credentials, check_address, is_local
from modelsat import AsyncClient, Client, InvalidInputError, ModelsatClientError, Session
from tools.processes import Server

PROXY = "http://user:secret@127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost", "has no port"),
        ("127.0.0.1", "has no port"),
        ("router.example:", "has no port"),
        ("::1", "has no port"),
        ("http://localhost:50051", "is a URL"),
        ("https://router.example", "is a URL"),
        ("localhost:grpc", "has the port 'grpc'"),
        ("localhost:70000", "has the port '70000'"),
        ("localhost:50051\n", "white space"),
        ("", "is empty"),
        ("\0", "has no port"),
        ("a b\n", "white space"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_is_wrong(address: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match="expected HOST:PORT") as refused:
        Client(address)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("unix:/run/router", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("router.example:443", False),
        ("localhost.example:443", False),
    ],
)
def test_loopback_addresses_are_known_in_every_form(address: str, loopback: bool) -> None:
    check_address(address)
    assert is_local(address) is loopback


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_loopback_target_never_goes_through_a_proxy(
    shared_server: Server, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, PROXY)
    with Client(shared_server.address) as client:
        assert client.route("Is the way direct?").selected


def test_an_error_names_the_proxy_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    with (
        Client("router.example:443", 5, retries=False) as client,
        pytest.raises(ModelsatClientError, match=r"proxy 127\.0\.0\.1:9") as failed,
    ):
        client.route("Hi")
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("abc\n", "line break"),
        ("abc\r\n", "line break"),
        ("a\nb", "line break"),
        ("Bearer abc", "a space"),
        ("ключ", "beyond printable ASCII"),
    ],
)
def test_what_is_wrong_with_a_token_is_named_without_it(token: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match="token: has") as refused:
        Credentials(token=token)
    assert words in str(refused.value)
    assert token.strip() not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "identifier"),
    [("Qwen/千问7B", "qwen-7b"), ("Élan 2", "elan-2"), ("gpt-4o", "gpt-4o")],
)
def test_a_model_in_another_script_gets_an_id_of_its_ascii_letters(
    model: str, identifier: str
) -> None:
    assert candidate_from(flags(model)).id == identifier


@pytest.mark.parametrize("model", ["千问", "ГигаЧат", "하이퍼클로바", "..."])
def test_a_model_without_ascii_letters_needs_an_id(model: str) -> None:
    with pytest.raises(InvalidInputError, match="--id: is not set"):
        candidate_from(flags(model))
    assert candidate_from(flags(model, "--id", "own-id")).id == "own-id"


def flags(model: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    prices = ("--input-usd-per-million", "1", "--output-usd-per-million", "2")
    return parser.parse_args(
        [f"--model={model}", "--base-url=http://127.0.0.1:1/v1", *prices, *more]
    )


NAMES = ["s" * 5000, "имя сессии" * 40, "\ud800", "🧵" * 200, "a\0b", " turn 1 ", "", "   "]


@pytest.mark.parametrize("name", NAMES)
async def test_a_session_of_any_name_is_taken_by_both_clients(
    shared_server: Server, name: str
) -> None:
    session = Session(name)
    with Client(shared_server.address) as client:
        first = client.route("Name three rivers.", session=session)
    async with AsyncClient(shared_server.address) as client:
        second = await client.route("Name three rivers.", session=session)
    known = bool(name.strip())
    assert first.selected == second.selected
    assert second.kind == ("session_affinity" if known else "ranked")


def test_session_names_are_of_bounded_size_and_do_not_collide() -> None:
    long = ["s" * 5000 + end for end in ("a", "b", "c")]
    names = {session_name(each) for each in long}
    assert len(names) == 3
    assert all(len(name) <= MAX_SESSION_CHARS for name in names)
    assert session_name(" a ") == session_name("a") == "a"
