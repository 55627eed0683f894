"""Replies from a vLLM server that stands beside the training (`--rollouts vllm`), on other GPUs.

    model = VllmServer(url, folder, questions, encoder)
    model.lay(base)                   <folder>/base, for the server to begin with
    model.publish(policy, step)       the adapters as they are now, under a name of their own
    model.drawn(…, numbers, decoding) of each question its replies: tokens, and how likely the server found them

The server holds the base, in bfloat16, and loads adapters from a folder that both see. The base is never merged with
them: to merge and unmerge bfloat16 weights a thousand times moves them by two thirds of their mean (TRL #6688), and to
send all weights at each step is gigabytes where the adapters are megabytes.

The server renders the conversation and reads the images by itself, so each prompt's tokens are held against ours: with
another pixel budget or template it would answer other questions than those that are learned.
"""

from __future__ import annotations

import base64
import filecmp
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from vcot import logging
from vcot.errors import SettingsError, TemporaryError, VcotError
from vcot.grounding.tags import render
from vcot.models.decoding import Decoding
from vcot.models.generation import Generated
from vcot.records import Sample
from vcot.stage import stop
from vcot.tokens import Encoder, is_processor_file, prompt_text
from vcot.training.publish import save_adapter
from vcot.training.questions import Questions

AT_ONCE = 64
"""Questions under way. The server puts them into batches as it has room."""
STARTS_WITHIN = 1200.0
"""Seconds that it may take to load its weights."""


class VllmServer:
    """
    Args:
        url: of its OpenAI-compatible interface, mostly ending in /v1.
        folder: that the server sees under the same path.
        hands_over: whether this process lays the base and hands adapters over; of several that draw from a server, one
            does.
        retries: of a request that failed on the way; timeout: seconds of one.
    """

    def __init__(
        self, url: str, folder: Path, questions: Questions, encoder: Encoder, *, hands_over: bool = True,
        retries: int = 8, timeout: float = 600.0,
    ) -> None:  # fmt: skip
        self.url, self.questions, self.encoder, self.hands_over = url, questions, encoder, hands_over
        self.base, self.adapters = folder / "base", folder / "adapters"
        # No environment variable may send the images elsewhere: address and key are given, and no proxy is asked.
        self.client = openai.OpenAI(
            base_url=url, api_key="none", max_retries=retries, timeout=timeout,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip
        self.name = ""

    @cached_property
    def run(self) -> str:
        """Apart from every other attempt: the server knows an adapter by its name for good."""
        return secrets.token_hex(4)

    def lay(self, base: Path) -> None:
        """Lays a base where the server may serve it from, whole or not at all: its files, and the processor with this
        training's limits of pixels. Nothing is done where it lies there.

        Raises SettingsError: another one lies there.
        """
        if not self.hands_over:
            return
        own = (file for file in base.iterdir() if file.name == "config.json" or not is_processor_file(file.name))
        files = [file for file in own if file.is_file()]
        unfinished = self.base.with_name(f".base-{self.run}")
        unfinished.mkdir(parents=True)
        self.encoder.processor.save_pretrained(str(unfinished))
        if self.base.exists():
            wanted = [*unfinished.iterdir(), *files]
            other = next((file.name for file in wanted if not _same(file, self.base / file.name)), None)
            shutil.rmtree(unfinished)
            if other is not None:
                raise SettingsError(
                    f"--vllm-folder={self.base.parent}: in its base/ lies {other} of another base, or with other "
                    "limits of pixels, and the server may hold it; end the server and remove the folder, or give "
                    "another one"
                )
            return
        for file in files:
            try:
                os.link(file.resolve(), unfinished / file.name)  # 17 GB need not be there twice
            except OSError:
                shutil.copyfile(file, unfinished / file.name)
        unfinished.replace(self.base)

    def wait(self, seconds: float = STARTS_WITHIN) -> None:
        """Until the server answers. Raises TemporaryError: it does not in time. Interrupted: a stop was asked for."""
        begun, told = time.monotonic(), False
        while True:
            try:
                self.client.with_options(max_retries=0, timeout=10).models.list()
                return
            except openai.APIError as error:
                if time.monotonic() - begun > seconds:
                    raise self._trouble(error) from error
            if not told:
                logging.get().info("waiting for the vLLM server to answer", url=self.url, base=str(self.base))
                told = True
            stop.raise_if_requested("the vLLM server does not answer yet")
            time.sleep(1)

    def name_of(self, step: int) -> str:
        """Of the adapters that draw then; all ranks take that of the first."""
        return f"policy-{self.run}-{step}"

    def publish(self, model: Any, name: str) -> None:
        """Hands its adapters to the server, by whose name all ranks draw then; the older ones are dropped.

        Raises SettingsError: the server does not take them. TemporaryError: it is not there.
        """
        older, self.name = self.name, name
        if not self.hands_over:
            return
        folder = self.adapters / name
        unfinished = self.adapters / f".{name}"
        unfinished.mkdir(parents=True, exist_ok=True)
        save_adapter(model, unfinished)
        unfinished.replace(folder)  # whole, or not there
        self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if older:
            self._post("/unload_lora_adapter", {"lora_name": older})
            shutil.rmtree(self.adapters / older, ignore_errors=True)

    def drawn(self, model: Any, numbers: Sequence[int], decoding: Decoding) -> list[list[Generated]]:
        """Of each question `decoding.samples` replies, by the adapters that were published last.

        Raises SettingsError: the server does not speak vLLM's interface, or makes other tokens of a question.
        TemporaryError: it is not there.
        """
        asked = [self._messages(number) for number in numbers]  # examples are read by one thread alone
        prompts = [self.questions.item(number)["ids"].tolist() for number in numbers]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(partial(self._asked, decoding), numbers, asked, prompts))

    def close(self) -> None:
        """Drops the last adapters, as far as the server is there."""
        if self.hands_over and self.name:
            with suppress(openai.APIError):
                once = self.client.with_options(max_retries=0)
                once.post("/unload_lora_adapter", body={"lora_name": self.name}, cast_to=str)
            shutil.rmtree(self.adapters / self.name, ignore_errors=True)
        self.client.close()

    # --- one question --------------------------------------------------------------------------------

    def _asked(
        self, decoding: Decoding, number: int, messages: list[dict[str, Any]], prompt: list[int]
    ) -> list[Generated]:
        given: dict[str, Any] = {
            "model": self.name, "messages": messages, "n": decoding.samples,
            "temperature": decoding.temperature, "top_p": 1.0, "max_completion_tokens": decoding.max_new_tokens,
            "logprobs": True, "seed": (decoding.seed * 1_000_003 + number) % 2**31,
            # Added to its logit: else a model may draw it, and the next pass would look for the image.
            "logit_bias": {str(self.encoder.processor.image_token_id): -100},
        }  # fmt: skip
        own = {"top_k": -1, "repetition_penalty": 1.0, "skip_special_tokens": False, "return_token_ids": True}
        try:
            answer = self.client.chat.completions.create(**given, extra_body=own).model_dump()
        except openai.APIError as error:
            raise self._trouble(error) from error
        self._same_prompt(number, prompt, answer.get("prompt_token_ids"))
        return [self._read(choice) for choice in answer["choices"]]

    def _messages(self, number: int) -> list[dict[str, Any]]:
        return conversation(self.questions.sample(number), self.questions.image_bytes(number), self.encoder)

    def _same_prompt(self, number: int, ours: list[int], found: Sequence[int] | None) -> None:
        if found is None:
            raise SettingsError(
                f"--vllm-url={self.url}: it says no token ids (return_token_ids); it should be vLLM 0.11 or later"
            )
        if list(found) != ours:
            image = self.encoder.processor.image_token_id
            raise SettingsError(
                f"--vllm-url={self.url}: of the question of {self.questions.sample(number).id} it makes {len(found)} "
                f"tokens, {list(found).count(image)} of them of images; the training {len(ours)}, {ours.count(image)} "
                "of images. Both have to read one folder with tokenizer, template and the limits of pixels: serve "
                f"{self.base}"
            )

    def _read(self, choice: dict[str, Any]) -> Generated:
        ids = choice.get("token_ids")
        content = (choice.get("logprobs") or {}).get("content")
        if not ids or content is None or len(content) != len(ids):
            raise SettingsError(
                f"--vllm-url={self.url}: a reply of {len(ids or ())} token ids has {len(content or ())} "
                "log-probabilities; it should be vLLM 0.11 or later, with --logprobs-mode processed_logprobs"
            )
        ended = ids[-1] in self.encoder.eos_token_ids
        return Generated(list(ids), [float(one["logprob"]) for one in content], ended)

    # --- the way there -------------------------------------------------------------------------------

    def _post(self, path: str, body: dict[str, Any]) -> None:
        try:
            self.client.post(path, body=body, cast_to=str)
        except openai.APIError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: openai.APIError) -> VcotError:
        said = f"--vllm-url={self.url}: {error}"
        if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code not in (408, 429):
            return SettingsError(
                f"{said}. It should be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {self.base} "
                "--enable-lora --max-loras 2 --max-lora-rank (at least --lora-r) --logprobs-mode processed_logprobs, "
                f"and see {self.adapters}"
            )
        return TemporaryError(f"{said}; the training goes on from its last checkpoint when the server is there again")


def conversation(sample: Sample, data: Sequence[bytes], encoder: Encoder) -> list[dict[str, Any]]:
    """Messages of OpenAI's interface that ask a question as the Encoder renders it: the images of a turn, then its
    text. data: bytes of the images; none where it is asked by text alone."""
    images, frame = iter(data), sample.frame(encoder.contract.frame_spec)

    def parts(count: int, text: str) -> list[dict[str, Any]]:
        urls = [_data_url(one) for _, one in zip(range(count), images, strict=False)]
        said = [{"type": "text", "text": text}] if text else []
        return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), *said]

    messages: list[dict[str, Any]] = []
    for turn in sample.turns:
        text = render(turn.said, frame)
        content = text if turn.role == "assistant" else parts(turn.images, text)
        messages.append({"role": turn.role, "content": content})
    asked = prompt_text(sample, encoder.contract.instruction)
    return [*messages, {"role": "user", "content": parts(sample.images_asked, asked)}]


def is_loopback(url: str) -> bool:
    """Whether it is an address of this pod itself."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and (one.samefile(other) or filecmp.cmp(one, other, shallow=False))


def _data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
