"""How every stage starts, reports, stops on SIGTERM and ends.

A job is three lines: a Settings class, a ``run(settings)``, and ``launch(Settings, run)``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vcot import log
from vcot.errors import Interrupted, KeyboardStop, VcotError
from vcot.settings import Declared

T = TypeVar("T")
S = TypeVar("S", bound=Declared)

REPORT_EVERY = 30.0
"""Seconds between two progress lines where there is no terminal."""


class Stop:
    """Whether somebody asked this process to stop (SIGTERM, or Ctrl-C).

    Long loops look at `requested` where they can leave in a safe form, save, and call
    `raise_if_requested`. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self._asked.is_set()

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        if self._asked.is_set():
            os._exit(128 + number)
        self.signal = number
        self._asked.set()

    def raise_if_requested(self, saved: str = "finished shards are kept") -> None:
        if self.requested:
            kind = KeyboardStop if self.signal == signal.SIGINT else Interrupted
            raise kind(f"stopped as asked; {saved}; the same command goes on from there")

    def listen(self) -> None:
        """From here on SIGTERM and SIGINT set the flag instead of ending the process."""
        signal.signal(signal.SIGTERM, self.request)
        signal.signal(signal.SIGINT, self.request)


stop = Stop()
"""The one flag of this process."""


def launch(settings_class: type[S], run: Callable[[S], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Reads the settings, runs the stage and leaves with the exit code of the outcome."""
    sys.exit(_launch(settings_class, run, sys.argv[1:] if argv is None else argv))


def _launch(settings_class: type[S], run: Callable[[S], None], argv: Sequence[str]) -> int:
    try:
        settings, check = settings_class.load(argv)
    except VcotError as error:
        for line in str(error).splitlines():
            print(f"{settings_class.stage}: {line}", file=sys.stderr)
        return error.exit_code
    if check:
        print(f"{settings_class.stage}: settings are in order")
        return 0
    log.configure(settings.log_form, run=settings.run_name, stage=settings_class.stage)
    stop.listen()
    try:
        run(settings)
    except VcotError as error:
        *more, last = str(error).splitlines() or [type(error).__name__]
        for line in more:
            log.get().error(line)
        log.get().error(last, exit=error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        return KeyboardStop.exit_code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.get().error(f"no room left on the disk: {error}; free some or point TMPDIR elsewhere", exit=75)
            return 75
        traceback.print_exc()
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


class Bar:
    """Progress of one piece of work: a bar on a terminal, a line every 30 s elsewhere."""

    def __init__(self, description: str, total: int | None = None, unit: str = "rows") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.count, self._start = 0, time.monotonic()
        self._last = self._start
        self._progress: Progress | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=Console(file=sys.stderr), transient=False,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(self.description, total=self.total, note="")
        return self

    def advance(self, by: int = 1, note: str = "") -> None:
        """`by` more units are done; `note` stands beside the bar (a loss, a count of refusals)."""
        self.count += by
        if self._progress is not None:
            self._progress.update(self._task, advance=by, note=note)
        elif (now := time.monotonic()) - self._last >= REPORT_EVERY:
            self._last = now
            self._line(now, note)

    def _line(self, now: float, note: str) -> None:
        rate = self.count / max(now - self._start, 1e-9)
        fields: dict[str, object] = {"done": self.count, "per_second": round(rate, 2)}
        if self.total:
            fields |= {"of": self.total, "seconds_left": round((self.total - self.count) / max(rate, 1e-9))}
        if note:
            fields["note"] = note
        log.get().info(self.description, unit=self.unit, **fields)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "rows") -> Iterator[T]:
    """The same items, with a bar."""
    with Bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
