"""Ways to answer that a model can learn, and the words that ask for each: the same in training and in evaluation.

direct     Answer: top left
reason     The red disc is at the top left. ⏎ Answer: top left
ground     The <ref>red disc</ref><box>[100, 100, 300, 300]</box> is at the top left. ⏎ Answer: top left
"""

from __future__ import annotations

from typing import Literal, get_args

LearnedWay = Literal["direct", "reason", "ground"]
LEARNED_WAYS: tuple[LearnedWay, ...] = get_args(LearnedWay)

ANSWER = 'Then write the answer, as short as you can, on a last line that begins with "Answer:".'
DIRECT = "Give the answer alone, as short as you can."
REASON = f"Think step by step in words, without coordinates. {ANSWER}"


def asked(way: str, grounded: str | None) -> str | None:
    """What stands below a question that is asked in this way. grounded: where boxes are asked for."""
    return {"direct": DIRECT, "reason": REASON}.get(way, grounded)
