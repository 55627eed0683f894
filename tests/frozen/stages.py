"""The stages as a user runs them: flags, folders, exit codes. Knows nothing of the code behind the commands.

They run in this process, one after another, which saves a minute of starting Python.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from tests.frozen.names import as_frozen, example_as_frozen, flag
from vcot.stage import launch

ROOT = Path(__file__).parents[2]
IMAGES = "examples/blood-cells/images"
INSTANCES = "examples/blood-cells/instances.json"
BASE = "examples/rehearsal"


def arguments(stage: str, **settings: object) -> list[str]:
    given = []
    for name, value in settings.items():
        spelled = flag(stage, f"--{name.replace('_', '-')}")
        given += [spelled] if value is True else [spelled, str(value)]
    return given


def run(stage: str, *, code: int = 0, env: dict[str, str] | None = None, **settings: object) -> str:
    """What `python -m jobs.<stage>` prints; it must end with this exit code."""
    job = importlib.import_module(f"jobs.{stage}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VCOT_", "OPENAI_"))}
    environment = kept | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"} | (env or {})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    printed, ended = StringIO(), None
    with (
        patch.dict(os.environ, environment, clear=True), chdir(ROOT),
        redirect_stdout(printed), redirect_stderr(printed),
        patch("vcot.stage.stop._asked", threading.Event()), patch("vcot.stage.stop.signal", None),
    ):  # fmt: skip
        try:
            launch(getattr(job, f"{stage.title()}Settings"), job.run, arguments(stage, **settings))
        except SystemExit as end:
            ended = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert ended == code, printed.getvalue()
    return printed.getvalue()


@contextmanager
def sigterm_once(there: Callable[[], bool]) -> Iterator[None]:
    """This process gets a SIGTERM as soon as something is there."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if there():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def digests(folder: Path, run_folder: Path) -> dict[str, str]:
    """File below a stage's `shards` and `rejections` → digest of its lines; paths of this run read as RUN."""
    found = {}
    for path in sorted((*folder.glob("shards/*.jsonl.gz"), *folder.glob("rejections/*.jsonl"))):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = [as_frozen(json.loads(line)) for line in data.decode().replace(str(run_folder), "RUN").splitlines()]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        name = f"{path.parent.name}/{path.name[:5]}: {len(lines)} lines"
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def examples_digest(folder: Path) -> dict[str, str]:
    """Shard of tokenize → digest of all values in it, whatever Parquet made of them."""
    import pyarrow.parquet as pq

    found = {}
    for path in sorted(folder.glob("shards/*.parquet")):
        rows = pq.read_table(path).to_pylist()
        digest = hashlib.sha256()
        for row in rows:
            digest.update(repr(sorted(example_as_frozen(row).items())).encode())
        found[f"{path.name[:5]}: {len(rows)} examples"] = digest.hexdigest()
    return found


# --- inputs ---------------------------------------------------------------------------------------------------------


def photograph(number: int) -> str:
    """The example's photographs in the order of their names; none beyond the last."""
    names = sorted(path.name for path in (ROOT / IMAGES).iterdir())
    return names[number] if number < len(names) else "BloodImage_99999.jpg"


def chats() -> list[Any]:
    """Chat messages and own lines, good and bad, over photographs of the example."""

    def chat(number: int, question: str, reply: str, **more: Any) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": photograph(number)}}, {"type": "text", "text": question}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]} | more

    box = "<ref>cell</ref><box>[412, 187, 730, 595]</box>"
    own = {"image": photograph(9), "question": "How many cells?", "answers": ["5", "five"]}
    return [
        chat(0, "Where is the cell?", f"I see the {box} here.\nAnswer: at the centre"),
        chat(1, "Where is the cell?", f"I see the {box} here.\nAnswer: at the centre", id="named"),
        chat(1, "where is the cell ?", f"I see the {box} here.\nAnswer: at the centre"),  # a duplicate
        chat(2, "Where is the cell?", "The <ref>cell</ref><box>[730, 187, 412, 595]</box>.\nAnswer: left"),
        chat(3, "Where is the cell?", "The <ref>cell</ref><box>[1, 2, 3000, 4]</box>.\nAnswer: left"),
        chat(4, "", f"The {box}.\nAnswer: left"),
        chat(5, "Where is the cell?", f"The {box}."),
        chat(999, "Where is the cell?", f"The {box}.\nAnswer: left"),
        own,
        *(
            own
            | {
                "question": f"How many cells are in field {n}?",
                "metadata": {"slide": n},
                "image": photograph(9 + n),
                "evidence": [{"label": "cell", "boxes": [[10 + n, 20, 100, 200]]}],
            }
            for n in range(6)
        ),
        own | {"question": "Is there one?", "evidence": [{"label": "cell", "boxes": [[10, 20, 9000, 200]]}]},
        own | {"question": "Which?", "choices": ["a", "b"], "answers": ["c"]},
        own | {"question": "Is there a dog?", "answers": ["no"], "evidence": []},
        own | {"question": "A split", "origin": {"dataset": "mine", "split": "test", "row": "1", "licence": "CC0"}},
        own | {"question": "Same image as a test row"},
        ["no", "object"],
        "not json",
    ]


def viscot() -> list[dict[str, Any]]:
    """Rows as VisCoT publishes them, over copies of the example's photographs (320 x 240)."""

    def row(name: str, boxes: Any, **more: Any) -> dict[str, Any]:
        return {
            "question": f"What is in {name}?", "answer": "cell", "image": f"{name}.jpg", "width": 320, "height": 240,
            "bboxs": boxes, "dataset": "vsr", "split": "train",
        } | more  # fmt: skip

    return [
        row("000000000010", [[10.4, 20.9, 200.1, 150.7]]),
        row("000000000011", [[10, 20, 200, 200], [300, 20, 400, 90]]),
        row("000000000012", [[10, 20, 200, 200]], split="val"),
        row("000000000013", [[10, 20, 10, 100]]),
        row("000000000014", [[10, 20, 700, 200]]),
        row("000000000015", [[10, 20, 200, 200]], width=641),
        row("000000000016", []),
        row("000000000012", [[10, 20, 200, 200]], question="Held out?"),
    ]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if row == "not json" else json.dumps(row)) + "\n" for row in rows))
    return path


def viscot_images(folder: Path) -> Path:
    (folder / "vsr").mkdir(parents=True)
    for number in range(10, 17):
        shutil.copy(ROOT / IMAGES / photograph(number), folder / "vsr" / f"{number:012}.jpg")
    return folder


# --- a teacher over HTTP --------------------------------------------------------------------------------------------


def reply(asked: dict[str, Any]) -> str:
    """What the teacher says: every listed object in one sentence; to every third question an unusable reply."""
    import re

    words = "\n".join(part["text"] for part in asked["messages"][-1]["content"] if "text" in part)
    question = re.search(r"^Question: (.*)$", words, re.M)[1]  # type: ignore[index]
    answer = re.search(r"^Right answer: (.*)$", words, re.M)[1]  # type: ignore[index]
    numbers = re.findall(r"^\[(\d+)\] ", words, re.M)
    if int(hashlib.sha256((question + answer + words).encode()).hexdigest(), 16) % 3 == 0:
        return "I cannot help with that."
    named = " and ".join(f"the [{n}]" for n in numbers) or "nothing of the kind"
    return f"Looking closely, I see {named}. So the answer is {answer}.\nAnswer: {answer}"


@contextmanager
def teacher() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the digests of what it was asked (images as their decoded sizes)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(_request_digest(body))
            message = {"role": "assistant", "content": reply(body)}
            said = {
                "id": "1", "object": "chat.completion", "created": 1, "model": "scripted-1",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            }  # fmt: skip
            data = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _request_digest(body: dict[str, Any]) -> str:
    """Another build of the JPEG library packs other bytes; the size of what is shown stays."""
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "image_url" in part:
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                part["image_url"]["url"] = str(Image.open(BytesIO(data)).size)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
