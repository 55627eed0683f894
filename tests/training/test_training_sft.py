"""The loss is the plain one, and a training that was cut anywhere ends as one that was not."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import Died, examples, tune, weights, write_examples
from vcot.errors import InputError, Interrupted
from vcot.records.example import Examples
from vcot.stage import stop


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def made(toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """12 samples to learn, 4 held out, two reasonings each."""
    return Examples([write_examples(tmp_path_factory.mktemp("made") / "a.parquet", examples(toy_encoder, 12, 4))])


@pytest.fixture
def asked_to_stop() -> Iterator[Any]:
    yield lambda: stop.request(signal.SIGTERM)
    stop._asked.clear()
    stop.signal = None


@pytest.fixture
def batch(toy_encoder: Any, made: Examples) -> dict[str, Any]:
    from vcot.training.data import Collator
    from vcot.training.data import SFTDataset

    dataset = SFTDataset(made, toy_encoder, cache_bytes=0)
    return Collator(toy_encoder.pad_token_id)([dataset[row] for row in (0, 3, 5, 8)])


def test_the_loss_at_learned_tokens_alone_is_the_plain_loss(torch: Any, toy_base: Path, batch: dict[str, Any]) -> None:
    from vcot.models.loading import attach_lora, load_base
    from vcot.training.trainer import learned_tokens, loss_sum

    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)

    def gradients(loss: Any) -> dict[str, Any]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    image_token = model.config.image_token_id
    plain = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"],
        mm_token_type_ids=(batch["input_ids"] == image_token).long(), pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
    ).loss  # fmt: skip
    ours = loss_sum(model, batch) / learned_tokens(batch["labels"])
    assert abs(plain.item() - ours.item()) < 1e-5
    expected, found = gradients(plain), gradients(ours)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_gradients_of_several_batches_are_weighed_by_their_tokens(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path
) -> None:
    """One batch of four, two of two and four of one are the same step, however many tokens each learns."""
    firsts = []
    for size, times in ((4, 1), (2, 2), (1, 4)):
        result = tune(
            toy_base, toy_encoder, made, tmp_path / str(size), per_device_train_batch_size=size,
            gradient_accumulation_steps=times, max_steps=1,
            lora_dropout=0.0, neftune_noise_alpha=0.0, group_by_length=False, tune="lora", save_steps=100,
            eval_steps=100,
        )  # fmt: skip
        firsts.append((result.history[0]["loss"], result.history[0]["grad_norm"]))
    for loss, norm in firsts[1:]:
        assert loss == pytest.approx(firsts[0][0], abs=1e-5)
        assert norm == pytest.approx(firsts[0][1], rel=1e-4)


def test_the_evaluation_is_one_mean_over_all_tokens_held_out(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path
) -> None:
    from vcot.training.data import Collator
    from vcot.training.data import SFTDataset
    from vcot.training.trainer import learned_tokens, loss_sum

    result = tune(toy_base, toy_encoder, made, tmp_path, max_steps=1, per_device_train_batch_size=3)
    dataset = SFTDataset(made, toy_encoder, cache_bytes=0)
    total = tokens = 0.0
    for row, what in enumerate(made.rows):
        if what.split == "validation" and what.alternative == 0:
            one = Collator(toy_encoder.pad_token_id)([dataset[row]])
            with torch.no_grad():
                total += float(loss_sum(result.model, one))
            tokens += int(learned_tokens(one["labels"]))
    (found,) = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert found == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 7, "gradient_checkpointing": "on"},
        {"tune": "full", "optim": "adamw_torch_fused", "learning_rate": 1e-4, "num_train_epochs": 2.0},
        # an epoch that does not come out even
        {"tune": "lora", "dtype": "bfloat16", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    ],
    ids=["qlora 8 bit, steps, checkpointing", "full", "bfloat16, odd"],
)
def test_a_training_that_died_at_each_checkpoint_ends_as_one_that_did_not(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Order, alternatives, dropout, noise, optimiser, schedule and losses: all bit for bit."""
    from vcot.training.publish import losses_by_step

    calm = tune(toy_base, toy_encoder, made, tmp_path / "calm", **changes)
    deaths = 0
    while True:
        try:
            stormy = tune(toy_base, toy_encoder, made, tmp_path / "stormy", die_at=1, **changes)
            break
        except Died:
            deaths += 1
    assert deaths >= 2
    assert losses_by_step(stormy.history) == losses_by_step(calm.history)
    assert stormy.facts == calm.facts
    expected = weights(calm)
    assert all(value.equal(expected[name]) for name, value in weights(stormy).items())


def test_the_weights_of_the_best_evaluation_are_kept(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path
) -> None:
    """A learning rate that ruins the model: the first evaluation is the best, and patience ends it after two more."""
    from vcot.training.trainer import evaluations, load_trained, trained

    ruinous = {"learning_rate": 0.05, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.0,
    "max_grad_norm": 0.0, "early_stopping_patience": 2,
               "eval_steps": 1, "save_steps": 100, "num_train_epochs": 9.0}  # fmt: skip
    result = tune(toy_base, toy_encoder, made, tmp_path, **ruinous)
    losses = evaluations(result.history)
    best = losses.index(min(losses)) + 1
    assert result.facts["kept_step"] == best
    assert result.facts["last_step"] == len(losses) == best + 2  # far from the 27 of nine epochs
    kept = weights(result)
    (folder,) = (tmp_path / "checkpoints").glob(f"step-{best:06d}-*")
    load_trained(result.model, folder)
    assert all(kept[name].equal(value) for name, value in trained(result.model).items())
    again = tune(toy_base, toy_encoder, made, tmp_path, **ruinous)  # it was over: nothing is trained again
    assert (again.history, again.tokens) == (result.history, 0)
    assert all(kept[name].equal(value) for name, value in weights(again).items())


def test_patience_counts_evaluations_that_are_not_better_by_enough() -> None:
    from vcot.training.trainer import is_over, without_progress

    assert without_progress([], 0.1) == 0
    assert without_progress([3.0, 2.0, 1.0], 0.1) == 0
    assert without_progress([3.0, 2.0, 1.95, 1.9], 0.1) == 2  # each a little better, none by enough
    assert without_progress([3.0, 2.0, 2.5, 1.0], 0.1) == 0
    history = [{"eval_loss": loss} for loss in (1.0, 1.0, 1.0)]
    assert is_over({"global_step": 5, "log_history": history}, 9, patience=2, min_delta=0.0)
    assert not is_over({"global_step": 5, "log_history": history}, 9, patience=0, min_delta=0.0)
    assert is_over({"global_step": 9, "log_history": []}, 9, patience=0, min_delta=0.0)


def test_asked_to_stop_it_saves_and_the_next_start_goes_on_from_there(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path, asked_to_stop: Any
) -> None:
    from vcot.training import collator, state_io
    from vcot.training.publish import losses_by_step

    calm = tune(toy_base, toy_encoder, made, tmp_path / "calm", save_steps=100, num_train_epochs=2.0)
    plainly = collator.Collator.__call__
    seen = 0

    def stop_in_the_fifth_batch(self: Any, chosen: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 5:
            asked_to_stop()
        return plainly(self, chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collator.Collator, "__call__", stop_in_the_fifth_batch)
        with pytest.raises(Interrupted, match=r"step 3 of 6 is done"):
            tune(toy_base, toy_encoder, made, tmp_path / "stopped", save_steps=100, num_train_epochs=2.0)
    stop._asked.clear()
    assert [path.name[:11] for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["step-000003"]
    (folder,) = (tmp_path / "stopped/checkpoints").iterdir()
    before = state_io.read_state(folder / "state.safetensors")["tokens"]
    went_on = tune(toy_base, toy_encoder, made, tmp_path / "stopped", save_steps=100, num_train_epochs=2.0)
    assert losses_by_step(went_on.history) == losses_by_step(calm.history)
    assert 0 < before < calm.tokens
    assert went_on.tokens == calm.tokens - before  # or its speed would be that of work it has not done


def test_a_loss_that_is_no_number_stops_it_and_says_what_led_to_it(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path
) -> None:
    from vcot.training.trainer import NotFinite

    ruinous = {
        "learning_rate": 1e30,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.0,
        "eval_steps": 100,
    }
    with pytest.raises(NotFinite, match=r"not finite at step \d.*Try a lower --learning-rate") as caught:
        tune(toy_base, toy_encoder, made, tmp_path, save_steps=1, **ruinous)
    facts = caught.value.facts
    assert facts["learning_rate"] == 1e30
    assert len(facts["examples"]) == 4
    assert set(facts["examples"]) <= {row.id for row in made.rows}
    assert len(facts["losses_before"]) == facts["step"] - 1
    assert all(math.isfinite(loss) for loss in facts["losses_before"])
    assert caught.value.exit_code == 78
    json.dumps(facts)
    for path in (tmp_path / "checkpoints").glob("*/weights.safetensors"):  # nothing ruined was saved
        from vcot.training.checkpoints import load_tensors

        assert all(bool(value.isfinite().all()) for value in load_tensors(path)[0].values())


@pytest.mark.parametrize("clip", [0.3, 0.0])
def test_a_gradient_that_is_no_number_stops_it_before_the_weights_are_touched(
    torch: Any, toy_base: Path, toy_encoder: Any, made: Examples, tmp_path: Path, clip: float
) -> None:
    from vcot.training.ranks import Group
    from vcot.training.trainer import NotFinite

    def ruin(_: Any, parameters: Any) -> None:
        next(iter(parameters)).grad.fill_(math.inf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "add_gradients", ruin)
        with pytest.raises(NotFinite, match="the gradient is not finite at step 1 ") as caught:
            tune(toy_base, toy_encoder, made, tmp_path, max_grad_norm=clip, max_steps=2)
    assert caught.value.facts["gradient_norm"] == "inf"


def test_without_a_validation_split_the_last_weights_are_kept(
    torch: Any, toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    alone = Examples([write_examples(tmp_path / "a.parquet", examples(toy_encoder, 4, 0))])
    result = tune(toy_base, toy_encoder, alone, tmp_path, max_steps=2, early_stopping_patience=3)
    assert result.facts["kept_step"] == result.facts["last_step"] == 2
    assert not [entry for entry in result.history if "eval_loss" in entry]


def test_without_anything_to_learn_it_is_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    nothing = Examples([write_examples(tmp_path / "a.parquet", examples(toy_encoder, 0, 2))])
    with pytest.raises(InputError, match="not one example of the train split"):
        tune(toy_base, toy_encoder, nothing, tmp_path)


def test_losses_are_one_line_per_step_without_times() -> None:
    from vcot.training.publish import losses_by_step, losses_summary

    history = [
        {"loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-3, "epoch": 0.5, "step": 1},
        {"loss": 1.0, "grad_norm": 0.4, "learning_rate": 1e-4, "epoch": 1.0, "step": 2},
        {"eval_loss": 1.5, "epoch": 1.0, "step": 2},
        {"train_runtime": 12.0, "epoch": 1.0, "step": 2},
    ]
    lines = losses_by_step(history)
    assert lines[0] == {"step": 1, "epoch": 0.5, "loss": 2.0, "gradient_norm": 0.5, "learning_rate": 1e-3}
    assert lines[1]["eval_loss"] == 1.5
    assert losses_summary(lines) == {
        "steps": 2, "first_loss": 2.0, "last_loss": 1.0, "best_eval_loss": 1.5, "best_step": 2,
    }  # fmt: skip
