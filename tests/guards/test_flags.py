"""A flag that is renamed, dropped or given another default is seen by whoever reads the change."""

from pathlib import Path

from tests.guards.flags import flags


def test_flags_are_those_on_the_list() -> None:
    listed = (Path(__file__).parent / "flags.txt").read_text()
    assert flags() == listed, "if this is meant: python -m tests.guards.flags > tests/guards/flags.txt"
