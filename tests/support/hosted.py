"""Fakes of hosted upstreams, with certificates for the names of the real ones."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.certificates import make
from tools.envoy import Hosted
from tools.fake_upstream import Upstream, upstream

HOSTS = {
    "api.openai.com": ("openai", ("gpt-5-mini", "gpt-5")),
    "api.anthropic.com": ("anthropic", ("claude-haiku-4-5", "claude-sonnet-4-5")),
    "openrouter.ai": ("openrouter", ("qwen/qwen3-32b",)),
}
VLLM = ("meta-llama/Llama-3.3-70B-Instruct",)


@dataclass(frozen=True)
class RunningFakes:
    """Upstreams of tools.envoy.HOSTED. stops: name of an upstream -> what ends it."""

    hosted: Hosted
    stops: dict[str, ExitStack]

    def __getitem__(self, name: str) -> Upstream:
        """Return the upstream of that name."""
        every = (*self.hosted.by_host.values(), self.hosted.vllm)
        return next(each for each in every if each.name == name)

    def kill(self, name: str) -> None:
        """End an upstream and its connections."""
        self.stops[name].close()


@contextmanager
def hosted_fakes(folder: Path) -> Iterator[RunningFakes]:
    """Run the fakes; each knows its models and its key."""
    authority = make(folder, "authority")
    by_host, stops = {}, {}
    with ExitStack() as every:
        for host, (name, models) in HOSTS.items():
            pair = make(folder, name, authority, host=host)
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(pair.cert, pair.key)
            stops[name] = every.enter_context(ExitStack())
            fake = upstream(name, tls=tls, models=models, key=f"key-of-{name}")
            by_host[host] = stops[name].enter_context(fake)
        stops["vllm"] = every.enter_context(ExitStack())
        vllm = stops["vllm"].enter_context(upstream("vllm", models=VLLM))
        yield RunningFakes(Hosted(by_host, vllm, authority.cert), stops)
