"""The rows of one part looked at by several processes of this machine.

They are forked, and so know what this one knows. Rows are dealt in blocks: neighbours, which often share a picture,
stay together. What a process notes, and what it learns of pictures, lies in files on the scratch disk; this process
takes both in when all have ended.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from vcot.errors import TemporaryError, VcotError
from vcot.sources.known import Known
from vcot.sources.parts import Part
from vcot.stage import stop
from vcot.storage import Store

T = TypeVar("T")
WORTH_A_PROCESS = 8 << 20
"""Bytes of rows: below that, a process is begun and ended for nothing."""
_MOST = 8
_POLL = 0.2
_NEWS = "pictures.json"
Look = Callable[[Part, sqlite3.Connection, int], T]


@dataclass(frozen=True)
class Crew:
    """So many processes, and in each so many threads that read pictures."""

    processes: int = 1
    readers: int = 1

    def for_part(self, part: Part) -> Crew:
        """No more processes than its files are worth."""
        size = sum(file.size for file in part.desk.inputs)
        return Crew(max(1, min(self.processes, size // WORTH_A_PROCESS)), self.readers)


ALONE = Crew()


def cores() -> int:
    """Cores that this process may keep busy, by its affinity and by the quota of its container; 8 at most."""
    allowed: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # no safe fork elsewhere
    quota = _quota()
    return max(1, min(_MOST, math.floor(allowed if quota is None else min(allowed, quota))))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Of both versions of cgroups."""
    try:
        if (limit := root / "cpu.max").is_file():
            most, period = limit.read_text().split()
        else:
            most, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(most) / float(period) if most not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


def spread(crew: Crew, part: Part, database: sqlite3.Connection, tables: Mapping[str, str], look: Look[T]) -> list[T]:
    """What `look(part, database, index)` gives for each process; rows that it put into `tables` are in `database`.

    tables: name → how it is created.

    Raises:
        What `look` raises; Interrupted: a stop was asked for. What was learned of pictures by then is kept.
    """
    if crew.processes == 1:
        return [look(part, database, 0)]
    pictures = part.desk.pictures
    learned = None if pictures.index is None else pictures.index.settled()
    folders = [part.desk.scratch / f"process-{index}" for index in range(crew.processes)]
    for folder in folders:
        folder.mkdir(exist_ok=True)

    def alone(index: int) -> T:
        folder = folders[index]
        known = Known(folder / "pictures.sqlite", beside=learned)
        with closing(sqlite3.connect(folder / "notes.sqlite")) as notes:
            notes.executescript("pragma journal_mode = off; pragma synchronous = off;" + "".join(tables.values()))
            try:
                return look(part.knowing(scratch=folder, pictures=pictures.elsewhere(known)), notes, index)
            finally:
                notes.commit()
                if known.news:
                    known.leave(Store(), str(folder / _NEWS), fresh=True)

    try:
        found = _forked(alone, crew.processes)
    finally:
        for folder in folders:
            if pictures.index is not None and (folder / _NEWS).is_file():
                pictures.index.take(Store(), str(folder / _NEWS))
    for folder in folders:
        _take_in(database, folder / "notes.sqlite", tables)
    return found


def _take_in(database: sqlite3.Connection, notes: Path, tables: Mapping[str, str]) -> None:
    database.commit()
    database.execute("attach ? as notes", (str(notes),))
    for table in tables:
        database.execute(f"insert into main.{table} select * from notes.{table}")
    database.commit()
    database.execute("detach notes")
    notes.unlink()


# --------------------------------------------------------------------------------------------------------- processes


def _forked(work: Callable[[int], T], processes: int) -> list[T]:
    context = multiprocessing.get_context("fork")
    children = {}
    for index in range(processes):
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work, index, there), daemon=True)
        child.start()
        there.close()
        children[here] = child
    found: dict[Connection, T] = {}
    wrong: list[Exception] = []
    asked = False
    while waiting := [end for end in children if not end.closed]:
        for end in wait(waiting, timeout=_POLL):
            assert isinstance(end, Connection)
            outcome = _outcome(end, children[end])
            if isinstance(outcome, Exception):
                wrong.append(outcome)
            else:
                found[end] = outcome
            end.close()
        if not asked and (stop.requested or wrong):
            asked = True
            for child in children.values():
                child.terminate()
    for child in children.values():
        child.join()
    stop.raise_if_requested()
    if wrong:
        raise wrong[0]  # because of which the others were stopped
    return [found[end] for end in children]


def _outcome(end: Connection, child: BaseProcess) -> Any:
    try:
        return end.recv()
    except EOFError:
        child.join()
        how = f"by signal {-child.exitcode}" if child.exitcode and child.exitcode < 0 else "by an error above"
        return TemporaryError(
            f"a process that looked at the rows was ended {how}; with signal 9, memory was perhaps short: "
            "--processes 1 needs less"
        )


def _child(work: Callable[[int], Any], index: int, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and passes it on
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        there.send(work(index))
    except VcotError as error:
        there.send(error)
    except Exception as error:
        error.add_note(traceback.format_exc())  # of frames, nothing is sent
        there.send(error)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
