"""Replies from a vLLM server, over real HTTP, with a model behind it that loads the adapters it is handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.vllm import served
from tests.training.test_grpo import learn, options
from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import questions
from vcot.errors import SettingsError, TemporaryError
from vcot.models.decoding import Decoding


def by_vllm(url: str, folder: Path, **changes: Any) -> Any:
    return options(rollouts="vllm", vllm_url=url, vllm_folder=str(folder), **changes)


def test_a_training_draws_from_the_adapters_that_it_learns(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    with served(toy_base, toy_encoder.processor) as server:
        given = by_vllm(server.url, tmp_path / "vllm", beta=0.01)
        result, kept = learn(toy_base, toy_encoder, tmp_path, given, max_steps=3, learning_rate=5e-3)
    lines = [line for line in result.history if "loss" in line]
    assert len(lines) == 3
    assert all(len(each) == 8 for each in kept.values())
    for line in lines:  # the server has this step's weights: each token is as likely there as here
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
        assert line["sampling/sampling_logp_difference/max"] == pytest.approx(0, abs=1e-3)
        assert line["masked"] == 0
    assert len(set(server.loaded)) == 3, "a version each"
    assert (server.held, list((tmp_path / "vllm" / "adapters").iterdir())) == ({}, []), "none is left behind"
    assert {body["n"] for body in server.asked} == {4}
    image = str(toy_encoder.processor.image_token_id)
    assert all(body["logit_bias"] == {image: -100} for body in server.asked), "none that stands for an image"


def test_the_base_is_laid_with_the_trainings_own_limits_of_pixels(
    toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    from vcot.training.served import VllmServer

    before = {file.name: file.read_bytes() for file in toy_base.iterdir() if file.is_file()}
    one = VllmServer("http://localhost:1/v1", tmp_path / "vllm", questions(toy_encoder, tmp_path), toy_encoder)
    one.lay(toy_base)
    one.lay(toy_base)
    laid = AutoProcessor.from_pretrained(str(one.base), local_files_only=True).image_processor
    ours = toy_encoder.processor.image_processor
    assert dict(laid.size) == dict(ours.size)
    for name in ("model.safetensors", "config.json"):
        assert (one.base / name).read_bytes() == before[name]
    assert sorted(path.name for path in one.base.parent.iterdir()) == ["base"]
    assert {file.name: file.read_bytes() for file in toy_base.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("other", ["weights", "pixels"])
def test_another_base_in_the_folder_is_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path, other: str) -> None:
    from vcot.training.served import VllmServer

    one = VllmServer("http://localhost:1/v1", tmp_path / "vllm", questions(toy_encoder, tmp_path), toy_encoder)
    one.lay(toy_base)
    changed = one.base / ("model.safetensors" if other == "weights" else "processor_config.json")
    data = changed.read_bytes()
    changed.unlink()  # it may be the base's own file
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if other == "weights" else data.replace(b"12544", b"25088"))
    with pytest.raises(SettingsError, match=rf"--vllm-folder=.*{changed.name} of another base.*give another one"):
        one.lay(toy_base)


def test_one_rank_hands_over_for_all_that_draw_from_a_server(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.models.loading import attach_lora, load_base
    from vcot.training.served import VllmServer, is_loopback

    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    asked = questions(toy_encoder, tmp_path)
    with served(toy_base, toy_encoder.processor) as server:
        first, other = (
            VllmServer(server.url, tmp_path / "vllm", asked, toy_encoder, hands_over=hands) for hands in (True, False)
        )
        name = first.name_of(0)
        first.publish(model, name)
        other.publish(model, name)
        assert other.drawn(model, [0], Decoding(8, 1.0, 2, seed=1)) == first.drawn(
            model, [0], Decoding(8, 1.0, 2, seed=1)
        )
        other.close()
        assert list(server.held) == [name]
        first.close()
        assert server.loaded == [name]
    assert is_loopback("http://127.0.0.1:8000/v1")
    assert is_loopback("http://localhost:8000/v1")
    assert is_loopback("http://[::1]:8000/v1")
    assert not is_loopback("http://vllm:8000/v1")


def test_replies_of_other_weights_are_masked_and_told(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    """A server that goes on with the adapters of the first step, whatever it is handed."""
    with served(toy_base, toy_encoder.processor) as server:
        load = server._load

        def deaf(name: str, folder: Path) -> Any:
            answer = load(name, folder)
            server.held[name] = first.setdefault("model", server.held[name])
            return answer

        first: dict[str, Any] = {}
        server._load = deaf  # type: ignore[method-assign]
        given = by_vllm(server.url, tmp_path / "vllm", rewards=("short=tests.training.test_grpo:short",))
        result, _ = learn(toy_base, toy_encoder, tmp_path, given, max_steps=3, learning_rate=0.1)
    masked = [line["masked"] for line in result.history if "loss" in line]
    assert masked[0] == 0
    assert max(masked[1:]) > 0.5


def test_a_prompt_that_the_server_reads_otherwise_is_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.tokens import load_processor

    larger = load_processor(toy_base, min_pixels=200 * 200, max_pixels=300 * 300)
    with served(toy_base, larger) as server, pytest.raises(SettingsError, match=r"of the question of train-\d it make"):
        learn(toy_base, toy_encoder, tmp_path, by_vllm(server.url, tmp_path / "vllm"))


def test_a_server_that_vanishes_is_waited_for_and_then_told(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.models.loading import attach_lora, load_base
    from vcot.training.served import VllmServer

    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    asked = questions(toy_encoder, tmp_path)
    with served(toy_base, toy_encoder.processor) as server:
        one = VllmServer(server.url, tmp_path / "vllm", asked, toy_encoder, retries=2)
        one.wait()
        one.publish(model, one.name_of(0))
        server.faults["completions"] = [503, 500]
        [said] = one.drawn(model, [0], Decoding(8, 1.0, 3, seed=1))
        assert len(said) == 3
        server.faults["completions"] = [400]
        with pytest.raises(SettingsError, match=r"--vllm-url=http.*planted.*--enable-lora"):
            one.drawn(model, [0], Decoding(8, 1.0, 3, seed=1))
    with pytest.raises(TemporaryError, match=r"--vllm-url=http.*goes on from its last checkpoint"):
        one.drawn(model, [0], Decoding(8, 1.0, 3, seed=1))
    with pytest.raises(TemporaryError):
        one.wait(seconds=0)
    one.close()
