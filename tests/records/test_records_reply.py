"""Log-probabilities in a Completion: five decimals, and nothing of them where they are not known."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from vcot.records import Completion


def completion(**changes: object) -> Completion:
    return Completion.model_validate({"text": "up", "model": "m", "finish_reason": "stop"} | changes)


def test_logprobs_have_five_decimals_and_are_left_out_where_not_known() -> None:
    line = completion(logprobs=[-1.23456789, -1e-9]).line()
    assert line.endswith(b'"logprobs":[-1.23457,0.0]}\n')
    assert Completion.model_validate_json(line).line() == line
    assert b"logprobs" not in completion().line()


def test_a_logprob_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        completion(logprobs=[-math.inf])
