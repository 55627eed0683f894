"""Which image each form of a benchmark's row names: a path below the images of all sets, or a place of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datasets.given import Given
from tests.datasets.test_datasets_viscot import metadata
from vcot.datasets import benchmarks


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"img_path": "cot/textcap/a.jpg", "expression": "x", "bbox": [1, 2, 3, 4]}, "textvqa/a.jpg"),
        ({"dataset": "v7w", "image": ["cot/v7w/a.jpg", "cot/v7w/a.jpg###[1, 2, 3, 4]"]}, "v7w/a.jpg"),
        (metadata([[1, 2, 3, 4]], image="a.jpg", dataset="textcap"), "textvqa/a.jpg"),
        (metadata([[1, 2, 3, 4]], image="001.Albatross/a.jpg", dataset="cub"), "cub/001.Albatross/a.jpg"),
        ({"img_path": "COCO_train2014_000000533220.jpg"}, "COCO_train2014_000000533220.jpg"),
        ({"image": "mine/deep/a.jpg", "question": "?", "answers": ["x"]}, "mine/deep/a.jpg"),
        ({"image": {"uri": "s3://b/images/a.jpg"}}, "s3://b/images/a.jpg"),
        ({"image": {"uri": "/data/a.jpg"}}, "/data/a.jpg"),
        ({"image": {"file_name": "train2014/a.jpg"}}, "train2014/a.jpg"),
    ],
)
def test_the_path_that_a_row_names(given: Given, row: dict[str, Any], path: str) -> None:
    (file,) = given.desk("viscot", given.rows([row])).inputs
    assert list(benchmarks.paths(given.desk("viscot").store, file)) == [path]
