"""Several traces for one row: those that stand are the lesson, those that fall are parts that were refused.

Where none stands, the row is refused for what the best of them fell at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import chain

from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage.images import ImageError
from vcot.teacher.funnel import reached
from vcot.teacher.request import Asker
from vcot.teacher.row import Lesson, Outcome, refuse
from vcot.teacher.talk import Manner, Refused, Talk
from vcot.teacher.trust import Trust

Write = Callable[[Talk, int], Awaitable[Trace]]
"""Makes one trace; the number counts alternatives from 0. Raises Refused."""


async def lesson(
    sample: Sample, asker: Asker, manner: Manner, trust: Trust, counts: Counter[str], write: Write, alternatives: int
) -> Outcome:
    traces: list[Trace] = []
    models: dict[str, None] = {}
    parts: list[Rejection] = []
    fallen: list[Rejection] = []
    for number, again in ((n, again) for again in range(1 + manner.ask_again) for n in range(alternatives)):
        # Nothing is asked again of a row that is not refused, or at which the endpoint failed: it said nothing.
        if number == 0 and (traces or any(one.reason is Reason.TEACHER_FAILED for one in fallen)):
            break
        talk = Talk(asker, sample, manner, counts, again=again)
        try:
            traces.append(await write(talk, number))
            parts += talk.parts
            models |= dict.fromkeys(talk.models)
        except Refused as refused:
            fallen.append(talk.refusal(refused, f"alternative {number + 1}"))
        except ImageError as error:
            return refuse(sample, IMAGE_REASONS[error.reason], str(error))
    if not traces:
        return whole_row(fallen)
    return Lesson(
        tuple(dict.fromkeys(traces)), models=tuple(models), flags=trust.flags(traces, sample), parts=(*parts, *fallen)
    )


def whole_row(fallen: list[Rejection]) -> Rejection:
    """The row's rejection: the reason of the alternative that came furthest, and all that was said."""
    best = max(fallen, key=lambda one: reached(one.reason))
    return best.model_copy(update={"part": "", "said": tuple(chain.from_iterable(one.said for one in fallen))})
