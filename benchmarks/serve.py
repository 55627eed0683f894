"""How long `jobs.serve` lets people wait: time to the first token and tokens a second, for one client and for several
at once, and how long the model goes on for a client that has gone.

    python -m benchmarks.serve --clients 1,8 --rounds 5
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import openai

BASE = Path(__file__).parents[1] / "examples" / "rehearsal"


def asking(seed: int) -> list[Any]:
    """A question about a drawn scene, as messages."""
    from vcot.datasets.scenes import drawing
    from vcot.datasets.scenes import objects as scenes

    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    drawn = drawing.draw_scene(rng, scenes.SceneSpec())
    drawn.image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    text = scenes.ask(rng, drawn, "where").text
    shown = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def timed(client: openai.OpenAI, name: str, messages: list[Any]) -> tuple[float, float, int]:
    """Seconds to the first text and to the end, and tokens."""
    begun, first, tokens = time.perf_counter(), 0.0, 0
    for chunk in client.chat.completions.create(
        model=name, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    ):
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - begun
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return first, time.perf_counter() - begun, tokens


def at_once(address: str, name: str, clients: int, number: int) -> tuple[list[float], float]:
    """Seconds to each one's first text, and tokens a second of all."""
    found: list[tuple[float, float, int]] = []
    made = [openai.OpenAI(base_url=f"{address}/v1", api_key="none") for _ in range(clients)]
    questions = [asking(100 * number + each) for each in range(clients)]
    threads = [
        threading.Thread(target=lambda one=one, asked=asked: found.append(timed(one, name, asked)))
        for one, asked in zip(made, questions, strict=True)
    ]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [first for first, _, _ in found], sum(tokens for _, _, tokens in found) / (time.perf_counter() - begun)


def health(address: str) -> Any:
    return json.loads(urllib.request.urlopen(f"{address}/health").read())


def until_it_is_free(address: str, name: str) -> tuple[float, float]:
    """Seconds for which the model goes on when a client leaves in the middle of a reply, and seconds of a token."""
    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "temperature": 100, "max_tokens": 1000}
    data = json.dumps(body | {"stream": True, "seed": 1}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as somebody:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        somebody.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        chunks, begun = 0, 0.0
        while chunks < 40:
            chunks += somebody.recv(1 << 16).count(b"data: ")
            begun = begun or time.perf_counter()
        token = (time.perf_counter() - begun) / chunks
    gone = time.perf_counter()
    while health(address)["queue"]["running"]:
        pass
    return time.perf_counter() - gone, token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=str(BASE))
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "jobs.serve", "--subject", options.base, "--port", address.rpartition(":")[2]]
    server = subprocess.Popen([*command, "--dtype", options.dtype, "--name", "m"], stderr=subprocess.DEVNULL)
    os.environ["NO_PROXY"] = "127.0.0.1"
    try:
        while True:
            try:
                health(address)
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the server ended") from None
                time.sleep(0.2)
        at_once(address, "m", 1, 0)
        for clients in map(int, options.clients.split(",")):
            rounds = [at_once(address, "m", clients, number) for number in range(1, options.rounds + 1)]
            waits = sorted(wait for firsts, _ in rounds for wait in firsts)
            rates = [rate for _, rate in rounds]
            median, last = statistics.median(waits) * 1000, waits[-1] * 1000
            print(
                f"{clients:3} at once: first token after {median:.0f} ms (median; at most {last:.0f}), "
                f"{statistics.median(rates):.0f} tokens/s of all (median of {len(rounds)} rounds)"
            )
        gone = sorted(until_it_is_free(address, "m") for _ in range(options.rounds))
        print(
            f"a client leaves: the model is free after {gone[len(gone) // 2][0] * 1000:.1f} ms (median; at most "
            f"{gone[-1][0] * 1000:.1f}); a token takes {statistics.median(token for _, token in gone) * 1000:.1f} ms"
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
