"""What stands in schemas/ and on the page of formats is what the code writes and reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.schemas import FOLDER, schemas
from vcot.records import Completion, Rejection, Sample, Score
from vcot.records.base import Record
from vcot.records.reply import Promotion
from vcot.records.shards import CONVERT

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def test_schemas_are_those_of_the_code() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == schemas(), "run `make schemas`"


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ("sample", Sample), ("rejection", Rejection), ("completion", Completion), ("score", Score),
        ("shard_marker", CONVERT.shard_marker), ("stage_marker", CONVERT.stage_marker), ("promotion", Promotion),
    ],
)  # fmt: skip
def test_the_example_on_the_page_is_a_record(schema: str, kind: type[Record]) -> None:
    example = re.search(rf"schemas/{schema}\.json.*?```json\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    kind.model_validate_json(example[1])
