"""Guards of a training that learns from rewards: when it leaves the path, it is stopped, and told why.

A reward that can be had without what is wanted is found sooner or later: lists of boxes that never come to an answer,
replies that grow to their limit, one reply to everything. All of these show in a few numbers long before they show in
the weights that are published.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from vcot.errors import GateFailed
from vcot.training.config import GuardOptions

STEPS = 10
"""What is looked at is the mean over so many steps."""


class Guards(TrainerCallback):  # type: ignore[misc]  # the library publishes no types
    """Reads what is logged at each step: boxes (of a reply), malformed, cut_off, masked (shares of the replies),
    entropy, kl, groups_that_teach.

    Raises GateFailed as soon as one has been beyond its bound for STEPS steps on average, or no group taught anything.
    All of it is in the log of the state, so a run that goes on after a stop judges as if there had been none.
    """

    def __init__(self, options: GuardOptions) -> None:
        self._options = options

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        lines = [line for line in state.log_history if "boxes" in line]
        if len(lines) < STEPS:
            return
        found = {name: mean(lines[-STEPS:], name) for name in MEANS}
        first = mean(lines[:STEPS], "boxes") or 0.0
        o = self._options
        bounds = {
            "boxes": (o.max_boxes * max(first, 1), f"--max-boxes={o.max_boxes:g} times what it began with"),
            "malformed": (o.max_malformed, f"--max-malformed={o.max_malformed:g} of the replies"),
            "cut_off": (o.max_cut_off, f"--max-cut-off={o.max_cut_off:g} of the replies"),
            "masked": (o.max_masked, f"--max-masked={o.max_masked:g} of the replies"),
            "kl": (o.max_kl, f"--max-kl={o.max_kl:g}"),
        }
        wrong = [
            f"{MEANS[name]} {found[name]:.3g}, more than {said}"
            for name, (bound, said) in bounds.items()
            if (value := found[name]) is not None and value > bound
        ]
        if found["entropy"] is not None and found["entropy"] < o.min_entropy:
            wrong.append(f"{MEANS['entropy']} {found['entropy']:.3g}, less than --min-entropy={o.min_entropy:g}")
        distinct, at_first = mean(lines[-STEPS:], "distinct"), mean(lines[:STEPS], "distinct")
        if distinct is not None and at_first is not None and distinct < o.min_distinct * at_first:
            wrong.append(
                f"{MEANS['distinct']} {distinct:.3g}, less than --min-distinct={o.min_distinct:g} of what it began with"
            )
        if mean(lines[-STEPS:], "groups_that_teach") == 0:
            wrong.append(
                "all replies to every question earned the same: there was nothing to learn from. Begin with a model "
                "that is right in 30 to 70 % of its tries, or weigh other --rewards"
            )
        if wrong:
            raise GateFailed(
                f"stopped after step {state.global_step}: over the last {STEPS} steps {'; '.join(wrong)}. The replies "
                "are on the page of rollouts; with another bound the same command goes on from the last checkpoint"
            )


MEANS = {
    "boxes": "boxes of a reply:", "malformed": "share of malformed replies:", "cut_off": "share of replies cut off:",
    "entropy": "entropy of a token:", "kl": "distance from the model it began with:",
    "masked": "share of replies that the server finds otherwise likely:",
    "distinct": "distinct rationales, as a share of those drawn:",
}  # fmt: skip


def mean(lines: list[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None
