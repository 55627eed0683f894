"""Named benchmarks. A new one is one file beside this one that makes a Suite, and a line in the table below."""

from __future__ import annotations

from collections.abc import Iterable

from vcot.evaluation.suites import grounded_reasoning, multiple_choice, pope, refcoco, viscot
from vcot.evaluation.suites.base import Marked, Published, SetResult, Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        viscot.SUITE,
        refcoco.SUITE,
        multiple_choice.AOKVQA,
        multiple_choice.SCIENCEQA,
        pope.SUITE,
        grounded_reasoning.SUITE,
    )
}
"""By the name that --suite takes."""


def suites_named(names: Iterable[str]) -> tuple[Suite, ...]:
    """Each once, in their order. Raises ValueError: one is not known."""
    wanted = tuple(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in SUITES]:
        raise ValueError(f"no such suite: {', '.join(unknown)}; there are {', '.join(SUITES)}")
    return tuple(SUITES[name] for name in wanted)
