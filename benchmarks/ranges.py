"""How fast a base comes out of object storage, whole and checked, against one connection and no checks.

    python -m benchmarks.ranges --gib 2 --rounds 3

A MinIO of its own on this computer, so the figures say what this client can take; a network may give less. The server
works on the same cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.s3server import BUCKET, running_s3
from vcot.storage import Store
from vcot.storage.folders import fetch_folder, push_folder

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the base, in four files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ranges-") as scratch:
        measure(Path(scratch), int(options.gib * 1024), options.rounds)


def measure(scratch: Path, mib: int, rounds: int) -> None:
    base = scratch / "base"
    base.mkdir()
    for number in range(4):
        block = os.urandom(MIB)  # what repeats is not stored once: MinIO neither compresses nor compares
        with (base / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(mib // 4):
                file.write(block)
    with running_s3(scratch / "s3", scratch / "log") as server:
        os.environ.update(server.env)
        store, uri = Store(), f"s3://{BUCKET}/base"
        names = sorted(path.name for path in base.iterdir())
        seconds = timed(lambda: push_folder(store, base, uri, names))
        print(f"{server.kind}, {mib} MiB in {len(names)} files; pushed at {mib / seconds:,.0f} MiB/s")
        tell("one connection, unchecked", mib, rounds, scratch / "here", lambda into: one_connection(store, uri, into))
        tell("ranges, each file checked", mib, rounds, scratch / "here", lambda into: fetch_folder(store, uri, into))


def tell(what: str, mib: int, rounds: int, into: Path, fetch: Callable[[Path], object]) -> None:
    speeds = []
    for _ in range(rounds):
        shutil.rmtree(into, ignore_errors=True)  # or the second round would find all of it there
        speeds.append(mib / timed(lambda: fetch(into)))
    print(f"{what}: {statistics.median(speeds):,.0f} MiB/s (of {rounds}: {min(speeds):,.0f} to {max(speeds):,.0f})")


def one_connection(store: Store, uri: str, into: Path) -> None:
    into.mkdir()
    for entry in list(store.list(uri)):
        with store.open_read(entry.uri) as source, (into / entry.uri.rpartition("/")[2]).open("wb") as target:
            shutil.copyfileobj(source, target, MIB)


def timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
