"""A source that changes while convert reads it stops the stage with that message, whatever holds its rows or images.

On disk, and in a real MinIO, where the ETag tells. What comes in its stead is whole and can be read, too.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.convert import stage
from tests.fakes.rows import ONE_AND_TWO, SCIENCEQA_TYPES, Given, instances, metadata, png, scienceqa_row, write_parquet
from tests.storage.tars import tar
from vcot.datasets import coco, prepare
from vcot.datasets.inputs import find, found_in
from vcot.storage import Changed, Store, join

store = Store()
pytestmark = pytest.mark.usefixtures("clean")
PLACES = ["folder", "minio"]
FORMS = ["rows.json", "rows.jsonl", "rows.jsonl.gz", "train-00000-of-00001.parquet"]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_place")
    return found


def rows_in(form: str, scratch: Path, seed: int, count: int = 6) -> bytes:
    """A file of rows; another seed gives another file as long as this one, with the same images."""
    if form.endswith(".parquet"):
        rows = [scienceqa_row(n) | {"question": f"What is {seed}-{n}?"} for n in range(count)]
        return Path(write_parquet(scratch / "a.parquet", rows, SCIENCEQA_TYPES, group=100)).read_bytes()
    lines = [
        json.dumps(metadata([[1, 2, 30, 40]], image=f"{n % 3}.png", width=90, height=70, question=f"{seed}-{n}?"))
        for n in range(count)
    ]
    if form.endswith(".json"):
        return f"[{','.join(lines)}]".encode()
    data = "".join(f"{line}\n" for line in lines).encode()
    return gzip.compress(data, mtime=0) if form.endswith(".gz") else data


def settings_for(form: str, place: str, scratch: Path) -> dict[str, Any]:
    """What convert is told to read, with everything it reads in its place."""
    store.write(join(place, form), rows_in(form, scratch, seed=1))
    images = {f"vsr/{n}.png": png(90, 70, comment=str(n)) for n in range(3)}
    for path, data in images.items():
        store.write(join(place, "images", path), data)
    store.write(join(place, "images.tar"), tar({f"cot_image_data/{path}": data for path, data in images.items()}))
    settings = {"run_uri": join(place, "run"), "input_uri": join(place, form), "num_shards": 2}
    if form.endswith(".parquet"):
        return settings | {"source": "scienceqa"}
    return settings | {"source": "viscot", "images_uri": join(place, "images")}


def replaced(uri: str, data: bytes) -> None:
    assert store.read(uri) != data
    store.write(uri, data)
    if not uri.startswith("s3://"):
        os.utime(uri.removeprefix("file://"), ns=(1, 1))  # a disk's clock may stand still for some milliseconds


def reads(uri: str) -> int:
    """Return how often a fault is read before it is reported."""
    return 3 if uri.startswith("s3://") else 2


BEGAN = "{uri} has changed since this stage began; use another run name (read {reads} times)"


@pytest.mark.parametrize(
    ("changed", "data", "words", "said"),
    [
        *((form, None, {}, BEGAN) for form in FORMS),
        ("rows.jsonl", None, {"limit": 2}, BEGAN),  # also where the end of the file is not read
        *(  # with --ingest, which reads images once more than the look at all rows
            ("images/vsr/1.png", data, {"ingest": True},
             "{uri} has changed since this stage first looked at it; use another run name (read {reads} times)")
            for data in (png(90, 70, comment="another"), b"no image")
        ),
        ("images.tar", tar({f"cot_image_data/vsr/{n}.png": png(90, 70, comment="new") for n in range(3)}),
         {"ingest": True},
         "{uri}: changed while it was read; the index of {uri} is of what it was before (read {reads} times)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_source_that_changes_stops_the_stage(
    place: str, changed: str, data: bytes | None, words: dict[str, Any], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It changes when the stage has looked at all rows, and has not yet made a shard."""
    form, uri = (changed if changed in FORMS else "rows.jsonl"), join(place, changed)
    settings = settings_for(form, place, tmp_path) | words
    if changed == "images.tar":
        settings["images_uri"] = uri
    look = prepare.informed

    def and_then(*given: Any, **more: Any) -> Any:
        parts = look(*given, **more)
        replaced(uri, rows_in(form, tmp_path, seed=2) if data is None else data)
        return parts

    monkeypatch.setattr(prepare, "informed", and_then)
    with pytest.raises(Changed) as caught:
        stage(**settings)
    assert (str(caught.value), caught.value.exit_code) == (said.format(uri=uri, reads=reads(uri)), 65)
    assert list(store.list(join(settings["run_uri"], "convert", "_done"))) == []


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_instances_of_coco(place: str, given: Given) -> None:
    """Read once, and then from the scratch disk."""
    uri = join(place, "instances.json")
    local = Path(instances(given, ONE_AND_TWO))
    store.upload(local, uri)
    context = given.context("coco", uri)
    replaced(uri, Path(instances(given, ONE_AND_TWO[:1])).read_bytes())
    with pytest.raises(
        Changed, match=f"^{uri} has changed since this stage began; use another run name \\(read {reads(uri)} times\\)$"
    ):
        next(coco.rows(context))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_nobody_gets_old_rows_and_new_ones_of_one_file(place: str, form: str, tmp_path: Path) -> None:
    """In the middle of reading: what was there when it was opened may come to its end, or all of it stops."""
    uri, count = join(place, form), 6_000
    store.write(uri, rows_in(form, tmp_path, 1, count))
    (file,) = find(store, [uri])
    found = found_in(store, file, ("question",))
    seen = [next(found)]
    replaced(uri, rows_in(form, tmp_path, 2, count))
    with contextlib.suppress(Changed):
        seen += found
        assert len(seen) == count
    assert not any("2-" in str(value)[:60] for _, value in seen)
    with pytest.raises(Changed, match="has changed since this stage began"):
        next(found_in(store, file, ("question",)))
