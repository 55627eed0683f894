"""Several sources in one run: the file that says so, what it refuses, and what comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import OF_A_PART, ConvertSettings
from tests.fakes.convert import flags, rejections, report, samples, stage
from tests.fakes.rows import ONE_AND_TWO, Given, instances, metadata, scene
from tests.storage.tars import tar
from vcot.datasets import DATASETS
from vcot.errors import InputError, SettingsError
from vcot.records import Sample
from vcot.uris import pieces

pytestmark = pytest.mark.usefixtures("clean")
Mixed = list[dict[str, Any]]


def mix(given: Given, parts: Any, name: str = "mix.yaml") -> Path:
    """JSON is YAML, too."""
    path = given.folder / name
    path.write_text(parts if isinstance(parts, str) else json.dumps(parts, default=str))
    return path


def convert(run_uri: Path | str, mix_uri: Path | str, **settings: Any) -> list[Sample]:
    stage(run_uri, mix=mix_uri, **settings)
    return samples(run_uri)


def of_viscot(given: Given, count: int = 30) -> dict[str, Any]:
    rows = []
    for n in range(count):
        given.image(f"vsr/{n // 2}.png", 90, 100 + n // 2)
        box = [[1, 2, 30, 40]] if n != 5 else [[30, 2, 1, 40]]
        rows.append(metadata(box, image=f"{n // 2}.png", width=90, height=100 + n // 2, question=f"What is {n}?"))
    return {"source": "viscot", "input": given.rows(rows, "viscot.jsonl"), "images": given.images}


def of_coco(given: Given) -> dict[str, Any]:
    return {"source": "coco", "input": instances(given, ONE_AND_TWO), "images": given.images}


def of_samples(given: Given, rows: Mixed, name: str = "mine.jsonl") -> dict[str, Any]:
    return {"source": "samples", "input": given.rows(rows, name), "images": given.images}


@pytest.mark.parametrize("weights", [({}, {}, {}), ({"weight": 3}, {"weight": 1}, {"weight": 0.5})])
def test_any_number_of_shards_makes_the_same_set(given: Given, tmp_path: Path, weights: Any) -> None:
    parts = [of_viscot(given), of_coco(given), {"source": "scenes", "scenes": 10, "questions": ["where", "count"]}]
    parts = [part | weight for part, weight in zip(parts, weights, strict=True)]
    path, made = mix(given, parts), {}
    for shards in (1, 3, 7):
        kept = convert(
            tmp_path / f"{shards}", path, num_shards=shards, stored_images_uri=tmp_path / "made", validation_share=0.3
        )
        made[shards] = (
            sorted(sample.line() for sample in kept),
            sorted(rejection.line() for rejection in rejections(tmp_path / f"{shards}")),
            report(tmp_path / f"{shards}")["mix"],
        )
        assert len({sample.id for sample in kept}) == len(kept)
    assert made[1] == made[3] == made[7]
    names = {json.loads(line)["id"].partition("/")[0] for line in made[1][0]}
    assert names == {"viscot", "coco", "scenes"}


def test_the_report_says_what_each_part_brought(given: Given, tmp_path: Path) -> None:
    viscot, coco = of_viscot(given, 40), of_coco(given)
    path = mix(given, [viscot | {"weight": 1}, coco | {"name": "cups", "weight": 0.5, "limit": 6}])
    kept = convert(tmp_path / "run", path)
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
    assert found["row_counts"]["kept"] == one["kept"] + 6 == len(kept)
    train = [sample for sample in kept if sample.origin.split == "train"]
    assert one["learned"] == sum(sample.id.startswith("viscot/") for sample in train) / len(train)
    assert found["source"] == "viscot, coco"


def test_a_part_says_for_itself_what_else_holds_for_all(given: Given, tmp_path: Path) -> None:
    given.image("wide.png", 400, 40)
    mine = {"image": "wide.png", "question": "?", "answers": ["x"], "origin": {"split": "test"}}
    box = {"evidence": [{"label": "it", "boxes": [[0, 0, 400, 1]]}]}
    parts = [
        of_samples(given, [mine, mine | box | {"question": "Where?"}]) | {"dataset": "mine", "licence": "CC0"},
        of_samples(given, [mine | box | {"question": "Whose?"}], "yours.jsonl")
        | {"name": "yours", "max_box_aspect": 1000, "splits": "by-content"},
    ]
    kept = convert(tmp_path / "run", mix(given, parts), max_box_aspect=50, max_rejected_share=0.9)
    assert [(s.id, s.origin.dataset, s.origin.licence) for s in kept] == [("samples/mine.jsonl:1", "mine", "CC0")]
    reasons = {rejection.id: rejection.reason.value for rejection in rejections(tmp_path / "run")}
    assert reasons == {"samples/mine.jsonl:2": "box-too-thin", "yours/yours.jsonl:1": "held-out"}


def test_a_question_is_asked_once_whichever_part_asks_it(given: Given, tmp_path: Path) -> None:
    given.image("a.png", 20, 20)
    row = {"image": "a.png", "question": "How many?", "answers": ["2"]}
    parts = [
        of_samples(given, [row | {"question": "Whose?"}]) | {"name": "first"},
        of_samples(given, [row], "second.jsonl") | {"name": "second"},
        of_samples(given, [row | {"question": "how many"}], "third.jsonl") | {"name": "third"},
    ]
    kept = convert(tmp_path / "run", mix(given, parts), max_rejected_share=0.5)
    assert {s.id for s in kept} == {"first/mine.jsonl:1", "second/second.jsonl:1"}
    (again,) = rejections(tmp_path / "run")
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
    kept = convert(tmp_path / "run", mix(given, parts), max_rejected_share=0.5)
    drawn = {s.image.uri for s in kept if s.id.startswith("mine/")}
    assert 0 < len(drawn) < 40
    assert {s.image.uri for s in kept if s.id.startswith("yours/")} == {
        str(given.images / f"{n}.png") for n in range(40)
    } - drawn
    assert len(rejections(tmp_path / "run")) == len(drawn)


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
    kept = convert(tmp_path / "run", mix(given, parts), exclude_benchmarks=shown, max_rejected_share=0.5)
    assert {s.id for s in kept} == {"samples/mine.jsonl:1", "samples/mine.jsonl:3"}
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
    kept = convert(tmp_path / "run", mix(given, parts), duplicates="keep")
    assert sorted(s.id for s in kept) == [
        "a/7", "a/mine.jsonl:3", "a/rows.jsonl:2:b", "a/rows.jsonl:3", "a/rows.jsonl:4:b",
        "b/7", "b/b", "c/7", "c/a/7",
    ]  # fmt: skip


def test_archives_and_copies_work_in_every_part(given: Given, tmp_path: Path) -> None:
    viscot, mine = of_viscot(given, 5), []
    for n in range(3):
        given.image(f"big-{n}.jpg", data=scene(n, size=200))
        mine.append({"image": f"big-{n}.jpg", "question": "?", "answers": ["x"]})
    parts, data = [viscot, of_samples(given, mine)], {p: p.read_bytes() for p in given.images.rglob("*.*")}
    for part, top in zip(parts, ("cot_image_data/", ""), strict=True):
        part["images"] = given.folder / f"{part['source']}.tar"
        part["images"].write_bytes(tar({f"{top}{p.relative_to(given.images)}": said for p, said in data.items()}))
    kept = convert(tmp_path / "run", mix(given, parts), ingest=True, ingest_pixels=28 * 28 * 10)
    assert [s.id.partition("/")[0] for s in kept] == ["samples"] * 3 + ["viscot"] * 5
    assert all(pieces(s.image.uri) and s.image.kept.width * s.image.kept.height <= 7840 for s in kept)


def test_what_does_not_fit_the_rows_is_said_with_the_name_of_their_part(given: Given, tmp_path: Path) -> None:
    talk = {"image": "a.png", "messages": []}
    chat = of_samples(given, [talk]) | {"name": "chat"}
    scenes = {"source": "scenes", "scenes": 3}
    with pytest.raises(InputError, match=r"^part chat: images .*/images: there is nothing in that folder$"):
        convert(tmp_path / "empty", mix(given, [scenes, chat]))
    given.image("a.png")
    with pytest.raises(SettingsError, match=r"^part chat: --frame is missing: chat/mine.jsonl:1 is a chat message"):
        convert(tmp_path / "no-frame", mix(given, [scenes, chat]))


def told(given: Given, parts: Any, **settings: Any) -> list[str]:
    """What --check says is wrong."""
    loaded, _ = ConvertSettings.load(flags(run_uri="r", mix=mix(given, parts), **settings))
    with pytest.raises(SettingsError) as caught:
        loaded.validate_files()
    return str(caught.value).replace(f"{given.folder}/", "").splitlines()


BAD: dict[str, tuple[Any, list[str]]] = {
    "names": (["coco", "viscot"], ["mix.yaml should be a list of parts, each beginning with '- source: …' and its "
                                   "other keys below that; it is ['coco', 'viscot']"]),
    "a dash too few": ("- source: scenes\n  scenes: 3\n  source: coco\n", [
        "mix.yaml, lines 1 and 3: source stands twice in one part; does a dash before it belong there?"]),
    "no source": ([{"input": "x"}], [
        "mix.yaml, part 1: source is missing: what kind of dataset the input is; or --mix"]),
    "unknown source": ([{"source": "vizcot", "input": "x"}], [
        f"mix.yaml, part 1 (vizcot): source=vizcot: input should be {', '.join(map(repr, list(DATASETS)[:-1]))} or "
        f"{list(DATASETS)[-1]!r}"]),
    "unknown keys": ([{"source": "scenes", "wieght": 3, "input_uri": "x", 7: 1}], [
        "mix.yaml, part 1 (scenes): wieght: no such key; did you mean weight?",
        "mix.yaml, part 1 (scenes): input_uri: no such key; did you mean input?",
        "mix.yaml, part 1 (scenes): 7: no such key"]),
    "for the whole run": ([{"source": "scenes", "seed": 3}], [
        "mix.yaml, part 1 (scenes): seed is one for all parts; give --seed (or VCOT_CONVERT_SEED)"]),
    "weights": ("\n".join(f"- {{source: scenes, weight: {w}, name: w{w}}}" for w in (0, ".nan", "true", "1e3", 2)), [
        f"mix.yaml, part {number} (w{w}): weight={said}: a weight is a number above 0, such as 1 or 0.5"
        for number, (w, said) in enumerate(((0, 0), (".nan", "nan"), ("true", True), ("1e3", "'1e3'")), 1)]),
    "some weights": ([{"source": "scenes", "name": n} | w for n, w in (("a", {}), ("b", {"weight": 1}), ("c", {}))], [
        "mix.yaml, parts 1 and 3: the weight is missing; all parts have one, or none has and all rows count"]),
    "one name": ([{"source": "scenes"}, {"source": "scenes", "scenes": 3}], [
        "mix.yaml, parts 1 and 2 are both called scenes, and ids of rows begin with that: give one another name, as in "
        "name: scenes-2"]),
    "no name": ([{"source": "scenes", "name": "a/b"}], [
        "mix.yaml, part 1 (a/b): name='a/b': a name is made of letters, digits, dots, dashes and underscores"]),
    "all faults at once": ([{"source": "viscot", "limit": 0}, {"source": "coco", "input": "gs://b/x"},
                            {"source": "samples", "input": "x", "frame": "resized_pixels", "weight": 1}], [
        "mix.yaml, part 1 (viscot): limit=0: input should be greater than or equal to 1",
        "mix.yaml, part 2 (coco): input=gs://b/x: gs:// is not supported; s3://bucket/key, file:///path and plain "
        "paths are",
        "mix.yaml, part 3 (samples): frame=resized_pixels needs min_pixels and max_pixels, the limits of the processor",
        "mix.yaml, parts 1 and 2: the weight is missing; all parts have one, or none has and all rows count"]),
    "what a source needs": ([{"source": "viscot", "frame": "pixels"}, {"source": "scenes", "input": "x"}], [
        "mix.yaml, part 1 (viscot): input is missing: source viscot reads files",
        "mix.yaml, part 1 (viscot): images is missing: the folder with VisCoT's sets of images",
        "mix.yaml, part 1 (viscot): frame: source viscot does not look at it, source samples does; leave it out",
        "mix.yaml, part 2 (scenes): input: source scenes draws its rows and reads no files"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_everything_that_is_wrong_with_the_file_is_said_at_once_by_part_and_key(given: Given, fault: str) -> None:
    written, lines = BAD[fault]
    if fault == "unknown keys":  # JSON has no numbers for keys
        written = "- {source: scenes, wieght: 3, input_uri: x, 7: 1}\n"
    assert told(given, written) == lines


@pytest.mark.parametrize(
    "written", ["- source: [", "\x00", "- {[1]: 2, ? }: 3", "[" * 5000, "- !!python/name:os.system x"]
)
def test_what_is_no_yaml_or_would_run_something(given: Given, written: str) -> None:
    (line,) = told(given, written)
    assert line.startswith("mix.yaml is not YAML: ")


def test_a_file_that_is_not_there_or_is_something_else(given: Given, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("nowhere.yaml", r"--mix .*nowhere\.yaml"), ("big", "is larger than 1 MiB; it should be a list of sources"),
        ("fifo", "--mix .*/fifo: a FIFO, not a regular file"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=said):
            ConvertSettings.load(flags(run_uri="r", mix=tmp_path / name))[0].validate_files()


def test_with_a_mix_the_command_line_names_no_source() -> None:
    some = {
        "source": "coco", "input_uri": "x", "images_uri": "x", "dataset": "x", "licence": "x", "limit": 1,
        "frame": "pixels", "questions": "where", "categories": "x", "category_names": "a=b", "absent": 1,
        "unmatched_annotations": "ignore", "phrasings": "one", "scenes": 1, "min_pixels": 1, "max_pixels": 1,
        "without_image": "keep",
    }  # fmt: skip
    assert set(some) == set(OF_A_PART)
    with pytest.raises(SettingsError) as caught:
        ConvertSettings.load(flags(run_uri="r", mix="mix.yaml", **some))
    assert str(caught.value).splitlines() == [
        f"--{name.replace('_', '-')} (or VCOT_CONVERT_{name.upper()}): with --mix each part of mix.yaml says that for "
        "itself; leave it out here"
        for name in OF_A_PART
    ]
    with pytest.raises(SettingsError, match=r"--source \(or VCOT_CONVERT_SOURCE\) is missing: .*; or --mix"):
        ConvertSettings.load(flags(run_uri="r"))
