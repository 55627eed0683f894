"""Teach the rehearsal base to read boards, and to take one or two steps on them in three ways.

    python examples/reasoning/make_base.py --out build/reasoning      (`make reasoning-base`)

It begins with the weights of examples/rehearsal and goes on with boards (`vcot/datasets/scenes`): squares named by
their box are read, rows of squares are read off in a list whose lines count down, and one or two arrows followed, or
exchanges of cups, with boxes, in words and at once, in equal numbers. Longer chains are left to tuning. Half of the
batches are scenes to point at, with all losses of their own, so that this is not unlearned; at the end nearly all are.

Batch number i is a pure function of the seed and i, so a run that was cut off goes on from its state as if nothing had
happened.

What is not plain next-token training, and why (docs/log.md has the numbers):

- All questions about one board share one sequence, as in examples/rehearsal/make_base.py, whose forward this uses.
- Dense losses on every visual token (colour, arrow, frame, row, column), behind the merger and in the middle of the
  text model; their heads are thrown away.
- Two heads of two layers are told to look at the square that is spoken of. Without it arrows were learned and colours
  stayed at chance for hundreds of steps.
- Colours and arrows count more than the numbers of boxes: one token in nine says what was seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from rehearsal import make_base as pointing  # noqa: E402

from vcot.datasets.scenes import drawing  # noqa: E402
from vcot.datasets.scenes.boards import CELL, Board, Place, draw_board  # noqa: E402
from vcot.datasets.scenes.objects import COLOURS  # noqa: E402
from vcot.datasets.scenes.puzzles import (  # noqa: E402
    DIRECTIONS,
    Puzzle,
    Seen,
    World,
    asked_about,
    counted,
    mention,
    puzzle,
    written,
)
from vcot.grounding import Frame, FrameSpec, Trace, render_reply  # noqa: E402
from vcot.grounding.tags import render  # noqa: E402
from vcot.grounding.ways import DIRECT, REASON  # noqa: E402

SIDE = 6
MOST_ROWS, MOST_COLUMNS = 13, 6
KINDS = len(COLOURS) + len(DIRECTIONS) + 1  # colour; arrows and frame, each there or not
WAYS = ("ground", "direct", "reason")
READS, LONGEST_LIST = 4, 16


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside those it begins with."""

    seed: int = 1
    steps: int = 3000
    batch: int = 12  # boards
    scenes: int = 24  # to point at, in a batch of them
    rate: float = 6e-4
    warmup: int = 30
    decay_from: float = 0.3  # share of the steps after which the rate falls to nothing
    weight_decay: float = 0.05
    ema: float = 0.995
    said: float = 5.0  # weight of a colour or an arrow, of any other token 1
    dense: float = 0.3
    gaze: float = 0.3
    pointing: float = 1 / 2  # share of the batches
    polish: int = 1200  # steps after these
    polish_rate: float = 4e-4  # from which it falls to nothing
    polish_pointing: float = 0.85
    following: float = 0.6  # share of the others; the rest is permuting
    lists: float = 0.25  # share of both in which squares are read in a list


# --- texts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt, its reply, and the square that each line of the reply is about, by its number on the board."""

    text: str
    reply: str
    looks: tuple[int, ...] = ()


def frame_of(width: int, height: int) -> Frame:
    return FrameSpec("thousandths").on(width, height)


def looks_at(route: Sequence[Seen], width: int) -> tuple[int, ...]:
    """The square of each step, by its number."""
    return tuple(seen.places[0].row * (width // CELL) + seen.places[0].column for seen in route)


def in_steps(text: str, route: Sequence[Seen], answer: str, grounded: bool, width: int, height: int) -> Asked:
    """A question that is answered with boxes, or in words."""
    steps = written(route, "boxes", width, height)
    reply = render_reply(steps if grounded else Trace((steps.text,)), answer, frame_of(width, height))
    return Asked(text if grounded else f"{text}\n{REASON}", reply, looks_at(route, width))


def ask(drawn: Puzzle, way: str, width: int, height: int) -> Asked:
    if way == "direct":
        return Asked(f"{drawn.question}\n{DIRECT}", render_reply(Trace(()), drawn.answer, frame_of(width, height)))
    return in_steps(drawn.question, drawn.routes[0], drawn.answer, way == "ground", width, height)


def what_is(board: Board, place: Place) -> Seen:
    return Seen("square", (place,), ", ".join((board[place].colour, *board[place].arrows)))


def ask_what_is(board: Board, place: Place, width: int, height: int) -> Asked:
    """As the turns of the world `reading`."""
    seen = what_is(board, place)
    text = render(asked_about(place, width, height), frame_of(width, height))
    return Asked(text, f"Answer: {seen.what}", looks_at([seen], width))


def ask_along(rng: np.random.Generator, board: Board, width: int, height: int) -> Asked:
    """A list of squares that needs no look at the one before, asked for as steps are: counting down in long replies."""
    places = sorted(board)
    first = int(rng.integers(len(places) - 3))
    count = int(rng.integers(2, min(LONGEST_LIST, len(places) - first - 1) + 1))
    route = [what_is(board, place) for place in places[first : first + count + 1]]
    parts = (
        "Start at this ", mention("square", route[0].places, width, height),
        f". Follow {counted(count, 'square')}, row by row. Which colour is there?",
    )  # fmt: skip
    text = render(Trace(parts), frame_of(width, height))
    return in_steps(text, route, board[places[first + count]].colour, rng.random() < 0.5, width, height)


# --- batches -----------------------------------------------------------------------------------------------


@cache
def encoder() -> pointing.Encoder:
    return pointing.Encoder(pointing.make_tokenizer())


def drawn_board(
    rng: np.random.Generator, world: World, lists: bool = False
) -> tuple[np.ndarray, list[Asked], np.ndarray]:
    """Pixels uint8 [3, H, W]; questions, of which lists are long and stand alone; what each square shows (`shown`)."""
    while True:
        drawn = puzzle(rng, world, int(rng.integers(1, 3)), SIDE, int(rng.integers(5040)))
        if not drawn.held_out:
            break
    image = draw_board(rng, drawn.board)
    width, height = image.size
    if lists:
        asked = [ask_along(rng, drawn.board, width, height) for _ in range(2)]
    else:
        asked = [ask(drawn, way, width, height) for way in WAYS]
        places = list(drawn.board)
        for number in rng.permutation(len(places))[:READS]:
            asked.append(ask_what_is(drawn.board, places[number], width, height))
    return np.asarray(image).transpose(2, 0, 1).copy(), asked, shown(drawn.board)


def shown(board: Board) -> np.ndarray:
    """int64 [N, 1 + arrows + 1]: colour, arrows, frame."""
    return np.array(
        [
            [COLOURS.index(cell.colour), *(way in cell.arrows for way in DIRECTIONS), cell.framed]
            for _, cell in sorted(board.items())
        ],
        np.int64,
    )


def encoded(items: Sequence[tuple[np.ndarray, list[Asked], np.ndarray]], recipe: Recipe) -> dict[str, np.ndarray]:
    """A batch of boards of one size, as pointing.Batch but for what is dense: `cells` (`drawn_board`), and `looks`
    int64 [B, T], the square that is spoken of at each token, -1 where none is."""
    e = encoder()
    heavy = {ids[0] for word in (*COLOURS, *DIRECTIONS) if len(ids := e.ids(f" {word}")) == 1}
    line, colon = e.ids("\n")[0], e.ids("one:")[-1]
    height, width = items[0][0].shape[1:]
    rows, columns = height // CELL, width // CELL
    prefix, head, after = e.image_part(rows, columns)
    made = []
    for _, questions, _ in items:
        ids, weights, segments, looks = list(prefix), [0.0] * len(prefix), [0] * len(prefix), [-1] * len(prefix)
        positions = [head]
        for number, one in enumerate(questions, start=1):
            prompt, target = e.ids(one.text) + e.reply, e._ids(one.reply) + e.end
            left, look = list(one.looks), -1
            for token in target:
                if token == colon and left:
                    look = left.pop(0)
                looks.append(look)
                if token == line:
                    look = -1
                weights.append(recipe.said if token in heavy else 1.0)
            size = len(prompt) + len(target)
            looks[-len(target) : -len(target)] = [-1] * len(prompt)
            weights[-len(target) : -len(target)] = [0.0] * len(prompt)
            ids += prompt + target
            segments += [number] * size
            positions.append(np.tile(after + 1 + np.arange(size), (3, 1)))
        made.append((ids, weights, segments, looks, np.concatenate(positions, axis=1)))
    longest = max(len(one[0]) for one in made)
    longest += -longest % 8
    b = len(items)
    out = {
        "pixels": np.stack([pixels for pixels, _, _ in items]),
        "cells": np.stack([cells for _, _, cells in items]),
        "ids": np.full((b, longest), e.pad, np.int64),
        "weights": np.zeros((b, longest), np.float32),
        "segments": np.full((b, longest), 99, np.int64),
        "looks": np.full((b, longest), -1, np.int64),
        "positions": np.zeros((3, b, longest), np.int64),
    }
    for row, (ids, weights, segments, looks, positions) in enumerate(made):
        t = len(ids)
        out["ids"][row, :t], out["weights"][row, :t] = ids, weights
        out["segments"][row, :t], out["looks"][row, :t] = segments, looks
        out["positions"][:, row, :t] = positions
    return out


AHEAD = 8


def draw_batches(recipe: Recipe, number: int) -> list[dict[str, np.ndarray]]:
    """Batches number × AHEAD and the next."""
    rng = np.random.default_rng([recipe.seed, number])
    return [draw_batch(rng, recipe, number * AHEAD + i) for i in range(AHEAD)]


def draw_batch(rng: np.random.Generator, recipe: Recipe, step: int) -> dict[str, np.ndarray]:
    if rng.random() < (recipe.pointing if step < recipe.steps else recipe.polish_pointing):
        return scenes_to_point_at(rng, recipe.scenes)
    world: World = "following" if rng.random() < recipe.following else "permuting"
    lists = bool(rng.random() < recipe.lists)
    return encoded([drawn_board(rng, world, lists) for _ in range(recipe.batch)], recipe)


def scenes_to_point_at(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """A pointing.Batch, as at the end of its own training."""
    shape = int(rng.choice(3, p=(0.75, 0.125, 0.125)))
    drawn = [drawing.draw_scene(rng, pointing.curriculum(1.0, rng, shape)) for _ in range(count)]
    size = pointing.SHAPES_OF_IMAGES[shape]
    items = [(scene, pointing.shrunk(scene, *size), pointing.ask_several(rng, scene)) for scene in drawn]
    return vars(encoder().batch(items))


def _alone() -> None:
    import torch

    os.nice(5)
    torch.set_num_threads(1)


def batches(recipe: Recipe, first: int) -> Iterator[dict[str, np.ndarray]]:
    """From number `first` on, drawn ahead in another process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_alone) as pool:
        number, skipped = divmod(first, AHEAD)
        waiting = [pool.submit(draw_batches, recipe, number + i) for i in range(2)]
        while True:
            yield from waiting.pop(0).result()[skipped:]
            skipped, number = 0, number + 1
            waiting.append(pool.submit(draw_batches, recipe, number + 1))


# --- training ----------------------------------------------------------------------------------------------


class Losses:
    """Of one batch, with the heads that are thrown away."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        from torch import nn

        self.trainer, self.recipe = pointing.Trainer(model), recipe
        self.heads = self.trainer.heads
        wide = model.config.text_config.hidden_size
        self.sizes = (len(COLOURS), KINDS - len(COLOURS), MOST_ROWS, MOST_COLUMNS)
        self.heads.update({f"board_{name}": nn.Linear(wide, sum(self.sizes)) for name in ("token", "middle")})

    def __call__(self, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        import torch
        from torch.nn import functional as f

        if "cells" not in batch:
            total, parts = self.trainer.loss(batch, 1.0)
            return total, {"pointing": parts["main"]}
        out = self.trainer.forward(batch)
        weights = batch["weights"][:, 1:]
        keep = weights > 0
        logits, true, weights = out["logits"][:, :-1][keep].float(), batch["ids"][:, 1:][keep], weights[keep]
        main = (f.cross_entropy(logits, true, reduction="none") * weights).sum() / weights.sum()
        start, n = out["start"], out["token"].shape[1]
        dense = self._dense("token", out["token"], batch) + self._dense(
            "middle", out["states"][1][:, start : start + n], batch
        )
        told = batch["looks"] >= 0
        there = batch["looks"][told][:, None, None].expand(-1, 2, 1)
        gaze = torch.zeros(())
        for layer in (2, 3):
            shares = out["shares"][layer][:, [4, 5]].transpose(1, 2)[told][..., start : start + n].float()
            gaze = gaze - (shares.gather(-1, there) + 1e-3).log().mean()
        right = (logits.argmax(-1) == true)[weights > 1].float().mean()
        parts = {"main": main, "dense": dense, "gaze": gaze, "seen right": right}
        total = main + self.recipe.dense * dense + self.recipe.gaze * gaze
        return total, {name: float(part.detach()) for name, part in parts.items()}

    def _dense(self, name: str, states: Any, batch: dict[str, Any]) -> Any:
        import torch
        from torch.nn import functional as f

        cells = batch["cells"].flatten(0, 1)
        guess = self.heads[f"board_{name}"](states).float().flatten(0, 1)
        colour, marks, row, column = guess.split(self.sizes, dim=-1)
        loss = f.cross_entropy(colour, cells[:, 0])
        loss = loss + 2 * f.binary_cross_entropy_with_logits(marks, cells[:, 1:].float())
        if name == "middle":  # where a visual token lies, it finds out in the text model
            columns = batch["pixels"].shape[3] // CELL
            number = torch.arange(batch["cells"].shape[1]).repeat(batch["cells"].shape[0])
            loss = loss + f.cross_entropy(row, number // columns) + f.cross_entropy(column, number % columns)
        return loss


def rate_at(recipe: Recipe, step: int) -> float:
    if step >= recipe.steps:
        return recipe.polish_rate * max(1 - (step - recipe.steps) / recipe.polish, 0.02)
    left = (1 - step / recipe.steps) / (1 - recipe.decay_from)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, max(left, 0.02))


def train(recipe: Recipe, base: Path, work: Path, every: int) -> None:
    """Train (or go on), writing `work/state.pt`, `work/run.json` and `work/snapshot`."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(recipe.seed)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(base)
    losses = Losses(model, recipe)
    everything = [*model.parameters(), *losses.heads.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in everything if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0},
        ],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first, cpu_before, state = 0, 0.0, work / "state.pt"
    work.mkdir(parents=True, exist_ok=True)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        losses.heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first, cpu_before = saved["average"], saved["step"], saved["cpu"]
        print(f"going on from step {first}", flush=True)
    began, seen = time.time(), dict[str, float]()
    last = recipe.steps + recipe.polish
    for step, batch in zip(range(first, last), batches(recipe, first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = losses({name: torch.from_numpy(value) for name, value in batch.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        mix = min(1 - recipe.ema, 10 / (step + 10)) if step > 100 else 1.0
        with torch.no_grad():
            now = model.state_dict()
            torch._foreach_lerp_(list(average.values()), [now[name] for name in average], mix)
        for name, part in parts.items():
            seen[name] = 0.98 * seen.get(name, part) + 0.02 * part
        if (step + 1) % 50 == 0:
            figures = " ".join(f"{name} {part:.3f}" for name, part in seen.items())
            pace = (time.time() - began) / (step + 1 - first)
            cpu = cpu_before + time.process_time()
            print(f"{time.strftime('%H:%M:%S')} step {step + 1} {figures} {pace:.2f} s/step cpu {cpu:.0f}", flush=True)
        if (step + 1) % every == 0 or step + 1 == last:
            cpu = cpu_before + time.process_time()
            pointing.save(model, processor, work / "snapshot", average)
            parts = {
                "model": model.state_dict(), "heads": losses.heads.state_dict(), "average": average,
                "optimizer": optimizer.state_dict(), "step": step + 1, "cpu": cpu,
            }  # fmt: skip
            torch.save(parts, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            run = {"step": step + 1, "cpu_seconds": round(cpu), **asdict(recipe)}
            (work / "run.json").write_text(json.dumps(run, indent=1) + "\n")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    given.add_argument("--out", type=Path, required=True)
    given.add_argument("--base", type=Path, default=ROOT / "examples" / "rehearsal")
    given.add_argument("--steps", type=int, default=Recipe.steps)
    given.add_argument("--seed", type=int, default=Recipe.seed)
    given.add_argument("--every", type=int, default=500, help="steps between snapshots")
    a = given.parse_args()
    train(Recipe(seed=a.seed, steps=a.steps), a.base, a.out, a.every)


if __name__ == "__main__":
    main()
