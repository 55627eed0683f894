"""Reasoning without boxes that a teacher wrote: LLaVA-CoT, R1-Onevision, and the files of LaCoT that join them.

Conversations about one image, in which the reasoning is told apart in one of three ways:

    LaCoT           turns human / reason / gpt
    LLaVA-CoT       a reply <SUMMARY>…</SUMMARY><CAPTION>…</CAPTION><REASONING>…</REASONING><CONCLUSION>…</CONCLUSION>
    R1-Onevision    a reply <think>…</think> and the answer after it; Parquet with the image as base64, or JSON

The tags go, what stands in them stays. Nobody annotated places, so there is no evidence; distill may add it. A reply
in which nothing sets the reasoning apart is refused ("no-reasoning"): --source samples reads plain conversations.
"""

from __future__ import annotations

import re

from vcot.datasets import talks
from vcot.datasets.base import ConversionContext, dataset
from vcot.datasets.row import Refused, Row
from vcot.grounding import Trace
from vcot.records import Reason, Sample

_ANSWER_BEGINS = re.compile(r"<CONCLUSION>|</think>|<answer>")
_TAG = re.compile(r"[ \t]*</?(?:SUMMARY|CAPTION|REASONING|CONCLUSION|think|answer)>[ \t]*")
_GAP = re.compile(r"\n\s*\n")


@dataset(
    "llava-cot",
    "reasoning without boxes: LLaVA-CoT, R1-Onevision, LaCoT",
    "--input-uri train.jsonl --images-uri cot",
    forms=(talks.FORM,),
    columns=("id", "image", "conversations"),
    expand=talks.rounds,
    called="llava-cot",
    licence="Apache-2.0; written by GPT-4o and DeepSeek-R1, whose terms apply; images keep their own",
)
def sample(row: Row, context: ConversionContext) -> Sample:
    spoken = talks.round_of(row)
    question = talks.question(spoken.question)
    thought, answer = parted(spoken)
    image = talks.image_of(row, context, _path(talks.one_image(row.value)))
    return Sample(
        id=row.id,
        image=image,
        question=question,
        context=talks.told([(talks.question(r.question), _answer_of(r)) for r in spoken.before]),
        answers=(answer,),
        reasoning=(Trace((thought,)),),
        origin=context.origin(row, image, "llava-cot"),
    )


def parted(spoken: talks.Round) -> tuple[str, str]:
    """Reasoning and answer, without tags.

    Raises:
        Refused: one of them is missing.
    """
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


def _answer_of(earlier: talks.Round) -> str:
    try:
        return parted(earlier)[1]
    except Refused:  # its own row says so
        return _plain(earlier.reply)


def _plain(said: str) -> str:
    return _GAP.sub("\n\n", _TAG.sub("", said)).strip()


def _path(said: object) -> str | None:
    """LaCoT's rows call the folder of the sets `cot/`, as VisCoT's do."""
    return said.removeprefix("cot/") if isinstance(said, str) else None
