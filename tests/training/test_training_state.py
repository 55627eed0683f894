"""What a checkpoint keeps, and which of them is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from vcot.errors import InputError, SettingsError, TemporaryError, foreseen
from vcot.storage import Store
from vcot.training.checkpoints import Checkpoints, read_state, write_state

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
)


@settings(max_examples=25, deadline=None)
@given(value=plain)
def test_a_state_comes_back_with_its_types(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("packed") / "x.safetensors"
    write_state(value, path)
    found = read_state(path)
    assert found == value
    assert repr(found) == repr(value)  # (1,) is not [1], 1 is not True, 1.0 is not 1


def test_tensors_are_stored_bit_for_bit_and_shared_ones_once(tmp_path: Path) -> None:
    shared = torch.randn(1000)
    values = {
        0: {"state": torch.arange(5, dtype=torch.uint8), "map": shared},
        1: {"state": torch.randn(3, 2).bfloat16().t(), "map": shared, "part": shared[2:4]},
    }
    write_state(values, tmp_path / "x.safetensors")
    found = read_state(tmp_path / "x.safetensors")
    assert found[0]["state"].equal(values[0]["state"])
    assert found[1]["state"].equal(values[1]["state"])
    assert found[1]["state"].dtype == torch.bfloat16
    assert found[1]["part"].equal(shared[2:4])
    assert found[0]["map"] is found[1]["map"]
    assert (tmp_path / "x.safetensors").stat().st_size < 6000


def test_a_full_disk_is_a_reason_to_try_again() -> None:
    assert isinstance(foreseen(SafetensorError("Error while serializing: I/O error: (os error 28)")), TemporaryError)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a function cannot be stored"):
        write_state({"f": lambda: 1}, tmp_path / "x")
    write_state({"a": torch.ones(100)}, tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-10])
    with pytest.raises(InputError, match="incomplete safetensors file"):
        read_state(tmp_path / "x")
    save_file({"a": torch.ones(2)}, tmp_path / "y")
    with pytest.raises(InputError, match="not a state of ours"):
        read_state(tmp_path / "y")


# --- checkpoints in storage ---------------------------------------------------------------------------


def checkpoints(uri: str, tmp_path: Path, who: str = "a", keep: int = 2) -> Checkpoints:
    return Checkpoints(Store(), uri, tmp_path / who, keep)


def save(into: Checkpoints, step: int, best: int | None) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(f"weights of step {step}".encode() * 100)
        (folder / "state").write_bytes(b"state")

    into.save(step, best, 4, write)
    into.wait()


def files_of(uri: str, step: int) -> list[str]:
    return [entry.uri for entry in Store().list(uri) if f"/step-{step:06d}-" in entry.uri]


@pytest.mark.parametrize("harm", ["no manifest", "cut manifest", "missing", "truncated", "changed"])
def test_one_that_is_not_whole_is_passed_over(folder_place: str, tmp_path: Path, harm: str) -> None:
    mine = checkpoints(folder_place, tmp_path)
    for step in (5, 10):
        save(mine, step, None)
    by_name = {uri.rpartition("/")[2]: Path(uri.removeprefix("file://")) for uri in files_of(folder_place, 10)}
    match harm:
        case "no manifest":  # killed while it was written
            by_name["manifest.json"].unlink()
        case "cut manifest":
            by_name["manifest.json"].write_bytes(by_name["manifest.json"].read_bytes()[:20])
        case "missing":
            by_name["state"].unlink()
        case "truncated":
            by_name["weights"].write_bytes(by_name["weights"].read_bytes()[:-1])
        case "changed":
            by_name["weights"].write_bytes(b"w" * by_name["weights"].stat().st_size)
    _, manifest = checkpoints(folder_place, tmp_path, "other").newest()
    assert manifest.step == 5


def test_one_whose_best_predecessor_is_gone_is_passed_over(folder_place: str, tmp_path: Path) -> None:
    """At the end the best weights would be missing; from an older one they are made again."""
    mine = checkpoints(folder_place, tmp_path, keep=3)
    for step, best in ((5, None), (10, 10), (15, 10)):
        save(mine, step, best)
    for uri in files_of(folder_place, 10):
        Path(uri.removeprefix("file://")).unlink()
    _, manifest = checkpoints(folder_place, tmp_path, "other").newest()
    assert manifest.step == 5


def steps_in(uri: str) -> list[int]:
    """Of whole checkpoints and of halves."""
    return sorted({int(entry.uri.split("/step-")[1][:6]) for entry in Store().list(uri) if "/step-" in entry.uri})


def test_the_last_ones_and_the_best_stay_here_and_in_storage(any_place: str, tmp_path: Path) -> None:
    mine = checkpoints(any_place, tmp_path, keep=2)
    assert mine.newest() is None
    Store().write(f"{any_place}/step-000001-killed/weights", b"half an upl")
    Store().write(f"{any_place}/notes.txt", b"not a checkpoint's")
    for step in range(1, 7):
        save(mine, step, min(step, 2))
    assert sorted(path.name[:11] for path in (tmp_path / "a").iterdir()) == [f"step-{n:06d}" for n in (2, 5, 6)]
    assert steps_in(any_place) == [2, 5, 6]
    assert Store().stat(f"{any_place}/notes.txt") is not None
    other = checkpoints(any_place, tmp_path, "other pod", keep=2)
    _, manifest = other.newest()
    assert (manifest.step, (other.at(2) / "weights").read_bytes()) == (6, b"weights of step 2" * 100)


def test_an_attempt_that_lags_behind_deletes_nothing_of_the_one_ahead(folder_place: str, tmp_path: Path) -> None:
    ahead = checkpoints(folder_place, tmp_path, "pod", keep=2)
    for step in (10, 15, 20):
        save(ahead, step, 15)
    save(checkpoints(folder_place, tmp_path, "zombie", keep=2), 5, 5)
    _, manifest = checkpoints(folder_place, tmp_path, "other", keep=2).newest()
    assert (manifest.step, manifest.best_step) == (20, 15)


def test_old_ones_that_cannot_be_deleted_cost_room_and_a_warning(
    folder_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Store, uri: str) -> None:
        raise SettingsError("access denied")

    monkeypatch.setattr(Store, "delete", fail)
    mine = checkpoints(folder_place, tmp_path, keep=1)
    for step in (1, 2, 3):
        save(mine, step, None)
    monkeypatch.undo()
    assert steps_in(folder_place) == [1, 2, 3]
    assert "old checkpoints stay in storage" in "".join(capsys.readouterr())
