"""Lines on a terminal, JSON in a pod; run, stage and shard on every line (structlog)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import structlog

from vcot import redaction


def configure(form: Literal["auto", "lines", "json"] = "auto", **bound: Any) -> None:
    """Sets up logging to standard error; `bound` (run, stage, shard) stands on every line.

    Standard error, because standard output belongs to what a command answers (tables, paths).
    """
    lines = form == "lines" or (form == "auto" and (sys.stderr.isatty() or "KUBERNETES_SERVICE_HOST" not in os.environ))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if lines else "iso", utc=not lines),
    ]
    if lines:
        renderer: list[Any] = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, pad_level=False)
        ]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]

    def without_secrets(_logger: Any, _method: str, line: Any) -> str:
        """After rendering, so that tracebacks and values of any kind are covered too."""
        return redaction.redacted(line)

    structlog.configure(
        processors=[*shared, *renderer, without_secrets],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # Standard error is looked up at each line, so that a progress bar that redirects it is respected.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**{k: v for k, v in bound.items() if v is not None})


def bind(**values: Any) -> None:
    """Adds to every later line of this context (the shard that is being made); None takes away."""
    structlog.contextvars.unbind_contextvars(*(name for name, value in values.items() if value is None))
    structlog.contextvars.bind_contextvars(**{name: value for name, value in values.items() if value is not None})


def quiet() -> None:
    """From here on warnings and errors alone: for a process beside others that would say the same."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def for_child() -> Callable[[], None]:
    """What a process that this one spawns calls first, so that its lines look as here, without secrets."""
    lines = any(isinstance(each, structlog.dev.ConsoleRenderer) for each in structlog.get_config()["processors"])
    return partial(configure, "lines" if lines else "json", **structlog.contextvars.get_contextvars())


def get() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger
