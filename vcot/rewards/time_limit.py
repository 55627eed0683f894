"""A time limit for a user's function, in the thread that calls it.

    call_in_time(function, *arguments)       its result; OutOfTime after SECONDS

A second thread waits and interrupts the call, then again every second. In the main thread it sends SIGALRM, which also
ends a sleep, a lock, a socket or a regular expression. In another thread Python raises the exception before the next
bytecode. Neither reaches a C extension that keeps running without returning to Python.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 60.0
"""Limit of one call."""
AGAIN = 1.0
"""Seconds until the next interruption of a call that caught the last one."""


class OutOfTime(BaseException):
    """The call took longer than SECONDS; no Exception, or a retry loop of the user would catch it."""


def call_in_time(function: Callable[..., T], *arguments: Any) -> T:
    """Return the function's result. Raises OutOfTime."""
    watch = _Watch()
    try:
        try:
            watch.begin()
            return function(*arguments)
        finally:
            watch.end()
    finally:
        watch.end()  # an interruption may have arrived before the first one took effect


class _Watch:
    """Interrupts the thread that made it, from `begin` to `end` and never after."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._in_main = threading.current_thread() is threading.main_thread()
        self._ended = threading.Event()
        self._fired = False
        self._watcher = threading.Thread(target=self._wait, args=(SECONDS,), daemon=True)
        self._before: Any = None

    def begin(self) -> None:
        if self._in_main:
            self._before = signal.signal(signal.SIGALRM, self._on_alarm)
        self._watcher.start()

    def end(self) -> None:
        """Return when nothing can interrupt this thread any more, even if that happens meanwhile."""
        while True:
            try:
                self._ended.set()
                self._watcher.join()
                if self._in_main:
                    # The watcher has ended, so what it sent has arrived: no SIGALRM meets the handler from before.
                    signal.signal(signal.SIGALRM, self._before or signal.SIG_DFL)
                else:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
                return
            except OutOfTime:
                continue

    def _wait(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            seconds = AGAIN
            if self._in_main:
                self._fired = True
                signal.pthread_kill(self._thread, signal.SIGALRM)
            else:
                exception = ctypes.py_object(OutOfTime)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), exception)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._fired:
            self._fired = False
            if not self._ended.is_set():
                raise OutOfTime
        elif callable(self._before):  # an alarm of the user's
            self._before(number, frame)
