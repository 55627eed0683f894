"""A Request as a chat completion's JSON."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json, to_json

from vcot.teacher.pictures import Pictures
from vcot.teacher.request import Request


async def body_of(request: Request, pictures: Pictures) -> dict[str, Any]:
    """What is sent, pictures as data URLs. Raises ImageError: one of them cannot be had."""
    content: list[dict[str, Any]] = []
    for part in request.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.append({"type": "image_url", "image_url": {"url": await pictures.url(part)}})
    body: dict[str, Any] = {
        "model": request.model,
        "max_completion_tokens": request.reply_tokens,
        "messages": [{"role": "system", "content": request.prompt.text}, {"role": "user", "content": content}],
    }
    if request.schema is not None:
        named = {"name": request.purpose, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body | ({} if request.temperature is None else {"temperature": request.temperature})


async def packed(request: Request, pictures: Pictures) -> bytes:
    return to_json(await body_of(request, pictures))


def without_schema(body: bytes) -> bytes:
    """The same request, where an endpoint takes no demands on the shape of a reply."""
    said = from_json(body)
    said.pop("response_format", None)
    return to_json(said)
