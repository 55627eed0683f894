"""The contract: a base that does not fit is refused, and the refusal names what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.tokens.base import MAX_PIXELS, MIN_PIXELS
from vcot.errors import InputError
from vcot.records import Contract
from vcot.tokens import Encoder, contract_of, load_processor
from vcot.tokens.encoder import check_contract, properties


def contract(processor: Any, **changes: Any) -> Contract:
    values: dict[str, Any] = {"mode": "multimodal", "frame": "thousandths", "max_length": 512}
    return contract_of(processor, **(values | changes))


@pytest.fixture
def own(base_folder: Path) -> Any:
    """A processor that a test may change."""
    return load_processor(base_folder, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def test_digests_are_those_of_the_content_and_survive_saving_and_loading(
    processor: Any, own: Any, tmp_path: Path
) -> None:
    own.save_pretrained(tmp_path / "copy")
    copy = load_processor(tmp_path / "copy", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    copy.tokenizer(["padded", "to one length"], padding=True, truncation=True, max_length=4)  # states, not content
    for one in (own, copy):
        assert properties(one) == properties(processor)
        check_contract(contract(processor), one)


def test_a_contract_written_as_json_and_read_again_is_the_same(processor: Any) -> None:
    for frame in ("thousandths", "resized_pixels"):
        first = contract(processor, frame=frame, instruction="Think.")
        assert Contract.model_validate(first.model_dump(mode="json")) == first
        assert Contract.model_validate_json(first.line()) == first


def test_everything_in_which_a_base_differs_is_named_with_both_values(processor: Any, own: Any) -> None:
    own.tokenizer.add_tokens(["<new>"])
    own.chat_template = own.chat_template.replace("helpful", "terse")
    own.image_processor.patch_size = 16
    own.image_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(InputError) as caught:
        Encoder(own, contract(processor))
    said = str(caught.value)
    assert "tokenizer_sha256 is " in said
    assert "template_sha256 is " in said
    assert "patch_size is 16 here, 14 in the examples" in said
    assert "image_mean is (0.5, 0.5, 0.5) here" in said


def test_resized_pixels_are_bound_to_the_budget_of_pixels(processor: Any) -> None:
    first = contract(processor, frame="resized_pixels")
    assert first.frame == {"name": "resized_pixels", "min_pixels": 3136, "max_pixels": 12544, "factor": 28}
    assert contract(processor).frame == {"name": "thousandths"}
    with pytest.raises(ValidationError, match="was declared for"):
        Contract.model_validate(first.model_dump() | {"max_pixels": 25088})


def test_a_tokenizer_that_makes_control_tokens_of_plain_text_is_refused(own: Any, monkeypatch: Any) -> None:
    plain = Encoder._control
    monkeypatch.setattr(Encoder, "_plain", plain)  # as a tokenizer would that ignores split_special_tokens
    with pytest.raises(InputError, match=r"makes control tokens of plain text: .*<\|im_end\|>"):
        Encoder(own, contract(own))
