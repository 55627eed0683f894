"""Which ways to the answer are left? One model tuned by imitation, then two: from rewards (GRPO), and as a GFlowNet.

    python -m benchmarks.routes --out build/routes        (`make bench-routes`)

Boards on which at least six routes of arrows lead to the answer, by the settings of examples/reasoning; fewer of them
to learn from, so that the first model is not perfect. Both trainings begin with it and draw as many replies. Then each
of the three answers questions on other boards many times. Prints, each with its 95 % interval, how many of a board's
routes are found by so many draws, and answers right: greedy, of one draw, and by the ways of choosing among several. A
command that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.chain import run
from benchmarks.rows import ROOT
from vcot.evaluation.report import both
from vcot.pipeline.local import gather_variables
from vcot.settings import STAGES

EXAMPLE = ROOT / "examples" / "reasoning"
MODELS = {"sft": "imitation", "grpo": "and rewards (GRPO)", "gfn": "and a GFlowNet"}


def variables(method: str) -> Mapping[str, Mapping[str, str]]:
    """Of each stage; of train those of the method, of the others those of examples whose rationale is a turn."""
    folders = [ROOT / "k8s" / "base" / "settings", EXAMPLE / "settings"]
    methods = dict.fromkeys(STAGES, "gfn") | {"train": method}
    return gather_variables(folders, {}, {"BASE_URI": str(EXAMPLE)}, methods)


def trained(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """The report of evaluate of a model, which is made first where it is not there."""
    out: Path = given.out.resolve()
    folder, own = out / method, variables(method)
    shared: dict[str, Any] = {"input_uri": out / "sft" / "tokenize", "seed": given.seed, "report_to": "none"}
    if method == "sft":
        run("train", folder, variables=own["train"], **shared)
    else:
        more = {"questions": "all"} if method == "grpo" else {}
        run(
            "train", folder, variables=own["train"], method=method, from_uri=out / "sft" / "train" / "model",
            max_steps=given.steps, **shared, **more,
        )  # fmt: skip
    run(
        "evaluate", folder, "--no-ask-base", variables=own["evaluate"], samples_uri=out / "rows" / "convert",
        samples=given.draws, temperature=1, vote="greedy,majority,best_of_n,marginal", max_samples=given.asked,
    )  # fmt: skip
    report: dict[str, Any] = json.loads((folder / "evaluate" / "report.json").read_text())
    return report


def drawn_tokens(folder: Path) -> int:
    """Of all replies that a training has drawn."""
    import pyarrow.parquet as pq

    files = (folder / "train" / "rollouts").glob("*.parquet")
    return sum(sum(pq.read_table(file, columns=["tokens"])["tokens"].to_pylist()) for file in files)


def rows(report: Mapping[str, Any]) -> dict[str, str]:
    """What is printed of one model: name → value with its interval."""
    (diversity,), (selection,) = report["diversity"], report["selection"]
    found = {}
    for each in diversity["by_draws"]:
        found[f"routes found by {each['draws']} draws"] = both("coverage", each["coverage_of_many"])
    found["distinct of all draws"] = both("distinct", diversity["figures"]["distinct"])
    for each in selection["by_samples"]:
        for name, figure in each["accuracy"].items():
            if name != "greedy" or each["draws"] == 1:
                found[f"right, {name} of {each['draws']:.0f}"] = both("answer_accuracy", figure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "routes", help="folder of rows, models, reports")
    parser.add_argument("--scenes", type=int, default=700, help="boards to learn from")
    parser.add_argument("--asked", type=int, default=60, help="boards to ask about")
    parser.add_argument("--steps", type=int, default=120, help="of each of the two trainings")
    parser.add_argument("--draws", type=int, default=64, help="replies to each question")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    out, own, began = given.out.resolve(), variables("sft"), time.monotonic()
    run("convert", out / "rows", variables=own["convert"], scenes=given.scenes, seed=given.seed)
    run("tokenize", out / "sft", variables=own["tokenize"], input_uri=out / "rows" / "convert")
    reports = {}
    for method, name in MODELS.items():
        reports[method] = trained(method, given)
        tokens = "" if method == "sft" else f", {drawn_tokens(out / method):,} tokens drawn"
        print(f"{name}: after {time.monotonic() - began:.0f} s{tokens}", flush=True)
    table = {method: rows(report) for method, report in reports.items()}
    print(f"| | {' | '.join(MODELS.values())} |\n|---|---|---|---|")
    for name in table["sft"]:
        print(f"| {name} | {' | '.join(each[name] for each in table.values())} |")


if __name__ == "__main__":
    main()
