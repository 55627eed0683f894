"""The convert stage, run in the process of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.convert import ConvertSettings, run
from tests.fakes.rows import Given, metadata
from vcot.records import Rejection, Sample, read_samples
from vcot.records.shards import read_marker
from vcot.storage import Store, join

ROOT = Path(__file__).parents[2]


def flags(**settings: Any) -> list[str]:
    """As on a command line; True: the flag alone."""
    named = ((f"--{name.replace('_', '-')}", value) for name, value in settings.items())
    return [word for flag, value in named for word in ([flag] if value is True else [flag, str(value)])]


def convert(run_uri: Path | str, **settings: Any) -> dict[str, Any]:
    """Runs the stage in this process; its report."""
    stage(run_uri, **settings)
    return report(run_uri)


def report(run_uri: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Store().read(f"{run_uri}/convert/report.json"))
    return found


def viscot_rows(given: Given, count: int = 40, bad: int = 2) -> dict[str, Any]:
    """Rows over images of three each, the last `bad` of them inverted."""
    rows = []
    for n in range(count):
        height = 100 + n // 3
        given.image(f"vsr/{n // 3}.png", 90, height)
        box = [[1, 2, 30, 40]] if n < count - bad else [[30, 2, 1, 40]]
        rows.append(metadata(box, image=f"{n // 3}.png", width=90, height=height, question=f"What is {n}?"))
    return {"source": "viscot", "input_uri": given.rows(rows), "images_uri": given.images}


def stage(run_uri: Path | str, **settings: Any) -> None:
    """Runs the stage, or the part of it that is named, in this process."""
    loaded, _ = ConvertSettings.load(flags(run_uri=run_uri, **settings))
    run(loaded)


def in_parts(run_uri: Path | str, **settings: Any) -> None:
    """Prepare, the shards last to first, and finish, each as a process of its own would."""
    stage(run_uri, **settings, part="prepare")
    for shard in reversed(range(settings["num_shards"])):
        stage(run_uri, **settings, part="shards", shard=shard)
    stage(run_uri, **settings, part="finish")


def made(run_uri: Path | str) -> dict[str, bytes]:
    """What must be the same in every run: shards and rejections, by name."""
    base, store = join(str(run_uri), "convert"), Store()
    found = [entry.uri for kind in ("shards", "rejections") for entry in store.list(join(base, kind))]
    return {uri.removeprefix(f"{base}/"): store.read(uri) for uri in found}


def samples(run_uri: Path | str) -> list[Sample]:
    """By their ids."""
    store, uri = Store(), join(str(run_uri), "convert")
    return sorted(read_samples(store, uri, read_marker(store, uri)[0]), key=lambda sample: sample.id)


def rejections(run_uri: Path | str) -> list[Rejection]:
    lines = b"".join(data for name, data in sorted(made(run_uri).items()) if name.startswith("rejections"))
    return [Rejection.model_validate_json(line) for line in lines.splitlines()]
