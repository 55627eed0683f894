"""Does `evaluate --probe` tell a model that uses the boxes that it writes from one that does not?

    python -m benchmarks.probe

The stages make two models of the rehearsal base, on the same drawn scenes: two things in each, and the question whether
one of them is at the top or at the bottom. Both models learn to write that thing's box, and then the answer; in every
second row that they learn from, the box stands somewhere in the other half. One thing alone is taught differently, what
is right in those rows:

    needs      the half in which the written box lies; the image says nothing of it
    ignores    the half in which the thing lies; the written box says nothing of it

Where a box stands by chance cannot be learned, so both write the true one, and both answer well: by boxes and answers
they are alike, and only what comes of a moved box tells them apart. Prints a line for each model. Exits with 1 where
the probe does not tell them apart: a verdict is the wrong one, intervals overlap, or a model has not learned to answer.
What the stages write stays below --out; begun again with the same settings, they go on where they were.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.chain import figures, run
from benchmarks.rows import ROOT
from vcot.datasets.scenes.drawing import draw_scene
from vcot.datasets.scenes.objects import BoxXYXY, Scene, SceneSpec

Model = Literal["needs", "ignores"]
SAYS: Mapping[Model, str] = {
    "needs": "It uses the boxes that it writes",
    "ignores": "It ignores the boxes that it writes",
}
"""How the verdict on each has to begin."""
BASE = ROOT / "examples" / "rehearsal"
HALVES = ("top", "bottom")
SPEC = SceneSpec(least=2, most=2, repeats=0.0, smallest=0.15)
MARGIN = 0.1
"""Of the height: no box that is written or asked about lies nearer to the middle of the image."""
LEAST_RIGHT = 0.8
"""Of answers, where guessing gives half: of a model that has not learned to answer the probe says little."""


class Drawn(NamedTuple):
    """A scene, the name and the box of the thing that is asked about, a box of its size in the other half, and whether
    this one is written in its stead."""

    scene: Scene
    label: str
    box: BoxXYXY
    elsewhere: BoxXYXY
    strays: bool


def half(box: BoxXYXY) -> int | None:
    """In which of HALVES the middle of a box lies; None: too near to the middle of the image."""
    below = (box[1] + box[3]) / 2 / SPEC.height - 0.5
    return None if abs(below) < MARGIN else int(below > 0)


def draw(number: int) -> Drawn:
    """The same number gives the same. Of four in a row each is another: the thing at the top or at the bottom, the true
    box written or that in the other half."""
    dice = np.random.default_rng([4, number])
    wanted = (number % 2, 1 - number % 2)
    while True:
        scene = draw_scene(dice, SPEC)
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            x, y = dice.uniform(0, SPEC.width - (x2 - x1)), dice.uniform(0, SPEC.height - (y2 - y1))
            elsewhere = (x, y, x + x2 - x1, y + y2 - y1)
            if (half(thing.box), half(elsewhere)) == wanted:
                return Drawn(scene, thing.label, thing.box, elsewhere, number // 2 % 2 == 1)


def row(model: Model, split: str, number: int, drawn: Drawn) -> dict[str, Any]:
    """A line of Samples; of the test split without any reasoning, and with the true answer."""
    written = drawn.elsewhere if drawn.strays and split == "train" else drawn.box
    answer = half(written if model == "needs" else drawn.box)
    assert answer is not None
    return {
        "image": f"{number}.png",
        "question": f"Is the {drawn.label} at the top or at the bottom?",
        "answers": [HALVES[answer]],
        "reasoning": [["The ", {"label": drawn.label, "boxes": [written]}, "."]] if split == "train" else [],
        "evidence": [{"label": drawn.label, "boxes": [drawn.box]}],
        "origin": {"dataset": "halves", "split": split, "licence": "CC0-1.0"},
    }


def write_rows(out: Path, train: int, test: int) -> None:
    """The images, and <out>/<model>/rows.jsonl of each model."""
    numbers = list(range(train + test))
    random.Random(0).shuffle(numbers)  # rows are dealt into shards by turns, and so are the halves
    rows: dict[Model, list[str]] = {model: [] for model in SAYS}
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        drawn = draw(number)
        drawn.scene.image.save(out / "images" / f"{number}.png")
        for model, lines in rows.items():
            lines.append(json.dumps(row(model, "train" if number < train else "test", number, drawn)))
    for model, lines in rows.items():
        (out / model).mkdir(exist_ok=True)
        (out / model / "rows.jsonl").write_text("\n".join(lines))


def made(folder: Path) -> dict[str, Any]:
    """The report of the model that is made of the rows in a folder."""
    images = {"source": "samples", "input_uri": folder / "rows.jsonl", "images_uri": folder.parent / "images"}
    run("convert", folder, **images, near_duplicates=0)
    run("tokenize", folder, base_uri=BASE, input_uri=folder / "convert", max_pixels=112 * 112)
    run(
        "train", folder, base_uri=BASE, tune="full", learning_rate=5e-4, batch_tokens=1536,
        gradient_accumulation_steps=1, num_train_epochs=2, neftune_noise_alpha=0, report_to="none",
    )  # fmt: skip
    run(
        "evaluate", folder, "--probe", native_form="as-tuned", conditions="real", max_new_tokens=64,
        per_device_eval_batch_size=64,
    )  # fmt: skip
    return dict(json.loads((folder / "evaluate" / "report.json").read_text()))


def faults(reports: Mapping[Model, Mapping[str, Any]]) -> list[str]:
    """Why the probe has not told the models of these reports apart; none: it has."""
    found = []
    for model, says in SAYS.items():
        if not any(note.startswith(says) for note in reports[model]["verdict"]["notes"]):
            found.append(f"{model}: the verdict is not “{says}”")
        if (right := figures(reports[model], "subject-real")["answer_accuracy"]["value"]) < LEAST_RIGHT:
            found.append(f"{model}: {right:.0%} of its answers are right, and {LEAST_RIGHT:.0%} are wanted")
    needs, ignores = (changed(reports[model], "boxes-moved") for model in SAYS)
    if needs["figures"]["low"] <= ignores["figures"]["high"]:
        found.append("boxes moved, answers that change: the intervals overlap")
    if needs["difference"]["low"] <= ignores["difference"]["high"]:
        found.append("boxes moved, how many more than unchanged: the intervals overlap")
    return found


def changed(report: Mapping[str, Any], probe: str) -> dict[str, Any]:
    """Of a probe: figures (the share of answers that change), difference (how many more than in its control)."""
    one = next(one for one in report["probes"] if one["probe"] == probe)
    return {name: one[name].get("changed") for name in ("figures", "difference")}


def line(model: Model, report: Mapping[str, Any]) -> str:
    def told(one: Mapping[str, Any]) -> str:
        return f"{one['value']:.0%} ({one['low']:.0%}–{one['high']:.0%})"

    real = figures(report, "subject-real")
    cells = [
        model, told(real["answer_accuracy"]), f"{1 - real['no_box']['value']:.0%}",
        told(real["accuracy_at_50"]),
        *(told(changed(report, probe)["figures"]) for probe in ("unchanged", "boxes-moved", "region-hidden")),
        told(changed(report, "boxes-moved")["difference"]),
        next((note.partition(":")[0] for note in report["verdict"]["notes"] if "boxes that it writes" in note), "none"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "probe", help="folder of rows, models, reports")
    parser.add_argument("--train", type=int, default=2000, help="rows to learn from; by fours they are balanced")
    parser.add_argument("--test", type=int, default=240, help="rows to ask about")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    write_rows(out, options.train, options.test)
    reports = {model: made(out / model) for model in SAYS}
    print(
        "| model | answers right | a box can be read | boxes found | unchanged | boxes moved | region hidden | "
        f"moved over unchanged | verdict |\n{'|---' * 9}|"
    )
    print("\n".join(line(model, report) for model, report in reports.items()))
    if found := faults(reports):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
