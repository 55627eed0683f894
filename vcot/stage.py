"""How every stage starts, reports, stops on SIGTERM and ends.

A job is three lines: a Settings class, a ``run(settings)``, and ``launch(Settings, run)``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vcot import logging
from vcot.errors import Interrupted, KeyboardStop, VcotError, foreseen
from vcot.redaction import RedactedStream, redacted
from vcot.settings import PREFIX, Declared
from vcot.uris import redact_credentials

T = TypeVar("T")
S = TypeVar("S", bound=Declared)

REPORT_EVERY = 30.0
"""Seconds between two progress lines where there is no terminal."""


class Stop:
    """Whether somebody asked this process to stop (SIGTERM, or Ctrl-C); a second signal ends it at once.

    Long loops look at `requested` where they can leave in a safe form, save, and call `raise_if_requested`.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self._asked.is_set()

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        self._asked.set()

    def join(self) -> None:
        """Another process of this stage was asked to stop, so this one stops too; a signal may still come."""
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


def die_with_parent(number: int, parent: int | None = None) -> Callable[[], None] | None:
    """For `preexec_fn`: on Linux the kernel sends that signal when the starting process ends, however it does.

    Args:
        parent: where the started process calls the result itself, who started it.
    """
    if sys.platform != "linux":
        return None
    prctl, pr_set_pdeathsig = ctypes.CDLL(None, use_errno=True).prctl, 1
    parent = os.getpid() if parent is None else parent

    def in_the_child() -> None:
        prctl(pr_set_pdeathsig, number)
        if os.getppid() != parent:  # killed between fork and here
            os.kill(os.getpid(), number)

    return in_the_child


class Summary:
    """What a process says of its stage when it ends: the termination message, which a pod's Job outlives.

    ``summary(rows=…, kept=…)`` adds facts while the stage runs; `launch` writes them, with how it ended, into the
    file that VCOT_TERMINATION_LOG names: {"stage", "run", "part", "shard", "exit", "message", facts …}, those that
    there are.
    """

    OWN = ("stage", "run", "part", "shard", "exit", "message")
    """What is said of every stage; all else is a fact of it."""
    LIMIT = 4096
    """Bytes that a kubelet reads."""
    POD = Path("/dev/termination-log")

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.path: Path | None = None

    def __call__(self, **facts: Any) -> None:
        self.facts |= facts

    def write(self, stage: str, code: int, message: str, settings: Declared | None) -> None:
        # Where settings could not even be read, the variable is taken as it stands.
        named = os.environ.get(f"{PREFIX}TERMINATION_LOG") if settings is None else settings.termination_log
        path = self.path or (Path(named) if named else None)
        if path is None:
            if not (self.POD.is_file() and os.access(self.POD, os.W_OK)):
                return
            path = self.POD
        said: dict[str, Any] = {"stage": stage, "run": None if settings is None else settings.run_name[:200]}
        said |= {name: getattr(settings, name, None) for name in ("part", "shard")}
        said |= {"exit": code, "message": redacted(message)[:1500]}
        try:
            path.write_bytes(self._fitted({name: value for name, value in said.items() if value not in (None, "")}))
        except OSError as error:  # how it ended stands; that it could not be told is a smaller matter
            logging.get().warning("the termination message was not written", path=str(path), because=str(error))

    def _fitted(self, said: dict[str, Any]) -> bytes:
        """All of it where there is room; else a shorter message, then without the facts that were added last."""
        facts = dict(self.facts)
        while True:
            text = json.dumps(said | facts | said, ensure_ascii=False, default=str)
            if len(line := redacted(text).encode(errors="replace")) <= self.LIMIT:
                return line
            message = said.get("message", "")
            if facts and len(message) < 300:
                facts.popitem()
            else:
                said["message"] = message[: len(message) // 2]


summary = Summary()
"""The one of this process."""


def launch(settings_class: type[S], run: Callable[[S], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Reads the settings, runs the stage and leaves with the exit code of the outcome.

    Meanwhile no secret that this process knows reaches standard output or error, whoever writes it: warnings and the
    logs of libraries, too.
    """
    out, err = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        code = _launch(settings_class, run, sys.argv[1:] if argv is None else argv)
    sys.exit(code)


def _launch(settings_class: type[S], run: Callable[[S], None], argv: Sequence[str]) -> int:
    stage = settings_class.stage
    try:
        settings, check = settings_class.load(argv)
        if check:
            settings.validate_files()
    except VcotError as error:
        lines = str(error).splitlines()
        for line in lines:
            print(f"{stage}: {line}", file=sys.stderr)
        summary.write(stage, error.exit_code, lines[-1], None)
        return error.exit_code
    if check:
        print(f"{stage}: settings are in order")
        return 0
    logging.configure(settings.log_form, run=settings.run_name, stage=stage, shard=getattr(settings, "shard", None))
    stop.listen()
    code, message = _outcome(run, settings)
    summary.write(stage, code, message, settings)
    return code


def _outcome(run: Callable[[S], None], settings: S) -> tuple[int, str]:
    """The exit code, and the last line that was said about it."""
    try:
        run(settings)
    except KeyboardInterrupt:
        return KeyboardStop.exit_code, "stopped from the keyboard"
    except Exception as error:
        if (known := foreseen(error)) is not None:
            *more, last = redact_credentials(str(known)).splitlines() or [type(known).__name__]
            for line in more:
                logging.get().error(line)
            logging.get().error(last, exit=known.exit_code)
            return known.exit_code, last
        traceback.print_exc()
        return VcotError.exit_code, f"unforeseen: {''.join(traceback.format_exception_only(error)).strip()}"
    return 0, ""


class Bar:
    """Progress of one piece of work: a bar on a terminal, a line every 30 s elsewhere."""

    def __init__(self, description: str, total: int | None = None, unit: str = "rows", *, shown: bool = True) -> None:
        self.description, self.total, self.unit, self.shown = description, total, unit, shown
        self.count, self._start = 0, time.monotonic()
        self._last = self._start
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self.shown and sys.stderr.isatty():
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
        elif self.shown and (now := time.monotonic()) - self._last >= REPORT_EVERY:
            self._last = now
            rate = self.count / max(now - self._start, 1e-9)
            fields: dict[str, object] = {"done": self.count, "per_second": round(rate, 2)}
            if self.total:
                fields |= {"of": self.total, "seconds_left": round((self.total - self.count) / max(rate, 1e-9))}
            if note:
                fields["note"] = note
            logging.get().info(self.description, unit=self.unit, **fields)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
