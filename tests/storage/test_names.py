"""Records and listings with file names that leave their folder: each is rejected and nothing outside changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.markers import NO_REJECTIONS, shard_marker, stage_marker
from tests.storage.tars import tar
from vcot.datasets.image_index import ImageIndex
from vcot.errors import InputError
from vcot.models.loading import load_base
from vcot.models.merge import INDEX, weights_of
from vcot.records import Folder
from vcot.records.shards import CONVERT, DONE, TRAIN, File, read_marker
from vcot.storage import Store, archive, join
from vcot.storage.folders import MANIFEST, fetch_files, fetch_folder, push_folder, read_manifest
from vcot.storage.names import check_name
from vcot.training.checkpoints import Checkpoints, Manifest

EVIL = b"evil\n"
SHA256 = hashlib.sha256(EVIL).hexdigest()
FILE = {"name": "weights", "sha256": SHA256, "size": len(EVIL)}
store = Store()

PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0:"), min_size=1, max_size=6).filter(
    lambda part: part not in (".", "..")
)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TEMPLATES = (
    "/{}", "//{}", "../{}", "a/../../{}", "{}/..", "./{}", "{}/.", "{}/", "{}//x", "C:{}", "C:/{}", "C:\\{}", "{}\\x",
    "..\\{}", "{}\0", "\0{}",
)  # fmt: skip
OUTSIDE = ("{root}/outside/victim", "../../../outside/victim", "a/../../../../outside/victim")
HOSTILE = (
    st.builds(lambda template, name: template.replace("{}", name), st.sampled_from(TEMPLATES), NAMES)
    | st.sampled_from(["", "/", ".", ".."])
    | st.sampled_from(OUTSIDE)
)


class Place:
    """A bucket, a scratch folder and, outside both, a file that must not change."""

    def __init__(self, root: Path) -> None:
        self.root, self.scratch = root, root / "scratch" / "here"
        self.uri, self.victim = (root / "store" / "run").as_uri(), root / "outside" / "victim"
        self.scratch.mkdir(parents=True)
        self.victim.parent.mkdir()
        self.victim.write_bytes(b"mine")

    def put(self, uri: str, value: Any) -> None:
        store.write(uri, json.dumps(value).encode())

    def put_evil(self, folder: str, name: str) -> None:
        """Store what an absolute name is joined to."""
        if "\0" not in name and not {".", ".."}.intersection(name.split("/")) and name.strip("/"):
            store.write(join(folder, name), EVIL)


def train_marker(place: Place, **metadata: Any) -> None:
    marker = stage_marker("train").model_dump(mode="json")
    marker["metadata"] |= metadata
    place.put(join(place.uri, "train", DONE), marker)


def trained_file(place: Place, name: str) -> None:
    place.put_evil(join(place.uri, "train", "model"), name)
    train_marker(place, files={name: SHA256})
    uri = join(place.uri, "train")
    metadata = read_marker(store, uri, TRAIN)[0].metadata
    fetch_files(store, join(uri, metadata.model), metadata.files, place.scratch)


def trained_folder(place: Place, name: str) -> None:
    place.put_evil(join(place.uri, "train"), f"{name}/config.json")
    train_marker(place, model=name, files={"config.json": SHA256})
    uri = join(place.uri, "train")
    metadata = read_marker(store, uri, TRAIN)[0].metadata
    fetch_files(store, join(uri, metadata.model), metadata.files, place.scratch / metadata.model)


def shard_file(place: Place, name: str) -> None:
    marker = shard_marker("convert").model_dump(mode="json") | {"files": [FILE | {"name": name}]}
    place.put(join(place.uri, "convert/_done/00000.json"), marker)
    Folder(store, place.uri, CONVERT).shard_markers()


def rejections_of_a_stage(place: Place, name: str) -> None:
    marker = stage_marker("convert", shards=(shard_marker("convert"),)).model_dump(mode="json")
    marker["shards"][0]["rejections"] = NO_REJECTIONS.model_dump() | {"name": name}
    place.put(join(place.uri, "convert", DONE), marker)
    read_marker(store, join(place.uri, "convert"))


def pushed_file(place: Place, name: str) -> None:
    listed = {"size": len(EVIL), "sha256": SHA256}
    place.put(join(place.uri, MANIFEST), {"whole": True, "files": {name: listed}})
    read_manifest(store, place.uri)


def checkpoint_file(place: Place, name: str) -> None:
    folder = join(place.uri, "checkpoints", "step-000005-aaaa")
    place.put_evil(folder, name)
    manifest = Manifest(step=5, batches_per_step=1, files=(File(**FILE),)).model_dump(mode="json")
    place.put(join(folder, "manifest.json"), manifest | {"files": [FILE | {"name": name}]})
    Checkpoints(store, join(place.uri, "checkpoints"), place.scratch).newest()


def checkpoint_of_another_rank(place: Place, name: str) -> None:
    checkpoint_file(place, "weights")
    manifest = Manifest(step=5, batches_per_step=1, files=(File(**FILE),)).model_dump(mode="json")
    uri = join(place.uri, "checkpoints", "step-000005-aaaa/manifest.json")
    place.put(uri, manifest | {"files": [FILE | {"name": name}]})
    Checkpoints(store, join(place.uri, "checkpoints"), place.scratch).called("step-000005-aaaa")


def known_images(place: Place, name: str) -> None:
    place.put_evil(place.uri, name)
    place.put(join(place.uri, "images.json"), {"form": 1, "file": name, "sha256": SHA256})
    ImageIndex(place.scratch / "index.sqlite").take(store, join(place.uri, "images.json"))


def index_of_weights(place: Place, name: str) -> None:
    (place.scratch / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
    weights_of(place.scratch)


def files_to_push(place: Place, name: str) -> None:
    (place.scratch / "config.json").write_bytes(b"{}")
    push_folder(store, place.scratch, place.uri, ["config.json", name])


PLANTS: dict[str, Callable[[Place, str], object]] = {
    "files of a train marker": trained_file,
    "model of a train marker": trained_folder,
    "files of a shard marker": shard_file,
    "rejections of a stage marker": rejections_of_a_stage,
    "manifest of a folder": pushed_file,
    "manifest of a checkpoint": checkpoint_file,
    "manifest of a checkpoint, by name": checkpoint_of_another_rank,
    "images.json": known_images,
    "index of safetensors": index_of_weights,
    "push": files_to_push,
    "fetch_files": lambda place, name: fetch_files(store, place.uri, {name: SHA256}, place.scratch),
}


@pytest.mark.parametrize("plant", PLANTS)
@settings(max_examples=25)
@given(name=HOSTILE)
def test_hostile_name_is_refused_by_name(plant: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Place(tmp_path_factory.mktemp("place"))
    name = name.replace("{root}", str(place.root))
    with pytest.raises(InputError) as refusal:
        PLANTS[plant](place, name)
    assert repr(name) in str(refusal.value)
    assert "not a relative file name" in str(refusal.value)
    assert place.victim.read_bytes() == b"mine"
    assert {path.name for path in place.root.iterdir()} <= {"outside", "scratch", "store"}


@given(NAMES)
def test_ordinary_name_passes_unchanged(name: str) -> None:
    assert check_name(name) == name
    assert File.model_validate(FILE | {"name": name}).name == name


@pytest.mark.parametrize("name", ["\ud800", "a/\udfff"])
def test_name_of_half_a_character_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        check_name(name)


@pytest.mark.parametrize("key", ["/{victim}", "//etc", "a//b", "../../outside/victim", "a\\b", "C:x"])
def test_listed_key_is_refused_by_name(moto_place: str, tmp_path: Path, key: str) -> None:
    place, bucket = Place(tmp_path), moto_place.split("/")[2]
    key = key.format(victim=place.victim)
    prefix = moto_place.split("/", 3)[3] + "/base/"
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=f"{prefix}config.json", Body=b"{}")
    client.put_object(Bucket=bucket, Key=prefix + key, Body=EVIL)
    uri = join(moto_place, "base")
    assert prefix + key in {entry.uri.split("/", 3)[3] for entry in store.list(uri)}
    with pytest.raises(InputError, match="not a relative file name") as refusal:
        fetch_folder(store, uri, place.scratch)
    assert uri in str(refusal.value)
    assert repr(key) in str(refusal.value)
    assert place.victim.read_bytes() == b"mine"
    fetch_folder(store, uri, place.scratch, only=lambda name: name == "config.json")  # the key is not fetched


@pytest.mark.parametrize("folder", ["..", "../..", "", "step-000009-..", "step-000009-aaaa/.."])
def test_checkpoint_in_another_folder_is_ignored(moto_place: str, tmp_path: Path, folder: str) -> None:
    """A damaged checkpoint is deleted from the scratch folder, so its folder must be below that."""
    place, bucket = Place(tmp_path), moto_place.split("/")[2]
    manifest = Manifest(step=9, batches_per_step=1, files=(File(**FILE),))
    prefix = moto_place.split("/", 3)[3]
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{folder}/manifest.json", Body=manifest.line())
    (place.scratch / "notes.txt").write_bytes(b"mine")
    assert Checkpoints(store, moto_place, place.scratch).newest() is None
    assert (place.scratch / "notes.txt").is_file()
    assert place.victim.is_file()


@pytest.mark.parametrize("name", ["../victim", "/abs/victim", "a/../../victim"])
def test_base_with_weights_elsewhere_is_not_loaded(tmp_path: Path, name: str) -> None:
    base = Path(__file__).parents[2] / "examples" / "rehearsal"
    for file in base.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(InputError, match="not a relative file name"):
        load_base(tmp_path)


def test_archive_member_stays_in_its_archive(tmp_path: Path) -> None:
    place = Place(tmp_path)
    names = [str(place.victim), "../outside/victim", "a/../../b.png", "/c.png", "./d.png"]
    store.write(join(place.uri, "x.tar"), tar(dict.fromkeys(names, EVIL)))
    chunks = archive.find(store, join(place.uri, "x.tar"))
    assert chunks is not None
    index = archive.indexed(chunks, join(place.uri, "index"), place.scratch)
    opened = archive.opened(chunks, index, place.scratch)
    for name in names[1:3]:
        with pytest.raises(InputError, match="not a relative file name") as refusal:
            opened.uri(name)
        assert repr(name) in str(refusal.value)
    for name in (names[0], "c.png", "d.png"):  # as tar unpacks them: below the archive
        assert store.read(opened.uri(name)) == EVIL
    assert place.victim.read_bytes() == b"mine"
