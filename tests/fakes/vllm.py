"""A server that speaks vLLM's interface as far as a training needs it, with a real model behind it.

    with served(base, processor) as server:
        server.url          of its /v1
        server.loaded       adapters that it was handed, in order; server.held: those that it has now
        server.faults       statuses that it gives instead of the next answers, by the path's last part
        server.says_ids     whether it says token ids, which are vLLM's own addition to the interface

It renders conversations with the processor's own chat template, reads images from data URLs, and loads adapters from
their folder: what vLLM itself does, one request at a time.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from vcot.models.decoding import Decoding


class Served:
    def __init__(self, base: Path, processor: Any) -> None:
        self.base, self.processor = base, processor
        self.loaded: list[str] = []
        self.held: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.faults: dict[str, list[int]] = {}
        self.says_ids = True
        self.url = ""
        self._turn = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = path.rsplit("/", 1)[-1]
        with self._turn:
            if self.faults.get(name):
                return self.faults[name].pop(0), {"error": {"message": "planted", "type": "x", "code": 0}}
            if name == "models":
                return 200, {"object": "list", "data": [{"id": "base", "object": "model", "created": 0}]}
            if name == "load_lora_adapter":
                return self._load(body["lora_name"], Path(body["lora_path"]))
            if name == "unload_lora_adapter":
                del self.held[body["lora_name"]]
                return 200, "Success: removed"
            return self._complete(body)

    def _load(self, name: str, folder: Path) -> tuple[int, Any]:
        from vcot.models.loading import load_adapter, load_base

        if name in self.loaded:
            return 400, {
                "error": {"message": f"{name} has already been loaded", "type": "InvalidUserInput", "code": 400}
            }
        self.held[name] = load_adapter(load_base(self.base, dtype="float32"), folder)
        self.loaded.append(name)
        return 200, "Success: added"

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        from vcot.models.generation import generate

        self.asked.append(body)
        if body["model"] not in self.held:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "type": "x", "code": 404}}
        images: list[Image.Image] = []
        messages = []
        for message in body["messages"]:
            content = message["content"]
            if not isinstance(content, str):
                for part in content:
                    if part["type"] == "image_url":
                        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                        images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                content = [{"type": "image"} if part["type"] == "image_url" else part for part in content]
            messages.append({"role": message["role"], "content": content})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        batch = dict(self.processor(text=[text], images=images or None, return_tensors="pt"))
        batch["mm_token_type_ids"] = (batch["input_ids"] == self.processor.image_token_id).long()
        ends = [self.processor.tokenizer.eos_token_id]
        decoding = Decoding(
            body["max_completion_tokens"], body["temperature"], body.get("n", 1), seed=body.get("seed", 0)
        )
        [said] = generate(self.held[body["model"]], batch, decoding, eos_token_ids=ends)
        choices = []
        for index, one in enumerate(said):
            plain = body.get("skip_special_tokens", True)
            spoken = self.processor.tokenizer.decode([i for i in one.ids if i not in ends], skip_special_tokens=plain)
            choices.append({
                "index": index, "finish_reason": "stop" if one.ids[-1] in ends else "length", "token_ids": one.ids,
                "message": {"role": "assistant", "content": spoken},
                "logprobs": {"content": [{"token": "", "logprob": p, "top_logprobs": []} for p in one.logprobs]},
            })  # fmt: skip
        prompt = batch["input_ids"][0].tolist()
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(said[0].ids), "total_tokens": 0}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
        if not self.says_ids:
            choices = [{name: value for name, value in one.items() if name != "token_ids"} for one in choices]
            return 200, answer | {"choices": choices}
        return 200, answer | {"choices": choices, "prompt_token_ids": prompt}


@contextmanager
def served(base: Path, processor: Any) -> Iterator[Served]:
    server = Served(base, processor)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._reply(*server.answer(self.path, {}))

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(*server.answer(self.path, json.loads(data)))

        def _reply(self, status: int, answer: Any) -> None:
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
