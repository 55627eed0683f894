"""Greedy replies of a server to questions of a run, with the log-probabilities that it gives their tokens.

    questions = [Question.of(store, sample, encoder) for sample in …]
    served_replies("https://host:8000/v1", name, questions, encoder)

Of any server that speaks OpenAI's interface. Its prompts are held against ours: with other limits of pixels or another
template it would be asked something else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import openai

from vcot import logging
from vcot.errors import GateFailed, SettingsError, TemporaryError, VcotError
from vcot.records import Sample
from vcot.records.sample import kept_bytes
from vcot.storage import Store
from vcot.storage.images import decode
from vcot.tokens import Encoder
from vcot.training.served import conversation

REPLY_TOKENS = 64
RETRIES = 4


@dataclass(frozen=True)
class Question:
    """batch: its prompt, as `Encoder.prompts` makes it. data: bytes of its images, as they are stored."""

    sample: Sample
    data: tuple[bytes, ...]
    batch: dict[str, Any]

    @classmethod
    def of(cls, store: Store, sample: Sample, encoder: Encoder) -> Question:
        """Raises ImageError: an image is missing, changed or broken."""
        shown = sample.images if encoder.contract.mode == "multimodal" else ()
        data = tuple(kept_bytes(store, image) for image in shown)
        images = [decode(each, image.kept.uri).pixels for each, image in zip(data, shown, strict=True)]
        # As a server asks, which knows no turn for rationales.
        return cls(sample, data, encoder.prompts([sample], [images], rationales=[False]))


@dataclass(frozen=True)
class Said:
    """A server's greedy reply: token ids, and how likely it found each of them."""

    question: Question
    ids: list[int]
    logprobs: list[float]


_PLAIN: dict[str, Any] = {"top_k": -1, "repetition_penalty": 1.0, "skip_special_tokens": False}
_OWN: tuple[dict[str, Any], ...] = (_PLAIN | {"return_token_ids": True}, _PLAIN, {})
"""Fields of vLLM's beyond OpenAI's interface; a server that refuses some is asked with the next fewer."""


def served_replies(
    address: str, name: str, questions: Sequence[Question], encoder: Encoder, *, timeout: float = 300.0
) -> list[Said]:
    """Asks each question once, greedily; the conversation as the Encoder renders it, images as they are stored.

    Raises:
        GateFailed: it makes other tokens of a question than the model was trained on.
        SettingsError: it knows no model of that name, or gives no log-probabilities. TemporaryError: it is not there.
    """
    flag = f"--verify-served {address}#{name}"
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = openai.OpenAI(base_url=address, api_key=key, max_retries=RETRIES, timeout=timeout)
    own, said = _OWN, []
    for question in questions:
        messages = conversation(question.sample, question.data, encoder)
        given: dict[str, Any] = {
            "model": name, "messages": messages, "temperature": 0.0, "max_completion_tokens": REPLY_TOKENS,
            "logprobs": True,
        }  # fmt: skip
        try:
            while True:
                try:
                    answer = client.chat.completions.create(**given, extra_body=own[0])
                    break
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    if not own[1:]:
                        raise
                    logging.get().info("asked again with fewer fields", because=str(error)[:300])
                    own = own[1:]
        except openai.APIError as error:
            raise _trouble(flag, error) from error
        found = answer.model_dump()
        _same_prompt(flag, question, found, encoder)
        if (one := _read(flag, question, found["choices"][0], encoder)) is not None:
            said.append(one)
    client.close()
    if not said:
        raise SettingsError(f"{flag}: of no reply could the tokens be told; it should say token_ids, as vLLM does")
    return said


def _same_prompt(flag: str, question: Question, answer: dict[str, Any], encoder: Encoder) -> None:
    ours = question.batch["input_ids"][0].tolist()
    theirs, count = answer.get("prompt_token_ids"), (answer.get("usage") or {}).get("prompt_tokens")
    if theirs == ours or (theirs is None and count in (None, 0, len(ours))):
        return
    image, contract = encoder.processor.image_token_id, encoder.contract
    of_images = f", {theirs.count(image)} of them of images," if theirs is not None else ""
    raise GateFailed(
        f"{flag}: of the question of {question.sample.id} it makes {count if theirs is None else len(theirs)} tokens"
        f"{of_images} and the model was trained on {len(ours)}, {ours.count(image)} of images. It should read the chat "
        f"template and the limits of pixels that lie beside the weights ({contract.min_pixels} to "
        f"{contract.max_pixels} pixels an image)"
    )


def _read(flag: str, question: Question, choice: dict[str, Any], encoder: Encoder) -> Said | None:
    """None: which tokens it said cannot be told, because the tokenizer would cut its text in another way."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        raise SettingsError(
            f"{flag}: it gives no log-probabilities; vLLM and `python -m jobs.serve` do, `transformers serve` does not"
        )
    ids = choice.get("token_ids")
    if ids is None:
        ids = encoder.said(choice["message"]["content"], ended=choice["finish_reason"] == "stop", rationale=False)
        if len(ids) not in (len(content), len(content) + 1):
            logging.get().warning("a reply whose tokens cannot be told is left out", question=question.sample.id)
            return None
    # The end of the reply may be a token without a log-probability.
    values = [float(one["logprob"]) for one in content][: len(ids)]
    return Said(question, list(ids)[: len(values)], values)


def _trouble(flag: str, error: openai.APIError) -> VcotError:
    if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code not in (408, 429):
        return SettingsError(f"{flag}: {error}")
    return TemporaryError(f"{flag}: {error}")
