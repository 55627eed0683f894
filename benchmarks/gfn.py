"""A step of a GFlowNet of rationales, ours beside the way that LaCoT publishes, on the same rationales.

    python -m benchmarks.gfn --questions 8        (`make bench-gfn`)

As published: rationales are drawn without a cache, each token by a pass over prompt, image and all before it; the
reward at each stop is a pass of its own; every rationale is learned from with a prompt of its own; the loss is a double
loop over pairs of prefixes; one question at a time. Its defects are mended: the answer is the answer, the end counts
once, no padding counts. Ours takes the questions of a step together, as the training does.
Each way runs in a process of its own, of two threads as usual, so that its memory can be told; prompts are drawn with
the same noise, and no rationale may end before it has its length. Losses have to agree to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs.train has it; before torch is loaded

import torch

from benchmarks.rows import ROOT, ROW_SETS, encoder_of, examples
from vcot import logging
from vcot.models.branches import as_it_was
from vcot.models.decoding import Decoding
from vcot.models.device import use_device
from vcot.models.generation import _drawn, _noise, generate, placeholders, prompts_of
from vcot.models.loading import attach_lora, load_base, whole_model
from vcot.stage import Bar
from vcot.storage import Store
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import GFNOptions, TrainingConfig
from vcot.training.engine import RunContext
from vcot.training.gfn import Asked, GFNTrainer
from vcot.training.questions import Curriculum, Questions
from vcot.training.replay import Trajectory
from vcot.training.setup import training_arguments
from vcot.training.subtb import interpolated, stops

RATIONALES, BATCH = 6, 2
"""Of each question; how many of them LaCoT computes together."""


class Step:
    """A trainer whose adapters are not where they began, and what it is asked."""

    def __init__(self, base: Path, stride: int, tokens: int, folder: Path) -> None:
        rows = ROW_SETS["scenes"](8)
        self.encoder = encoder_of(base, rows, roles=("rationale",))
        made = examples(rows, self.encoder, folder / "rows.parquet")
        self.questions = Questions(
            made, rows.samples, self.encoder, way="ground", file=folder / "samples", cache_bytes=1 << 30
        )
        torch.manual_seed(1)
        self.model = attach_lora(load_base(base, dtype="float32"), r=16, alpha=32, dropout=0.0)
        for value in self.model.parameters():
            if value.requires_grad:
                value.data.normal_(0, 0.02)
        config = TrainingConfig(
            tune="lora", dtype="float32", lora_r=16, lora_alpha=32, lora_dropout=0.0, batch_tokens=1 << 14, seed=1
        )
        options = GFNOptions(
            num_generations=RATIONALES, questions_per_step=1, max_completion_length=tokens + 1, reward_stride=stride,
            box_weight=0.0, reward_floor=0.0, across_weight=0.0, learn_reference=False,
        )  # fmt: skip
        context = RunContext(folder)
        arguments = training_arguments(
            config, context, steps=1, accumulation=1, evaluating=False, checkpointing=False
        )  # fmt: skip
        self.trainer = GFNTrainer(
            self.model, arguments, encoder=self.encoder, questions=self.questions, options=options,
            curriculum=Curriculum(self.questions, 1, by_success=False), questions_per_step=1, compute=torch.float32,
            start=0, keep=lambda *_: None, config=config, context=context, epoch=float, batches_per_step=1,
            checkpoints=Checkpoints(Store(), str(folder / "kept"), folder / "local"),
            bar=Bar("train", 1, "steps", shown=False),
        )  # fmt: skip
        self.stride, self.decoding = stride, Decoding(tokens, 1.0, RATIONALES, seed=1)
        self.end, self.between = self.encoder.eos_token_ids[0], self.encoder.between
        self.model.eval()

    @contextmanager
    def endless(self) -> Iterator[None]:
        """No rationale ends before it has its length; nor does one say a token that stands for an image, as `generate`
        has it."""
        unsaid = [*self.encoder.eos_token_ids, *placeholders(whole_model(self.model).config)]

        def never(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
            kept = logits.clone()
            kept[..., unsaid] = -1e9
            return kept

        hook = whole_model(self.model).lm_head.register_forward_hook(never)
        yield
        hook.remove()


class Ours(Step):
    def draw(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        with self.endless():
            replies = generate(self.model, self.questions.prompts(numbers), self.decoding, eos_token_ids=())
        return [[one.ids for one in several] for several in replies]

    def judge(self, numbers: Sequence[int], said: Any, asked: Sequence[Asked]) -> list[list[Trajectory]]:
        flat = [
            Trajectory(number, tuple(ids), torch.zeros(0))
            for number, several in zip(numbers, said, strict=True)
            for ids in several
        ]
        judged = list(self.trainer._judged(flat, dict(zip(numbers, asked, strict=True))))
        return [judged[first : first + RATIONALES] for first in range(0, len(judged), RATIONALES)]

    def errors(self, judged: Sequence[Sequence[Trajectory]], asked: Sequence[Asked]) -> dict[str, float]:
        """What the stride costs: how far log-rewards of prefixes are from those with the answer scored after each, in
        nats, and the loss from theirs, as a share of it."""
        self.trainer.options = self.trainer.options.model_copy(update={"reward_stride": 1})
        numbers = [several[0].question for several in judged]
        exact = self.judge(numbers, [[one.ids for one in several] for several in judged], asked)
        pairs = zip(
            [one for several in judged for one in several], [x for several in exact for x in several], strict=True
        )
        apart = torch.cat([(one.log_reward - other.log_reward).abs() for one, other in pairs])
        loss, true = self.learn(judged), self.learn(exact)
        return {"mean": float(apart.mean()), "most": float(apart.max()), "loss": abs(loss - true) / true}

    def learn(self, judged: Sequence[Sequence[Trajectory]]) -> float:
        flat = [one for several in judged for one in several]
        return float(self.trainer._learn(self.trainer.model, flat, [1.0] * len(flat), 0))


class Published(Step):
    def passed(self, number: int, said: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits, float32 [rows, length, vocabulary], of passes over whole conversations of one length."""
        batch = self.questions.prompts([number] * len(said))
        more = torch.tensor([list(ids) for ids in said], dtype=torch.long)
        for name, value in (("input_ids", more), ("attention_mask", more * 0 + 1), ("mm_token_type_ids", more * 0)):
            batch[name] = torch.cat([batch[name], value], dim=1)
        logits: torch.Tensor = self.model(**self.encoder.family.model_inputs(batch), use_cache=False).logits
        return logits.float()[:, -more.shape[1] - 1 :]

    def draw(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        return [self.draw_one(number) for number in numbers]

    def judge(self, numbers: Sequence[int], said: Any, asked: Sequence[Asked]) -> list[list[Trajectory]]:
        return [self.judge_one(*each) for each in zip(numbers, said, asked, strict=True)]

    def learn(self, judged: Sequence[Sequence[Trajectory]]) -> float:
        return sum(self.learn_one(several, len(judged)) for several in judged)

    @torch.no_grad()
    def draw_one(self, number: int) -> list[list[int]]:
        (prompt,) = prompts_of(whole_model(self.model), self.questions.prompts([number]))
        noise = torch.from_numpy(_noise(prompt, self.decoding))
        said: list[list[int]] = [[] for _ in range(RATIONALES)]
        with self.endless():
            for place in range(self.decoding.max_new_tokens):
                chosen = _drawn(self.passed(number, said)[:, -1], noise[:, place])
                said = [[*ids, int(token)] for ids, token in zip(said, chosen, strict=True)]
        return said

    def judge_one(self, number: int, said: Sequence[Sequence[int]], asked: Asked) -> list[Trajectory]:
        judged = []
        with torch.no_grad(), as_it_was(self.model):
            for first in range(0, len(said), BATCH):
                some = said[first : first + BATCH]
                at = stops(len(some[0]), self.stride)
                answers = [self.answers(number, [ids[:t] for ids in some], asked) for t in at]
                tokens, ends = self.likely(number, some)
                for row, ids in enumerate(some):
                    likely = torch.nn.functional.pad(tokens[row].double().cumsum(0), (1, 0)) + ends[row].double()
                    between = interpolated([float(each[row]) for each in answers], at)
                    reward = (likely + torch.tensor(between, dtype=torch.float64)).float()
                    judged.append(Trajectory(number, tuple(ids), reward, float(likely[-1])))
        return judged

    def answers(self, number: int, said: Sequence[Sequence[int]], asked: Asked) -> torch.Tensor:
        """log P of the answer after each of these, [rows]."""
        opened = [self.end, *self.between]
        likely = self.passed(number, [[*ids, *opened, *asked.answer] for ids in said]).log_softmax(-1)
        own = likely[:, -len(asked.answer) - 1 : -1]
        return own.gather(2, torch.tensor(asked.answer)[None, :, None].expand(len(said), -1, 1))[:, :, 0].sum(1)

    def likely(self, number: int, said: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """log-probabilities of tokens [rows, L] and of an end after each [rows, L + 1]."""
        likely = self.passed(number, said).log_softmax(-1)
        tokens = likely[:, :-1].gather(2, torch.tensor([list(ids) for ids in said])[:, :, None])[:, :, 0]
        return tokens, likely[:, :, self.end]

    def learn_one(self, judged: Sequence[Trajectory], questions: int) -> float:
        total = 0.0
        for first in range(0, len(judged), BATCH):
            some = judged[first : first + BATCH]
            tokens, ends = self.likely(some[0].question, [one.ids for one in some])
            loss = torch.zeros(())
            for row, one in enumerate(some):
                said = torch.nn.functional.pad(tokens[row].cumsum(0), (1, 0))
                along = one.log_reward - said - ends[row]
                count = len(along)
                pairs = sum(((along[apart:] - along[:-apart]) ** 2).sum() for apart in range(1, count))
                loss = loss + pairs / (count * (count - 1) / 2) / len(judged) / questions
            loss.backward()
            total += float(loss.detach())
        return total


def measured(
    way: type[Ours] | type[Published], base: Path, stride: int, tokens: int, questions: int, compared: int
) -> dict[str, Any]:
    """Seconds of a question by part, in a step of so many questions; loss, gradient and rationales of the first
    `compared` of them; memory beyond that of the loaded model."""
    with tempfile.TemporaryDirectory(prefix="gfn-") as folder:
        step = way(base, stride, tokens, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        numbers = range(questions)
        asked = [replace(step.trainer._asked(number, 0), reference=None) for number in numbers]
        at = [time.monotonic()]
        said = step.draw(numbers)
        at.append(time.monotonic())
        judged = step.judge(numbers, said, asked)
        at.append(time.monotonic())
        step.learn(judged)
        at.append(time.monotonic())
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        spent = {
            name: (b - a) / questions for name, (a, b) in zip(("draw", "judge", "learn"), pairwise(at), strict=True)
        }
        step.model.zero_grad()
        loss = step.learn(judged[:compared])
        length = float(torch.stack([p.grad.norm() for p in step.model.parameters() if p.grad is not None]).norm())
        errors = step.errors(judged[:compared], asked[:compared]) if isinstance(step, Ours) else None
    return {
        "seconds": spent, "loss": loss, "length": length, "said": said[:compared], "peak_mib": peak, "errors": errors,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "rehearsal", help="folder of a base model")
    parser.add_argument("--questions", type=int, default=8, help="of a step of ours")
    parser.add_argument("--compared", type=int, default=2, help="of these, that are asked in the published way, too")
    parser.add_argument("--tokens", type=int, default=256, help="of each rationale")
    parser.add_argument("--strides", default="8,16", help="tokens between two stops at which the answer is scored")
    parser.add_argument("--way", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_device("cpu")
    logging.configure()
    logging.quiet()
    strides = [int(stride) for stride in options.strides.split(",")]
    if options.way is not None:
        way = {"ours": Ours, "published": Published}[options.way]
        asked = options.questions, options.compared
        print(json.dumps(measured(way, options.base, strides[0], options.tokens, *asked)))
        return
    good = True
    for stride in strides:
        found = {}
        for name, questions in (("ours", options.questions), ("published", options.compared)):
            command = [
                sys.executable, "-m", "benchmarks.gfn", "--way", name, "--base", str(options.base), "--strides",
                str(stride), "--tokens", str(options.tokens), "--questions", str(questions),
                "--compared", str(options.compared),
            ]  # fmt: skip
            found[name] = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
            )
        ours, theirs = found["ours"], found["published"]
        whole = {name: sum(each["seconds"].values()) for name, each in found.items()}
        apart, longer = (abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in ("loss", "length"))
        same = ours["said"] == theirs["said"]
        print(f"{RATIONALES} rationales of {options.tokens} tokens, stride {stride}: seconds a question (memory, MiB)")
        for name, each in found.items():
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in each["seconds"].items())
            print(f"  {name:9} {whole[name]:7.2f} ({each['peak_mib']})   {parts}")
        times = whole["published"] / whole["ours"]
        print(
            f"  {times:.1f} times; the same rationales: {'yes' if same else 'no'}; losses {apart:.1e} and lengths of "
            f"gradients {longer:.1e} apart", flush=True,
        )  # fmt: skip
        off = ours["errors"]
        print(
            f"  log-rewards between two stops: {off['mean']:.2f} nats from exact on the mean, {off['most']:.2f} at "
            f"most; the loss {off['loss']:.1%}", flush=True,
        )  # fmt: skip
        good &= same and apart <= 1e-4 and times >= 10
    if not good:
        raise SystemExit("wanted: the same rationales, losses that agree to 1e-4, and ten times the speed")


if __name__ == "__main__":
    main()
