"""Several threads that read images, and several processes that each do a share of a stage's work.

Processes are not forked off this one, so what they are given is pickled, and threads and connections of this process
do not reach into them. They are forked off a server that has imported what they need, and nothing else: importing takes
more than half a second, which each of them would spend.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

from vcot.datasets.images import NotAtHand
from vcot.errors import TemporaryError, VcotError, foreseen
from vcot.stage import stop

T = TypeVar("T")
R = TypeVar("R")
_PRELOAD = ("vcot.datasets.prepare", "vcot.reports.conversion")
_MOST = 4
"""Processes where nobody asked for more: a pod without a limit sees all cores of its node, and has not their memory."""


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, *, at_once: Callable[[T], R] | None = None
) -> Iterator[R]:
    """`function` of each item, some at once, results in the order of the items; never far ahead of its reader.

    at_once: gives the same in this thread, or raises NotAtHand where that means waiting.

    Raises Interrupted: a stop was asked for; the item that came then is not begun.
    """
    items = until_stopped(items)
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[R]] = deque()
        untried = 0  # items that go to a thread without a try: where one image is new, the next ones mostly are
        try:
            for item in items:
                if under_way or untried or at_once is None:
                    untried = max(untried - 1, 0)
                else:
                    try:
                        yield at_once(item)
                        continue
                    except NotAtHand:
                        untried = 4 * workers
                under_way.append(pool.submit(function, item))
                while under_way and (under_way[0].done() or len(under_way) >= 4 * workers):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def until_stopped(items: Iterable[T]) -> Iterator[T]:
    for item in items:
        stop.raise_if_requested()
        yield item


class Workers:
    """
    Args:
        count: how many processes; 1: this one does everything itself.
        scratch: a folder of the caller, for their temporary files: one that is killed leaves nothing elsewhere.
        begin: called first in each.
        preload: modules that the server of processes imports; default: what the shards of convert need.
    """

    def __init__(self, count: int, scratch: Path, begin: Callable[[], None], preload: Sequence[str] = _PRELOAD) -> None:
        self.count, self._begin, self._preload = count, (scratch, begin), list(preload)

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        # The path of the server's socket, in the folder for temporary files, may have 107 bytes.
        short = len(os.fsencode(tempfile.gettempdir())) < 70
        context = multiprocessing.get_context("forkserver" if short else "spawn")
        context.set_forkserver_preload(self._preload)
        return ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=self._begin)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if "_pool" in vars(self):
            if error is not None:
                for child in multiprocessing.active_children():
                    child.terminate()
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> list[T]:
        """`function(*task)` of every task, in order. After an error, leave the with-block: that ends the others.

        Raises:
            What the first of them raises; Interrupted: a stop was asked for; TemporaryError: a process was killed.
        """
        if self.count == 1:
            return [function(*task) for task in tasks]
        waiting = futures = [self._pool.submit(_sendable, function, task) for task in tasks]
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                time.sleep(0.5)  # a signal to all processes of a terminal may not have arrived in this one yet
                stop.raise_if_requested()
                raise TemporaryError(
                    "a process of this stage was killed, perhaps for want of memory: --processes 1 needs less"
                )
            stop.raise_if_requested()
            for future in done:
                future.result()
            waiting = [future for future in waiting if future not in done]
        return [future.result() for future in futures]


def cores() -> int:
    """Cores that this process may keep busy, by its affinity and by the quota of its container; 4 at most."""
    allowed: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(_MOST, allowed, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Of both versions of cgroups."""
    try:
        if (limit := root / "cpu.max").is_file():
            most, period = limit.read_text().split()
        else:
            most, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(most) / float(period) if most not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf


def _begin(scratch: Path, begin: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it ends at once, as with SIGTERM: whatever it wrote is safe to lose
    tempfile.tempdir = str(scratch)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    begin()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _sendable(function: Callable[..., T], task: tuple[Any, ...]) -> T:
    try:
        return function(*task)
    except (VcotError, OSError):
        raise
    except Exception as error:  # which may be of a kind that cannot be pickled
        if (known := foreseen(error)) is not None:
            raise known from None
        raise RuntimeError(f"in a process of this stage:\n{traceback.format_exc()}") from None
