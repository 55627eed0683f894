"""`python -m jobs.demo` as a process: how it starts and ends, and whether it keeps up."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.demo.conftest import ended
from tests.demo.serving import TOLD, run
from tests.demo.test_server import events, form, of, within
from tests.fakes.streaming import DISCS, Asked, Endpoint, Said, scripted_endpoint
from vcot.demo.examples import drawn
from vcot.grounding import Box, iou

ROOT = Path(__file__).parents[2]


def started(endpoint: Endpoint, *flags: str) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    return launched("--subject", f"{endpoint.address}#small", *flags)


@contextmanager
def launched(*flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address that it prints, and its process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VCOT_", "OPENAI"))}
    command = [sys.executable, "-m", "jobs.demo", "--port", "0", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"the page: http://localhost:(\d+)\n", line)
        assert found, line + process.communicate()[1]
        yield f"http://127.0.0.1:{found[1]}", process
    finally:
        process.kill()
        process.communicate()


def test_it_listens_on_this_computer_alone_and_ends_when_asked():
    with scripted_endpoint(lambda _: Said(DISCS), vcot=TOLD) as endpoint, started(endpoint) as (url, process):
        port = int(url.rpartition(":")[2])
        others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for host in others - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port), timeout=2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--subject", "http://127.0.0.1:1/v1"], 78, "which of its models?"),
        (["--subject-frame", "thousandths"], 78, "--subject-dialect"),
        (["--port", "70000"], 78, "--port"),
        (["--host", "192.0.2.1", "--subject", "http://127.0.0.1:1/v1#x"], 78, "192.0.2.1"),
    ],
)
def test_wrong_settings_end_it_in_words(flags, code, words):
    command = [sys.executable, "-m", "jobs.demo", *flags]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, "Traceback" in answer.stderr) == (code, False), answer.stderr
    assert words in answer.stderr


@pytest.mark.skipif(importlib.util.find_spec("jobs.serve") is None, reason="there is no jobs.serve")
def test_without_a_subject_the_rehearsals_base_is_served_beside_it(tmp_path):
    """The page is there at once, and says that the model is not; then a drawn disc is pointed at."""
    example = next(iter(drawn()))
    with launched("--local-folder", str(tmp_path)) as (url, process):

        async def ask(session: aiohttp.ClientSession) -> tuple[bool, list[dict[str, Any]]]:
            about = f"{url}/about"
            first = (await (await session.get(about)).json())["ready"]
            while not (await (await session.get(about)).json())["ready"]:
                assert process.poll() is None
                await asyncio.sleep(0.2)
            async with session.post(f"{url}/ask", data=form(image=example.data, question=example.question)) as answer:
                return first, await events(answer)

        first, told = within(ask)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not first
    (box,) = of("box", told)
    assert iou(Box(*box["box"]), Box(106, 62, 159, 116)) > 0.6


# --- whether it keeps up


def lateness(seconds: Sequence[float]) -> str:
    middle, most = (1000 * value for value in (statistics.median(seconds), max(seconds)))
    return f"after their tags closed at the server: p50 {middle:.1f} ms, max {most:.1f} ms"


def of_stream(endpoint: Endpoint, name: str) -> Asked:
    return next(asked for asked in endpoint.asked if name in asked.words)


async def follow(session: aiohttp.ClientSession, url: str, name: str) -> tuple[str, float, str]:
    """(name, when its first box arrived, all of its text)."""
    first, text = 0.0, ""
    async with session.post(f"{url}/ask", data=form(question=name)) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                first = first or (time.time() if event["on"] == "box" else 0.0)
                text = event["text"] if event["on"] == "done" else text
    return name, first, text


def test_ten_streams_at_once_lose_nothing_and_boxes_come_within_100_ms(visitor):
    """Nine that are read as they come, and one in a browser, of a page with a process of its own."""
    names = [f"stream {n}?" for n in range(9)]

    def script(asked: Asked) -> Said:
        return Said(f"{asked.words.split('?')[0]}: {(DISCS + ' ') * 4}", rate=60)

    async def all_of(url: str) -> list[tuple[str, float, str]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(follow(session, url, name) for name in names))

    with scripted_endpoint(script, vcot=TOLD) as endpoint, started(endpoint, "--concurrency", "10") as (url, _):
        page = visitor().open(url, question="the browser?")
        for _ in range(3):  # on a machine that others use
            endpoint.asked.clear()
            page.click("#go")
            page.wait_for_selector(".reply")
            found = run(all_of(url))
            ended(page)
            assert len(endpoint.asked) == 10
            assert all(asked.ended for asked in endpoint.asked)
            late = []
            for name, first, text in found:
                asked = of_stream(endpoint, name)
                assert text == "".join(token for token, _ in asked.sent)
                late.append(first - asked.closed_at())
            shown = page.evaluate("window.drawn.find(([reply]) => reply === 0)[1]") / 1000
            page.evaluate("window.drawn = []")
            late.append(shown - of_stream(endpoint, "the browser?").closed_at())
            assert page.locator(".box").count() == 8
            told = f"first boxes of ten streams {lateness(late)}"
            print(told)
            if max(late) <= 0.1:
                return
    pytest.fail(told)


def test_drawing_keeps_up_with_200_tokens_a_second(visitor):
    said = "".join(
        f"The <ref>thing {n}</ref><box>[{20 * n}, 100, {20 * n + 200}, 500]</box> is here and so on.\n"
        for n in range(20)
    )
    with scripted_endpoint(lambda _: Said(said, rate=200), vcot=TOLD) as endpoint, started(endpoint) as (url, _):
        page = visitor().open(url)
        for _ in range(3):
            page.click("#go")
            page.wait_for_selector(".reply.writing")
            ended(page)
            asked = endpoint.asked[-1]
            closed = [when for token, when in asked.sent if token == "</box>"]
            # Each is drawn again at the end, from the whole.
            shown = [when / 1000 for _, when in page.evaluate("window.drawn")][: len(closed)]
            page.evaluate("window.drawn = []")
            late = [at - sent for at, sent in zip(shown, closed, strict=True)]
            seconds = asked.sent[-1][1] - asked.sent[0][1]
            told = f"boxes at {len(asked.sent) / seconds:.0f} tokens a second {lateness(late)}"
            print(told)
            assert page.locator(".box").count() == 20
            if max(late) <= 0.1:
                return
    pytest.fail(told)
