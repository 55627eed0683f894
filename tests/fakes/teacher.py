"""A teacher that speaks real HTTP and answers from a script.

    with scripted_teacher(lambda ask: Say("I see the [1].")) as teacher:
        teacher.asked        what it was sent, in order of arrival
        teacher.address      for OPENAI_BASE_URL

A script gets each Asked and gives an Answer. `python -m tests.fakes.teacher [seconds]` runs one by itself, for
measurements: it prints its address and answers every question about objects with a grounded sentence.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Asked:
    """One request: what arrived, and which one it was (from 0)."""

    number: int
    path: str
    authorization: str
    body: dict[str, Any]

    @property
    def purpose(self) -> str:
        """Why it is asked, as the name of the schema says: "reason", "reanswer", …; "" where none is sent."""
        return self.body.get("response_format", {}).get("json_schema", {}).get("name", "")  # type: ignore[no-any-return]

    @property
    def words(self) -> str:
        """The text beside the image."""
        return "\n".join(part["text"] for part in self.body["messages"][-1]["content"] if "text" in part)

    @property
    def question(self) -> str:
        return re.search(r"^Question: (.*)$", self.words, re.M)[1]  # type: ignore[index]

    @property
    def answer(self) -> str:
        return re.search(r"^Right answer: (.*)$", self.words, re.M)[1]  # type: ignore[index]

    @property
    def objects(self) -> dict[int, str]:
        """Number → label, as listed."""
        return {int(n): label for n, label in re.findall(r"^\[(\d+)\] (.*?), ", self.words, re.M)}

    @property
    def images(self) -> list[Image.Image]:
        parts = (part["image_url"]["url"] for part in self.body["messages"][-1]["content"] if "image_url" in part)
        data = (re.sub("^data:image/(jpeg|png);base64,", "", url) for url in parts)
        return [Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in data]


@dataclass(frozen=True)
class Answer:
    """What the server does: sends bytes, or closes the connection where there are none.

    wait: seconds from when the request began to arrive.
    paid: tokens in and out that it is paid for; None: what its body says.
    """

    status: int = 200
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    cut: bool = False  # half of the body, then the connection is closed
    paid: tuple[int, int] | None = None

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens in and out that it is paid for, whether or not all of it arrives."""
        if self.paid is not None:
            return self.paid
        if self.status != 200 or not self.body or not self.body.startswith(b"{"):
            return 0, 0
        usage = json.loads(self.body).get("usage", {})
        return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


def Say(
    text: str | None, *, finish: str = "stop", wait: float = 0.0, logprobs: list[float] | None = None, **message: Any
) -> Answer:
    said = {"role": "assistant", "content": text, **message}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": said}
    if logprobs is not None:
        choice["logprobs"] = {"content": [{"token": "t", "logprob": one, "top_logprobs": []} for one in logprobs]}
    completion = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted-1", "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip
    return Answer(body=json.dumps(completion).encode(), wait=wait)


def miscounted(answer: Answer, usage: Any, paid: tuple[int, int]) -> Answer:
    """The same, but its body says this of its tokens (None: nothing at all), whatever it is paid for."""
    said = json.loads(answer.body or b"") | {"usage": usage}
    if usage is None:
        del said["usage"]
    return replace(answer, body=json.dumps(said).encode(), paid=paid)


def Refuse(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    body = {"error": {"message": message, "type": "error", "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), named)


CLOSE = Answer(body=None)


_TOLD: dict[str, str] = {}


def grounded(asked: Asked) -> Answer:
    """What a good teacher says: every listed object by its number, then the answer; and that answer again, when it is
    asked for it without being told."""
    if asked.purpose == "reanswer":
        return Say(json.dumps({"answer": _TOLD.get(asked.question, "cannot tell")}))
    _TOLD[asked.question] = asked.answer
    there = " and ".join(f"the [{n}]" for n in asked.objects)
    see = f"I see {there}." if there else "I looked for it, and it is not there."
    return Say(f"{see} So the answer is {asked.answer}.\nAnswer: {asked.answer}")


FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "429": lambda _: Refuse(429, "slow down", retry_after="0.05"),
    "500": lambda _: Refuse(500),
    "closed": lambda _: CLOSE,
    "half a body": lambda good: replace(good, cut=True),
    "no JSON": lambda good: replace(good, body=b"<html>Bad gateway"),
}
"""What may happen to a good answer on its way, and passes."""


def faulty(script: Callable[[Asked], Answer], *, share: float, seed: int, most: int = 3) -> Callable[[Asked], Answer]:
    """The script's answers, of which a share meets with a fault on its way, the same request at most `most` times: the
    same seed, the same faults, whatever the order of the requests."""
    met: Counter[str] = Counter()

    def answer(asked: Asked) -> Answer:
        name = json.dumps(asked.body["messages"][-1]["content"][-1])
        met[name] += 1  # nobody sends the same request twice at once
        chance = random.Random(f"{seed} {name} {met[name]}")
        good = script(asked)
        if met[name] > most or chance.random() >= share:
            return good
        return FAULTS[chance.choice(list(FAULTS))](good)

    return answer


def in_turn(*answers: Answer) -> Callable[[Asked], Answer]:
    """These, one after another; the last one for ever."""
    return lambda asked: answers[min(asked.number, len(answers) - 1)]


Elsewhere = Callable[[str, str, dict[str, str], bytes], Answer]
"""Method, path, headers and body of a request; see tests/fakes/batches.py."""


@dataclass
class Teacher:
    script: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    tokens_in: int = 0  # what it is paid for
    tokens_out: int = 0
    address: str = ""
    elsewhere: Elsewhere = lambda *_: Refuse(404)  # what it answers on other paths than /chat/completions
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def questions(self) -> list[str]:
        return [asked.question for asked in self.asked]

    def pay(self, answer: Answer) -> None:
        self.tokens_in, self.tokens_out = self.tokens_in + answer.usage[0], self.tokens_out + answer.usage[1]


@contextmanager
def scripted_teacher(script: Callable[[Asked], Answer] = grounded, host: str = "127.0.0.1") -> Iterator[Teacher]:
    teacher = Teacher(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.send(teacher.elsewhere("GET", self.path, dict(self.headers), b""))

        def do_POST(self) -> None:
            begun = time.monotonic()
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.split("?")[0].endswith("/chat/completions"):
                self.send(teacher.elsewhere("POST", self.path, dict(self.headers), data))
                return
            with teacher.lock:
                asked = Asked(len(teacher.asked), self.path, self.headers.get("Authorization", ""), json.loads(data))
                teacher.asked.append(asked)
                teacher.at_once += 1
                teacher.most_at_once = max(teacher.most_at_once, teacher.at_once)
            try:
                answer = teacher.script(asked)
                time.sleep(max(0.0, answer.wait - (time.monotonic() - begun)))
            finally:
                with teacher.lock:
                    teacher.at_once -= 1
            with teacher.lock:
                teacher.pay(answer)
            self.send(answer)

        def send(self, answer: Answer) -> None:
            if answer.body is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
            self.close_connection = self.close_connection or answer.cut

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            """A client that was killed breaks its connection; that is no news."""

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    teacher.address = f"http://{host}:{server.server_port}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    wait = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0

    def answer(asked: Asked) -> Answer:
        good = replace(grounded(asked), wait=wait)
        asked.body.clear()  # it would hold the images of thousands
        return good

    with scripted_teacher(answer) as teacher:
        print(teacher.address, flush=True)
        sys.stdin.read()
        print(len(teacher.asked), teacher.most_at_once)


if __name__ == "__main__":
    main()
