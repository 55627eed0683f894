"""How a base points where nobody has tuned it: the frame, the notation and the words that its family was trained on.

Asked only in the form that a model is tuned in, which it never saw, the base cannot point, and "before tuning" flatters
whatever comes after. So it is asked in its own form as well (docs/stages.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vcot import logging
from vcot.errors import InputError
from vcot.grounding import FrameName, FrameSpec
from vcot.records import Sample
from vcot.storage import NotFound, Store, join
from vcot.tokens import Contract

_ANSWER = 'Then write the answer, as short as you can, on a last line that begins with "Answer:".'
_JSON = (
    "Locate what the answer rests on and output its bbox coordinates in JSON format, "
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]; if it is not in the image, output []. '
)


@dataclass(frozen=True)
class OwnForm:
    """`instruction` stands below a question about an image, `by_text` below one without; None: nothing does.

    `dialect` (one of vcot.grounding.DIALECTS) is what the model is expected to write; to read it needs no telling.
    """

    family: str
    frame: FrameName
    dialect: str
    instruction: str | None
    by_text: str | None

    def below(self, sample: Sample) -> str | None:
        return self.by_text if sample.image is None else self.instruction

    def spec(self, contract: Contract) -> FrameSpec:
        """The frame, with the limits of the pixels that the base is shown."""
        return FrameSpec(self.frame, contract.min_pixels, contract.max_pixels, contract.factor)

    def is_that_of(self, contract: Contract) -> bool:
        return self.frame == contract.frame_spec.name and self.instruction == self.by_text == contract.instruction


#: By the names of `--base-form`. Frames and notations: QwenLM/Qwen3-VL, issues 721, 866, 1161, and its cookbooks.
FAMILIES: Mapping[str, OwnForm] = MappingProxyType(
    {
        "qwen2-vl": OwnForm(
            "Qwen2-VL", "thousandths", "qwen-special",
            f"Please provide the bounding box coordinates of what the answer rests on, each after its name. {_ANSWER}",
            _ANSWER,
        ),
        "qwen2.5-vl": OwnForm("Qwen2.5-VL", "resized_pixels", "qwen-json", _JSON + _ANSWER, _ANSWER),
        "qwen3-vl": OwnForm("Qwen3-VL", "thousandths", "qwen-json", _JSON + _ANSWER, _ANSWER),
    }
)  # fmt: skip
_MODEL_TYPES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}


def own_form(store: Store, base_uri: str, named: str, contract: Contract) -> OwnForm | None:
    """The form in which a base is asked beside that of the tuned model; None where that is its own.

    Args:
        named: a key of FAMILIES; `auto`: what the base's folder says of itself (a contract.json, as train writes it
            beside a model), else what its config.json's model_type means; `as-tuned`: None.

    None, too, for a model that was trained without images: there is nothing to point at.
    """
    if named == "as-tuned" or contract.mode == "text":
        return None
    form = FAMILIES.get(named) or _declared(store, base_uri) or _of_family(store, base_uri)
    return None if form is None or form.is_that_of(contract) else form


def _declared(store: Store, base_uri: str) -> OwnForm | None:
    uri = join(base_uri, "contract.json")
    if (found := _json(store, uri)) is None:
        return None
    try:
        told = found["contract"]
        FrameSpec.from_dict(told["frame"])
        return OwnForm("its contract.json", told["frame"]["name"], "vcot", told["instruction"], told["instruction"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{uri} does not say how the base writes boxes ({error!r}); name it with --base-form"
        ) from None


def _of_family(store: Store, base_uri: str) -> OwnForm | None:
    kind = (_json(store, join(base_uri, "config.json")) or {}).get("model_type")
    if kind in _MODEL_TYPES:
        return FAMILIES[_MODEL_TYPES[kind]]
    logging.get().warning(
        "how this base points by itself is not known, so it is asked in the tuned model's form alone; "
        "--base-form names it", base=base_uri, model_type=kind,
    )  # fmt: skip
    return None


def _json(store: Store, uri: str) -> Any:
    try:
        return json.loads(store.read(uri))
    except NotFound:
        return None
    except ValueError as error:
        raise InputError(f"{uri} is no JSON: {error}") from None
