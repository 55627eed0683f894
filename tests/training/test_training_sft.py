"""The loss is the plain one, and a training that was cut anywhere ends as one that was not."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import (
    Died,
    by_text,
    config,
    drawn,
    encoded,
    examples,
    loss_sum,
    tune,
    weights,
    write_examples,
)  # fmt: skip
from vcot.errors import InputError, Interrupted
from vcot.models.decoding import Decoding
from vcot.models.generation import generate
from vcot.models.loading import attach_lora, load_base
from vcot.records.example import Examples
from vcot.stage import stop
from vcot.storage.images import decode
from vcot.training.checkpoints import load_tensors, read_state
from vcot.training.data import Collator, SFTDataset
from vcot.training.engine import NotFinite, eval_losses, load_trained, lost_patience, seed_step, trained
from vcot.training.publish import losses_by_step
from vcot.training.sft import SFTTrainer, learned_tokens

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """12 samples to learn, 4 held out, two reasonings each."""
    return Examples([write_examples(tmp_path_factory.mktemp("made") / "a.parquet", examples(toy_encoder, 12, 4))])


@pytest.fixture(scope="module")
def learn(toy_base: Path, toy_encoder: Any, made: Examples) -> Any:
    """scratch, **changes → a training"""
    return partial(tune, toy_base, toy_encoder, made)


@pytest.fixture(scope="module")
def model(toy_base: Path) -> Any:
    """With adapters that change what it says."""
    adapted = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return adapted


def batches(encoder: Any, examples: Examples) -> Any:
    """rows → a batch of them"""
    dataset = SFTDataset(examples, encoder, cache_bytes=0)
    return lambda rows, packed=False: Collator(encoder.pad_token_id, packed=packed)([dataset[row] for row in rows])


# --- the loss -------------------------------------------------------------------------------------------


def test_the_loss_at_learned_tokens_alone_is_the_plain_loss(model: Any, toy_encoder: Any, made: Examples) -> None:
    batch = batches(toy_encoder, made)((0, 3, 5, 8))

    def gradients(loss: Any) -> dict[str, Any]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    image_token = model.config.image_token_id
    plain = model(
        input_ids=batch["input_ids"], attention_mask=(batch["input_ids"] != toy_encoder.pad_token_id).long(),
        labels=batch["labels"],
        mm_token_type_ids=(batch["input_ids"] == image_token).long(), pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
    ).loss  # fmt: skip
    ours = loss_sum(model, batch) / learned_tokens(batch["labels"])
    assert abs(plain.item() - ours.item()) < 1e-5
    expected, found = gradients(plain), gradients(ours)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_step_is_the_same_however_its_examples_are_divided_into_batches(
    toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    """One batch of four, four of one, and four packed into two, whatever each learns."""
    four = Examples([write_examples(tmp_path / "a.parquet", examples(toy_encoder, 4, alternatives=1))])
    firsts = []
    for tokens, times, packing in ((400, 1, "off"), (90, 4, "off"), (200, 2, "on")):
        result = tune(
            toy_base, toy_encoder, four, tmp_path / str(tokens), batch_tokens=tokens, packing=packing,
            gradient_accumulation_steps=times, max_steps=1, lora_dropout=0.0, neftune_noise_alpha=0.0,
            tune="lora", save_steps=100, eval_steps=100,
        )  # fmt: skip
        firsts.append((result.history[0]["loss"], result.history[0]["grad_norm"]))
    assert firsts[1] == pytest.approx(firsts[0], rel=1e-5)
    assert firsts[2] == pytest.approx(firsts[0], rel=1e-5)


def test_the_evaluation_is_one_mean_over_all_tokens_held_out(
    learn: Any, toy_encoder: Any, made: Examples, tmp_path: Path
) -> None:
    result = learn(tmp_path, max_steps=1, batch_tokens=250)
    batch_of, total, tokens = batches(toy_encoder, made), 0.0, 0
    for row, what in enumerate(made.rows):
        if what.split == "validation" and what.alternative == 0:
            one = batch_of([row])
            with torch.no_grad():
                total += float(loss_sum(result.model, one))
            tokens += int(learned_tokens(one["labels"]))
    (found,) = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert found == pytest.approx(total / tokens, abs=1e-5)


# --- killed and stopped ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm(learn: Any, tmp_path_factory: Any) -> Any:
    """An undisturbed training: 4 bits, an optimiser of 8, more than one epoch."""
    return learn(tmp_path_factory.mktemp("calm"), max_steps=5)


# an epoch that does not come out even
FULL = {"tune": "full", "optim": "adamw_torch_fused", "learning_rate": 1e-4, "dtype": "bfloat16", "max_steps": 3,
        "batch_tokens": 250, "gradient_accumulation_steps": 3, "gradient_checkpointing": "on"}  # fmt: skip


@pytest.mark.parametrize("changes", [{"max_steps": 5}, FULL], ids=["qlora 8 bit", "full bfloat16, odd"])
def test_a_training_that_died_at_each_checkpoint_ends_as_one_that_did_not(
    calm: Any, learn: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Order, alternatives, dropout, noise, optimiser, schedule and losses: all bit for bit."""
    if "tune" in changes:
        calm = learn(tmp_path / "calm", **changes)
    deaths = 0
    while True:
        try:
            stormy = learn(tmp_path / "stormy", die_at=1, **changes)
            break
        except Died:
            deaths += 1
    assert deaths >= 2
    assert losses_by_step(stormy.history) == losses_by_step(calm.history)
    assert stormy.metadata == calm.metadata
    expected = weights(calm)
    assert all(value.equal(expected[name]) for name, value in weights(stormy).items())


def test_asked_to_stop_it_saves_and_the_next_start_goes_on_from_there(
    calm: Any, learn: Any, tmp_path: Path, never_stopped: None
) -> None:
    plainly, seen = Collator.__call__, 0

    def stop_in_the_seventh_batch(self: Any, chosen: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 7:
            stop.request(signal.SIGTERM)
        return plainly(self, chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collator, "__call__", stop_in_the_seventh_batch)
        with pytest.raises(Interrupted, match=r"step 4 of 5 is done"):
            learn(tmp_path, save_steps=100, max_steps=5)
    stop._asked.clear()
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name[:11] == "step-000004"  # which should be evaluated, but there is no time for that
    before = read_state(folder / "state.safetensors")["tokens"]
    went_on = learn(tmp_path, save_steps=100, max_steps=5)
    assert losses_by_step(went_on.history) == losses_by_step(calm.history)
    assert 0 < before < calm.tokens
    assert went_on.tokens == calm.tokens - before  # or its speed would be that of work it has not done


def test_asked_to_stop_in_an_evaluation_it_saves_the_step_and_the_next_start_evaluates_it(
    calm: Any, learn: Any, tmp_path: Path, never_stopped: None
) -> None:
    """First that of step 4, then that of the last step, 5."""
    plainly = SFTTrainer._loss_sum
    for step in (4, 5):

        def stop_in_an_evaluation(self: Any, model: Any, inputs: Any, step: int = step) -> Any:
            if not model.training and self.state.global_step == step and not stop.requested:
                stop.request(signal.SIGTERM)
            return plainly(self, model, inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SFTTrainer, "_loss_sum", stop_in_an_evaluation)
            with pytest.raises(Interrupted, match="the last checkpoint counts"):
                learn(tmp_path, save_steps=100, max_steps=5)
        stop._asked.clear()
        stop.signal = None
        assert len(list((tmp_path / "checkpoints").glob(f"step-{step:06d}-*"))) == 1
    went_on = learn(tmp_path, save_steps=100, max_steps=5)
    assert losses_by_step(went_on.history) == losses_by_step(calm.history)
    assert went_on.metadata == calm.metadata
    assert all(value.equal(weights(calm)[name]) for name, value in weights(went_on).items())


class Bomb:
    """What a pickle may do when it is read."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


def test_pickles_beside_a_checkpoint_or_in_its_place_are_never_read(learn: Any, tmp_path: Path) -> None:
    with pytest.raises(Died):
        learn(tmp_path, die_at=1, max_steps=5)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    trace = tmp_path / "it went off"
    bomb = pickle.dumps(Bomb(trace))
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "pytorch_model.bin",
        ".metadata",
    ):
        (folder / name).write_bytes(bomb)
    assert learn(tmp_path, max_steps=5).metadata["last_step"] == 5
    newest = max((tmp_path / "checkpoints").glob("step-000005-*"))
    (newest / "state.safetensors").write_bytes(bomb)
    manifest = json.loads((newest / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == "state.safetensors":
            file |= {"sha256": hashlib.sha256(bomb).hexdigest(), "size": len(bomb)}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="incomplete safetensors file"):
        learn(tmp_path, max_steps=6)
    assert not trace.exists()
    pickle.loads(bomb)  # noqa: S301  (our own)
    assert trace.exists()  # or this test would show nothing


@pytest.fixture
def never_stopped() -> Iterator[None]:
    yield
    stop._asked.clear()
    stop.signal = None


def test_the_weights_of_the_best_evaluation_are_kept(learn: Any, tmp_path: Path) -> None:
    """A learning rate that ruins the model: the first evaluation is the best, and patience ends it after two more."""
    ruinous = {"learning_rate": 0.05, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.0,
               "max_grad_norm": 0.0, "early_stopping_patience": 2, "eval_steps": 1, "save_steps": 100,
               "num_train_epochs": 9.0}  # fmt: skip
    result = learn(tmp_path, **ruinous)
    losses = eval_losses(result.history)
    best = losses.index(min(losses)) + 1
    assert result.metadata["kept_step"] == best
    assert result.metadata["last_step"] == len(losses) == best + 2  # far from the 27 of nine epochs
    kept = weights(result)
    (folder,) = (tmp_path / "checkpoints").glob(f"step-{best:06d}-*")
    load_trained(result.model, folder)
    assert all(kept[name].equal(value) for name, value in trained(result.model).items())
    again = learn(tmp_path, **ruinous)  # it was over: nothing is trained again
    assert (again.history, again.tokens) == (result.history, 0)
    assert all(kept[name].equal(value) for name, value in weights(again).items())


@pytest.mark.parametrize(
    ("losses", "patience", "lost"),
    [
        ([3.0, 2.0, 1.95, 1.9], 2, True),  # each a little better, none by enough
        ([3.0, 2.0, 1.95, 1.9], 3, False),
        ([1.0, 1.0, 1.0], 0, False),  # 0: never
    ],
)
def test_patience_counts_evaluations_that_are_not_better_by_enough(
    losses: list[float], patience: int, lost: bool
) -> None:
    assert lost_patience(losses, config(early_stopping_patience=patience, early_stopping_threshold=0.1)) is lost


# --- what is no number, and what is not there -----------------------------------------------------------


def test_a_loss_that_is_no_number_stops_it_and_says_what_led_to_it(learn: Any, made: Examples, tmp_path: Path) -> None:
    ruinous = {"learning_rate": 1e30, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.0}
    with pytest.raises(NotFinite, match=r"not finite at step \d.*Try a lower --learning-rate") as caught:
        learn(tmp_path, save_steps=1, eval_steps=100, **ruinous)
    details = caught.value.details
    assert details["learning_rate"] == 1e30
    assert len(details["examples"]) == 4
    assert set(details["examples"]) <= {row.id for row in made.rows}
    assert len(details["losses_before"]) == details["step"] - 1
    assert all(math.isfinite(loss) for loss in details["losses_before"])
    assert caught.value.exit_code == 78
    json.dumps(details)
    for path in (tmp_path / "checkpoints").glob("*/weights.safetensors"):  # nothing ruined was saved
        assert all(bool(value.isfinite().all()) for value in load_tensors(path)[0].values())


def test_a_gradient_that_is_no_number_stops_it_before_the_weights_are_touched(
    learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no limit is set, and the library would not look."""

    plainly = SFTTrainer.training_step

    def ruin(self: Any, *args: Any) -> Any:
        loss = plainly(self, *args)
        next(iter(trained(self.model).values())).grad.fill_(math.inf)
        return loss

    monkeypatch.setattr(SFTTrainer, "training_step", ruin)
    with pytest.raises(NotFinite, match="the gradient is not finite at step 1 ") as caught:
        learn(tmp_path, max_grad_norm=0.0, max_steps=2)
    assert caught.value.details["gradient_norm"] == "inf"


def test_without_a_validation_split_the_last_weights_are_kept(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    alone = Examples([write_examples(tmp_path / "a.parquet", examples(toy_encoder, 4, 0))])
    result = tune(toy_base, toy_encoder, alone, tmp_path, max_steps=2, early_stopping_patience=3)
    assert result.metadata["kept_step"] == result.metadata["last_step"] == 2
    assert not [entry for entry in result.history if "eval_loss" in entry]


# --- questions by text alone beside those with an image -------------------------------------------------


def test_a_mixed_batch_has_the_patches_of_its_images_and_teaches_what_its_rows_teach_alone(
    model: Any, toy_encoder: Any, tmp_path: Path
) -> None:
    mixture = [*examples(toy_encoder, 2, alternatives=1), *encoded(toy_encoder, [by_text(0), by_text(1)])]
    batch_of = batches(toy_encoder, Examples([write_examples(tmp_path / "a", mixture)]))
    mixed = batch_of([2, 0, 3, 1])
    assert mixed["image_grid_thw"].shape == (2, 3)
    assert len(mixed["pixel_values"]) == int(mixed["image_grid_thw"].prod(1).sum())
    assert "pixel_values" not in batch_of([2, 3])
    with torch.no_grad():
        together = loss_sum(model, mixed).item()
        alone = [loss_sum(model, batch_of([row])).item() for row in range(4)]
    assert together == pytest.approx(sum(alone), rel=1e-4)


def test_a_reply_does_not_depend_on_who_else_is_in_the_batch(model: Any, toy_encoder: Any) -> None:
    illustrated = [drawn(number) for number in range(2)]
    asked: list[Any] = [(by_text(1), []), *((s, [decode(d, s.id).pixels]) for s, d in illustrated), (by_text(2), [])]

    def replies(some: list[Any]) -> list[list[int]]:
        samples, images = zip(*some, strict=True)
        said = generate(
            model, toy_encoder.prompts(samples, images), Decoding(10), eos_token_ids=toy_encoder.eos_token_ids
        )
        return [reply.ids for (reply,) in said]

    assert replies(asked) == [reply for one in asked for reply in replies([one])]
    assert replies([asked[0], asked[3]]) == [replies(asked)[0], replies(asked)[3]]


# --- ranks ----------------------------------------------------------------------------------------------


def test_each_rank_draws_its_own_dropout_and_after_a_stop_the_same_again() -> None:
    def draw(rank: int, step: int) -> list[float]:
        torch.rand(7)  # wherever the generator was
        seed_step(3, step, rank)
        return list(torch.rand(4).tolist())

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(rank, step)) for rank in (0, 1) for step in (5, 6)}) == 4
