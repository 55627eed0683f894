"""Conversations in LLaVA's form, and reasoning without boxes that a teacher wrote in it.

    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}

A row may hold several rounds about its image. Each becomes a row of its own, which knows the earlier ones: a later
question ("and its colour?") means nothing without them. --source samples reads plain ones; --source llava-cot those in
which the reasoning is told apart in one of three ways:

    LaCoT           turns human / reason / gpt
    LLaVA-CoT       a reply <SUMMARY>…</SUMMARY><CAPTION>…</CAPTION><REASONING>…</REASONING><CONCLUSION>…</CONCLUSION>
    R1-Onevision    a reply <think>…</think> and the answer after it; Parquet with the image as base64, or JSON

The tags go, what stands in them stays. Nobody annotated places, so there is no evidence; distill may add it. A reply
in which nothing sets the reasoning apart is refused ("no-reasoning").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcot.datasets.base import ConversionContext, Form, dataset
from vcot.datasets.images import decoded
from vcot.datasets.inputs import PARQUET, Refused, Row
from vcot.grounding import Trace
from vcot.records import Image, Reason, Sample

CONVERSATIONS = Form(frozenset(("conversations",)), "LLaVA's conversations")
ROUND = "round"
"""Where a row keeps its Round."""
_WHO = {"human": "human", "user": "human", "reason": "reason", "gpt": "gpt", "assistant": "gpt"}
_ROUNDS = (("human", "gpt"), ("human", "reason", "gpt"))


@dataclass(frozen=True)
class Round:
    """One question and its reply, as they are written; `before`, `after`: the other rounds of the row."""

    question: str
    reply: str
    thought: str | None = None
    before: tuple[Round, ...] = ()
    after: tuple[Round, ...] = ()


def rounds(row: Row) -> Iterator[Row]:
    """A row for each round; where the turns are others, the row with that fault."""
    if "conversations" not in row.value:
        yield row
        return
    try:
        found = _rounds(row.value["conversations"])
    except Refused as refused:
        yield Row(row.id, row.value, refused)
        return
    for number, spoken in enumerate(found, 1):
        name = row.id if len(found) == 1 else f"{row.id}#{number}"
        yield Row(name, {**row.value, ROUND: replace(spoken, after=tuple(found[number:]))})


def round_of(row: Row) -> Round:
    """Raises Refused: the row holds no conversation."""
    spoken = row.value.get(ROUND)
    if isinstance(spoken, Round):
        return spoken
    raise Refused(Reason.WRONG_SHAPE, "conversations are missing: turns of human and gpt")


def asked_in(said: str) -> str:
    """What is asked, without the image's place. Raises Refused: nothing."""
    if asked := said.replace("<image>", "").strip():
        return asked
    raise Refused(Reason.NO_QUESTION, f"nothing is asked in {said!r:.80}")


def earlier_turns(before: Sequence[tuple[str, str]]) -> str | None:
    """Earlier questions and answers as the context of a later one."""
    return "\n\n".join(f"Question: {asked}\nAnswer: {answer}" for asked, answer in before) or None


def image_of(row: Row, context: ConversionContext, said: Any, path: str | None = None) -> Image:
    """An image of a row, of what stands there for it. Parquet holds it as base64.

    path: what to look up instead of the text that is there.
    """
    if isinstance(said, str) and f"{PARQUET}:" in row.id and not said.startswith("data:"):
        return context.images.of(decoded(said))
    return context.images.of(path or said)


def images_beside(value: Mapping[str, Any]) -> list[Any]:
    """What stands for the images of a row: `image`, or the entries of `images`."""
    said = value.get("image", value.get("images"))
    return said if isinstance(said, list) else [said]


def one_image(value: Mapping[str, Any]) -> Any:
    """Raises Refused: there are several."""
    said = images_beside(value)
    if len(said) > 1:
        raise Refused(Reason.WRONG_SHAPE, f"a row has one image; this one has {len(said)}")
    return said[0] if said else None


def _rounds(turns: Any) -> list[Round]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused(Reason.WRONG_SHAPE, f'conversations are a list of {{"from", "value"}}; got {turns!r:.80}')
    spoken = [(turn.get("from"), turn.get("value")) for turn in turns if turn.get("from") != "system"]
    found: list[Round] = []
    while spoken:
        length = 3 if len(spoken) > 1 and _WHO.get(str(spoken[1][0])) == "reason" else 2
        said, spoken = spoken[:length], spoken[length:]
        if tuple(_WHO.get(str(name)) for name, _ in said) not in _ROUNDS or not all(
            isinstance(text, str) for _, text in said
        ):
            order = ", ".join(str(turn.get("from")) for turn in turns)
            raise Refused(Reason.WRONG_SHAPE, f"turns are human, gpt, human, gpt, … with texts; got {order:.80}")
        asked, *thought, reply = (text for _, text in said)
        found.append(Round(asked, reply, thought[0] if thought else None, tuple(found)))
    if not found:
        raise Refused(Reason.WRONG_SHAPE, "conversations are empty")
    return found


# ------------------------------------------------------------------------------------------------ --source llava-cot

_ANSWER_BEGINS = re.compile(r"<CONCLUSION>|</think>|<answer>")
_TAG = re.compile(r"[ \t]*</?(?:SUMMARY|CAPTION|REASONING|CONCLUSION|think|answer)>[ \t]*")
_GAP = re.compile(r"\n\s*\n")


@dataset(
    "llava-cot",
    "reasoning without boxes: LLaVA-CoT, R1-Onevision, LaCoT",
    "--input-uri train.jsonl --images-uri cot",
    forms=(CONVERSATIONS,),
    columns=("id", "image", "conversations"),
    expand=rounds,
    called="llava-cot",
    licence="Apache-2.0; written by GPT-4o and DeepSeek-R1, whose terms apply; images keep their own",
)
def sample(row: Row, context: ConversionContext) -> Sample:
    spoken = round_of(row)
    asked = asked_in(spoken.question)
    thought, answer = parted(spoken)
    said = one_image(row.value)
    image = image_of(row, context, said, _path(said))
    return Sample(
        id=row.id,
        images=(image,),
        question=asked,
        context=earlier_turns([(asked_in(r.question), _answer_of(r)) for r in spoken.before]),
        answers=(answer,),
        reasoning=(Trace((thought,)),),
        origin=context.origin(row, image, "llava-cot"),
    )


def parted(spoken: Round) -> tuple[str, str]:
    """Reasoning and answer, without tags. Raises Refused: one of them is missing."""
    if spoken.thought is not None:
        thought, answer = _plain(spoken.thought), _plain(spoken.reply)
    elif found := _ANSWER_BEGINS.search(spoken.reply):
        thought, answer = _plain(spoken.reply[: found.start()]), _plain(spoken.reply[found.start() :])
    else:
        raise Refused(
            Reason.NO_REASONING,
            f"neither a turn 'reason', nor <CONCLUSION> or </think> in {spoken.reply!r:.80}; "
            "--source samples reads conversations without reasoning",
        )
    if not thought:
        raise Refused(Reason.NO_REASONING, f"the reasoning is empty in {(spoken.thought or spoken.reply)!r:.80}")
    if not answer:
        raise Refused(Reason.NO_ANSWER, f"no answer is stated in {spoken.reply[-80:]!r}")
    return thought, answer


def _answer_of(earlier: Round) -> str:
    try:
        return parted(earlier)[1]
    except Refused:  # its own row says so
        return _plain(earlier.reply)


def _plain(said: str) -> str:
    return _GAP.sub("\n\n", _TAG.sub("", said)).strip()


def _path(said: object) -> str | None:
    """LaCoT's rows call the folder of the sets `cot/`, as VisCoT's do."""
    return said.removeprefix("cot/") if isinstance(said, str) else None
