"""Which labels name the same thing."""

from __future__ import annotations

import pytest

from vcot import answers as labels
from vcot.answers import NO_SYNONYMS, Synonyms


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("red cup", "Red Cup"),
        ("the red cup", "red cups"),
        ("white_blood_cell", "white blood cells"),
        ("traffic-light", "Traffic light."),
        ("person", "people"),
        ("glass", "glasses"),
        ("cookie", "cookies"),
        ("berry", "berries"),
        ("", ""),
    ],
)
def test_these_are_one_name(label, other):
    assert NO_SYNONYMS.same(label, other)
    assert NO_SYNONYMS.same(other, label)


@pytest.mark.parametrize(
    ("label", "other"),
    [("red cup", "blue cup"), ("cup", "red cup"), ("cup", "mug"), ("cup", ""), ("", "s"), ("bus", "but")],
)
def test_these_are_two(label, other):
    assert not NO_SYNONYMS.same(label, other)
    assert not NO_SYNONYMS.same(other, label)


def test_synonyms_follow_the_same_rule():
    declared = Synonyms.of(["wbc=leukocyte=white blood cell", "cup=mug"])
    assert declared.same("WBCs", "a white-blood cell")
    assert declared.same("leukocytes", "wbc")
    assert not declared.same("wbc", "mug")


def test_names_are_needed_only_where_the_truth_has_several():
    assert NO_SYNONYMS.pairable(["x", ""], ["cup", "cups"]) is None
    assert NO_SYNONYMS.pairable(["x"], []) is None
    assert NO_SYNONYMS.pairable(["cups", ""], ["cup", "saucer"]) == [[True, False], [False, False]]
    assert NO_SYNONYMS.pairable(["cup"], ["cup", "saucer", ""]) == [[True, False, True]]
    assert Synonyms.of(["cup=saucer"]).pairable(["x"], ["cup", "saucer"]) is None


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        (["wbc"], "'wbc' declares no synonyms; write name=other name"),
        (["wbc="], "'wbc=' declares no synonyms"),
        (["wbc=leukocyte", "Leukocytes=white blood cell"], "'Leukocytes' stands in two entries; write all names"),
    ],
)
def test_what_declares_nothing_is_refused(declared, fault):
    with pytest.raises(ValueError, match=fault):
        Synonyms.of(declared)


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("red disc", "red discs"), ("white blood cell", "white blood cells"), ("box", "boxes"), ("glass", "glasses"),
        ("dish", "dishes"), ("cherry", "cherries"), ("toy", "toys"), ("bus", "buses"), ("person", "people"),
        ("teddy bear", "teddy bears"), ("sheep", "sheep"), ("skis", "skis"), ("broccoli", "broccolis"),
        ("wine glass", "wine glasses"), ("knife", "knives"), ("TV", "TVs"), ("shoe", "shoes"),
    ],
)  # fmt: skip
def test_singular_and_plural_are_one_rule(one: str, many: str) -> None:
    assert (labels.plural(one), labels.singular(many)) == (many, one)
