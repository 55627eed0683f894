"""Pages and pictures with boxes."""

from __future__ import annotations

import base64
import io

import pytest
from jinja2 import UndefinedError
from PIL import Image

from vcot.grounding import Box
from vcot.records.page import PREDICTED, TRUE, data_uri, fill, overlay, page


def near(pixel: object, colour: str) -> bool:
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < 12 for a, b in zip(pixel, wanted, strict=True))


def test_a_box_in_pixels_of_the_original_lies_at_its_place_on_a_smaller_picture() -> None:
    picture = Image.new("RGB", (112, 84), "black")
    drawn = overlay(picture, {TRUE: [Box(160, 120, 320, 240)]}, original=(640, 480), longest_side=448)
    assert drawn.size == (448, 336)
    assert near(drawn.getpixel((112, 150)), TRUE)  # the left edge, at a quarter
    assert near(drawn.getpixel((224, 150)), TRUE)
    assert drawn.getpixel((60, 60)) == (0, 0, 0)
    assert picture.getpixel((28, 30)) == (0, 0, 0)  # the picture itself is left alone


def test_later_colours_lie_above_and_labels_stay_inside() -> None:
    picture = Image.new("RGB", (300, 200), "black")
    box = Box(100, 0, 300, 150)
    drawn = overlay(picture, {TRUE: [box], PREDICTED: [box]}, {PREDICTED: ["a very long label"]}, longest_side=300)
    assert near(drawn.getpixel((100, 100)), PREDICTED)
    assert any(near(drawn.getpixel((x, 5)), PREDICTED) for x in range(300))


def test_a_picture_becomes_text_that_is_a_picture_again() -> None:
    uri = data_uri(Image.new("RGB", (40, 30), "red"))
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 30)


def test_values_are_escaped_bodies_are_not_and_a_missing_value_is_an_error() -> None:
    body = fill("<p>{{ said }}</p>", said="<b>&")
    assert body == "<p>&lt;b&gt;&amp;</p>"
    whole = page("A <title>", body, lead="1 < 2")
    assert "<p>&lt;b&gt;&amp;</p>" in whole
    assert "<h1>A &lt;title&gt;</h1>" in whole
    assert "1 &lt; 2" in whole
    assert whole.startswith("<!doctype html>")
    with pytest.raises(UndefinedError):
        fill("{{ nothing }}")
