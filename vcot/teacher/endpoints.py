"""The endpoints that share the work, by weight, each as fast as it allows; and no more at once than all may have.

OPENAI_BASE_URL and OPENAI_API_KEY are the client's own variables, and so are Azure's (AZURE_OPENAI_ENDPOINT,
AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN, OPENAI_API_VERSION). OPENAI_API_KEY goes to one host alone; each endpoint
at another one names the variable of its own key.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from vcot.errors import SettingsError
from vcot.redaction import learn
from vcot.teacher.addresses import Address, read_address
from vcot.teacher.endpoint import CONNECT, Endpoint
from vcot.teacher.rates import Rate

OPENAI_KEY = "OPENAI_API_KEY"


class Endpoints:
    """For one event loop.

    Args:
        endpoints: those that share the work.
        at_once: the most requests under way at all of them together.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, at_once: int) -> None:
        self.all, self.at_once = endpoints, at_once
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()
        self._now = 0.0  # what each endpoint was asked, over its weight

    @property
    def under_way(self) -> int:
        return sum(one.rate.under_way for one in self.all)

    @asynccontextmanager
    async def slot(self, tokens: int, at: str | None = None) -> AsyncIterator[Endpoint]:
        """An endpoint that may be asked now, and is counted as being asked; who came first is served first.

        Args:
            tokens: of the request and its reply, at most; they count against what is allowed a minute.
            at: the address that it must be; None: any.
        """
        async with self._turn:
            while not (free := [one for one in self._free() if at in (None, one.address)]):
                await self._change()
            chosen = min(free, key=lambda one: one.asked)
            self._now = max(self._now, chosen.asked)  # who was away for a while does not catch up all at once
            chosen.asked = self._now + 1 / chosen.weight
            chosen.rate.under_way += 1
        try:
            await chosen.rate.wait(tokens)
            yield chosen
        finally:
            chosen.rate.under_way -= 1
            self._changed.set()

    async def close(self) -> None:
        for endpoint in self.all:
            await endpoint.close()

    def _free(self) -> list[Endpoint]:
        if self.under_way >= self.at_once:
            return []
        return [one for one in self.all if one.rate.has_room and not one.rate.is_paused]

    async def _change(self) -> None:
        """Until a request came home or a pause is over."""
        self._changed.clear()
        ends = [one.rate.paused_until for one in self.all if one.rate.is_paused]
        try:
            async with asyncio.timeout(min(ends) - time.monotonic() if ends else None):
                await self._changed.wait()
        except TimeoutError:
            pass


def endpoints_of(written: Sequence[str], *, at_once: int, timeout: float) -> Endpoints:
    """Those that are written (`https://a/v1=2`), or the one that the client's own variables name.

    Args:
        timeout: seconds that one try may take.
    """
    if not written and os.environ.get("AZURE_OPENAI_ENDPOINT") and not os.environ.get("OPENAI_BASE_URL"):
        address = Address(os.environ["AZURE_OPENAI_ENDPOINT"], 1.0)
        one = Endpoint(address.url, _azure_client, Rate(at_once), weight=1.0, timeout=timeout)
        return Endpoints([one], at_once=at_once)
    base = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    addresses = [read_address(one) for one in written] or [Address(base, 1.0)]
    hosts, home = {_host(one.url) for one in addresses}, _host(base)
    for each in addresses:
        if each.key is None and len(hosts) > 1 and _host(each.url) != home:
            raise SettingsError(
                f"--endpoints: which key is for {each.url}? Write NAME@{each.url} with the variable that holds it; "
                f"OPENAI_API_KEY is for {home} (OPENAI_BASE_URL), and no other vendor should learn it"
            )
    return Endpoints(
        [
            Endpoint(
                one.url, partial(_client, one), Rate(at_once), weight=one.weight, timeout=timeout,
                key=one.key or OPENAI_KEY,
            )
            for one in addresses
        ],
        at_once=at_once,
    )  # fmt: skip


def _host(url: str) -> str | None:
    """None for what is no address; its client says so when it is made."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _client(address: Address) -> openai.AsyncOpenAI:
    url, name = address.url, address.key or OPENAI_KEY
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"OPENAI_BASE_URL={url}: it should begin with http:// or https://")
    key = os.environ.get(name, "")
    if not key:
        raise SettingsError(
            f"{name} is not set; give the key of the teacher's endpoint (any word where it asks for none)"
        )
    _check_key(name, key)
    try:
        return openai.AsyncOpenAI(
            api_key=key, base_url=url, max_retries=0, timeout=_TIMEOUT, http_client=_http(),
            default_headers=None if address.key in (None, OPENAI_KEY) else _headers(key),
        )  # fmt: skip
    except (httpx2.InvalidURL, ValueError) as error:
        raise SettingsError(f"OPENAI_BASE_URL={url}: it is no address ({error})") from error


def _headers(key: str) -> Any:
    """Of an endpoint with a key of its own: nothing of what the environment gives the client for OpenAI's."""
    custom = (line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines())
    unsent = {name: openai.Omit() for name in ("OpenAI-Organization", "OpenAI-Project", *filter(None, custom))}
    return unsent | {"Authorization": f"Bearer {key}"}


def _azure_client() -> openai.AsyncOpenAI:
    if key := os.environ.get("AZURE_OPENAI_API_KEY"):
        _check_key("AZURE_OPENAI_API_KEY", key)
    try:
        return openai.AsyncAzureOpenAI(max_retries=0, timeout=_TIMEOUT, http_client=_http())
    except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
        raise SettingsError(f"AZURE_OPENAI_ENDPOINT={os.environ['AZURE_OPENAI_ENDPOINT']}: {error}") from error


_TIMEOUT = httpx2.Timeout(None, connect=CONNECT)  # a whole try is timed by the endpoint


def _http() -> httpx2.AsyncClient:
    """The client's own choice of aiohttp, which takes a third less CPU for a request."""
    return openai.DefaultAioHttpClient(timeout=_TIMEOUT)


def _check_key(name: str, key: str) -> None:
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise SettingsError(
            f"{name} of {len(key)} characters holds one that no key has (a line break at its end, perhaps)"
        )
    learn(key)
