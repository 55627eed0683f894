"""The rows of one part looked at by several processes of this machine.

They are forked, and so know what this one knows. Rows are dealt in blocks: neighbours, which often share a picture,
stay together. What a process notes, and what it learns of pictures, lies in files on the scratch disk; this process
takes both in when all have ended. Each process reads the whole input, and of it only its own rows.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import shutil
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

from vcot import log
from vcot.errors import TemporaryError, VcotError
from vcot.sources.known import Known
from vcot.sources.parts import BLOCK, Part
from vcot.stage import stop

T = TypeVar("T")
Look = Callable[[Part, sqlite3.Connection, int], T]
WORTH_A_PROCESS = 8 << 20
"""Bytes of rows: below that, a process is begun and ended for nothing."""
_MOST = 4
"""Processes where nobody asked for more: a pod without a limit sees all cores of its node, and has not their memory."""
_POLL = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTES, _LEARNED, _WHOLE = "notes.sqlite", "pictures.sqlite", "all-pictures.sqlite"
"""In the folder of a process; what it learned of pictures is called whole when it has ended."""


@dataclass(frozen=True)
class Crew:
    """So many processes, and so many threads of each that read pictures."""

    processes: int = 1
    readers: int = 1

    def for_part(self, part: Part) -> Crew:
        """No more processes than its rows are worth; the threads are divided among them."""
        worth = sum(file.size for file in part.desk.inputs) // WORTH_A_PROCESS
        if part.limit is not None:
            worth = min(worth, math.ceil(part.limit / BLOCK))
        processes = max(1, min(self.processes, worth))
        return Crew(processes, max(1, self.readers // processes))


ALONE = Crew()


def cores() -> int:
    """Cores that this process may keep busy, by its affinity and by the quota of its container; 4 at most."""
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
    if part.source.ready is not None:
        part.source.ready(part.desk)
    pictures = part.desk.pictures
    learned = None if pictures.index is None else pictures.index.settled()
    folders = [part.desk.scratch / f"process-{index}" for index in range(crew.processes)]

    def alone(index: int) -> T:
        folder = folders[index]
        known = Known(folder / _LEARNED, beside=learned)
        with closing(sqlite3.connect(folder / _NOTES)) as notes:
            notes.executescript("pragma journal_mode = off; pragma synchronous = off;" + "".join(tables.values()))
            try:
                return look(part.knowing(pictures=pictures.elsewhere(known)), notes, index)
            finally:
                notes.commit()
                known.settled().rename(folder / _WHOLE)

    for folder in folders:
        folder.mkdir()
    try:
        found = _forked(alone, crew.processes)
        for folder in folders:
            _take_in(database, folder / _NOTES, tables)
        return found
    finally:
        for folder in folders:
            # Of a process that was killed, the file is of no use.
            if pictures.index is not None and (whole := folder / _WHOLE).exists():
                pictures.index.learn(whole)
            shutil.rmtree(folder, ignore_errors=True)


def _take_in(database: sqlite3.Connection, notes: Path, tables: Mapping[str, str]) -> None:
    database.commit()
    database.execute("attach ? as notes", (str(notes),))
    for table in tables:
        database.execute(f"insert into main.{table} select * from notes.{table}")
    database.commit()
    database.execute("detach notes")


# --------------------------------------------------------------------------------------------------------- processes


def _forked(work: Callable[[int], T], processes: int) -> list[T]:
    context = multiprocessing.get_context("fork")
    children = {}
    try:
        # A signal that comes before a child can hear it would end it, or be its first of two.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for index in range(processes):
                here, there = context.Pipe(duplex=False)
                children[here] = child = context.Process(target=_child, args=(work, index, there), daemon=True)
                child.start()
                there.close()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return _outcomes(children)
    finally:
        for end, child in children.items():
            end.close()
            if child.pid is not None:
                child.terminate()
                child.join()


def _outcomes(children: Mapping[Connection, BaseProcess]) -> list[Any]:
    """What each gives. Raises what the first of them raises; the others are asked to stop then."""
    found: dict[Connection, Any] = {}
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
        raise wrong[0]
    return [found[end] for end in children]


def _outcome(end: Connection, child: BaseProcess) -> Any:
    try:
        return end.recv()
    except (EOFError, OSError):
        child.join()
    if child.exitcode == -signal.SIGKILL:
        return TemporaryError(
            "a process that looked at the rows was killed, perhaps for want of memory: --processes 1 needs less"
        )
    return TemporaryError(f"a process that looked at the rows ended with exit code {child.exitcode}")


def _child(work: Callable[[int], Any], index: int, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and passes it on
    signal.signal(signal.SIGTERM, lambda *_: stop.join())  # however often: what was learned is kept first
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if index:  # one tells for all how it goes
        log.quiet()
    try:
        outcome = work(index)
    except Exception as error:
        outcome = _sendable(error)
    there.send(outcome)


def _sendable(error: Exception) -> Exception:
    """Of its frames nothing arrives, and some errors cannot be put together again."""
    told = traceback.format_exc()
    if not isinstance(error, VcotError):
        error.add_note(told)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own, a moment old)
    except Exception:
        return RuntimeError(f"in a process that looked at the rows:\n{told}")
    return error


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
