"""Convert gives the same bytes when storage gives one bad answer, whatever it is about."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.convert import made, stage
from tests.fakes.faults import Fault, empty_list, flipped, missing, replaced, truncated
from tests.fakes.rows import metadata, png
from tests.s3 import FaultyPlace
from tests.storage.tars import in_chunks, tar
from vcot.errors import InputError, TemporaryError
from vcot.storage import Store, join

store = Store()
pytestmark = pytest.mark.usefixtures("clean")
IMAGES = {f"vsr/{n}.png": png(90, 70, comment=f"image {n}") for n in range(4)}
OTHER = png(90, 70, comment="another")


def source(place: str, form: str = "rows.jsonl") -> dict[str, Any]:
    rows = [metadata([[1, 2, 30, 40]], image=f"{n // 2}.png", width=90, height=70, question=f"{n}?") for n in range(8)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    data = {"rows.jsonl": lines, "rows.json": json.dumps(rows).encode(), "rows.jsonl.gz": gzip.compress(lines, mtime=0)}
    store.write(join(place, "in", form), data[form])
    for path, image in IMAGES.items():
        store.write(join(place, "images", "cot_image_data", path), image)
    in_chunks(store, join(place, "tar"), tar({f"cot_image_data/{path}": data for path, data in IMAGES.items()}), 3000)
    return {
        "source": "viscot", "input_uri": join(place, "in", form), "images_uri": join(place, "images"),
        "num_shards": 2, "readers": 1, "processes": 1,
    }  # fmt: skip


ONCE: dict[str, Callable[[], Fault]] = {
    "an image missing": lambda: missing("vsr/1.png", times=2),
    "an image cut": lambda: truncated("vsr/1.png", 60),
    "an image replaced by a page": lambda: replaced("vsr/1.png", b"<html>busy</html>"),
    "the input cut": lambda: truncated("rows.jsonl", 60),
    "the input missing": lambda: missing("rows.jsonl"),
    "the input missing in HEAD": lambda: missing("rows.jsonl", "HEAD"),
    "no images in the list of their folder": lambda: listed("images/cot_image_data"),
}


def listed(prefix: str) -> Fault:
    """An empty list of this folder of the test's own place, once."""
    return Fault("GET", f"{prefix}/&", empty_list("").change)


@pytest.mark.parametrize("fault", ONCE)
def test_one_bad_answer_changes_no_row(faulty_place: FaultyPlace, fault: str) -> None:
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place)
    stage(join(place, "healthy"), **settings)
    proxy.add(ONCE[fault]())
    stage(join(place, "run"), **settings)
    assert made(join(place, "run")) == made(join(place, "healthy"))
    assert len(made(join(place, "run"))) == 4
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("fault", ["flipped", "other", "missing"])
def test_an_image_that_is_bad_once_after_prepare_is_no_change(
    faulty_place: FaultyPlace, fault: str, again: bool
) -> None:
    """Its digest is recorded by then; with copies, shards read it once more."""
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place) | {"ingest": True, "run_uri": join(place, "run")}
    stage(**settings, part="prepare")
    change = {"flipped": flipped, "missing": missing, "other": lambda path, times: replaced(path, OTHER, times)}[fault]
    proxy.add(change("vsr/1.png", times=9 if again else 1))  # type: ignore[operator]
    if again:
        with pytest.raises(InputError, match=r"1\.png has changed since .*; use another run name \(read 3 times\)"):
            stage(**settings, part="shards")
        return
    stage(**settings, part="shards")
    stage(**settings, part="finish")


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_input_bytes_that_are_bad_once_end_for_now(faulty_place: FaultyPlace, form: str) -> None:
    """Rows were read from them, so nothing is reported of the file, and the same command succeeds."""
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place, form) | {"run_uri": join(place, "run")}
    stage(**settings | {"run_uri": join(place, "healthy")})
    whole = store.read(settings["input_uri"])
    at = whole.index(b"?") if form == "rows.jsonl" else len(whole) // 2

    def second_read(answer: Any, seen: list[int] = []) -> Any:  # noqa: B006
        """The first read gives the digest that counts."""
        seen.append(1)
        return flipped("", at).change(answer) if len(seen) == 2 else answer

    proxy.add(Fault("GET", form, second_read, times=99))
    with pytest.raises(TemporaryError, match=f"^a read of {settings['input_uri']} was bad .* run the same command"):
        stage(**settings)
    stage(**settings)
    assert made(join(place, "run")) == made(join(place, "healthy"))


@pytest.mark.parametrize("read", [1, 2])
def test_bad_read_after_prepare_ends_for_now(faulty_place: FaultyPlace, read: int) -> None:
    """The first read of the input gives its digest, the second one its rows."""
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place) | {"run_uri": join(place, "run")}
    stage(**settings | {"run_uri": join(place, "healthy")})
    stage(**settings, part="prepare")
    seen: list[int] = []

    def change(answer: Any) -> Any:
        seen.append(1)
        return flipped("", at=1).change(answer) if len(seen) == read else answer

    proxy.add(Fault("GET", "rows.jsonl", change, times=99))
    with pytest.raises(TemporaryError, match=r"^a read of s3://\S+rows\.jsonl was bad.*; run the same command again$"):
        stage(**settings, part="shards")
    stage(**settings, part="shards")
    stage(**settings, part="finish")
    assert made(join(place, "run")) == made(join(place, "healthy"))


def test_what_prepare_left_survives_one_bad_read(faulty_place: FaultyPlace) -> None:
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place) | {"run_uri": join(place, "run")}
    stage(**settings, part="prepare")
    for name in ("survey.json", "convert/images.json", "convert/images-", "settings.json"):
        faults = flipped(name, at=1), missing(name)
        proxy.add(faults[0])
        stage(**settings, part="shards", shard=0)
        if name in ("convert/images-", "settings.json"):
            proxy.add(faults[1])
            stage(**settings, part="shards", shard=0)


@pytest.mark.parametrize("at", range(3))
def test_an_archive_survives_one_bad_list_or_read(faulty_place: FaultyPlace, at: int) -> None:
    place, proxy = faulty_place.uri, faulty_place.proxy
    settings = source(place) | {"images_uri": join(place, "tar")}
    stage(join(place, "healthy"), **settings)
    faults = [listed("/tar")], [missing("cot_images_01", times=2)], [flipped("members-", at=2000), missing("archive")]
    chunk = next(entry.uri.rpartition("/")[2] for entry in store.list(join(place, "tar")))
    faults[1][0].path = chunk
    run = {"run_uri": join(place, "run")}
    if at == 2:
        stage(**settings | run, part="prepare")
    proxy.add(*faults[at])
    for part in ("shards", "finish") if at == 2 else ("all",):
        stage(**settings | run, part=part)
    assert made(join(place, "run")) == made(join(place, "healthy"))
