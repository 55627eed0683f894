"""Groups of images and the side that they are on; benchmarks kept out; questions asked twice; in any shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some
from PIL import Image

from tests.datasets.given import Given, informed, png
from tests.datasets.test_datasets_viscot import metadata
from vcot.datasets import DATASETS, benchmarks, read, rows_of_shard
from vcot.datasets.base import ConversionContext
from vcot.datasets.image_index import ImageIndex
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import find
from vcot.datasets.row_index import FACTS, counts
from vcot.errors import InputError
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Changed, Store

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot"
BOX = [[1, 2, 30, 40]]


def scene(seed: int, quality: int = 90, size: int = 96) -> bytes:
    """An image like no other; of one seed they are nearly the same at any quality and size."""
    noise = Image.frombytes("L", (8, 8), hashlib.shake_128(str(seed).encode()).digest(64))
    buffer = io.BytesIO()
    noise.resize((96, 96), Image.Resampling.BICUBIC).resize((size, size)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def folder_of(given: Given, name: str = "run") -> Folder:
    return Folder(Store(), str(given.folder / name), CONVERT)


def outcomes(given: Given, desk: ConversionContext, source: str = "viscot", shards: int = 1) -> dict[str, str]:
    """Row → its side, or why it was refused; shards know what was looked up before, and read it from the folder."""
    folder = folder_of(given, f"run-{shards}")
    informed(DATASETS[source], desk, folder, look=True, readers=2)
    found: dict[str, str] = {}
    for shard in range(shards):
        knowing = informed(DATASETS[source], desk, folder, look=False)
        for row, result in read(rows_of_shard(desk, shard, shards), knowing):
            assert row.id not in found
            found[row.id] = result.origin.split if isinstance(result, Sample) else result.reason.value
    return found


def sides(given: Given, rows: Iterable[Any], **options: Any) -> list[str]:
    return list(outcomes(given, given.desk("viscot", given.rows(list(rows)), **options)).values())


def row(image: str, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    return metadata(BOX, image=image, question=question, width=96, height=96) | more


# ------------------------------------------------------------------------------------------------------ damaged


def damaged_png(seed: int) -> bytes:
    """Header and end are sound; what is between them cannot be unpacked."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(scene(seed))).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[300:400] = bytes(100)
    return bytes(data)


def test_an_image_that_prepare_cannot_decode_is_refused_with_its_reason(given: Given) -> None:
    given.image("vsr/whole.jpg", data=scene(1))
    for name in ("damaged.png", "copied.png"):
        given.image(f"vsr/{name}", data=damaged_png(2))
    rows = [row("whole.jpg"), row("damaged.png"), row("damaged.png", "And this?"), row("copied.png", split="val")]
    desk = given.desk("viscot", given.rows(rows), validation_share=0)
    for shards in (1, 3):
        assert list(outcomes(given, desk, shards=shards).values()).count("image-broken") == 3
    knowing = informed(DATASETS["viscot"], desk, folder_of(given, "run-1"), look=False)
    (sha256,) = knowing.prepared.damaged
    assert sha256 == hashlib.sha256(damaged_png(2)).hexdigest()
    results = [result for _, result in read(rows_of_shard(desk), knowing)]
    assert isinstance(results[0], Sample)
    refused = [result for result in results[1:] if isinstance(result, Rejection)]
    assert [r.detail.partition(": ")[0].rpartition("/")[2] for r in refused] == [
        "damaged.png", "damaged.png", "copied.png"
    ]  # fmt: skip
    assert all("not a sound PNG" in r.detail for r in refused)
    assert knowing.prepared.held_out == {}, "rows that are all refused measure nothing"


def test_a_damaged_image_is_refused_for_the_same_whether_or_not_copies_are_made(given: Given) -> None:
    given.image("vsr/damaged.png", data=damaged_png(2))
    uri = given.rows([row("damaged.png")])
    desk = given.desk("viscot", uri)
    copied = replace(desk, images=DatasetImages(desk.store, str(given.images), str(given.folder / "made"), budget=784))
    found = []
    for which in (desk, copied):
        folder = folder_of(given, f"run-{len(found)}")
        knowing = informed(DATASETS["viscot"], which, folder, look=True)
        found += [result for _, result in read(rows_of_shard(which), knowing)]
    assert found[0] == found[1]
    assert isinstance(found[0], Rejection)


def test_a_damaged_image_of_a_benchmark_takes_no_rows(given: Given) -> None:
    given.image("vsr/damaged.png", data=damaged_png(2))
    given.image("vsr/whole.jpg", data=scene(1))
    benchmark = given.rows([row("damaged.png", split="val"), row("whole.jpg", split="val")], "benchmark.jsonl")
    desk = given.desk("viscot", given.rows([row("damaged.png"), row("whole.jpg")]))
    desk = replace(desk, benchmarks=find(Store(), [benchmark]))
    assert list(outcomes(given, desk).values()) == ["image-broken", "held-out"]
    (counted,) = counts(folder_of(given, "run-1"))["benchmarks"].values()
    assert (counted["images_shared"], counted["rows_refused"]) == (1, 1)


# ------------------------------------------------------------------------------------------------------- groups


def test_nearly_the_same_image_is_on_one_side_that_of_the_smallest_digest(given: Given) -> None:
    images = [given.image(f"vsr/{seed}-{q}.jpg", data=scene(seed, q)) for seed in range(12) for q in (30, 90)]
    rows = [row(Path(p).name, dataset="vsr") for p in images]
    together = sides(given, rows, validation_share=0.5)
    assert together[::2] == together[1::2]
    assert set(together) == {"train", "validation"}


def test_near_duplicates_can_be_left_alone_and_the_same_bytes_still_count_as_one(given: Given) -> None:
    for name, quality in (("a", 90), ("b", 90), ("c", 30)):
        given.image(f"vsr/{name}.jpg", data=scene(1, quality))
    rows = [row("a.jpg", split="val"), row("b.jpg"), row("c.jpg")]
    assert sides(given, rows) == ["test", "held-out", "held-out"]
    elsewhere = Given(given.folder / "again")
    for name, quality in (("a", 90), ("b", 90), ("c", 30)):
        elsewhere.image(f"vsr/{name}.jpg", data=scene(1, quality))
    assert sides(elsewhere, rows, near_duplicates=0, validation_share=0) == ["test", "held-out", "train"]


def test_a_row_that_says_train_takes_the_silent_rows_of_its_image_along(given: Given) -> None:
    """Or the same image would be learned from and measured with, whenever the draw says validation."""
    images = [given.image(f"{seed}.jpg", data=scene(seed)) for seed in range(8)]
    rows = [
        {"image": p, "question": f"{said}?", "answers": ["x"]} | ({"origin": {"split": said}} if said else {})
        for p in images
        for said in ("", "train")
    ]
    for options in ({}, {"near_duplicates": 0, "duplicates": "keep"}):
        desk = given.desk("samples", given.rows(rows), validation_share=0.9, **options)
        found = informed(DATASETS["samples"], desk, folder_of(given, str(len(options))), look=True)
        kept = [result for _, result in read(rows_of_shard(desk), found)]
        assert {r.origin.split for r in kept if isinstance(r, Sample)} == {"train"}
        assert len(kept) == 16


def test_what_was_looked_up_is_held_against_its_digest(given: Given) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    desk, folder = given.desk("viscot", given.rows([row("a.jpg")])), folder_of(given)
    informed(DATASETS["viscot"], desk, folder, look=True)
    path = Path(folder.uri) / FACTS
    path.write_text(path.read_text().replace('"drawn": {}', '"drawn": {"a": "train"}'))
    with pytest.raises(InputError, match="is damaged"):
        informed(DATASETS["viscot"], desk, folder, look=False)


def test_what_another_version_looked_up_is_refused(given: Given) -> None:
    folder, found = folder_of(given), {"held_out": {}}
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    path = Path(folder.uri) / FACTS
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"sha256": digest, "found": found}))
    given.image("vsr/a.jpg", data=scene(1))
    with pytest.raises(InputError, match="another version of vcot made it; delete"):
        informed(DATASETS["viscot"], given.desk("viscot", given.rows([row("a.jpg")])), folder, look=False)


def test_what_an_image_looks_like_is_known_to_the_next_run(given: Given) -> None:
    store, left = Store(), str(given.folder / "images.json")
    paths = [given.image("a.jpg", data=scene(1)), given.image("flat.png", 90, 80)]
    first = ImageIndex(given.folder / "1.sqlite")
    dataset_images = DatasetImages(store, str(given.images), "made", index=first)
    images = [dataset_images.find(path) for path in paths]
    seen = [dataset_images.print_of(image.uri, image.sha256) for image in images]
    assert seen[0] is not None
    assert seen[1] is None
    first.leave(store, left)
    second = ImageIndex(given.folder / "2.sqlite")
    second.take(store, left, listed=store.list(str(given.images)))
    for path in given.images.iterdir():
        path.unlink()  # nobody looks again
    again = DatasetImages(store, str(given.images), "made", index=second)
    assert [again.print_of(image.uri, image.sha256) for image in images] == seen
    assert [second.print_of(image.uri, image.sha256) for image in images] == [seen[0], b""]
    with pytest.raises(Changed, match="has changed since this stage first looked at it"):
        again.print_of(images[0].uri, "0" * 64)  # other bytes, and they are gone


# --------------------------------------------------------------------------------------------------- questions


def test_a_question_is_asked_once_of_an_image(given: Given) -> None:
    for name, seed in (("a", 1), ("same-as-a", 1), ("b", 2)):
        given.image(f"vsr/{name}.jpg", data=scene(seed))
    rows = [
        row("a.jpg", "What is it?"), row("a.jpg", "what is it"), row("same-as-a.jpg", "What is it?"),
        row("b.jpg", "What is it?"), row("a.jpg", "What is that?"),
        metadata([[30, 2, 1, 40]], image="b.jpg", question="And this?", width=96, height=96), row("b.jpg", "And this?"),
    ]  # fmt: skip
    told = ["train", "duplicate", "duplicate", "train", "train", "box-inverted", "train"]
    assert sides(given, rows, validation_share=0) == told
    knowing = informed(DATASETS["viscot"], given.desk("viscot", given.rows(rows)), folder_of(given), look=True)
    assert knowing.prepared.duplicates == {"rows.jsonl:2": "rows.jsonl:1", "rows.jsonl:3": "rows.jsonl:1"}


@pytest.mark.parametrize("how", ["exact", "near"])
@pytest.mark.parametrize("source", ["viscot", "samples"])
def test_the_same_words_about_other_boxes_or_with_other_answers_are_another_question(
    given: Given, source: str, how: Any
) -> None:
    """VisCoT's OpenImages asks of two players "What is the people that wears the football helmet doing?"."""
    given.image("vsr/a.jpg", data=scene(1))

    def asks(answer: str, *boxes: list[float]) -> dict[str, Any]:
        if source == "viscot":
            return row("a.jpg", "What is the player doing?") | {"answer": answer, "bboxs": [*boxes]}
        evidence = {"evidence": [{"label": "player", "boxes": [*boxes]}]} if boxes else {}
        return {"image": "vsr/a.jpg", "question": "What is the player doing?", "answers": [answer]} | evidence

    left, right, nearly_left = [1, 2, 30, 40], [50, 2, 90, 40], [1.4, 1.2, 31, 39.5]
    rows = [
        asks("Walking", left), asks("Walking", right), asks("Running", left), asks("Walking", left, right),
        asks("walking.", nearly_left), asks("Walking", right, nearly_left), asks("Running", [4, 2, 30, 40]),
    ]  # fmt: skip
    desk = given.desk(source, given.rows(rows), duplicates=how)
    found = informed(DATASETS[source], desk, folder_of(given), look=True).prepared.duplicates
    assert found == {"rows.jsonl:5": "rows.jsonl:1", "rows.jsonl:6": "rows.jsonl:4"}


def test_evidence_that_nobody_annotated_is_not_the_same_as_none_or_some(given: Given) -> None:
    given.image("a.jpg", data=scene(1))
    boxes = [None, [], [{"label": "bus", "boxes": BOX}]]
    rows = [{"image": "a.jpg", "question": "?", "answers": ["no"], "evidence": e} for e in boxes * 2]
    desk = given.desk("samples", given.rows(rows))
    found = informed(DATASETS["samples"], desk, folder_of(given), look=True).prepared.duplicates
    assert found == {f"rows.jsonl:{n + 3}": f"rows.jsonl:{n}" for n in (1, 2, 3)}


def test_a_row_and_its_other_form_are_duplicates_though_each_rounds_its_box(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    same = metadata([[100.63, 100.2, 310.71, 240.9]], image="a.jpg", question="Why?", answer="So.")
    assert isinstance(given.sample("viscot", same), Sample)
    turns = ["<image>\nWhy?", "[0.157, 0.282, 0.485, 0.501]", "<image>", "So."]
    other = {
        "dataset": "vsr", "question_id": 1, "image": ["cot/vsr/a.jpg", "cot/vsr/a.jpg###[100, 100, 310, 240]"],
        "conversations": [
            {"from": who, "value": turn} for who, turn in zip(("human", "gpt") * 2, turns, strict=True)
        ],
    }  # fmt: skip
    uris = given.rows([same], "metadata.jsonl"), given.rows([other], "chat.jsonl")
    found = informed(DATASETS["viscot"], given.desk("viscot", *uris), folder_of(given), look=True)
    assert found.prepared.duplicates == {"chat.jsonl:1": "metadata.jsonl:1"}


SEEDS = [(0, "several"), (1, "one"), (2, "several")]


@pytest.mark.parametrize("how", ["exact", "near"])
def test_coco_repeats_the_same_rows_under_every_seed_and_phrasing(given: Given, how: Any) -> None:
    """An image that the file has three times: once more as it is, once annotated otherwise."""
    for name in "abc":
        given.image(f"{name}.jpg", data=scene(1))
    file = given.folder / "instances.json"
    boxes = {1: ([1, 2, 30, 40], [50, 2, 30, 40]), 2: ([1, 2, 30, 40], [50, 2, 30, 40]), 3: ([1, 40, 30, 40],)}
    file.write_text(
        json.dumps({
            "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate("abc", 1)],
            "categories": [{"id": n, "name": name} for n, name in enumerate(("cup", "cups", "dog"), 1)],
            "annotations": [{"image_id": n, "category_id": 1, "bbox": box} for n in boxes for box in boxes[n]],
        })
    )  # fmt: skip
    refused = []
    for seed, phrasings in SEEDS:
        desk = given.desk("coco", str(file), seed=seed, phrasings=phrasings, absent=2, duplicates=how)
        told = informed(DATASETS["coco"], desk, folder_of(given, f"{seed}-{phrasings}"), look=True)
        refused.append(told.prepared.duplicates)
    of_two = {f"instances.json:2:{kind}:cup": f"instances.json:1:{kind}:cup" for kind in ("count", "point", "presence")}
    assert refused == refused[:1] * len(SEEDS)
    assert of_two.items() <= refused[0].items()
    assert {name.split(":")[3] for name in refused[0].keys() - of_two.keys()} == {"cups", "dog"}  # none is there


@pytest.mark.parametrize("how", ["exact", "near"])
def test_refcoco_repeats_the_same_rows_under_every_seed_and_phrasing(given: Given, how: Any) -> None:
    given.image("a.jpg", data=scene(1))
    expressions = [("man in red", 1), ("Man in red.", 1), ("man in red", 50), ("woman in red", 1), ("man in red", 1.5)]
    rows = [
        {"img_path": "a.jpg", "expression": said, "bbox": [x, 2, x + 30, 90], "sent_id": n, "width": 96, "height": 96}
        for n, (said, x) in enumerate(expressions)
    ]
    uri = given.rows(rows)
    for seed, phrasings in SEEDS:
        desk = given.desk("refcoco", uri, seed=seed, phrasings=phrasings, duplicates=how)
        told = informed(DATASETS["refcoco"], desk, folder_of(given, f"{seed}-{phrasings}"), look=True)
        assert told.prepared.duplicates == {"rows.jsonl:2": "rows.jsonl:1", "rows.jsonl:5": "rows.jsonl:1"}


def test_of_two_rows_the_one_that_measures_stays(given: Given) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    rows = [row("a.jpg"), row("a.jpg", split="val"), row("a.jpg", split="val")]
    assert sides(given, rows) == ["held-out", "test", "duplicate"]


@pytest.mark.parametrize(("how", "said"), [("exact", "train"), ("near", "duplicate"), ("keep", "train")])
def test_nearly_the_same_question_when_it_is_asked_for(given: Given, how: Any, said: str) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    rows = [
        row("a.jpg", f"What is the colour of the large bus on the left side of the {w}?") for w in ("road", "roads")
    ]
    assert sides(given, rows, duplicates=how, validation_share=0) == ["train", said]
    rows = [row("a.jpg", "Why?"), row("a.jpg", "Why?")]
    again = Given(given.folder / "again")
    again.image("vsr/a.jpg", data=scene(1))
    assert sides(again, rows, duplicates=how, validation_share=0) == [
        "train",
        "train" if how == "keep" else "duplicate",
    ]


# ---------------------------------------------------------------------------------------------------- benchmarks


def with_benchmark(given: Given, desk: ConversionContext, uri: str, images: Path | None) -> ConversionContext:
    shown = None if images is None else DatasetImages(Store(), str(images), str(given.folder / "made"))
    return replace(desk, benchmarks=find(Store(), [uri]), benchmark_images=shown)


def test_a_benchmarks_image_is_known_by_its_content_or_by_its_name(given: Given) -> None:
    for name, seed, q in (("a", 1, 90), ("copy-of-a", 1, 30), ("000000000007", 2, 90), ("c", 3, 90), ("d", 4, 90)):
        given.image(f"vsr/{name}.jpg", data=scene(seed, q))
    shown = [
        {"img_path": "cot/vsr/a.jpg", "expression": "?", "bbox": BOX[0]},
        {"img_path": "COCO_train2014_000000000007.jpg", "expression": "it", "bbox": BOX[0], "sent_id": 1},
        {"dataset": "vsr", "image": ["cot/vsr/nowhere.jpg", "cot/vsr/nowhere.jpg###[1, 2, 3, 4]"], "conversations": []},
        {"dataset": "other", "image": "c.jpg"},  # the same file name in another set is another image
    ]
    rows = [row(f"{name}.jpg") for name in ("a", "copy-of-a", "000000000007", "c", "d")] + [row("d.jpg", split="val")]
    desk = given.desk("viscot", given.rows(rows), validation_share=0)
    benchmark = given.rows(shown, "bench.jsonl")
    told = outcomes(given, with_benchmark(given, desk, benchmark, None))
    assert list(told.values()) == ["held-out", "held-out", "held-out", "train", "held-out", "test"]
    assert counts(folder_of(given, "run-1"))["benchmarks"] == {
        "bench.jsonl": {
            "rows": 4, "images": 4, "images_found": 2, "images_shared": 2, "rows_with_a_shared_image": 2,
            "rows_refused": 3,
        }
    }  # fmt: skip


def test_a_benchmark_without_images_is_no_benchmark(given: Given) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    desk = given.desk("viscot", given.rows([row("a.jpg")]))
    wrong = given.rows([{"image": "cot/vsr/a.jpg"}, {"question": "?", "answer": "!"}], "bench.jsonl")
    with pytest.raises(InputError, match=r"bench.jsonl:2 names no image: it has the fields question, answer"):
        informed(DATASETS["viscot"], with_benchmark(given, desk, wrong, None), folder_of(given), look=True)


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("s3://b/images/vsr/000000000139.jpg", {"vsr/000000000139.jpg", "coco:139"}),
        ("COCO_val2014_000000000139.jpg", {"coco:139"}),
        ("textvqa/0a1b.jpg", {"textvqa/0a1b.jpg"}),
        ("0a1b.jpg", set()),
        ("cub/001.Albatross/a.jpg", {"cub/001.Albatross/a.jpg", "001.Albatross/a.jpg"}),
    ],
)
def test_what_a_path_may_be_recognised_by(path: str, keys: set[str]) -> None:
    assert keys <= benchmarks.keys(path)
    assert not any("/" not in key and not key.startswith("coco:") for key in benchmarks.keys(path))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"VisCoT's rows are not in {DATA}")
def test_vsrs_benchmark_shares_images_with_its_training_rows(given: Given) -> None:
    """In spite of the paper's claim of removal: 146 of 404 rows, 115 of 327 images."""
    train, shown = DATA / "metadata/vsr_cot_train.jsonl", DATA / "detection/vsr.jsonl"
    for said in map(json.loads, train.open()):
        path = f"vsr/{said['image']}"
        given.image(path, data=png(said["width"], said["height"], comment=path))
    desk = given.desk("viscot", str(train), near_duplicates=0)
    told = outcomes(given, with_benchmark(given, desk, str(shown), given.folder))
    assert list(told.values()).count("held-out") == 240
    assert counts(folder_of(given, "run-1"))["benchmarks"] == {
        "vsr.jsonl": {
            "rows": 404, "images": 327, "images_found": 115, "images_shared": 115,
            "rows_with_a_shared_image": 146, "rows_refused": 240,
        }
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- in any shards

ROWS = some.lists(
    some.tuples(
        some.integers(0, 5),  # which image
        some.sampled_from([(90, 96), (30, 96), (90, 64)]),  # which copy of it
        some.sampled_from([None, "train", "validation", "test"]),
        some.sampled_from(["Why?", "why", "Where is it?"]),
    ),
    min_size=1,
    max_size=14,
)


@tuned(max_examples=15, deadline=None)
@for_all(ROWS, some.integers(1, 5), some.sampled_from(["exact", "near", "keep"]), some.sampled_from([0, 24]))
def test_any_number_of_shards_gives_the_same_samples_and_no_group_crosses(
    drawn: list[Any], shards: int, duplicates: Any, near: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        rows = []
        for seed, (quality, size), split, question in drawn:
            path = given.image(f"{seed}-{quality}-{size}.jpg", data=scene(seed, quality, size))
            rows.append({"image": path, "question": question, "answers": ["x"], "origin": {"split": split}})
        desk = given.desk(
            "samples", given.rows(rows), duplicates=duplicates, near_duplicates=near, validation_share=0.5
        )
        one = outcomes(given, desk, "samples")
        assert len(one) == len(rows)
        assert outcomes(given, desk, "samples", shards=shards) == one
        of_group: dict[Any, set[str]] = {}
        for (seed, copy, _, _), side in zip(drawn, one.values(), strict=True):
            if side in ("train", "validation", "test"):
                of_group.setdefault(seed if near else (seed, copy), set()).add(side)
        assert all(len(found) == 1 for found in of_group.values())
        asked = [
            (seed, copy, question.casefold().strip("?"))
            for (seed, copy, _, question), side in zip(drawn, one.values(), strict=True)
            if side in ("train", "validation", "test")
        ]
        assert duplicates == "keep" or len(set(asked)) == len(asked)
        lost = {(s, c, q.casefold().strip("?")) for s, c, _, q in drawn} - set(asked)
        if not near:  # a question is only lost with its image's rows that measure
            assert all(any(s == seed and c == copy and said for s, c, said, _ in drawn) for seed, copy, _ in lost)
