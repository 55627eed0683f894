"""Read again before something is reported as damaged, missing or changed.

A network, a proxy or a store may give one bad answer: a flipped byte, a stale copy, a 404 for an object that was
written a second ago, an empty list, a body that is cut off. What follows from a report (delete it, run it again) costs
more than a few seconds, so every check of stored data goes through `confirmed`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vcot import logging
from vcot.errors import InputError, VcotError
from vcot.stage import stop
from vcot.storage.local import NotFound

if TYPE_CHECKING:
    from vcot.storage.store import Store

T = TypeVar("T")

READS = 3
"""Reads before a fault is reported."""
PAUSE = 2.0
"""Seconds between two of them."""
PAUSES_IN_VAIN = 16
"""Faults in a row that no further read has corrected; after these, one further read follows without a pause. A dataset
in which a tenth of the images is missing would otherwise take hours."""

_in_vain = 0


def confirmed(
    uri: str, attempt: Callable[[], T], *, recorded: bool = True, faults: tuple[type[VcotError], ...] = (InputError,)
) -> T:
    """Return what `attempt` returns; if it raises a fault, call it again before the fault is passed on.

    Further calls to S3 come a pause later and over new connections. A file of this machine is read again once, without
    a pause, and a missing one is reported at once: a file system does not answer out of date.

    Args:
        uri: what `attempt` reads.
        attempt: reads and checks all of it; called up to READS times.
        recorded: the object should exist; False: it is passed on at once that it does not.
        faults: errors that say that the data are damaged, missing or changed.

    Raises:
        VcotError: the fault of the last call, with the number of reads in its message.
    """
    global _in_vain
    is_remote, has_hope = "s3://" in uri, _in_vain < PAUSES_IN_VAIN
    most = READS if is_remote and has_hope else 2
    for reads in range(1, most + 1):
        try:
            result = attempt()
        except faults as error:
            absent = isinstance(error, NotFound) and not (recorded and is_remote)
            if absent or hasattr(error, "reads"):
                raise
            if reads == most:
                _in_vain += 1
                raise _with_reads(error, reads) from error.__cause__
            if reads == 1 and is_remote:
                logging.get().info("reading again", uri=uri, because=str(error))
            if is_remote and has_hope:
                _wait(PAUSE)
                _close_connections()
        else:
            if reads > 1:
                _in_vain = 0
                logging.get().warning("a first read was bad, a further one is good", uri=uri, reads=reads)
            return result
    raise AssertionError("unreachable")


def read_json(
    store: Store, uri: str, parse: Callable[[Any], T], advice: str = "make it again", *, recorded: bool = True
) -> T:
    """Return what `parse` makes of a stored JSON document.

    Args:
        parse: raises ValueError (as pydantic does), KeyError, TypeError or AttributeError for another shape.
        advice: what to do where the document is damaged.

    Raises:
        NotFound: there is none.
        InputError: it is no JSON, or of another shape.
    """

    def attempt() -> T:
        try:
            return parse(json.loads(store.read(uri)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{uri} is damaged ({type(error).__name__}: {reason}); {advice}") from None

    return confirmed(uri, attempt, recorded=recorded)


def _with_reads(error: VcotError, reads: int) -> VcotError:
    message, *more = error.args
    error.args = (f"{message} (read {reads} times)", *more)
    vars(error)["reads"] = reads  # an outer check of the same object does not repeat these
    return error


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop.raise_if_requested()
        time.sleep(min(left, 0.2))


def _close_connections() -> None:
    """Make the next request open a connection: the bad answer may belong to the other end of this one."""
    if (s3 := sys.modules.get("vcot.storage.s3")) is not None:
        s3.close_idle_connections()
