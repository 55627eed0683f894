"""How fast an endpoint may be asked: so many requests at once, so many requests and tokens a minute.

What is allowed a minute is learned from the headers of its answers (x-ratelimit-limit-requests, -tokens); how many
at once, from its refusals: 429 makes it three quarters, and answers make it grow again, by four for each round.
Retry-After, and a remainder of 0 until its reset, stop everybody who asks this endpoint.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import Mapping

from aiolimiter import AsyncLimiter

BURST = 2.0
"""Seconds' worth of a minute's allowance that may be sent in one breath."""

GROWTH = 4
"""More requests at once, after as many answers as there are requests at once."""

LONGEST_PAUSE = 120.0
"""Seconds that a Retry-After is sat out."""


class Rate:
    """Args: the most requests at once. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._allowed = float(most)
        self._cut_at = -1.0
        self._requests: AsyncLimiter | None = None
        self._tokens: AsyncLimiter | None = None
        self.under_way = 0
        self.paused_until = 0.0  # of time.monotonic

    @property
    def has_room(self) -> bool:
        return self.under_way < max(1, int(self._allowed))

    @property
    def is_paused(self) -> bool:
        return time.monotonic() < self.paused_until

    async def wait(self, tokens: int) -> None:
        """Until one more request of so many tokens fits what is allowed a minute, and nobody asked for a pause."""
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))
        while self.is_paused:
            await asyncio.sleep(self.paused_until - time.monotonic())

    def answered(self, headers: Mapping[str, str]) -> None:
        self._allowed = min(self._most, self._allowed + GROWTH / self._allowed)
        self._learn(headers)

    def refused(self, headers: Mapping[str, str]) -> None:
        """429: fewer at once; those that were under way together count as one refusal."""
        now = time.monotonic()
        if now - self._cut_at > 1:
            self._allowed, self._cut_at = max(1.0, self._allowed * 3 / 4), now
        self._learn(headers)
        if (seconds := retry_after(headers)) is not None:
            self.pause(seconds)

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, time.monotonic() + min(seconds, LONGEST_PAUSE))

    def _learn(self, headers: Mapping[str, str]) -> None:
        self._requests = _limiter(self._requests, headers.get("x-ratelimit-limit-requests"))
        self._tokens = _limiter(self._tokens, headers.get("x-ratelimit-limit-tokens"))
        for kind in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
                self.pause(duration(headers.get(f"x-ratelimit-reset-{kind}", "")) or 0.0)


def _limiter(known: AsyncLimiter | None, a_minute: str | None) -> AsyncLimiter | None:
    """The limiter for so many a minute; the known one where that is what it does."""
    if a_minute is None or not a_minute.isdecimal() or not 0 < int(a_minute) < 10**9:
        return known
    rate = int(a_minute) * BURST / 60
    size, seconds = (rate, BURST) if rate >= 1 else (1.0, 60 / int(a_minute))
    if known is not None and (known.max_rate, known.time_period) == (size, seconds):
        return known
    return AsyncLimiter(size, seconds)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; of Retry-After in seconds or as a date, or of Retry-After-Ms."""
    exact, written = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if (seconds := _number(exact)) is not None:
        return seconds / 1000
    if (seconds := _number(written)) is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(written).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


_DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?")


def duration(written: str) -> float | None:
    """Seconds of "6m0s", "1.5s" or "20ms"; a bare number is seconds."""
    if (seconds := _number(written)) is not None:
        return seconds
    found = _DURATION.fullmatch(written)
    if not written or found is None:
        return None
    hours, minutes, seconds, thousandths = (float(found[name] or 0) for name in ("h", "m", "s", "ms"))
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


def _number(written: str) -> float | None:
    return float(written) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", written) else None
