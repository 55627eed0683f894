"""A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718) and ScienceQA (Lu et al. 2022, arXiv 2209.09513): the right choice.

An answer names an option by its letter or its text; anything else is wrong, and so is no answer. Neither has boxes.
"""

from __future__ import annotations

from vcot import answers
from vcot.evaluation.suites.base import Suite
from vcot.records import Sample

SHOWN = ("answer_score", "unreadable")


def choice(answer: str | None, sample: Sample) -> float | None:
    """1 for the right option; None: the sample has no choices, so that nothing can be chosen.

    A-OKVQA accepts answers that people gave directly, too. Here they count only where they are an option.
    """
    if not sample.choices:
        return None
    chosen = None if answer is None else answers.letter(answer, sample.choices)
    return float(chosen is not None and chosen == answers.letter(sample.answers[0], sample.choices))


def _aokvqa(sample: Sample) -> str | None:
    return f"aokvqa {sample.origin.split}" if sample.origin.dataset == "aokvqa" else None


def _scienceqa(sample: Sample) -> str | None:
    """Questions by text alone are a set of their own: they say nothing about looking."""
    if sample.origin.dataset != "scienceqa":
        return None
    return f"scienceqa {sample.origin.split}" + ("" if sample.images else ", by text")


AOKVQA = Suite("aokvqa", "A-OKVQA: the right one of four choices", _aokvqa, SHOWN, measure=choice)
SCIENCEQA = Suite("scienceqa", "ScienceQA: the right choice of a school question", _scienceqa, SHOWN, measure=choice)
