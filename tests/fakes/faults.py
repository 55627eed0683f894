"""Faults of a teacher, planted by chance: the same seed, the same faults, whatever the order of the requests.

scripted_teacher(faulty(grounded, share=0.2, seed=1))
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say

FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "429": lambda _: Refuse(429, "slow down", retry_after="0.05"),
    "500": lambda _: Refuse(500),
    "closed": lambda _: CLOSE,
    "half a body": lambda good: replace(good, cut=True),
    "no JSON": lambda good: replace(good, body=b"<html>Bad gateway"),
}
"""What may happen to a good answer on its way, and passes."""

USELESS = {
    "malformed JSON": '{"answer": "x"',
    "wrong boxes": "I see the [1] at [31, 83, 188, 292].",
    "nothing": "",
}
"""What a teacher may say that is of no use."""


def faulty(script: Callable[[Asked], Answer], *, share: float, seed: int, most: int = 3) -> Callable[[Asked], Answer]:
    """The script's answers, of which a share meets with a fault on its way; the same request at most `most` times."""
    met: Counter[str] = Counter()
    lock = threading.Lock()

    def answer(asked: Asked) -> Answer:
        name = json.dumps(asked.body["messages"][-1]["content"][-1])
        with lock:
            met[name] += 1
            chance = random.Random(f"{seed} {name} {met[name]}")
        good = script(asked)
        if met[name] > most or chance.random() >= share:
            return good
        return FAULTS[chance.choice(list(FAULTS))](good)

    return answer


def useless(script: Callable[[Asked], Answer], says: str) -> Callable[[Asked], Answer]:
    """The script's answers, but the first to each question is of no use."""
    seen: set[str] = set()

    def answer(asked: Asked) -> Answer:
        if asked.question in seen:
            return script(asked)
        seen.add(asked.question)
        return Say(says)

    return answer


def limited(script: Callable[[Asked], Answer], *, requests: int, tokens: int) -> Callable[[Asked], Answer]:
    """The script's answers, with the headers that say what is allowed a minute."""
    headers = {"x-ratelimit-limit-requests": str(requests), "x-ratelimit-limit-tokens": str(tokens)}
    return lambda asked: replace(script(asked), headers=headers)
