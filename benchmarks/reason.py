"""Does it help to reason, and to point? One base, tuned in several ways on the same boards, and asked about others.

    python -m benchmarks.reason --worlds following,permuting        (`make reason-demo`)
    python -m benchmarks.reason --base Qwen2.5-VL-3B --models direct,words --settings my-settings \\
        --convert '--source aokvqa --input-uri data'                # rows of one's own, with their rationales

    direct    the answer alone
    words     each look in words: what is seen there, not where
    places    the same, with row and column
    boxes     each look with its box
    filler    as many meaningless dots as the looks take: is it only the longer reply?
    (places and filler: of boards alone)

All of them learn from the same images, questions and answers, once each, by the settings of examples/reasoning; what
the stages write stays below --out, and a command that was cut off goes on where it was. Prints for each world a table
of answers right by number of steps, and writes <out>/report.html; a model's own page has its replies, whose boxes can
be followed one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.chain import figures, run
from benchmarks.rows import ROOT
from vcot.evaluation.page import by_metadata
from vcot.evaluation.report import both, figures_of
from vcot.pipeline.local import gather_variables

BASE = ROOT / "examples" / "reasoning"
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class World:
    """What is learned from and asked about: numbers of steps, boards to learn from."""

    learned: str
    asked: str
    scenes: int
    side: int = 6

    def flags(self, name: str, scenes: int | None, asked: int) -> list[str]:
        """Of convert. asked: boards for each number of steps."""
        held_out = asked * len(self.asked.split(","))
        return [
            f"--world={name}", f"--steps={self.learned}", f"--held-out-steps={self.asked}", f"--held-out={held_out}",
            f"--side={self.side}", f"--scenes={scenes or self.scenes}",
        ]  # fmt: skip


WORLDS: Mapping[str, World] = MappingProxyType(
    {
        "following": World("1,2,3,4,5,6,7,8,9,10,11,12", "1,2,4,8,12,16", 2400),
        "permuting": World("1,2,3,4,5,6,7,8", "1,2,4,8,12", 2400),
        "counting": World("1,2,3,4,5", "1,2,3,4,5", 2000, side=4),
        "comparing": World("2,3,4,5", "2,3,4,5", 2000, side=4),
    }
)


@dataclass(frozen=True)
class Model:
    """way: of those that tokenize makes examples of. written: how convert writes the reasoning. learning_rate: where
    that of the settings is not the best for it."""

    means: str
    way: str
    written: str = "boxes"
    learning_rate: float | None = None


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        # At the rate of the others, questions that it cannot answer unlearn the step that the base takes at once.
        "direct": Model("direct", "direct", learning_rate=2e-4),
        "words": Model("reasoning in words", "reason"),
        "places": Model("reasoning in words, with row and column", "reason", "places"),
        "boxes": Model("reasoning with boxes", "ground"),
        "filler": Model("as many meaningless dots", "reason", "filler"),
    }
)


@dataclass(frozen=True)
class Tuned:
    """A model and what its reports say."""

    world: str
    name: str
    folder: Path
    report: Mapping[str, Any]
    seconds: float

    def by_steps(self) -> dict[str, Mapping[str, Any]]:
        """Number of steps, or "all rows" where rows bring none → key of a result → figures."""
        groups = by_metadata(self.report["groups"]).get("steps", ())
        return {said: group["results"] for said, group in groups} or {"all rows": figures_of(self.report, "results")}

    @property
    def usual_answer(self) -> Mapping[str, Any]:
        return dict(figures(self.report, "frequent-answer", "guesses")["answer_accuracy"])

    @property
    def tokens(self) -> float:
        """Of a reply."""
        return float(self.report["ways"][0]["tokens_out"])


def converted(world: str, written: str, given: argparse.Namespace) -> Path:
    """Folder of the rows that models of one world share."""
    rows: Path = given.out.resolve() / world / f"rows-{written}"
    if given.convert:
        run("convert", rows, *shlex.split(given.convert), seed=given.seed)
    else:
        own = variables(given.base.resolve(), given.settings.resolve())
        flags = WORLDS[world].flags(world, given.scenes, given.asked)
        run("convert", rows, *flags, variables=own["convert"], written=written, seed=given.seed)
    return rows


def tuned(world: str, name: str, given: argparse.Namespace) -> Tuned:
    """Through tokenize, train and evaluate, of rows that are there; a stage that is finished says so at once."""
    model, out, began = MODELS[name], given.out.resolve(), time.monotonic()
    rows, folder = out / world / f"rows-{model.written}", out / world / name
    threads = str(max(1, CORES // given.at_once))
    own = {
        stage: of_stage | {"OMP_NUM_THREADS": threads}
        for stage, of_stage in variables(given.base.resolve(), given.settings.resolve()).items()
    }
    run("tokenize", folder, variables=own["tokenize"], input_uri=rows / "convert", learn=model.way)
    rate = {} if model.learning_rate is None else {"VCOT_TRAIN_LEARNING_RATE": str(model.learning_rate)}
    run("train", folder, *shlex.split(given.train), variables=own["train"] | rate, seed=given.seed, report_to="none")
    flags = ["--probe"] if given.probe and model.way == "ground" else []
    # A model that has not learned to answer is a result, too.
    flags += ["--no-ask-base", "--max-unusable-share", "1"]
    run("evaluate", folder, *flags, variables=own["evaluate"], samples_uri=rows / "convert")
    report = json.loads((folder / "evaluate" / "report.json").read_text())
    return Tuned(world, name, folder, report, time.monotonic() - began)


@cache
def variables(base: Path, settings: Path) -> Mapping[str, Mapping[str, str]]:
    """Of each stage."""
    return gather_variables([ROOT / "k8s" / "base" / "settings", settings], {}, {"BASE_URI": str(base)})


def told(results: Mapping[str, Any], key: str, name: str = "answer_accuracy") -> str:
    """ "85 % (80–89)"."""
    return both(name, results[key][name])


def table(models: Sequence[Tuned]) -> list[list[str]]:
    """Of one world, its heading first."""
    steps = list(models[0].by_steps())
    heading = [f"{models[0].world}: answers right", *steps, "tokens a reply", "seconds in all"]
    lines = [heading]
    for model in models:
        cells = model.by_steps()
        means, costs = MODELS[model.name].means, [f"{model.tokens:.0f}", f"{model.seconds:.0f}"]
        lines.append([means, *(told(cells[n], "subject-real") for n in steps), *costs])
        if MODELS[model.name].way == "ground":
            chain = [told(cells[n], "subject-real", "all_boxes_right") for n in steps]
            lines.append(["… whole chain of boxes right", *chain, "", ""])
    for model in models:
        blank = [told(cells, "subject-blank") for cells in model.by_steps().values()]
        lines.append([f"blank images, {model.name}", *blank, "", ""])
    lines.append(["the usual answer", both("answer_accuracy", models[0].usual_answer), *[""] * (len(steps) + 1)])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(line)} |" + (f"\n{'|---' * len(line)}|" if number == 0 else "")
        for number, line in enumerate(lines)
    )


def draw_curves(models: Sequence[Tuned], path: Path) -> None:
    """Answers right against steps, with intervals; and the losses of the tuning, which are of different tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    right, losses = figure.subplots(1, 2, width_ratios=(3, 2))
    for model in models:
        cells = {n: each["subject-real"]["answer_accuracy"] for n, each in model.by_steps().items()}
        low_to_high = [[one["value"] - one["low"], one["high"] - one["value"]] for one in cells.values()]
        right.errorbar(
            list(cells), [one["value"] for one in cells.values()], yerr=list(zip(*low_to_high, strict=True)),
            marker="o", capsize=3, label=model.name,
        )  # fmt: skip
        lines = json.loads((model.folder / "train" / "losses.json").read_text())
        losses.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    if (usual := models[0].usual_answer["value"]) is not None:
        right.axhline(usual, color="grey", linestyle=":", label="usual answer")
    right.set(xlabel="steps", ylabel="answers right", ylim=(0, 1.03))
    right.legend(fontsize="small")
    losses.set(xlabel="optimiser steps of the tuning", ylabel="loss [nats a learned token]", yscale="log")
    for axes in (right, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg")


def write_page(worlds: Mapping[str, Sequence[Tuned]], out: Path) -> Path:
    """<out>/report.html: tables, curves, and links to the pages of the models."""
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("vcot.reports"), FileSystemLoader(Path(__file__).parent)])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found = []
    for world, models in worlds.items():
        curves = out / world / "curves.svg"
        draw_curves(models, curves)
        svg = curves.read_text()
        pages = [(MODELS[m.name].means, (m.folder / "evaluate" / "report.html").relative_to(out)) for m in models]
        found.append({"world": world, "table": table(models), "curves": svg[svg.index("<svg") :], "pages": pages})
    page = out / "report.html"
    page.write_text(environment.get_template("reason.html.j2").render(found=found))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reason", help="folder of rows, models, reports")
    parser.add_argument("--settings", type=Path, default=BASE / "settings", help="folder of <stage>.env")
    parser.add_argument("--worlds", default="following,permuting", help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--convert", help="flags of jobs.convert, in the place of --worlds: rows of any source")
    parser.add_argument("--models", default="direct,words,places,boxes", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--scenes", type=int, help="boards to learn from; default: by world")
    parser.add_argument("--asked", type=int, default=200, help="boards to ask about, for each number of steps")
    parser.add_argument("--at-once", type=int, default=min(CORES, 4), help="models that are tuned at the same time")
    parser.add_argument("--seed", type=int, default=1, help="of the boards, and of the tuning")
    parser.add_argument("--probe", action="store_true", help="evaluate --probe of the model with boxes: minutes more")
    parser.add_argument("--train", default="", help="more flags of jobs.train, as '--tune qlora --learning-rate 1e-3'")
    options = parser.parse_args()
    if not (options.base / "config.json").is_file():
        raise SystemExit(
            f"--base {options.base}: no model is there (config.json, safetensors); make reasoning-base makes one, in "
            "build/reasoning/snapshot"
        )
    out: Path = options.out.resolve()
    began, worlds = time.monotonic(), dict[str, list[Tuned]]()
    names = ["rows"] if options.convert else options.worlds.split(",")
    for world in names:
        for written in dict.fromkeys(MODELS[name].written for name in options.models.split(",")):
            converted(world, written, options)

    def told_when_done(world: str, name: str) -> Tuned:
        one = tuned(world, name, options)
        print(f"{world}, {MODELS[name].means}: {one.seconds:.0f} s", flush=True)
        return one

    # One core makes more of a small model than two do together. The longest begin first.
    with ThreadPoolExecutor(options.at_once) as pool:
        under_way = {
            (world, name): pool.submit(told_when_done, world, name)
            for world in names for name in sorted(options.models.split(","), key=list(MODELS).index, reverse=True)
        }  # fmt: skip
        for world in names:
            worlds[world] = [under_way[world, name].result() for name in options.models.split(",")]
            print(markdown(table(worlds[world])), flush=True)
    page = write_page(worlds, out)
    (out / "report.json").write_text(json.dumps({world: table(each) for world, each in worlds.items()}, indent=1))
    print(f"{page}, after {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
