"""The server over real HTTP, with the rehearsal model: as the openai client and evaluate ask it, and faults."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image as Pillow

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from tests.jobs.conftest import clean, quick_teacher  # noqa: F401
from vcot.errors import SettingsError
from vcot.evaluation.endpoint import EndpointModel, declared_form
from vcot.evaluation.runner import read_replies
from vcot.evaluation.subjects import model_at
from vcot.grounding.ways import DIRECT
from vcot.models.decoding import Decoding
from vcot.records import Folder
from vcot.records.shards import EVALUATE
from vcot.serving import engine as engines
from vcot.serving import request as requests
from vcot.serving import server as servers
from vcot.serving.engine import Engine, Job
from vcot.serving.model import ServedModel, load
from vcot.stage import Stop
from vcot.storage import Store
from vcot.tokens import Encoder

pytestmark = pytest.mark.usefixtures("quick_teacher")

BASE = Path(__file__).resolve().parents[2] / "examples" / "rehearsal"


@dataclass
class Running:
    """A server in a thread. jobs: what its model was asked, in order."""

    address: str
    engine: Engine
    stop: Stop
    thread: threading.Thread
    jobs: list[Job] = field(default_factory=list)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the answer to a body as it is."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers


@contextmanager
def served(model: ServedModel, **given: Any) -> Iterator[Running]:
    usual: dict[str, Any] = {"queue": 32, "max_new_tokens": 256, "max_upload_bytes": 1 << 20}
    stop, made, add = Stop(), list[Engine](), Engine.add
    with pytest.MonkeyPatch.context() as patch, servers.listening("127.0.0.1", 0) as held:
        patch.setattr(Engine, "__enter__", _noted(made, Engine.__enter__))
        jobs: list[Job] = []
        patch.setattr(Engine, "add", lambda self, place: (jobs.append(place.job), add(self, place))[1])
        thread = threading.Thread(target=servers.serve, args=(model, held, stop), kwargs=usual | given)
        thread.start()
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        try:
            _wait_for(lambda: made and _health(address))
            yield Running(address, made[0], stop, thread, jobs)
        finally:
            stop.join()
            thread.join(60)
            assert not thread.is_alive()


def _noted(made: list[Engine], enter: Any) -> Any:
    def entering(self: Engine) -> Engine:
        made.append(self)
        return enter(self)  # type: ignore[no-any-return]

    return entering


def _wait_for(done: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def _health(address: str) -> Any:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())
    except OSError:
        return None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return load(Store(), model_at(Store(), str(BASE)), tmp_path_factory.mktemp("scratch"), dtype="float32")


@pytest.fixture(scope="module")
def server(model: ServedModel) -> Iterator[Running]:
    with served(model) as running:
        yield running


def scene(seed: int) -> tuple[Pillow.Image, str]:
    from vcot.datasets.scenes import drawing
    from vcot.datasets.scenes import objects as scenes

    rng = np.random.default_rng(seed)
    drawn = drawing.draw_scene(rng, scenes.SceneSpec())
    return drawn.image, scenes.ask(rng, drawn, "where").text


def url(image: Pillow.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def asking(seed: int = 70, **more: Any) -> dict[str, Any]:
    image, question = scene(seed)
    content = [shown(url(image)), {"type": "text", "text": question}]
    return {"model": "rehearsal", "messages": [{"role": "user", "content": content}], "temperature": 0} | more


def text_alone(text: str = "Where is it?", **more: Any) -> dict[str, Any]:
    return {"model": "rehearsal", "messages": [{"role": "user", "content": text}], "temperature": 0} | more


def streamed(running: Running, **asked: Any) -> tuple[list[str], list[Any]]:
    """The text of each choice, and the chunks."""
    chunks = list(running.client.chat.completions.create(stream=True, **asked))
    texts = [""] * asked.get("n", 1)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, chunks


# --- as the openai client asks


def test_a_stream_says_piece_by_piece_what_the_whole_reply_is(server: Running) -> None:
    whole = server.client.chat.completions.create(**asking())
    [text], chunks = streamed(server, **asking(stream_options={"include_usage": True}))
    assert text == whole.choices[0].message.content
    assert "<ref>" in text
    assert text.splitlines()[-1].startswith("Answer: ")
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 20
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(chunks) - 2  # but for the first, which says whose turn it is, and usage


def test_a_reply_is_sent_back_as_it_came_for_the_next_turn(server: Running) -> None:
    asked = asking(max_tokens=40)
    first = server.client.chat.completions.create(**asked).choices[0].message
    asked["messages"] += [first, {"role": "user", "content": "Are you sure?"}]
    by_client = server.client.chat.completions.create(**asked).choices[0].message.content
    asked["messages"][1] = first.model_dump()
    status, said, _ = server.post(asked)
    assert (status, said["choices"][0]["message"]["content"]) == (200, by_client)


def test_several_choices_are_the_draws_of_a_seed(server: Running, model: ServedModel) -> None:
    from vcot.models.generation import generate

    asked = asking(temperature=1.5, n=3, max_tokens=30)
    first = server.client.chat.completions.create(**asked, seed=5)
    said = [choice.message.content for choice in first.choices]
    assert len({*said}) == 3
    batch = server.jobs[-1].batch
    [draws] = generate(
        model.network, batch, Decoding(30, 1.5, 3, seed=5), eos_token_ids=model.encoder.eos_token_ids
    )  # fmt: skip
    assert said == [model.encoder.decode(draw.ids) for draw in draws]
    assert streamed(server, **asked, seed=5)[0] == said
    one, other = (streamed(server, **asked)[0] for _ in range(2))
    assert one != other  # without a seed each time anew
    greedy = server.client.chat.completions.create(**asking(n=2))
    assert greedy.choices[0].message == greedy.choices[1].message


def test_log_probabilities_are_those_of_the_model_at_temperature_1(server: Running, model: ServedModel) -> None:
    from vcot.models.generation import generate

    said = server.client.chat.completions.create(**asking(logprobs=True, top_logprobs=3))
    found = said.choices[0].logprobs
    assert found is not None and found.content is not None  # noqa: PT018
    [[own]] = generate(
        model.network, server.jobs[-1].batch, Decoding(256), eos_token_ids=model.encoder.eos_token_ids
    )  # fmt: skip
    assert [token.logprob for token in found.content] == pytest.approx(own.logprobs, abs=1e-4)
    assert "".join(token.token for token in found.content) == f"{said.choices[0].message.content}<|im_end|>"
    for token in found.content:  # greedy: the first of the likeliest is what was said
        assert [len(token.top_logprobs), token.top_logprobs[0].token] == [3, token.token]
    _, chunks = streamed(server, **asking(logprobs=True))
    told = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content
    ]
    assert [token.token for token in told] == [token.token for token in found.content]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_before_a_stop_and_at_its_longest(server: Running, stream: bool) -> None:
    whole = server.client.chat.completions.create(**asking()).choices[0].message.content or ""
    stop = "</ref><box>["  # over several tokens, of which none may be sent before it is known that it is no stop
    for more, text, reason in (
        ({"stop": ["nowhere", stop]}, whole.partition(stop)[0], "stop"),
        ({"max_completion_tokens": 5}, "The <ref>red", "length"),
    ):
        chunks = streamed(server, **asking(**more)) if stream else None
        if chunks is None:
            choice = server.client.chat.completions.create(**asking(**more)).choices[0]
            said, why = choice.message.content, choice.finish_reason
        else:
            said, why = chunks[0][0], chunks[1][-1].choices[0].finish_reason
        if reason == "stop":
            assert (said, why) == (text, reason)
        else:
            assert why == reason
            assert whole.startswith(said or "?")


def test_characters_of_many_bytes_arrive_whole(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal model would not say them, so its tokens are put into its mouth."""
    from vcot.models import generation

    ids = server.engine.model.encoder.said("ü 红 🦓 <ref>red disc</ref>", ended=True)

    def saying(*_: Any, listener: Any, **__: Any) -> None:
        for token in ids:
            listener(generation.Step([0], [token], [0.0], [[]]))

    monkeypatch.setattr(generation, "generate", saying)
    [text], chunks = streamed(server, **text_alone())
    assert text == "ü 红 🦓 <ref>red disc</ref>"
    sent = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert {"ü", "红", "🦓"} <= {*"".join(sent)}
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in sent)


def test_it_tells_what_it_serves(server: Running, model: ServedModel) -> None:
    [listed] = server.client.models.list()
    assert listed == server.client.models.retrieve("rehearsal")
    about: Any = listed.model_extra
    contract = about["vcot"]["contract"]
    assert (contract["frame"], contract["max_pixels"]) == ({"name": "thousandths"}, 12544)
    assert (contract["ways"], contract["roles"]) == (["ground"], [])
    assert about["vcot"]["card"].keys() == {"base", "method", "numbers", "code", "digest"}
    assert str(BASE.parent) not in json.dumps(about)
    assert _health(server.address) == {
        "status": "ok", "model": "rehearsal", "queue": {"waiting": 0, "running": 0, "limit": 32},
    }  # fmt: skip


# --- as evaluate asks


def test_evaluate_asks_the_very_tokens_and_pixels_that_it_asks_a_model_at_hand(
    server: Running, model: ServedModel, tmp_path: Path
) -> None:
    from tests.evaluation.test_endpoint import asked_about_scenes

    form = declared_form(frame="thousandths", dialect="vcot")  # images are sent as they are, and the server resizes
    prompts = asked_about_scenes(4)
    del server.jobs[:]
    endpoint = EndpointModel(Store(), f"{server.address}/v1", "rehearsal", form, cache_uri=str(tmp_path), at_once=1)
    with endpoint as asked:
        for prompt in prompts:  # one after another, so that it is known whose job is whose
            asked.ask("subject", [prompt], Decoding(20))
    assert len(server.jobs) == 4
    for prompt, job in zip(prompts, server.jobs, strict=True):
        here = model.encoder.prompts([prompt.sample], [prompt.images], [None], pointing=(prompt.frame, "vcot"))
        assert job.batch.keys() == here.keys()
        assert all(job.batch[name].equal(here[name]) for name in here)


def test_an_evaluation_through_http_has_the_table_of_one_that_loads_the_model(server: Running, tmp_path: Path) -> None:
    run_convert(
        ConvertSettings(
            run_uri=str(tmp_path / "run"), source="scenes", scenes=24, questions="point,count", validation_share=0.5
        )
    )
    asked: dict[str, Any] = {
        "samples_uri": str(tmp_path / "run" / "convert"), "max_new_tokens": 90, "dtype": "float32", "max_samples": 16,
        "conditions": "real,blank", "ask": "ground,direct",
    }  # fmt: skip
    declared: dict[str, Any] = {
        "subject_frame": "thousandths", "subject_dialect": "vcot", "subject_instruction": "", "subject_concurrency": 8,
    }  # fmt: skip
    reports, replies = [], []
    for name, subject, more in (("here", str(BASE), {}), ("http", f"{server.address}/v1#rehearsal", declared)):
        uri = str(tmp_path / name)
        run_evaluate(EvaluateSettings(run_uri=uri, subject=subject, **asked, **more))
        marker = Folder(Store(), uri, EVALUATE).marker()
        assert marker is not None
        found = list(read_replies(Store(), f"{uri}/evaluate", marker.shards))
        replies.append(
            [(one.key, one.way, one.score, one.completion.tokens_in, one.completion.tokens_out) for one in found]
        )
        reports.append(json.loads((tmp_path / name / "evaluate" / "report.json").read_text()))
    assert len(replies[0]) == 2 * 2 * reports[0]["samples"]["rows"]
    assert replies[0] == replies[1]
    assert reports[0]["results"] == reports[1]["results"]
    assert "refused" not in reports[1]["made_with"]["falls_away"]  # every field that it sends is understood


def test_a_rationale_that_is_a_turn_of_its_own_is_said_as_evaluate_sees_it(model: ServedModel) -> None:
    from vcot.models.generation import generate

    roles = {"roles": ("rationale",), "ways": ("direct", "ground")}
    encoder = Encoder(model.encoder.processor, model.encoder.contract.model_copy(update=roles))
    with served(replace(model, encoder=encoder)) as running:
        for below, rationale in (("", True), (f"\n{DIRECT}", False)):
            asked = asking(71, max_tokens=60)
            asked["messages"][0]["content"][1]["text"] += below
            [text], _ = streamed(running, **asked)
            image, question = scene(71)
            sample = _sample(image, question + below)
            batch = encoder.prompts([sample], [[image]], [None], rationales=[rationale])
            [[own]] = generate(
                model.network, batch, Decoding(60), eos_token_ids=encoder.eos_token_ids, between=encoder.between
            )
            assert running.jobs[-1].batch["input_ids"].equal(batch["input_ids"])
            assert text == encoder.decode(own.ids)
            assert running.jobs[-1].rationale == rationale


def _sample(image: Pillow.Image, question: str) -> Any:
    from tests.evaluation.test_endpoint import described
    from tests.fakes.evaluating import sample

    return sample("it", None, question=question).model_copy(update={"images": (described(image),)})


# --- several at once, and those who leave


def test_those_who_wait_are_computed_together_and_each_gets_its_own(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcot.models import generation

    alone = [server.client.chat.completions.create(**asking(seed)).choices[0].message.content for seed in range(6)]
    sizes, generate = [], generation.generate

    def counted(network: Any, batch: Any, *more: Any, **how: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        return generate(network, batch, *more, **how)

    monkeypatch.setattr(generation, "generate", counted)
    said: dict[int, str] = {}

    def ask(seed: int) -> None:
        said[seed] = streamed(server, **asking(seed, max_tokens=100 + seed))[0][0]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said[seed] for seed in range(6)] == alone
    assert sum(sizes) == 6
    assert len(sizes) < 6


def test_one_that_breaks_the_model_does_not_take_others_with_it(
    model: ServedModel, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcot.models import generation

    generate = generation.generate

    def failing(network: Any, batch: Any, *more: Any, seeds: Any, **how: Any) -> Any:
        if 13 in seeds:
            raise RuntimeError("no")
        return generate(network, batch, *more, seeds=seeds, **how)

    monkeypatch.setattr(generation, "generate", failing)
    answers: dict[int, Any] = {}
    with served(model) as running:

        def ask(seed: int) -> None:
            answers[seed] = running.post(text_alone(seed=seed, max_tokens=3))

        with occupied(running):
            threads = [threading.Thread(target=ask, args=(seed,)) for seed in (12, 13, 14)]
            for thread in threads:
                thread.start()
            _wait_for(lambda: len(running.jobs) == 4)
        for thread in threads:
            thread.join()
    assert {seed: status for seed, (status, *_) in answers.items()} == {12: 200, 13: 500, 14: 200}


@contextmanager
def occupied(running: Running, tokens: int = 250) -> Iterator[Job]:
    """The model is computing a long reply to somebody, who leaves at the end."""
    before = len(running.jobs)
    body = json.dumps(text_alone("x", max_tokens=tokens, temperature=100, seed=1, stream=True)).encode()
    host, port = running.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as somebody:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        somebody.sendall(head.encode() + body)
        _wait_for(lambda: len(running.jobs) > before and running.jobs[before].reply_tokens > 3)
        yield running.jobs[before]


def test_a_reply_whose_client_has_gone_is_not_computed_on(server: Running, slow: None) -> None:
    with occupied(server) as job:
        assert server.engine.running == 1
    gone = time.monotonic()
    _wait_for(lambda: not server.engine.running)
    assert time.monotonic() - gone < 3 * SLOW  # of 250 tokens that take as long each
    assert job.reply_tokens < 30


SLOW = 0.1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes a while, as with a large model."""
    from vcot.models.generation import Prefix

    extend = Prefix.extend
    monkeypatch.setattr(Prefix, "extend", lambda *given: (time.sleep(SLOW), extend(*given))[1])


def test_a_full_queue_is_told_and_how_many_wait(model: ServedModel, slow: None) -> None:
    with served(model, queue=2) as running:
        answers: list[Any] = []
        asked = text_alone(max_tokens=2)
        with occupied(running):
            threads = [threading.Thread(target=lambda: answers.append(running.post(asked))) for _ in range(2)]
            for number, thread in enumerate(threads, 1):
                thread.start()
                _wait_for(lambda number=number: running.engine.waiting == number)
            assert _health(running.address)["queue"] == {"waiting": 2, "running": 1, "limit": 2}
            status, said, headers = running.post(asked)
            assert (status, said["error"]["code"]) == (503, "overloaded")
            assert int(headers["Retry-After"]) >= 1
            with pytest.raises(openai.InternalServerError, match="requests are waiting"):
                running.client.chat.completions.create(**asked)
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in answers] == [200, 200]
        assert sorted(headers["X-Queue-Length"] for _, _, headers in answers) == ["1", "2"]
        assert _health(running.address)["queue"]["waiting"] == 0


def test_stopped_it_finishes_what_is_under_way_and_turns_away_who_waits(model: ServedModel, slow: None) -> None:
    with served(model) as running:
        answers: dict[str, Any] = {}
        going = text_alone("x", max_tokens=12, temperature=100, seed=1)

        def ask(name: str, body: Any) -> None:
            answers[name] = running.post(body)

        threads = [threading.Thread(target=ask, args=("under way", going))]
        threads[0].start()
        _wait_for(lambda: running.jobs and running.jobs[0].reply_tokens > 1)
        threads.append(threading.Thread(target=ask, args=("waiting", text_alone(max_tokens=2))))
        threads[1].start()
        _wait_for(lambda: len(running.jobs) == 2)
        running.stop.join()
        for thread in [*threads, running.thread]:
            thread.join(30)
        assert answers["under way"][0] == 200
        assert answers["under way"][1]["usage"]["completion_tokens"] == running.jobs[0].reply_tokens
        assert answers["waiting"][0] == 503
        assert "stopped" in answers["waiting"][1]["error"]["message"]


def test_a_reply_that_outlasts_the_grace_is_cut(
    model: ServedModel, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "GRACE", 0.3)
    with served(model) as running, occupied(running) as job:
        stopped = time.monotonic()
        running.stop.join()
        running.thread.join(10)
        assert not running.thread.is_alive()
        assert time.monotonic() - stopped < 0.3 + 1.0  # aiohttp would wait as long again for the handler
        assert job.reply_tokens < 40


def test_reading_stops_when_the_client_leaves(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = list[float](), requests.images.decode

    def slow_decode(*args: Any, **options: Any) -> Any:
        decoded.append(time.monotonic())
        time.sleep(0.3)
        return decode(*args, **options)

    monkeypatch.setattr(requests.images, "decode", slow_decode)
    body = json.dumps(asking() | {"messages": [{"role": "user", "content": [shown(SMALL)] * 20}]}).encode()
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        leaving.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        _wait_for(lambda: decoded)
    begun = time.monotonic()
    assert server.post(text_alone(max_tokens=1))[0] == 200
    assert time.monotonic() - begun < 3
    assert len(decoded) <= 3


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /"]
)
def test_a_half_open_head_is_closed(model: ServedModel, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(servers, "HEAD_TIME", 0.5)
    with served(model) as running:
        host, port = running.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(sent)
            while idle.recv(1 << 16):  # a complete first request is answered
                pass


def test_health_fails_while_reading_is_stuck(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STALLED_AFTER", 0.3)
    stuck, decode = threading.Event(), requests.images.decode
    monkeypatch.setattr(requests.images, "decode", lambda *args, **kw: (stuck.wait(30), decode(*args, **kw))[1])
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.post(asking(max_tokens=1))))
    thread.start()
    try:
        _wait_for(lambda: _health(server.address)["status"] == "stalled", 10)
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
        connection.request("GET", "/health")
        assert connection.getresponse().status == 503
    finally:
        stuck.set()
        thread.join(30)
    assert answers[0][0] == 200
    assert _health(server.address)["status"] == "ok"


def test_health_fails_while_the_model_is_stuck(server: Running, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STALLED_AFTER", SLOW / 4)
    with occupied(server, 100):
        _wait_for(lambda: _health(server.address)["status"] == "stalled", 10)
    _wait_for(lambda: not server.engine.running)
    assert _health(server.address)["status"] == "ok"


def test_uploads_that_trickle_do_not_fail_health(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STALLED_AFTER", 0.05)
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as idle:
        idle.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n")
        idle.sendall(b"Content-Type: application/json\r\n\r\n{")
        _wait_for(lambda: server.engine.waiting == 1)
        time.sleep(0.2)
        assert _health(server.address)["status"] == "ok"
    _wait_for(lambda: not server.engine.waiting)


def test_a_request_that_does_not_arrive_gives_its_place_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "UPLOAD_TIME", 0.2)
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as idle:
        idle.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n")
        idle.sendall(b"Content-Type: application/json\r\n\r\n{")
        _wait_for(lambda: server.engine.waiting == 1)
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 408")
        assert server.engine.waiting == 0


def test_after_a_failure_of_the_model_the_next_is_answered(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from vcot.models import generation

    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret place /home/somebody/key")

    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate", failing)
        status, said, _ = server.post(text_alone())
        assert (status, said["error"]["type"]) == (500, "server_error")
        assert "secret" not in json.dumps(said)
        with pytest.raises(openai.APIError, match="the model failed at this request"):
            streamed(server, **text_alone())
    assert server.post(text_alone(max_tokens=2))[0] == 200


# --- what is refused

SMALL = url(Pillow.new("RGB", (30, 30), "red"))


def with_image(address: str) -> dict[str, Any]:
    return {"model": "rehearsal", "messages": [{"role": "user", "content": [shown(address)]}]}


def says(*roles: str, **more: Any) -> dict[str, Any]:
    return {"model": "rehearsal", "messages": [{"role": role, "content": "a"} for role in roles]} | more


def bomb() -> str:
    """A PNG whose header says 50,000 x 50,000, and little else."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data += struct.pack(">I", 9) + b"IDAT" + b"x" * 13
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (b"{", 400, None, "the body is no JSON"),
        (b"[" * 100_000, 400, None, "the body is no JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", 400, None, "the body is no JSON"),
        (b"\xff", 400, None, "the body is no JSON"),
        ([], 400, None, "the body"),
        ({"model": "rehearsal"}, 400, "messages", "missing"),
        (says(), 400, "messages", "at least 1"),
        (says("user", model="other"), 404, "model", "there is no model 'other'; this server has 'rehearsal'"),
        (says("tool"), 400, "messages.0.role", "'system', 'user' or 'assistant'"),
        (says("user", "assistant"), 400, "messages", "last message must be the user's"),
        (says("user", "system", "user"), 400, "messages.1", "stands first or not at all"),
        (says("user", temperature=-1), 400, "temperature", "greater than or equal to 0"),
        (b'{"model": "rehearsal", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400,
         "temperature", "finite"),
        (says("user", n=17), 400, "n", "less than or equal to 16"),
        (says("user", max_tokens=257), 400, "max_tokens", r"257 tokens of reply; this server allows 256"),
        (says("user", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
        (says("user", top_p=0.5), 400, "top_p", "top_p 0.5: only 1 can be done here"),
        (says("user", repetition_penalty=1.1), 400, "repetition_penalty", "only 1 can be done here"),
        (says("user", skip_special_tokens=True), 400, "skip_special_tokens", "only false can be done here"),
        (says("user", tools=[]), 400, "tools", "no such field here"),
        (says("user", top_logprobs=2), 400, "top_logprobs", "needs logprobs"),
        (says("user", stop=["a"] * 5), 400, "stop", "up to 4"),
        (text_alone("a " * 5000), 400, "messages", "more than the 4096 that rehearsal was made for"),
        (text_alone("\ud800"), 400, "messages.0", "half a character"),
        (with_image("https://example.com/a.png"), 400, "messages.0.content.0.image_url.url", "fetches nothing"),
        (with_image("file:///etc/passwd"), 400, "messages.0.content.0.image_url.url", "fetches nothing"),
        (with_image("data:image/png;base64,?"), 400, "messages.0.content.0.image_url.url", "no base64"),
        (with_image("data:image/png;base64,aGVsbG8="), 400, "messages.0.content.0.image_url.url", "no image format"),
        (with_image(SMALL[:100] + "=="), 400, "messages.0.content.0.image_url.url", "the image"),
        (with_image(bomb()), 413, "messages.0.content.0.image_url.url", "50000 x 50000 pixels"),
        (with_image(url(Pillow.new("L", (3000, 2)))), 400, "messages", "ratio"),
        (text_alone("a" * (1 << 20)), 413, None, "--max-upload-bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_openais_form(
    server: Running, body: Any, status: int, param: str | None, message: str
) -> None:
    found, said, _ = server.post(body)
    assert said.keys() == {"error"}
    assert said["error"].keys() == {"message", "type", "param", "code"}
    assert (found, said["error"]["param"], said["error"]["type"]) == (status, param, "invalid_request_error")
    assert message in said["error"]["message"]
    assert "Traceback" not in json.dumps(said)


def test_a_long_text_is_refused_before_it_is_tokenized(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "conversation", lambda *_, **__: pytest.fail("it was tokenized"))
    with served(model, max_upload_bytes=16 << 20) as running:
        status, said, _ = running.post(text_alone("word " * 1_600_000))
    assert (status, said["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("messages", "metadata", "message"),
    [
        ([{"role": "user", "content": "a"}] * 30_001, None, "30,001 messages; at most 1,000"),
        ([{}] * 1001, None, "1,001 messages; at most 1,000"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}] * 5000}],
            None,
            "5,000 texts and images; at most",
        ),
        ([{"role": "user", "content": "a"}], [1] * ((1 << 18) + 5), "more than 262,144 values"),
    ],
    ids=["messages", "empty messages", "parts", "values"],
)
def test_too_many_pieces_are_refused_by_count(model: ServedModel, messages: Any, metadata: Any, message: str) -> None:
    with served(model, max_upload_bytes=16 << 20) as running:
        status, said, _ = running.post(text_alone() | {"messages": messages, "metadata": metadata})
    assert (status, said["error"]["code"]) == (413, "request_too_large")
    assert message in said["error"]["message"]


def test_data_urls_may_be_upper_case_and_have_line_breaks(server: Running) -> None:
    plain, odd = asking(max_tokens=8), asking(max_tokens=8)
    head, _, encoded = plain["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    lines = "\r\n".join(encoded[n : n + 76] for n in range(0, len(encoded), 76))
    odd["messages"][0]["content"][0]["image_url"]["url"] = f"{head.upper()},{lines}\n"
    replies = [server.post(body) for body in (plain, odd)]
    assert [status for status, _, _ in replies] == [200, 200]
    assert replies[0][1]["choices"] == replies[1][1]["choices"]


def test_pixels_are_counted_over_all_images_before_any_is_decoded(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests.images, "decode", lambda *_, **__: pytest.fail("it was decoded"))
    grey = url(Pillow.new("L", (8000, 8000)))
    body = {"model": "rehearsal", "messages": [{"role": "user", "content": [shown(grey), shown(grey)]}]}
    status, said, _ = server.post(body)
    assert (status, said["error"]["code"]) == (413, "image_too_large")


def test_images_are_counted_as_tokens_before_any_is_decoded(
    server: Running, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests.images, "decode", lambda *_, **__: pytest.fail("it was decoded"))
    dot = shown(url(Pillow.new("L", (1, 1))))
    contract = model.encoder.contract
    most = model.context // (contract.min_pixels // contract.factor**2)
    status, said, _ = server.post({"model": "rehearsal", "messages": [{"role": "user", "content": [dot] * (most + 1)}]})
    assert (status, said["error"]["code"]) == (400, "context_length_exceeded")


def test_other_places_and_other_kinds_of_content_are_refused(server: Running) -> None:
    status, said, _ = server.post(text_alone(), **{"Content-Type": "text/plain"})
    assert (status, said["error"]["message"]) == (415, "Content-Type: text/plain; it should be application/json")
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    for method, path, expected in (
        ("GET", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/x", 404),
    ):
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, "error" in json.loads(answer.read())) == (expected, True)


def test_a_model_without_images_is_shown_none(model: ServedModel) -> None:
    contract = model.encoder.contract.model_copy(update={"mode": "text"})
    with served(replace(model, encoder=Encoder(model.encoder.processor, contract))) as running:
        assert "is shown none" in running.post(asking())[1]["error"]["message"]
        assert running.post(text_alone(max_tokens=2))[0] == 200


def test_an_address_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        says = f"--host 127.0.0.1 --port {port}: .*in use; choose another"
        with pytest.raises(SettingsError, match=says), servers.listening("127.0.0.1", port):
            pass
