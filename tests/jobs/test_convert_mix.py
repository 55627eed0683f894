"""Several sources in one run: the file that says so, what it refuses, and what comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings, run
from tests.datasets import test_datasets_refcoco as refcoco
from tests.datasets import test_datasets_scienceqa as scienceqa
from tests.datasets.given import Given
from tests.datasets.parquet import write
from tests.datasets.test_datasets_coco import ONE_AND_TWO, instances
from tests.datasets.test_datasets_row_index import scene
from tests.datasets.test_datasets_viscot import metadata
from tests.jobs.test_convert import ROOT, flags, no_settings_from_outside, report  # noqa: F401 (fixture)
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.errors import InputError, SettingsError
from vcot.records import Rejection, Sample, read_samples
from vcot.records.shards import read_marker
from vcot.storage import Store, join

Mixed = list[dict[str, Any]]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")


def mix(given: Given, parts: Any, name: str = "mix.yaml") -> Path:
    """JSON is YAML, too."""
    path = given.folder / name
    path.write_text(parts if isinstance(parts, str) else json.dumps(parts, default=str))
    return path


def convert(run_uri: Path | str, mix_uri: Path | str, **settings: Any) -> list[Sample]:
    loaded, _ = ConvertSettings.load(flags(run_uri=run_uri, mix=mix_uri, **settings))
    run(loaded)
    marker, _ = read_marker(Store(), f"{run_uri}/convert")
    return list(read_samples(Store(), f"{run_uri}/convert", marker))


def refused(run_uri: Path) -> list[Rejection]:
    lines = b"".join(path.read_bytes() for path in sorted(run_uri.glob("convert/rejections/*"))).splitlines()
    return [Rejection.model_validate_json(line) for line in lines]


def of_viscot(given: Given, count: int = 30) -> dict[str, Any]:
    rows = []
    for n in range(count):
        given.image(f"vsr/{n // 2}.png", 90, 100 + n // 2)
        box = [[1, 2, 30, 40]] if n != 5 else [[30, 2, 1, 40]]
        rows.append(metadata(box, image=f"{n // 2}.png", width=90, height=100 + n // 2, question=f"What is {n}?"))
    return {"source": "viscot", "input": given.rows(rows, "viscot.jsonl"), "images": given.images}


def of_refcoco(given: Given, count: int = 24) -> dict[str, Any]:
    given.image("COCO_train2014_000000533220.jpg", 640, 427)
    rows = [refcoco.ROW | {"sent_id": n, "expression": f"{n} bushes", "split": "train"} for n in range(count)]
    return {"source": "refcoco", "input": given.rows(rows, "refcoco.jsonl"), "images": given.images}


def of_coco(given: Given) -> dict[str, Any]:
    return {"source": "coco", "input": instances(given, ONE_AND_TWO), "images": given.images}


def of_scienceqa(given: Given, count: int = 12) -> dict[str, Any]:
    uri = write(
        given.folder / "train-00000-of-00001.parquet", [scienceqa.row(n) for n in range(count)], scienceqa.TYPES
    )
    return {"source": "scienceqa", "input": uri}


def of_samples(given: Given, rows: Mixed, name: str = "mine.jsonl") -> dict[str, Any]:
    return {"source": "samples", "input": given.rows(rows, name), "images": given.images}


def five(given: Given) -> Mixed:
    parts = [of_viscot(given), of_refcoco(given), of_coco(given), of_scienceqa(given)]
    return [*parts, {"source": "scenes", "scenes": 10, "questions": ["where", "count"]}]


# ------------------------------------------------------------------------------------------------------ what is made


@pytest.mark.parametrize("weights", [None, (3, 2, 1, 1, 0.5)], ids=["all", "weighted"])
def test_any_number_of_shards_makes_the_same_set(given: Given, tmp_path: Path, weights: Any) -> None:
    parts = five(given)
    if weights:
        parts = [part | {"weight": weight} for part, weight in zip(parts, weights, strict=True)]
    path, made = mix(given, parts), {}
    for shards in (1, 3, 7):
        samples = convert(
            tmp_path / f"{shards}", path, num_shards=shards, stored_images_uri=tmp_path / "made", validation_share=0.3
        )
        made[shards] = (
            sorted(sample.line() for sample in samples),
            sorted(rejection.line() for rejection in refused(tmp_path / f"{shards}")),
            report(tmp_path / f"{shards}")["mix"],
        )
        assert len({sample.id for sample in samples}) == len(samples)
    assert made[1] == made[3] == made[7]
    names = {json.loads(line)["id"].partition("/")[0] for line in made[1][0]}
    assert names == {"viscot", "refcoco", "coco", "scienceqa", "scenes"}


def test_the_report_says_what_each_part_brought(given: Given, tmp_path: Path) -> None:
    viscot, coco = of_viscot(given, 40), of_coco(given)
    path = mix(given, [viscot | {"weight": 1}, coco | {"name": "cups", "weight": 0.5, "limit": 6}])
    samples = convert(tmp_path / "run", path)
    found = report(tmp_path / "run")
    by_name = {part["name"]: part for part in found["mix"]}
    assert [part["name"] for part in found["mix"]] == ["viscot", "cups"]
    assert by_name["cups"] | {"drawn": 0, "learned": 0} == {
        "name": "cups", "source": "coco", "rows": 6, "not_drawn": 0, "kept": 6, "rejected": {},
        "wanted": pytest.approx(1 / 3), "drawn": 0, "learned": 0,
    }  # fmt: skip
    one = by_name["viscot"]
    assert one["rows"] == 40
    assert one["not_drawn"] + one["kept"] + sum(one["rejected"].values()) == 40
    assert one["not_drawn"] > 0
    assert found["row_counts"]["rows"] == 46 - one["not_drawn"]
    assert found["row_counts"]["kept"] == one["kept"] + 6 == len(samples)
    train = [sample for sample in samples if sample.origin.split == "train"]
    assert one["learned"] == sum(sample.id.startswith("viscot/") for sample in train) / len(train)
    assert found["source"] == "viscot, coco"


def test_one_source_has_no_mix_and_ids_of_its_own(given: Given, tmp_path: Path) -> None:
    part = of_viscot(given)
    settings = flags(run_uri=tmp_path / "run", source="viscot", input_uri=part["input"], images_uri=part["images"])
    run(ConvertSettings.load(settings)[0])
    found = report(tmp_path / "run")
    assert found["mix"] == []
    assert [rejection.id for rejection in refused(tmp_path / "run")] == ["viscot.jsonl:6"]


def test_a_part_says_for_itself_what_else_holds_for_all(given: Given, tmp_path: Path) -> None:
    given.image("wide.png", 400, 40)
    mine = {"image": "wide.png", "question": "?", "answers": ["x"], "origin": {"split": "test"}}
    box = {"evidence": [{"label": "it", "boxes": [[0, 0, 400, 1]]}]}
    parts = [
        of_samples(given, [mine, mine | box | {"question": "Where?"}]) | {"dataset": "mine", "licence": "CC0"},
        of_samples(given, [mine | box | {"question": "Whose?"}], "yours.jsonl")
        | {"name": "yours", "max_box_aspect": 1000, "splits": "by-content"},
    ]
    samples = convert(tmp_path / "run", mix(given, parts), max_box_aspect=50, max_rejected_share=0.9)
    assert [(s.id, s.origin.dataset, s.origin.licence) for s in samples] == [("samples/mine.jsonl:1", "mine", "CC0")]
    reasons = {rejection.id: rejection.reason.value for rejection in refused(tmp_path / "run")}
    assert reasons == {"samples/mine.jsonl:2": "box-too-thin", "yours/yours.jsonl:1": "held-out"}


# ------------------------------------------------------------------------------------------- rules that span the parts


def test_an_image_under_two_paths_is_on_one_side_in_both_parts(given: Given, tmp_path: Path) -> None:
    """The same bytes, and nearly the same image: also where one part says which split its rows are."""
    mine, yours = [], []
    for seed in range(12):
        given.image(f"mine/{seed}.jpg", data=scene(seed))
        given.image(f"yours/{seed}.jpg", data=scene(seed, quality=90 if seed % 2 else 60))
        mine.append({"image": f"mine/{seed}.jpg", "question": "What is it?", "answers": ["x"]})
        said = {"origin": {"split": "validation"}} if seed in (3, 4) else {}
        yours.append({"image": f"yours/{seed}.jpg", "question": "Whose is it?", "answers": ["y"]} | said)
    parts = [of_samples(given, mine) | {"name": "mine"}, of_samples(given, yours, "yours.jsonl") | {"name": "yours"}]
    samples = convert(tmp_path / "run", mix(given, parts), validation_share=0.4, max_rejected_share=0.2)
    sides = {s.id: s.origin.split for s in samples}
    assert {sides[f"yours/yours.jsonl:{n}"] for n in (4, 5)} == {"validation"}
    assert {r.id: r.reason.value for r in refused(tmp_path / "run")} == {
        "mine/mine.jsonl:4": "held-out", "mine/mine.jsonl:5": "held-out",
    }  # fmt: skip
    pairs = [(sides[f"mine/mine.jsonl:{n}"], sides[f"yours/yours.jsonl:{n}"]) for n in range(1, 13) if n not in (4, 5)]
    assert all(one == other for one, other in pairs)
    assert {one for one, _ in pairs} == {"train", "validation"}


def test_a_question_is_asked_once_whichever_part_asks_it(given: Given, tmp_path: Path) -> None:
    given.image("a.png", 20, 20)
    row = {"image": "a.png", "question": "How many?", "answers": ["2"]}
    parts = [
        of_samples(given, [row | {"question": "Whose?"}]) | {"name": "first"},
        of_samples(given, [row], "second.jsonl") | {"name": "second"},
        of_samples(given, [row | {"question": "how many"}], "third.jsonl") | {"name": "third"},
    ]
    samples = convert(tmp_path / "run", mix(given, parts), max_rejected_share=0.5)
    assert {s.id for s in samples} == {"first/mine.jsonl:1", "second/second.jsonl:1"}
    (again,) = refused(tmp_path / "run")
    assert again.detail == "second/second.jsonl:1 asks this of the same image: 'how many'"


def test_what_is_not_drawn_holds_nothing_out_and_is_repeated_by_nobody(given: Given, tmp_path: Path) -> None:
    mine, yours = [], []
    for n in range(40):
        given.image(f"{n}.png", 30 + n, 20)
        mine.append({"image": f"{n}.png", "question": "?", "answers": ["x"], "origin": {"split": "test"}})
        yours.append({"image": f"{n}.png", "question": "?", "answers": ["x"], "origin": {"split": "train"}})
    parts = [
        of_samples(given, mine) | {"name": "mine", "weight": 1},
        of_samples(given, yours, "yours.jsonl") | {"name": "yours", "weight": 4},
    ]
    samples = convert(tmp_path / "run", mix(given, parts), max_rejected_share=0.5)
    drawn = {s.image.uri for s in samples if s.id.startswith("mine/")}
    assert 0 < len(drawn) < 40
    assert {s.image.uri for s in samples if s.id.startswith("yours/")} == {
        str(given.images / f"{n}.png") for n in range(40)
    } - drawn
    assert len(refused(tmp_path / "run")) == len(drawn)


def test_a_benchmark_is_kept_out_of_every_part_wherever_its_images_lie(given: Given, tmp_path: Path) -> None:
    elsewhere = Given(given.folder / "elsewhere")
    elsewhere.image("b.jpg", data=scene(2))
    for name, seed in (("a", 1), ("copy-of-b", 2), ("c", 3)):
        given.image(f"{name}.jpg", data=scene(seed))
    row = {"question": "?", "answers": ["x"]}
    parts = [
        of_samples(given, [row | {"image": f"{name}.jpg"} for name in ("a", "copy-of-b", "c")]),
        of_samples(elsewhere, [row | {"image": "b.jpg", "question": "Why?"}]) | {"name": "other"},
    ]
    shown = given.rows([{"img_path": "b.jpg"}], "bench.jsonl")
    samples = convert(tmp_path / "run", mix(given, parts), exclude_benchmarks=shown, max_rejected_share=0.5)
    assert {s.id for s in samples} == {"samples/mine.jsonl:1", "samples/mine.jsonl:3"}
    assert report(tmp_path / "run")["benchmarks"]["bench.jsonl"]["rows_refused"] == 2


def test_ids_of_parts_never_meet(given: Given, tmp_path: Path) -> None:
    given.image("a.png", 20, 20)

    def row(question: str, **more: Any) -> dict[str, Any]:
        return {"image": "a.png", "question": question, "answers": ["x"]} | more

    same = given.rows([row("1", id=7), row("2", id="b"), row("3"), row("4", id="b"), row("5", id="mine.jsonl:3")])
    (given.folder / "deep").mkdir()
    parts = [
        {"source": "samples", "name": "a", "input": same, "images": given.images},
        {"source": "samples", "name": "b", "input": same, "images": given.images, "limit": 2},
        of_samples(given, [row("6", id="a/7"), row("7", id="7")], "deep/rows.jsonl") | {"name": "c"},
    ]
    samples = convert(tmp_path / "run", mix(given, parts), duplicates="keep")
    assert sorted(s.id for s in samples) == [
        "a/7", "a/mine.jsonl:3", "a/rows.jsonl:2:b", "a/rows.jsonl:3", "a/rows.jsonl:4:b",
        "b/7", "b/b", "c/7", "c/a/7",
    ]  # fmt: skip


# ------------------------------------------------------------------------------- archives, copies, what is known before


def test_archives_copies_and_what_is_known_of_images_work_in_every_part(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile

    viscot, mine = of_viscot(given, 5), []
    for n in range(3):
        given.image(f"big-{n}.jpg", data=scene(n, size=200))
        mine.append({"image": f"big-{n}.jpg", "question": "?", "answers": ["x"]})
    for name, inside in (("viscot", "cot_image_data/"), ("mine", "")):
        with tarfile.open(given.folder / f"{name}.tar", "w") as tar:
            tar.add(given.images, arcname=inside or ".")
    own = of_samples(given, mine)
    plain, packed = [viscot, own], [
        viscot | {"images": given.folder / "viscot.tar"}, own | {"images": given.folder / "mine.tar"},
    ]  # fmt: skip
    monkeypatch.setenv("VCOT_CONVERT_INGEST", "true")
    monkeypatch.setenv("VCOT_CONVERT_INGEST_PIXELS", str(28 * 28 * 10))
    from_folders = convert(tmp_path / "plain", mix(given, plain), stored_images_uri=tmp_path / "made")
    inside_archives = convert(
        tmp_path / "packed", mix(given, packed, "packed.yaml"), stored_images_uri=tmp_path / "made"
    )

    def but_for_the_uri(samples: list[Sample]) -> list[Any]:
        return [s.model_copy(update={"image": s.image.model_copy(update={"uri": "x"})}) for s in samples]

    assert but_for_the_uri(from_folders) == but_for_the_uri(inside_archives)
    assert {s.id.partition("/")[0] for s in from_folders} == {"viscot", "samples"}
    assert all(s.image.stored and s.image.stored.width * s.image.stored.height <= 7840 for s in from_folders)
    for name in ("VCOT_CONVERT_INGEST", "VCOT_CONVERT_INGEST_PIXELS"):
        monkeypatch.delenv(name)
    known = tmp_path / "packed/convert/images.json"
    states = {path: path.stat() for path in given.folder.glob("*.tar")}
    for path, state in states.items():  # the same size and time, and no image in it any more
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    index = str(tmp_path / "packed/convert/archive")
    again = convert(
        tmp_path / "again", mix(given, packed, "packed.yaml"), known_images=known, archive_index_uri=index,
        near_duplicates=0,
    )  # fmt: skip
    assert [s.id for s in again] == [s.id for s in inside_archives]


def test_the_mix_and_all_that_it_names_may_lie_in_s3(given: Given, moto_place: str) -> None:  # noqa: F811
    store = Store()
    parts = [of_viscot(given, 6), of_coco(given)]
    for part in parts:
        for path in given.images.rglob("*.*"):
            store.upload(path, join(moto_place, "images", str(path.relative_to(given.images))))
        store.upload(Path(part["input"]), join(moto_place, Path(part["input"]).name))
        part |= {"input": join(moto_place, Path(part["input"]).name), "images": join(moto_place, "images")}
    uri = join(moto_place, "mix.yaml")
    store.write(uri, json.dumps(parts).encode())
    samples = convert(join(moto_place, "run"), uri, max_rejected_share=0.5)
    assert {s.id.partition("/")[0] for s in samples} == {"viscot", "coco"}
    settings = json.loads(store.read(join(moto_place, "run/convert/settings.json")))
    assert {uri, *(part["input"] for part in parts)} == settings["inputs"].keys()
    store.write(uri, json.dumps(parts[:1]).encode())
    with pytest.raises(InputError, match=r"mix\.yaml has changed since .* was begun; use another run name"):
        convert(join(moto_place, "run"), uri, max_rejected_share=0.5)


def test_what_does_not_fit_the_rows_is_said_with_the_name_of_their_part(given: Given, tmp_path: Path) -> None:
    talk = {"image": "a.png", "messages": []}
    chat = of_samples(given, [talk]) | {"name": "chat"}
    scenes = {"source": "scenes", "scenes": 3}
    with pytest.raises(InputError, match=r"^part chat: images .*/images: there is nothing in that folder$"):
        convert(tmp_path / "empty", mix(given, [scenes, chat]))
    given.image("a.png")
    with pytest.raises(SettingsError, match=r"^part chat: --frame is missing: chat/mine.jsonl:1 is a chat message"):
        convert(tmp_path / "no-frame", mix(given, [scenes, chat]))


# ----------------------------------------------------------------------------------------------------------- as a user


def test_the_page_about_sources_has_a_mix_that_is_right(given: Given) -> None:
    page = (ROOT / "docs/datasets.md").read_text()
    written = page.partition("```yaml\n")[2].partition("```")[0]
    loaded, _ = ConvertSettings.load(flags(run_uri="r", mix=mix(given, written)))
    loaded.validate_files()
