"""Do rewards teach what imitation has not? A base tuned on short chains learns longer ones by its own tries.

    python -m benchmarks.rewards --out build/rewards

    1  examples/reasoning is tuned on boards of few steps, by imitation
    2  it goes on with boards of more steps, whose answers and boxes are known and whose reasoning it is not shown:
       train --method grpo, by the rewards of --variants
    3  both are asked about other boards of more steps

    default    format, answer, boxes, length, as train has them
    no-boxes   boxes weigh nothing
    recall     boxes are paid for what they find alone, and nothing for what is too much: how does that end?

Prints answers right, mean IoU and chains right of each, with intervals, and writes <out>/report.json; what the stages
write stays below --out, and a command that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.chain import figures, run
from benchmarks.reason import BASE, markdown, variables
from benchmarks.rows import ROOT
from vcot.evaluation.report import both
from vcot.grounding import FrameSpec, Trace, match, parse, split_answer
from vcot.records import Sample
from vcot.records.rollout import Rollout

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "default": "format=0.2,answer=1,boxes=1,length=0.2",
        "no-boxes": "format=0.2,answer=1,length=0.2",
        "recall": "answer=1,recall=benchmarks.rewards:recall,length=0.2",
    }
)
SHOWN = ("answer_accuracy", "mean_iou", "all_boxes_right", "malformed")


def recall(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """What is found of the evidence, whatever is pointed at besides: as TreeVGR without its precision term."""
    if sample.evidence is None:
        return None
    said = Trace(parse(split_answer(rollout.text)[0], sample.frame(spec)).trace.mentions)
    true = Trace(sample.evidence)
    return match(said.boxes, true.boxes).total / len(true.boxes)


def boards(out: Path, name: str, steps: str, scenes: int, asked: str, held_out: int, seed: int) -> Path:
    """Rows of one kind, converted and tokenized."""
    folder, own = out / name, variables(BASE, BASE / "settings")
    flags = [
        "--world=following", f"--steps={steps}", f"--scenes={scenes}", f"--held-out={held_out}",
        f"--held-out-steps={asked}",
    ]  # fmt: skip
    run("convert", folder, *flags, variables=own["convert"], seed=seed)
    run("tokenize", folder, variables=own["tokenize"], learn="ground", input_uri=folder / "convert")
    return folder


def asked_about(rows: Path, model: Path) -> dict[str, Any]:
    """The report of a model of train, asked about the test split of `rows`."""
    own = variables(BASE, BASE / "settings")["evaluate"]
    run("evaluate", model, "--no-ask-base", variables=own, samples_uri=rows / "convert")
    found: dict[str, Any] = json.loads((model / "evaluate" / "report.json").read_text())
    return found


def line(name: str, report: Mapping[str, Any], seconds: float) -> list[str]:
    found = figures(report, "subject-real")
    cells = [both(shown, found[shown]) if shown in found else "" for shown in SHOWN]
    tokens = float(report["ways"][0]["tokens_out"])
    return [name, *cells, f"{tokens:.0f}", f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "rewards", help="folder of rows, models, reports")
    parser.add_argument("--short", default="1,2,3,4", help="steps of the boards that are imitated")
    parser.add_argument("--scenes", type=int, default=1200, help="boards that are imitated")
    parser.add_argument("--long", default="8", help="steps of the boards that rewards are earned on, and asked about")
    parser.add_argument("--tries", type=int, default=800, help="boards that rewards are earned on")
    parser.add_argument("--asked", type=int, default=300, help="boards to ask about")
    parser.add_argument("--variants", default="default", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", default="", help="more flags of jobs.train --method grpo, as '--max-steps=60'")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    train = variables(BASE, BASE / "settings")["train"]
    begun = time.monotonic()
    short = boards(out, "short", given.short, given.scenes, given.short, 0, given.seed)
    long = boards(out, "long", given.long, given.tries, given.long, given.asked, given.seed + 1)
    run("train", short, variables=train, seed=given.seed, report_to="none")
    lines = [["model", *SHOWN, "tokens a reply", "seconds of its training"]]
    lines.append(line("by imitation of short chains", asked_about(long, short), time.monotonic() - begun))
    print(markdown(lines), flush=True)
    for name in given.variants.split(","):
        begun, folder = time.monotonic(), out / name
        run(
            "train", folder, *given.train.split(), variables=GRPO | {"VCOT_TRAIN_BASE_URI": str(BASE)}, seed=given.seed,
            report_to="none", input_uri=long / "tokenize", from_uri=short / "train" / "model", rewards=VARIANTS[name],
        )  # fmt: skip
        lines.append(line(f"and rewards: {name}", asked_about(long, folder), time.monotonic() - begun))
        print(markdown(lines[-1:]).splitlines()[0], flush=True)
    print(markdown(lines))
    (out / "report.json").write_text(json.dumps(lines, indent=1))


GRPO = {
    f"VCOT_TRAIN_{name}": value
    for name, value in {
        "METHOD": "grpo", "TUNE": "full", "DTYPE": "float32", "LEARNING_RATE": "5e-5", "MAX_GRAD_NORM": "1",
        "NUM_GENERATIONS": "8", "QUESTIONS_PER_STEP": "8", "MAX_COMPLETION_LENGTH": "420", "BATCH_TOKENS": "8192",
        "SAVE_STEPS": "20", "ROLLOUTS_EVERY": "10",
    }.items()
}  # fmt: skip
"""As train-grpo.env of an example would have it."""


if __name__ == "__main__":
    main()
