"""The page's server without its page: whom it answers, what it takes, and what it streams."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.demo.serving import FRAME, SIZE, TOLD, png, run, running_page
from tests.fakes.streaming import DISCS, Asked, Said, scripted_endpoint
from vcot.demo.model import KEPT
from vcot.demo.queue import Queue
from vcot.evaluation.endpoint import declared_form
from vcot.grounding import parse

QUICK = Said(DISCS, rate=0)


def form(**fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in ({"question": "Where is the disc?", "ways": "ground", "image": png()} | fields).items():
        data.add_field(name, value, **({"filename": "x.png"} if name == "image" else {}))
    return data


def within(told: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def opened() -> Any:
        async with aiohttp.ClientSession() as session:
            return await told(session)

    return run(opened())


async def events(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    assert response.status == 200, await response.text()
    return [json.loads(block[6:]) for block in (await response.text()).split("\n\n") if block]


def asked(url: str, headers: dict[str, str] | None = None, **fields: Any) -> list[dict[str, Any]]:
    async def ask(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        async with session.post(f"{url}/ask", data=form(**fields), headers=headers) as response:
            return await events(response)

    return within(ask)


def refused(url: str, headers: dict[str, str] | None = None, data: Any = None, **fields: Any) -> tuple[int, str]:
    async def ask(session: aiohttp.ClientSession) -> tuple[int, str]:
        async with session.post(f"{url}/ask", data=data or form(**fields), headers=headers) as response:
            return response.status, (await response.json())["message"]

    return within(ask)


def of(kind: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in told if event["on"] == kind]


# --- what it streams


def test_a_reply_streams_as_events_whose_boxes_are_those_of_the_parser():
    with (
        scripted_endpoint(lambda _: Said(DISCS, rate=0, logprob=-0.5), vcot=TOLD) as endpoint,
        running_page(endpoint) as page,
    ):
        told = asked(page.url)
    assert told[0] == {"on": "image", "width": SIZE[0], "height": SIZE[1]}
    assert [event["box"] for event in of("box", told)] == [box.as_list() for box in parse(DISCS, FRAME).boxes]
    (done,) = of("done", told)
    assert (done["text"], done["stated"], done["faults"]) == (DISCS, "left", [])
    assert [part["label"] for part in done["reasoning"] if isinstance(part, dict)] == ["red disc", "blue ring"]
    assert done["tokens"] == len(endpoint.asked[0].sent)
    kinds = [event["on"] for event in told if event["on"] != "pace"]
    assert kinds.index("box") < kinds.index("answer") < kinds.index("done") < kinds.index("end")


def test_what_is_asked_is_what_an_evaluation_asks_in_the_form_that_the_server_tells():
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        asked(page.url, ways="ground,direct")
    words = [ask.words for ask in endpoint.asked]
    assert sorted(words) == sorted([
        "Where is the disc?\nPoint at what you name.",
        "Where is the disc?\nGive the answer alone, as short as you can.",
    ])  # fmt: skip
    body, (image,) = endpoint.asked[0].body, endpoint.asked[0].images
    assert image.width * image.height <= TOLD["contract"]["max_pixels"]
    assert (body["temperature"], body["repetition_penalty"], body["max_completion_tokens"]) == (0.0, 1.0, 64)


def test_a_declared_form_serves_an_endpoint_that_tells_nothing():
    text = '[{"bbox_2d": [64, 48, 320, 240], "label": "disc"}]\nAnswer: left'
    own = declared_form(family="qwen3-vl")
    with scripted_endpoint(lambda _: Said(text, rate=0)) as endpoint, running_page(endpoint, form=own) as page:
        told = asked(page.url)
    (box,) = of("box", told)
    assert box["box"] == pytest.approx([64 * 0.64, 48 * 0.48, 320 * 0.64, 240 * 0.48])


def test_looking_again_shows_what_is_in_the_box_beside_the_image():
    replies = iter(
        [Said("The <ref>disc</ref><box>[100, 150, 400, 600]</box>.\nAnswer: no", rate=0), Said("left", rate=0)]
    )
    with scripted_endpoint(lambda _: next(replies), vcot=TOLD) as endpoint, running_page(endpoint) as page:
        told = asked(page.url, ways="look-again")
    assert [len(ask.images) for ask in endpoint.asked] == [1, 2]
    assert len(of("look", told)) == 1
    (done,) = of("done", told)
    assert (done["stated"], "no" in done["text"]) == ("left", False)


def test_a_blank_image_is_grey_and_of_the_same_shape():
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        told = asked(page.url, blank="yes")
    (image,) = endpoint.asked[0].images
    assert image.getextrema() == ((128, 128),) * 3
    assert image.width / image.height == pytest.approx(SIZE[0] / SIZE[1], rel=0.1)
    assert told[0] == {"on": "image", "width": SIZE[0], "height": SIZE[1]}


@pytest.mark.parametrize("logprob", [-0.2, None])
def test_several_samples_are_drawn_with_seeds_and_voted_on(logprob):
    def script(ask: Asked) -> Said:
        return Said(f"So.\nAnswer: {'left' if ask.body['seed'] % 2 else 'Left.'}", rate=0, logprob=logprob)

    with scripted_endpoint(script, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        told = asked(page.url, samples="6")
    assert len({ask.body["seed"] for ask in endpoint.asked}) == 6
    assert {ask.body["temperature"] for ask in endpoint.asked} == {0.7}
    (vote,) = of("vote", told)
    assert [sorted(group["replies"]) for group in vote["groups"]] == [[0, 1, 2, 3, 4, 5]]
    assert ("cisc" in vote["chosen"], "cisc" in vote["missing"]) == (logprob is not None, logprob is None)


def test_a_reply_that_breaks_off_is_told_and_the_others_go_on():
    replies = iter([Said(DISCS, rate=0, cut_after=5), QUICK])
    with scripted_endpoint(lambda _: next(replies), vcot=TOLD) as endpoint, running_page(endpoint, at_once=1) as page:
        told = asked(page.url, ways="ground,reason")
    assert (len(of("failed", told)), len(of("done", told)), len(of("end", told))) == (1, 1, 1)


def test_whoever_leaves_ends_the_request_to_the_model():
    with scripted_endpoint(lambda _: Said(DISCS * 20, rate=50), vcot=TOLD) as endpoint, running_page(endpoint) as page:

        async def leave(session: aiohttp.ClientSession) -> float:
            async with session.post(f"{page.url}/ask", data=form()) as response:
                while b'"text"' not in await response.content.readline():
                    pass
                left = time.time()
            await asyncio.sleep(0.5)
            return left

        left = within(leave)
        assert endpoint.asked[0].left
        assert endpoint.asked[0].left_at - left < 0.3
        assert page.page.queue.under_way == 0


def test_who_waits_is_told_how_many_are_before():
    slow = Said("a b c d e f", rate=40)
    with scripted_endpoint(lambda _: slow, vcot=TOLD) as endpoint, running_page(endpoint, at_once=1) as page:
        told = asked(page.url, ways="ground,reason,direct")
    waited = [(event["reply"], event["before"]) for event in of("waiting", told)]
    assert waited == [(1, 0), (2, 1), (2, 0)]
    assert [ask.ended for ask in endpoint.asked] == [True] * 3


# --- whom it answers, and what it takes


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "192.168.1.7:7860"}, 200),
        ({"Host": "demo.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_names_and_other_pages_are_not_answered(headers, status):
    with (
        scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint,
        running_page(endpoint, names=("demo.example",)) as page,
    ):
        if status == 200:
            assert of("end", asked(page.url, headers))
        else:
            assert refused(page.url, headers)[0] == status
            assert not endpoint.asked

        async def get(session: aiohttp.ClientSession) -> int:
            async with session.get(f"{page.url}/about", headers={"Host": "evil.example"}) as response:
                return response.status

        assert within(get) == 403


def test_more_than_it_can_hold_are_told_to_come_again(monkeypatch):
    with scripted_endpoint(lambda _: Said(DISCS, rate=20), vcot=TOLD) as endpoint, running_page(endpoint) as page:
        monkeypatch.setattr("vcot.demo.server.MOST_ASKED", 2)

        async def three(session: aiohttp.ClientSession) -> list[int]:
            async def one() -> int:
                async with session.post(f"{page.url}/ask", data=form()) as response:
                    await response.read()
                    return response.status

            return await asyncio.gather(one(), one(), one())

        async def retry_after(session: aiohttp.ClientSession) -> str:
            async with session.post(f"{page.url}/ask", data=form()) as response:
                return response.headers["Retry-After"]

        assert sorted(within(three)) == [200, 200, 503]
        monkeypatch.setattr("vcot.demo.server.MOST_ASKED", 0)
        assert int(within(retry_after)) >= 1
        monkeypatch.setattr("vcot.demo.server.MOST_ASKED", 3)
        monkeypatch.setattr("vcot.demo.server.MOST_HELD", 2 * math.prod(SIZE))
        assert sorted(within(three)) == [200, 200, 503]
        assert (page.page._asked, page.page._held) == (0, 0)


def test_who_leaves_the_queue_as_its_turn_comes_leaves_it_in_order():
    """Cancelled, but not resumed yet, when a place is free."""

    async def scene() -> tuple[int, int, list[str]]:
        queue, ends = Queue(1), list[str]()

        async def wait(name: str) -> None:
            try:
                async with queue.place(lambda _: None):
                    ends.append(f"{name} wrote")
            except asyncio.CancelledError:
                ends.append(f"{name} left")
                raise

        async with queue.place(lambda _: None):
            first, second = (asyncio.create_task(wait(name)) for name in ("first", "second"))
            await asyncio.sleep(0)
            first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        return queue.under_way, queue.waiting, sorted(ends)

    assert run(scene()) == (0, 0, ["first left", "second wrote"])


def test_images_that_are_asked_about_are_not_all_remembered():
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        for side in range(20):
            assert of("done", asked(page.url, image=png((40 + side, 30))))
        packed = page.page.model._packer._packed
        assert len(packed) == KEPT
        assert not any(hasattr(held, "pixels") for held in packed)


def huge_png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and almost nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"image": b"GIF? no"}, 400, "no image"),
        ({"image": b"<!doctype html>"}, 400, "no image"),
        ({"image": png()[:500]}, 400, "ends too early"),
        ({"image": huge_png(60_000, 60_000)}, 400, "too many pixels"),
        ({"image": b"\x89PNG\r\n\x1a\n" + bytes(2 << 20)}, 413, "too large"),
        ({"image": png((2000, 5))}, 400, "long and thin"),
        ({"question": "  "}, 400, "empty"),
        ({"question": "x" * 5000}, 413, "too long"),
        ({"ways": "ground,sudo"}, 400, "ways"),
        ({"samples": "13"}, 400, "At most 12"),
        ({"samples": "4", "ways": "ground,reason,direct,look-again"}, 400, "At most 12"),
        ({"other": "x"}, 400, "form"),
    ],
)
def test_what_is_no_question_is_refused_in_words_and_reaches_no_model(fields, status, words):
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        found, message = refused(page.url, **fields)
        assert (found, words in message) == (status, True), message
        assert not endpoint.asked
        assert refused(page.url, data=b"x", headers={"Content-Type": "application/json"})[0] == 415


PART = b'--b\r\nContent-Disposition: form-data; name="ways"\r\n\r\n\r\n'


@pytest.mark.parametrize(
    "body",
    [
        PART * 20_000 + b"--b--\r\n",
        b"\n" * 900_000 + PART + b"--b--\r\n",
        PART + PART + b"--b--\r\n",
        PART,
        b"--b\r\n" + b"A: b\r\n" * 20_000 + PART + b"--b--\r\n",
        b"x",
    ],
    ids=["20,000 parts", "900,000 lines before", "a field twice", "no end", "20,000 header lines", "no form"],
)
def test_a_hostile_form_is_refused_at_once(body):
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint, bytes=4 << 20) as page:
        begun = time.process_time()
        status, _ = refused(page.url, headers, body)
        assert time.process_time() - begun < 0.5
        assert status == 400
        assert not endpoint.asked


def test_a_half_open_head_is_closed(monkeypatch):
    monkeypatch.setattr("vcot.demo.server.HEAD_TIME", 0.3, raising=False)
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:
        address = ("127.0.0.1", int(page.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=10) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            assert idle.recv(1) == b""


def test_pages_carry_a_policy_under_which_nothing_foreign_loads():
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:

        async def heads(session: aiohttp.ClientSession) -> list[Any]:
            paths = (
                "/",
                "/page.js",
                "/reply.js",
                "/share.js",
                "/page.css",
                "/icon.svg",
                "/examples/0",
                "/about",
                "/no",
            )
            return [(await session.get(page.url + path)).headers for path in paths]

        for headers in within(heads):
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "Server" not in headers


def test_nothing_of_the_inside_reaches_the_page(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key-0123456789")
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint) as page:

        async def text(session: aiohttp.ClientSession) -> str:
            async with session.get(f"{page.url}/about") as response:
                return await response.text()

        about = within(text)
        assert "Qwen2.5-VL-7B" in about
        endpoint.down = True
        told = json.dumps(asked(page.url)) + about
        endpoint.down = False
        monkeypatch.setattr(page.page.model, "reply", lambda *_: 1 / 0)
        told += json.dumps(asked(page.url))
        monkeypatch.setattr(page.page, "_read", lambda *_: 1 / 0)
        status, message = refused(page.url)
    assert status == 500
    for secret in ("secret", "Traceback", "ZeroDivision", "/srv", endpoint.address, "sk-"):
        assert secret not in told + message


@pytest.mark.parametrize("keeps", [True, False])
def test_images_and_replies_are_kept_only_where_that_is_said(tmp_path: Path, keeps):
    options = {"keep_uri": str(tmp_path / "kept")} if keeps else {}
    with scripted_endpoint(lambda _: QUICK, vcot=TOLD) as endpoint, running_page(endpoint, **options) as page:
        asked(page.url)
        if not keeps:
            assert not [*tmp_path.iterdir()]
            return
        deadline = time.monotonic() + 5
        while not (found := [*tmp_path.glob("kept/replies/*.json")]) and time.monotonic() < deadline:
            time.sleep(0.02)
    said = json.loads(found[0].read_text())
    assert (tmp_path / "kept" / "images" / said["image"]).read_bytes() == png()
    assert said["replies"][0]["reply"]["text"] == DISCS
