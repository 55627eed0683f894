"""Boxes drawn on images, and the values of a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from tests.distill.made import RIGHT, TOP_LEFT, see, stored
from vcot.grounding import Box, Trace
from vcot.reports.overlays import PREDICTED, TRUE, Gallery, data_uri, inside, overlay
from vcot.reports.rendering import render
from vcot.reports.sampling import ShownBox, ShownExample
from vcot.storage import Store


def near(pixel: object, colour: str, by: int = 12) -> bool:
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < by for a, b in zip(pixel, wanted, strict=True))


def shown(folder: Path) -> ShownExample:
    row = stored(folder / "images")
    boxes = tuple(
        ShownBox(label="disc", edges=(box.x1, box.y1, box.x2, box.y2), proposed=box == RIGHT)
        for box in (TOP_LEFT, RIGHT)
    )
    trace = Trace(("I see the ", see("red <disc>", TOP_LEFT), " and the ", see("lever", RIGHT), "."))
    return ShownExample(id="a", dataset="d", group="kept", image=row.image, boxes=boxes, reasoning=(trace,))


def test_a_box_in_pixels_of_the_original_lies_at_its_place_on_a_smaller_image() -> None:
    image = Image.new("RGB", (112, 84), "black")
    drawn = overlay(image, {TRUE: [Box(160, 120, 320, 240)]}, original=(640, 480), longest_side=448)
    assert drawn.size == (448, 336)
    assert near(drawn.getpixel((112, 150)), TRUE)  # the left edge, at a quarter
    assert near(drawn.getpixel((224, 150)), TRUE)
    assert drawn.getpixel((60, 60)) == (0, 0, 0)
    assert image.getpixel((28, 30)) == (0, 0, 0)  # the image itself is left alone


def test_later_colours_lie_above_and_labels_stay_inside() -> None:
    image = Image.new("RGB", (300, 200), "black")
    box = Box(100, 0, 300, 150)
    drawn = overlay(image, {TRUE: [box], PREDICTED: [box]}, {PREDICTED: ["a very long label"]}, longest_side=300)
    assert near(drawn.getpixel((100, 100)), PREDICTED)
    assert any(near(drawn.getpixel((x, 5)), PREDICTED) for x in range(300))


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


def test_what_people_drew_and_what_was_proposed_have_two_colours(tmp_path: Path) -> None:
    card = Gallery(Store()).card(shown(tmp_path), 320)
    assert card.image is not None
    assert card.image.startswith("data:image/jpeg;base64,")
    pixels = Image.open(io.BytesIO(base64.b64decode(card.image.partition(",")[2]))).convert("RGB")
    for box, colour in ((TOP_LEFT, TRUE), (RIGHT, PREDICTED)):
        assert near(pixels.getpixel((round(box.x1) + 1, round((box.y1 + box.y2) / 2))), colour, by=60)
    words = '<span class="true">red &lt;disc&gt;</span> and the <span class="proposed">lever</span>'
    assert words in card.reasoning[0]
    assert card.close_by  # the first box is small


def test_images_have_so_much_room_on_a_page_and_no_more(tmp_path: Path) -> None:
    row = shown(tmp_path)
    first = Gallery(Store()).card(row)
    room = 2 * (len(first.image or "") + len(first.close_by or "")) + 9
    gallery = Gallery(Store(), room=room)
    cards = [gallery.card(row) for _ in range(3)]
    assert [card.image is None for card in cards] == [False, False, True]
    assert cards[-1].note == "no room for more images on this page"


def test_an_image_that_is_gone_or_too_large_leaves_a_card_that_says_why(tmp_path: Path) -> None:
    row = shown(tmp_path)
    assert row.image is not None
    assert "pixels" in Gallery(Store(), max_pixels=10).card(row).note
    Path(row.image.uri).unlink()
    card = Gallery(Store()).card(row)
    assert card.image is None
    assert "one.png" in card.note


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("convert.html.j2")


def test_data_uri_can_be_read_again() -> None:
    data = data_uri(Image.new("RGB", (40, 30), "red")).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 30)
