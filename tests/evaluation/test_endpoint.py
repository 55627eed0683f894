"""A model behind an endpoint, over real HTTP: what it is shown and told, what is kept of its replies, what it lacks,
and what goes wrong. And one that `transformers serve` serves says what the same model says here."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from tests.fakes.evaluating import sample
from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, in_turn, scripted_teacher
from tests.jobs.conftest import clean, quick_teacher  # noqa: F401
from vcot.distill.endpoint import address_and_name
from vcot.errors import SettingsError, TemporaryError
from vcot.evaluation.endpoint import EndpointForm, EndpointModel, declared_form
from vcot.evaluation.runner import read_replies
from vcot.evaluation.ways import FORMS, Prompt
from vcot.grounding import Box, FrameSpec, Mention, Trace
from vcot.models.decoding import Decoding
from vcot.records import Completion, Folder, Image
from vcot.records.sample import Turn
from vcot.records.shards import EVALUATE
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick_teacher")

BASE = Path(__file__).resolve().parents[2] / "examples" / "rehearsal"
THOUSANDTHS = FrameSpec("thousandths")
AS_IT_IS = declared_form(frame="thousandths", dialect="vcot")
GREEDY = Decoding(max_new_tokens=40)


def noise(width: int, height: int, seed: int = 0) -> Pillow.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(values)


def described(image: Pillow.Image) -> Image:
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return Image(uri="somewhere.png", width=image.width, height=image.height, sha256=digest)


def question(name: str, *images: Pillow.Image, **changes: Any) -> Prompt:
    images = images or (noise(56, 28),)
    made = sample(name, None, question=f"Where is {name}?").model_copy(
        update={"images": tuple(map(described, images)), **changes}
    )
    return Prompt(made, images, "Point at it.", THOUSANDTHS)


QUESTIONS = [question(f"gear {n}") for n in range(6)]


def behind(address: str, cache: Path, form: EndpointForm = AS_IT_IS, **given: Any) -> EndpointModel:
    usual: dict[str, Any] = {"retries": 1, "timeout": 30, "at_once": 3, "cache_uri": str(cache)}
    return EndpointModel(Store(), address, "m", form, **(usual | given))


def ask(
    tmp_path: Path, script: Callable[[Asked], Answer], prompts: list[Prompt], decoding: Decoding = GREEDY,
    form: EndpointForm = AS_IT_IS, **given: Any,
) -> SimpleNamespace:  # fmt: skip
    with scripted_teacher(script) as teacher, behind(teacher.address, tmp_path / "cache", form, **given) as model:
        said = model.ask("subject", prompts, decoding)
        return SimpleNamespace(said=said, asked=teacher.asked, lacks=" | ".join(model.lacks))


# --- what it is shown and told


def pixels(part: dict[str, Any]) -> Pillow.Image:
    kind, data = part["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    return Pillow.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")


def test_turns_and_images_are_sent_as_a_local_model_is_given_them(tmp_path: Path) -> None:
    first, second = noise(200, 100), noise(40, 90, seed=1)
    turns = (
        Turn(role="user", said=Trace(("Where is the lever?",)), images=1),
        Turn(role="assistant", said=Trace(("The ", Mention("lever", (Box(20, 10, 100, 50),)), "."))),
    )
    asked = ask(tmp_path, lambda _: Say("up"), [question("it", first, second, turns=turns)]).asked[0]
    earlier, replied, now = asked.body["messages"]  # and no system message
    assert [earlier["role"], replied["role"], now["role"]] == ["user", "assistant", "user"]
    assert replied["content"] == "The <ref>lever</ref><box>[100, 100, 500, 500]</box>."
    assert [part["type"] for part in earlier["content"]] == [part["type"] for part in now["content"]]
    assert earlier["content"][1]["text"] == "Where is the lever?"
    assert now["content"][1]["text"] == "Where is it?\nPoint at it."
    for part, image in ((earlier["content"][0], first), (now["content"][0], second)):
        assert pixels(part).tobytes() == image.tobytes()
    assert (asked.body["model"], asked.body["temperature"], asked.body["max_completion_tokens"]) == ("m", 0, 40)
    assert (asked.body["logprobs"], asked.body["repetition_penalty"]) == (True, 1.0)


def test_an_image_is_sent_at_the_size_that_the_declared_pixels_allow(tmp_path: Path) -> None:
    """And its boxes, in pixels of what is sent, are those of that size."""
    form = declared_form(family="qwen2.5-vl", min_pixels=28 * 28, max_pixels=84 * 56)
    large = noise(280, 140)
    turns = (
        Turn(role="user", said=Trace(("Where is the lever?",)), images=1),
        Turn(role="assistant", said=Trace((Mention("lever", (Box(0, 0, 140, 70),)),))),
    )
    prompt = replace(question("it", large, turns=turns), frame=form.frame)
    asked = ask(tmp_path, lambda _: Say("up"), [prompt], form=form).asked[0]
    sent = pixels(asked.body["messages"][0]["content"][0])
    assert sent.size == form.size(large.size) == (84, 28)
    assert sent.tobytes() == large.resize((84, 28), Pillow.Resampling.BICUBIC).tobytes()
    assert asked.body["messages"][1]["content"] == '[{"bbox_2d": [0, 0, 42, 14], "label": "lever"}]'
    assert form.size(sent.size) == sent.size  # so the server changes nothing


def test_no_more_images_are_in_memory_than_fit(tmp_path: Path) -> None:
    def of(side: int) -> Image:
        return Image(uri="somewhere.png", width=side, height=side, sha256="0" * 64)

    large = [sample(f"{n}", None, image=of(10_000)) for n in range(5)]
    with behind("http://127.0.0.1:1", tmp_path) as model:
        assert model.batches(large) == [[0, 1], [2, 3], [4]]
        assert [len(batch) for batch in model.batches([sample("it", None, image=of(100))] * 30)] == [24, 6]
        assert model.batches([sample("it", None, image=of(20_000))]) == [[0]]


def test_a_server_that_makes_images_smaller_is_noticed(tmp_path: Path) -> None:
    """The scripted one counts 100 tokens a prompt."""
    form = declared_form(family="qwen2.5-vl", min_pixels=28 * 28, max_pixels=28 * 28 * 400)
    small, large = question("small", noise(280, 280)), question("large", noise(560, 560))
    assert "smaller" not in ask(tmp_path / "1", lambda _: Say("up"), [small], form=form).lacks
    assert "100 tokens had images of 400" in ask(tmp_path / "2", lambda _: Say("up"), [large], form=form).lacks


def test_boxes_in_pixels_of_an_image_that_is_not_sent_are_refused(tmp_path: Path) -> None:
    form = declared_form(frame="pixels", dialect="vcot")
    prompt = replace(question("it", noise(50, 40)), frame=FrameSpec("pixels"))
    larger = prompt.sample.images[0].model_copy(update={"width": 100, "height": 80})
    shrunk = replace(prompt, sample=prompt.sample.model_copy(update={"images": (larger,)}))
    ask(tmp_path, lambda _: Say("up"), [prompt], form=form)
    with pytest.raises(SettingsError, match=r"kept at 50x40.*original has 100x80.*--subject-frame thousandths"):
        ask(tmp_path, lambda _: Say("up"), [shrunk], form=form)


# --- replies


def test_log_probabilities_are_kept_with_the_reply(tmp_path: Path) -> None:
    asked = ask(tmp_path, lambda _: Say("up", logprobs=[-0.1234567, 0.0, -3]), QUESTIONS[:1])
    ((said,),) = asked.said
    assert said.logprobs == (-0.12346, 0.0, -3.0)
    assert Completion.model_validate_json(said.line()) == said
    assert "of tokens" not in asked.lacks


@pytest.mark.parametrize("given", [[], [float("nan")], [0.5], ["-1"]], ids=str)
def test_what_is_no_log_probability_is_none(tmp_path: Path, given: list[Any]) -> None:
    asked = ask(tmp_path, lambda _: Say("up", logprobs=given), QUESTIONS[:1])
    assert asked.said[0][0].logprobs is None
    assert b"logprobs" not in asked.said[0][0].line()
    assert "the endpoint gives no logprobs" in asked.lacks


@pytest.mark.parametrize("status", [400, 403, 422])
def test_an_endpoint_that_refuses_logprobs_is_asked_without_them(tmp_path: Path, status: int) -> None:
    def script(asked: Asked) -> Answer:
        refused = Refuse(status, "You are not allowed to request logprobs from this model")
        return refused if "logprobs" in asked.body else Say("up")

    asked = ask(tmp_path, script, QUESTIONS, at_once=1)
    assert [said.text for (said,) in asked.said] == ["up"] * 6
    assert ["logprobs" in one.body for one in asked.asked] == [True] + [False] * 6
    assert all("repetition_penalty" in one.body for one in asked.asked)
    assert "the endpoint refuses logprobs" in asked.lacks


def test_an_endpoint_that_knows_the_standard_fields_alone_is_asked_with_those(tmp_path: Path) -> None:
    others = {"repetition_penalty", "skip_special_tokens", "top_k"}

    def script(asked: Asked) -> Answer:
        unknown = sorted(others & asked.body.keys())
        return Refuse(422, f"Unexpected fields in the request: {unknown}") if unknown else Say("up")

    asked = ask(tmp_path, script, QUESTIONS[:1], Decoding(temperature=1.0, seed=3))
    assert {"seed", "top_p", "frequency_penalty", "logprobs"} <= asked.asked[-1].body.keys()
    assert all(f"{name}: refused" in asked.lacks for name in others)


def test_each_draw_is_a_request_with_a_seed_of_its_own(tmp_path: Path) -> None:
    drawn = Decoding(temperature=0.7, samples=3, seed=5)

    def script(asked: Asked) -> Answer:
        return Say(f"{asked.words.splitlines()[0]} {asked.body['seed']}")

    first = ask(tmp_path, script, QUESTIONS, drawn)
    texts = [[one.text for one in draws] for draws in first.said]
    assert [{text.rpartition(" ")[0] for text in draws} for draws in texts] == [
        {f"Where is gear {n}?"} for n in range(6)
    ]
    assert len({text for draws in texts for text in draws}) == len({one.body["seed"] for one in first.asked}) == 18
    assert {one.body["temperature"] for one in first.asked} == {0.7}
    elsewhere = ask(tmp_path / "other", script, QUESTIONS[::-1], replace(drawn, samples=2), at_once=1)
    assert [[one.text for one in draws] for draws in elsewhere.said] == [draws[:2] for draws in texts[::-1]]
    other = ask(tmp_path / "seed", script, QUESTIONS, replace(drawn, seed=6))
    assert not {one.body["seed"] for one in other.asked} & {one.body["seed"] for one in first.asked}


def test_a_killed_evaluation_asks_nothing_twice(tmp_path: Path) -> None:
    """Row by row: of six questions four were answered before the server went away for good."""
    up = SimpleNamespace(for_now=True)

    def script(asked: Asked) -> Answer:
        answered.append(asked.words.splitlines()[0])
        return Say(f"to {answered[-1]}") if len(answered) <= 4 or up.for_now is None else Refuse(500)

    answered: list[str] = []
    with scripted_teacher(script) as teacher:
        with (
            behind(teacher.address, tmp_path, at_once=1) as model,
            pytest.raises(TemporaryError, match="fails for now"),
        ):
            model.ask("subject", QUESTIONS, GREEDY)
        before, up.for_now = set(answered[:4]), None
        answered.clear()
        with behind(teacher.address, tmp_path, at_once=1) as model:
            said = model.ask("subject", QUESTIONS, GREEDY)
        assert [one.text for (one,) in said] == [f"to Where is gear {n}?" for n in range(6)]
        assert sorted(answered) == sorted({f"Where is gear {n}?" for n in range(6)} - before)
        answered.clear()
        with behind(teacher.address, tmp_path) as model:  # other pixels, another instruction, a longer reply: anew
            model.ask("subject", [replace(QUESTIONS[0], images=(noise(56, 28, seed=9),))], GREEDY)
            model.ask("subject", [replace(QUESTIONS[0], instruction="Say it.")], GREEDY)
            model.ask("subject", QUESTIONS[:1], Decoding(max_new_tokens=41))
        assert len(answered) == 3


def test_replies_of_one_server_are_not_those_of_another(tmp_path: Path) -> None:
    """Both call their model the same."""
    said = [ask(tmp_path, lambda _, text=text: Say(text), QUESTIONS[:1]).said[0][0].text for text in ("one", "two")]
    assert said == ["one", "two"]


def test_a_question_that_the_endpoint_cannot_take_stays_without_an_answer(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        if "gear 2" in asked.words:
            return Refuse(500, "CUDA error")
        return Refuse(400, "no", "content_filter") if "gear 4" in asked.words else Say("up", finish="length")

    asked = ask(tmp_path, script, QUESTIONS)
    assert [one.finish_reason for (one,) in asked.said] == [
        "length", "length", "unanswered", "length", "content_filter", "length",
    ]  # fmt: skip
    assert [one.text for (one,) in asked.said] == ["up", "up", "", "up", "", "up"]


# --- what cannot be asked of it


def test_what_only_weights_at_hand_allow_is_refused(tmp_path: Path) -> None:
    with scripted_teacher(lambda _: Say("up")) as teacher, behind(teacher.address, tmp_path) as model:
        with pytest.raises(SettingsError, match=r"#m: an endpoint cannot continue a reply"):
            model.ask("subject", [replace(QUESTIONS[0], prefix="First,")], GREEDY)
        with pytest.raises(SettingsError, match=r"cannot score"):
            model.score("subject", QUESTIONS, [])
    assert teacher.asked == []


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        (Say("late", wait=0.5), TemporaryError, r"127\.0\.0\.1:\d+/v1 cannot be reached \(no answer in time, 0.2 s"),
        (CLOSE, TemporaryError, r"127\.0\.0\.1:\d+/v1 cannot be reached.*is --subject right"),
        (Refuse(503, "busy"), TemporaryError, "fails for now.*busy"),
        (Refuse(429, "slow down"), TemporaryError, "lower --subject-concurrency"),
        (Answer(body=b"<html>Welcome"), SettingsError, r"not a chat completion.*Welcome.*--subject should name"),
        (Refuse(400, "unknown parameter"), SettingsError, "refuses the request itself.*unknown parameter"),
        (Refuse(401, "who are you"), SettingsError, "asks for a key: set OPENAI_API_KEY.*who are you"),
        (Refuse(404, "no such model"), SettingsError, r"knows no model m, or has no /chat/completions;.*no such model"),
    ],
    ids=["slow", "closed", "503", "429", "html", "400", "401", "404"],
)
def test_a_bad_endpoint_is_told_in_one_line(
    tmp_path: Path, trouble: Answer, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(error, match=says) as told:
        ask(tmp_path, in_turn(trouble), QUESTIONS[:1], timeout=0.2)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("models", "says"),
    [(["a/b", "c"], "knows no model m, .*it serves a/b, c;"), ([], "it says that it serves no model")],
)
def test_an_unknown_name_is_told_with_those_that_there_are(tmp_path: Path, models: list[str], says: str) -> None:
    listed = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in models]}).encode()
    with scripted_teacher(in_turn(Refuse(404))) as teacher, behind(teacher.address, tmp_path) as model:
        teacher.elsewhere = lambda method, path, *_: Answer(body=listed) if path == "/v1/models" else Refuse(404)
        with pytest.raises(SettingsError, match=says):
            model.ask("subject", QUESTIONS, GREEDY)


def test_nobody_listens_there(tmp_path: Path) -> None:
    says = r"http://127.0.0.1:9/v1 cannot be reached"
    with behind("http://127.0.0.1:9/v1", tmp_path) as model, pytest.raises(TemporaryError, match=says):
        model.ask("subject", QUESTIONS, GREEDY)


def test_a_server_of_ones_own_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [ask(tmp_path / "1", lambda _: Say("up"), QUESTIONS[:1]).asked[0].authorization]
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # another's: the subject's address counts
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:9")
    keys.append(ask(tmp_path / "2", lambda _: Say("up"), QUESTIONS[:1]).asked[0].authorization)
    assert keys == ["Bearer x", "Bearer none"]
    says = r"OPENAI_API_KEY is not set.*api.openai.com"
    with behind("https://api.openai.com/v1", tmp_path) as model, pytest.raises(SettingsError, match=says):
        model.ask("subject", QUESTIONS[:1], GREEDY)


def brightness(asked: Asked) -> Answer:
    """Of a server that looks."""
    return Say(f"Answer: {sum(asked.images[-1].convert('L').resize((8, 8)).tobytes())}")


@pytest.mark.parametrize(
    ("script", "told"), [(brightness, False), (lambda asked: Say(f"Answer: {len(asked.words)}"), True)]
)
def test_a_server_that_drops_images_is_named_in_words(
    tmp_path: Path, script: Callable[[Asked], Answer], told: bool
) -> None:
    run_convert(ConvertSettings(run_uri=str(tmp_path / "run"), source="scenes", scenes=12, questions="point"))
    with scripted_teacher(script) as teacher:
        run_evaluate(
            EvaluateSettings(
                run_uri=str(tmp_path / "run"), subject=f"{teacher.address}#m", native_form="qwen3-vl", split="train",
                conditions="real,blank", max_samples=8,
            )
        )  # fmt: skip
        assert all(len(one.images) == 1 for one in teacher.asked)  # it was sent them
    report = json.loads((tmp_path / "run" / "evaluate" / "report.json").read_text())
    says = "be shown to look: it gives the same reply to a blank image in 8 of 8 rows"
    assert any(sentence.startswith(says) for sentence in report["verdict"]["cannot"]) == told


# --- what is declared


def test_a_family_brings_its_form() -> None:
    form = declared_form(family="qwen3-vl")
    assert (form.frame, form.own, form.size((999, 1))) == (THOUSANDTHS, FORMS["qwen3-vl"], (999, 1))
    form = declared_form(family="qwen3-vl", min_pixels=32 * 32, max_pixels=64 * 64)
    assert (form.factor, form.size((640, 640))) == (32, (64, 64))
    form = declared_form(family="qwen2.5-vl", min_pixels=3136, max_pixels=12544)
    assert (form.frame, form.own.dialect) == (FrameSpec("resized_pixels", 3136, 12544), "qwen-json")


def test_what_is_declared_beside_a_family_counts_more() -> None:
    form = declared_form(family="qwen2.5-vl", frame="thousandths", dialect="vcot")
    assert (form.frame, form.own.dialect, form.factor) == (THOUSANDTHS, "vcot", 28)
    assert "<ref>name</ref><box>[x1, y1, x2, y2]</box> in thousandths" in (form.own.instruction or "")
    assert declared_form(family="qwen3-vl", instruction="").own.below(QUESTIONS[0].sample) is None
    told = declared_form(family="qwen3-vl", instruction="Point.")
    assert (told.own.instruction, told.own.by_text, told.own.dialect) == ("Point.", "Point.", "qwen-json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "--native-form .*--subject-frame .*--subject-dialect "),
        ({"frame": "thousandths"}, "--native-form .*--subject-frame .*--subject-dialect "),
        ({"family": "gpt"}, "--native-form gpt: it should be one of qwen2-vl"),
        ({"frame": "inches", "dialect": "vcot"}, "--subject-frame inches: it should be one of thousandths"),
        ({"frame": "thousandths", "dialect": "french"}, "--subject-dialect french: it should be one of vcot"),
        ({"family": "qwen2.5-vl"}, "limits that the server resizes by: give --subject-min-pixels and"),
        ({"family": "qwen3-vl", "max_pixels": 9}, "--subject-max-pixels is given alone"),
        ({"family": "qwen3-vl", "min_pixels": 9, "max_pixels": 8}, "--subject-min-pixels 9 and --subject-max-pixels 8"),
        ({"frame": "pixels", "dialect": "vcot", "min_pixels": 8, "max_pixels": 9}, "leave out --subject-min-pixels"),
    ],
    ids=str,
)
def test_what_is_not_declared_is_never_guessed(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as told:
        declared_form(**given)
    assert (told.value.exit_code, "\n" in str(told.value)) == (78, False)


def test_a_subject_is_an_address_and_a_name() -> None:
    assert address_and_name("https://host:8000/v1#org/name") == ("https://host:8000/v1", "org/name")
    for wrong in ("https://host:8000/v1", "https://host/v1#", "host:8000/v1#name", "https:///v1#name", "http://[#x"):
        with pytest.raises(SettingsError, match="served-name"):
            address_and_name(wrong)


# --- a server that others wrote


def serving_python() -> str | None:
    """One with the extras of `transformers serve`: SERVING_PYTHON, or this one."""
    needed = ("fastapi", "uvicorn")
    here = sys.executable if all(map(importlib.util.find_spec, needed)) else None
    return os.environ.get("SERVING_PYTHON", here)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address at which `transformers serve` serves the rehearsal model, in float32."""
    python = serving_python()
    if python is None:
        pytest.skip("transformers serve needs fastapi and uvicorn; SERVING_PYTHON names a Python that has them")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "transformers.cli.transformers", "serve", str(BASE), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(1200):
            assert process.poll() is None, "transformers serve ended"
            try:
                direct.open(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def asked_about_scenes(number: int) -> list[Prompt]:
    """Of drawn scenes, every second one after a turn that shows another."""
    from vcot.datasets.scenes import drawing
    from vcot.datasets.scenes import objects as scenes

    def scene(seed: int) -> tuple[Pillow.Image, str]:
        rng = np.random.default_rng(seed)
        drawn = drawing.draw_scene(rng, scenes.SceneSpec())
        return drawn.image, scenes.ask(rng, drawn, "where").text

    prompts = []
    for n in range(number):
        (image, asks), (other, asked) = scene(70 + n), scene(170 + n)
        changes: dict[str, Any] = {"question": asks}
        if n % 2:
            where = Trace(("The ", Mention("red disc", (Box(16, 12, 80, 60),)), " is at the left."))
            changes["turns"] = (
                Turn(role="user", said=Trace((asked,)), images=1), Turn(role="assistant", said=where)
            )  # fmt: skip
        prompts.append(replace(question(f"{n}", *([other] if n % 2 else []), image, **changes), instruction=None))
    return prompts


def test_a_served_model_says_what_it_says_here_and_is_scored_alike(served: str, tmp_path: Path) -> None:
    run_convert(
        ConvertSettings(
            run_uri=str(tmp_path / "run"), source="scenes", scenes=24, questions="point,count", validation_share=0.5
        )
    )
    asked: dict[str, Any] = {
        "samples_uri": str(tmp_path / "run" / "convert"), "max_new_tokens": 90, "dtype": "float32", "max_samples": 20,
        "conditions": "real,blank", "ask": "ground,look-again",
    }  # fmt: skip
    declared: dict[str, Any] = {
        "subject_frame": "thousandths", "subject_dialect": "vcot", "subject_instruction": "",
        "subject_min_pixels": 3136, "subject_max_pixels": 12544, "subject_concurrency": 4,
    }  # fmt: skip
    reports, replies = [], []
    for name, subject, more in (("here", str(BASE), {}), ("served", f"{served}#{BASE}", declared)):
        uri = str(tmp_path / name)
        run_evaluate(EvaluateSettings(run_uri=uri, subject=subject, **asked, **more))
        marker = Folder(Store(), uri, EVALUATE).marker()
        assert marker is not None
        found = list(read_replies(Store(), str(tmp_path / name / "evaluate"), marker.shards))
        replies.append([(one.key, one.way, one.score, one.completion.tokens_in) for one in found])
        reports.append(json.loads((tmp_path / name / "evaluate" / "report.json").read_text()))
    assert len(replies[0]) == 2 * 2 * reports[0]["samples"]["rows"]
    assert replies[0] == replies[1]
    assert reports[0]["results"] == reports[1]["results"]
    assert "gives no logprobs" in reports[1]["made_with"]["falls_away"]


def test_a_name_that_is_not_served_is_told_with_what_is(served: str, tmp_path: Path) -> None:
    other = EndpointModel(Store(), served, "other", AS_IT_IS, cache_uri=str(tmp_path), retries=0)
    with other as model, pytest.raises(SettingsError, match=r"Server is pinned to .*rehearsal.*'other'"):
        model.ask("subject", asked_about_scenes(1), Decoding())
