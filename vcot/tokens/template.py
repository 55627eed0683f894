"""The chat template, cut where the text of people begins and ends."""

from __future__ import annotations

from typing import Any, NamedTuple

from vcot.errors import InputError

# Private-use characters: no template writes them, none changes them.
_QUESTION, _REPLY = "\ue000question\ue001", "\ue000reply\ue001"


class Pieces(NamedTuple):
    """What the template itself writes. With a picture, `head` holds one image token, as its place."""

    head: str  # before the question: system prompt, the user's header, the picture's place
    tail: str  # between question and reply: the end of the user's turn, the assistant's header
    end: str  # after the reply: the end token, and what follows it


def cut_template(processor: Any, *, with_picture: bool) -> Pieces:
    """The pieces of a conversation of one question and one reply, with the template's own system prompt.

    Raises InputError where the template does not write what a model is trained on as a continuation of what it
    generates from, or does not say the question and the reply as they are.
    """
    content: list[dict[str, str]] = [{"type": "image"}] if with_picture else []
    question = {"role": "user", "content": [*content, {"type": "text", "text": _QUESTION}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]}
    prompt: str = processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole: str = processor.apply_chat_template([question, reply], tokenize=False)
    if prompt.count(_QUESTION) != 1 or whole.count(_REPLY) != 1:
        raise InputError("the base's chat template does not write question and reply once, as they are")
    if not whole.startswith(prompt + _REPLY):
        raise InputError(
            f"the base's chat template begins a reply with {prompt[-40:]!r} when it asks for one and with "
            f"{whole[: whole.index(_REPLY)][-40:]!r} when it shows one; these must be the same"
        )
    head, tail = prompt.split(_QUESTION)
    images = prompt.count(processor.image_token)
    if images != with_picture or (with_picture and processor.image_token not in head):
        raise InputError(
            f"the base's chat template writes {images} image tokens before the question; "
            f"{int(with_picture)} {'is' if with_picture else 'are'} needed"
        )
    end = whole.split(_REPLY)[1]
    if not end.strip():
        raise InputError("the base's chat template does not end a reply, so a model could not learn to stop")
    return Pieces(head, tail, end)
