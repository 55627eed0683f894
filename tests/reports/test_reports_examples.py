"""Which rows a page shows, and boxes drawn on their images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.distill.made import RIGHT, TOP_LEFT, see, stored
from tests.fakes.markers import shard_marker
from vcot.errors import InputError
from vcot.grounding import Trace
from vcot.records import Folder
from vcot.records.shards import CONVERT, ShardMarker
from vcot.reports.examples import (
    PREDICTED,
    TRUE,
    Cards,
    ExampleSampler,
    ShownBox,
    ShownExample,
    inside,
    sampled,
)  # fmt: skip
from vcot.storage import Store


def examples(dataset: str, rows: int, group: str) -> list[ShownExample]:
    return [ShownExample(id=f"{dataset}:{n}", dataset=dataset, group=group) for n in range(rows)]


def markers(number: int) -> list[ShardMarker]:
    return [shard_marker("convert", n) for n in range(number)]


# --- which rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_the_same_rows_are_shown_whatever_the_shards(tmp_path: Path, shards: int) -> None:
    rows = examples("a", 50, "kept") + examples("b", 50, "refused:box-empty")
    alone = ExampleSampler(3)
    for row in rows * 2:  # a row is shown once
        alone.add(row)
    folder = Folder(Store(), str(tmp_path), CONVERT)
    for shard in range(shards):
        sampler = ExampleSampler(3)
        for row in rows[::-1][shard::shards]:
            sampler.add(row)
        sampler.put_aside(folder, shard)
    found = sampled(folder, markers(shards), 3)
    assert found.by_dataset() == alone.by_dataset()
    kept = found.by_dataset()["a"]["kept"]
    assert len({row.id for row in kept}) == 3
    assert kept != rows[:3]
    with pytest.raises(InputError, match=rf"report/{shards:05d}\.json is missing; delete .*convert and run the stage"):
        sampled(folder, markers(shards + 1), 3)


def test_of_a_group_the_best_of_all_datasets_are_shown_and_of_many_datasets_only_some() -> None:
    sampler = ExampleSampler(5)
    for row in examples("a", 9, "refused:x") + examples("b", 9, "refused:x"):
        sampler.add(row)
    held = {row.id for groups in sampler.by_dataset().values() for row in groups["refused:x"]}
    best = {row.id for row in sampler.of_group("refused:x", 3)}
    assert (len(held), len(best), best <= held) == (10, 3, True)
    for n in range(500):
        sampler.add(examples(f"set {n}", 1, "kept")[0])
    assert len(sampler.by_dataset()) == 64


# --- how they are drawn --------------------------------------------------------------------------------


def near(pixel: object, colour: str, by: int = 12) -> bool:
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < by for a, b in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize(
    ("edges", "drawn"),
    [
        ((30, 40, 10, 20), [10, 20, 30, 40]),
        ((10, 10, 10, 50), [8, 10, 12, 50]),
        ((500, 500, 600, 600), [96, 76, 100, 80]),
        ((-50, -50, -10, -10), [0, 0, 4, 4]),
        ((-1e300, 0, 1e300, 80), [0, 0, 100, 80]),
    ],
)
def test_any_edges_give_a_box_that_can_be_seen(edges: tuple[float, float, float, float], drawn: list[float]) -> None:
    assert inside(edges, (100, 80), 4).as_list() == drawn


@pytest.fixture
def row(tmp_path: Path) -> ShownExample:
    boxes = tuple(
        ShownBox(label="disc", edges=(box.x1, box.y1, box.x2, box.y2), proposed=box == RIGHT)
        for box in (TOP_LEFT, RIGHT)
    )
    trace = Trace(("I see the ", see("red <disc>", TOP_LEFT), " and the ", see("lever", RIGHT), "."))
    image = stored(tmp_path / "images").image
    return ShownExample(id="a", dataset="d", group="kept", image=image, boxes=boxes, reasoning=(trace,))


def test_what_people_drew_and_what_was_proposed_have_two_colours(row: ShownExample) -> None:
    card = Cards(Store()).card(row, 320)
    assert card.image is not None
    pixels = Image.open(io.BytesIO(base64.b64decode(card.image.partition(",")[2]))).convert("RGB")
    for box, colour in ((TOP_LEFT, TRUE), (RIGHT, PREDICTED)):
        assert near(pixels.getpixel((round(box.x1) + 1, round((box.y1 + box.y2) / 2))), colour, by=60)
    words = '<span class="true">red &lt;disc&gt;</span> and the <span class="proposed">lever</span>'
    assert words in card.reasoning[0]
    assert card.close_by  # the first box is small


def test_a_card_without_its_image_says_why(row: ShownExample) -> None:
    first = Cards(Store()).card(row)
    room = 2 * (len(first.image or "") + len(first.close_by or "")) + 9
    cards = Cards(Store(), room=room)
    made = [cards.card(row) for _ in range(3)]
    assert [card.image is None for card in made] == [False, False, True]
    assert made[-1].note == "no room for more images on this page"
    assert row.image is not None
    assert "pixels" in Cards(Store(), max_pixels=10).card(row).note
    Path(row.image.uri).unlink()
    assert "one.png" in Cards(Store()).card(row).note
