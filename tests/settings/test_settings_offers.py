"""Options that parts of a stage declare, and a stage offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from vcot.errors import SettingsError
from vcot.settings import CommaSeparated, Group, Options, Settings, offers, setting


class Scaled(Options):
    scale: float = setting(1.0, "what it is multiplied with", gt=0)


class Bounded(Scaled):
    least: int = setting(0, "lower bound")
    most: int = setting(9, "upper bound")

    def faults(self) -> Iterator[str]:
        if self.least > self.most:
            yield f"--least={self.least}: above --most"


@dataclass(frozen=True)
class Part:
    options: type[Options]
    about: str = "a part"
    example: str = ""


PARTS = {"scaled": Part(Scaled), "bounded": Part(Bounded), "plain": Part(Options)}


@offers("reward", PARTS)
class TrainSettings(Settings):
    stage: ClassVar[str] = "train"
    groups: ClassVar[tuple[Group, ...]] = (Group("first", ("run_uri", "reward")),)
    reward: CommaSeparated = setting(("plain",), "what counts")


def faults(*flags: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.load(["--run-uri", "r", *flags])
    return str(caught.value).splitlines()


def test_a_part_gets_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_TRAIN_MOST", "7")
    settings, _ = TrainSettings.load(["--run-uri", "r", "--reward", "bounded,plain", "--scale", "2"])
    assert Bounded.from_settings(settings) == Bounded(scale=2, least=0, most=7)


def test_options_of_parts_that_are_not_chosen_are_refused() -> None:
    assert faults("--reward", "plain", "--scale", "2", "--least", "1") == [
        "--scale (or VCOT_TRAIN_SCALE): --reward plain does not look at it, --reward scaled or --reward bounded does; "
        "leave it out",
        "--least (or VCOT_TRAIN_LEAST): --reward plain does not look at it, --reward bounded does; leave it out",
    ]


def test_what_a_part_finds_wrong_and_an_unknown_part_are_told() -> None:
    assert faults("--reward", "bounded", "--least", "10") == ["--least=10: above --most"]
    (line,) = faults("--reward", "plain,round")
    assert "input should be 'scaled', 'bounded' or 'plain'" in line


def test_the_help_has_a_section_for_each_part_with_what_it_alone_declares() -> None:
    titles = {group.title: group.names for group in TrainSettings.groups}
    assert titles == {
        "first": ("run_uri", "reward"), "--reward scaled": ("scale",), "--reward bounded": ("least", "most"),
        "--reward plain": (),
    }  # fmt: skip


def test_two_parts_declare_one_option_in_one_way() -> None:
    class Other(Options):
        scale: int = setting(3, "another scale")

    with pytest.raises(TypeError, match="declares scale, and so does another"):
        offers("reward", PARTS | {"other": Part(Other)})(TrainSettings)
