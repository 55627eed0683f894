"""What a training from rewards shows while it learns: its replies in Parquet, and a page of the best and worst groups.

<stage>/rollouts/steps-000010-000019.parquet    a row for each reply, with rewards and advantage
<stage>/rollouts.html                           groups of the last steps beside those of the first, and curves
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from typing import Any

from PIL import Image

from vcot.grounding import FrameSpec, Trace, parse
from vcot.records import Folder
from vcot.records.rollout import Rollout
from vcot.reports.examples import PREDICTED, TRUE, data_uri, overlay
from vcot.reports.rendering import render
from vcot.storage import images, join
from vcot.training.engine import means_of_rewards
from vcot.training.questions import Questions

GROUPS = 3
"""Of the best and of the worst, of the first and of the last steps."""
REPLIES = 4
"""Of each group: the best and the worst two."""


class RolloutLog:
    """Writes what it is told, after `every` steps and before a checkpoint is saved.

    Args:
        spec: frame of the replies' boxes. updates: steps from the same replies.
    """

    def __init__(
        self, folder: Folder, questions: Questions, spec: FrameSpec, *, every: int, save_steps: int, updates: int = 1
    ) -> None:
        self._folder, self._questions, self._spec = folder, questions, spec
        self._every, self._save_steps, self._updates = every, save_steps, updates
        self._curves: Sequence[Mapping[str, Any]] = ()
        self._begun = False
        self._pending: list[tuple[int, Rollout]] = []
        self._first: list[tuple[int, Rollout]] = []

    def keep(self, step: int, rollouts: Sequence[tuple[int, Rollout]], curves: Sequence[Mapping[str, Any]]) -> None:
        """step: that is to learn from them. rollouts: each with the number of its question. curves: what was logged
        at each step so far."""
        if not self._begun:
            self._begin(step)
        self._pending += rollouts
        self._curves = curves
        after = step + self._updates
        if any(after // often > step // often for often in (self._every, self._save_steps)):
            self.write()

    def _begin(self, step: int) -> None:
        """What an earlier attempt wrote behind its last checkpoint is drawn again; its first steps stay on the page."""
        self._begun = True
        store = self._folder.store
        for file in sorted(store.list(join(self._folder.uri, "rollouts")), key=lambda file: file.uri):
            if int(file.uri.rpartition("/steps-")[2][:6]) >= step:
                store.delete(file.uri)
            elif not self._first:
                self._first = [(self._questions.number(one.sample), one) for one in _rollouts(store.read(file.uri))]

    def write(self) -> None:
        """What was not written yet."""
        if not self._pending:
            return
        steps = [one.step for _, one in self._pending]
        name = f"steps-{min(steps):06d}-{max(steps):06d}.parquet"
        uri = join(self._folder.uri, "rollouts", name)
        self._folder.store.write(uri, _parquet([one for _, one in self._pending]))
        self._first = self._first or self._pending
        page = render(
            "rollouts.html.j2", steps=(min(steps), max(steps)), curves=_curves(self._curves),
            parts=[("The last steps", self._shown(self._pending))]
            + ([("The first steps", self._shown(self._first))] if self._first is not self._pending else []),
        )  # fmt: skip
        self._folder.store.write(join(self._folder.uri, "rollouts.html"), page.encode())
        self._pending = []

    def _shown(self, rollouts: Sequence[tuple[int, Rollout]]) -> list[tuple[str, list[dict[str, Any]]]]:
        groups = [list(each) for _, each in groupby(rollouts, key=lambda pair: (pair[1].step, pair[0]))]
        groups.sort(key=lambda group: -sum(one.reward or 0 for _, one in group) / len(group))
        best, worst = groups[:GROUPS], groups[GROUPS:][-GROUPS:]
        return [("best groups", [self._group(g) for g in best]), ("worst groups", [self._group(g) for g in worst])]

    def _group(self, group: Sequence[tuple[int, Rollout]]) -> dict[str, Any]:
        number = group[0][0]
        sample = self._questions.sample(number)
        times = Counter(one.text for _, one in group)
        distinct = {one.text: one for _, one in group}.values()
        by_worth = sorted(distinct, key=lambda one: -(one.reward or 0))
        chosen = by_worth if len(by_worth) <= REPLIES else [*by_worth[: REPLIES // 2], *by_worth[-REPLIES // 2 :]]
        picture, size = None, (0, 0)
        if sample.image is not None and (data := self._questions.image_bytes(number)):
            picture, size = images.decode(data[0], sample.id).pixels, (sample.image.width, sample.image.height)
        return {
            "sample": sample, "count": len(group), "mean": sum(one.reward or 0 for _, one in group) / len(group),
            "replies": [
                {"rollout": one, "times": times[one.text], "image": self._drawn(one, sample, picture, size)}
                for one in chosen
            ],
        }  # fmt: skip

    def _drawn(self, rollout: Rollout, sample: Any, picture: Image.Image | None, size: tuple[int, int]) -> str | None:
        if picture is None:
            return None
        said = parse(rollout.text, sample.frame(self._spec)).boxes
        boxes = {TRUE: Trace(sample.evidence or ()).boxes, PREDICTED: said}
        return data_uri(overlay(picture, boxes, original=size, longest_side=200), quality=70)


def _parquet(rollouts: Sequence[Rollout]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for one in rollouts:
        row = one.model_dump(mode="json", exclude={"version", "rewards", "measured"})
        asked = {f"measured_{name}": value for name, value in one.measured.items()}
        rows.append(row | asked | {f"reward_{name}": value for name, value in one.rewards.items()})
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue()


def _rollouts(data: bytes) -> list[Rollout]:
    """As they were written, without what rewards had measured."""
    import pyarrow.parquet as pq

    return [
        Rollout.model_validate(
            {name: value for name, value in row.items() if name in Rollout.model_fields}
            | {"rewards": {name[7:]: value for name, value in row.items() if name.startswith("reward_")}}
        )
        for row in pq.read_table(BytesIO(data)).to_pylist()
    ]


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """An SVG: rewards by name, and what the guards look at, by step."""
    from matplotlib.figure import Figure

    steps = [line for line in lines if "reward" in line]
    names = sorted({name for line in steps for name in means_of_rewards(line)})
    watched = [name for name in _MEANS if any(line.get(name) is not None for line in steps)][:6]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    first, *others = figure.subplot_mosaic([["r", "r", *"abc"], ["r", "r", *"def"]]).values()
    at = [line["step"] for line in steps]

    def curve(name: str) -> list[float]:
        return [math.nan if (value := line.get(name)) is None else float(value) for line in steps]

    for name in names:
        first.plot(at, curve(f"rewards/{name}/mean"), label=name, linewidth=1.2)
    first.set(title="rewards, mean of all replies", ylim=(-0.02, 1.02), xlabel="step")
    if names:
        first.legend(fontsize="small", frameon=False)
    for axes, name in zip(others, watched, strict=False):
        axes.plot(at, curve(name), linewidth=1, color="#2b5fa8")
        axes.set_title(_MEANS[name], fontsize="small")
    for axes in others[len(watched) :]:
        axes.set_axis_off()
    for axes in (first, *others):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


_MEANS = {
    "boxes": "boxes of a reply", "completions/mean_length": "tokens of a reply", "distinct": "share distinct",
    "malformed": "share malformed", "cut_off": "share cut off", "entropy": "entropy [nats]",
    "kl": "distance (KL) [nats]",
}  # fmt: skip
"""What is watched, in the order in which it is shown; six at most."""
