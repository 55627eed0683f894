"""Large JSON files, an entry at a time.

With the decoder of the standard library on a moving window: faster than the streaming parsers that there are, and it
reads the NaN and Infinity that Python writes, so that one number of that kind costs its row and not the file. The
same holds for a whole number of thousands of digits, and for an entry that is nested too deeply.

Who has gone through an array once knows where its entries are, and can come back for a few of them.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO

from vcot.errors import InputError
from vcot.storage import Changed

LONGEST = 64 << 20
"""Characters of one entry; a longer one is some other kind of file."""
_BUFFER = 1 << 20


def entries(stream: BinaryIO, name: str, starts: array[int] | None = None) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON array, numbered from 1, in constant memory; TOO_DEEP where one is nested too deeply.

    starts: receives the byte at which each entry begins, and at last the one behind the last entry.

    Raises InputError: it is not whole JSON; names the file and the entry.
    """
    text = _Text(stream, name)
    yield from _entries(text, "entry", starts)
    text.end()


_UNREAD = object()


class Entry:
    """An entry of an array that somebody has gone through before; it is read when it is asked for."""

    __slots__ = ("_end", "_name", "_start", "_stream", "_value")

    def __init__(self, stream: BinaryIO, name: str, start: int, end: int) -> None:
        self._stream, self._name, self._start, self._end = stream, name, start, end
        self._value: Any = _UNREAD

    def value(self) -> Any:
        """What `entries` gave for it. Read once: a row of several rounds asks again, and gzip does not go back. Raises
        Changed: something else is there now.
        """
        if self._value is _UNREAD:
            self._stream.seek(self._start)
            data = self._stream.read(self._end - self._start)
            try:
                self._value, _ = _decoded(data.decode("utf-8", "surrogateescape"), 0)
            except json.JSONDecodeError:
                raise Changed(f"{self._name} has changed since this stage began; use another run name") from None
        return self._value


def entries_at(stream: BinaryIO, name: str, starts: array[int]) -> Iterator[tuple[int, Entry]]:
    """The entries of an array whose places are known: those that nobody asks for are not read."""
    return ((number, Entry(stream, name, *place)) for number, place in enumerate(pairwise(starts), 1))


def parts(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of all arrays that a JSON object holds, each with the array's name; its other fields are skipped.
    Raises InputError: it is not whole JSON; names the file and the entry.
    """
    text = _Text(stream, name)
    text.take("{", "the beginning")
    for number in itertools.count(1):
        if text.comes("}", f"field {number}"):
            break
        if number > 1:
            text.take(",", f"the end of field {number - 1}")
        field = str(text.value(f"field {number}"))
        text.take(":", f"field {number}")
        if text.comes("[", field):
            yield from ((field, entry) for _, entry in _entries(text, f"entry of {field}"))
        else:
            text.value(field)
    text.take("}", "the end")
    text.end()


def _entries(text: _Text, called: str, starts: array[int] | None = None) -> Iterator[tuple[int, Any]]:
    text.take("[", "the beginning")
    number = 0
    while not text.comes("]", f"{called} {number + 1}"):
        if number:
            text.take(",", f"the end of {called} {number}")
        number += 1
        value = text.value(f"{called} {number}")
        while value is not _NOT_AT_HAND:
            if starts is not None:
                starts.append(text.byte(text.began))
            yield number, value
            if (value := text.next_value()) is not _NOT_AT_HAND:
                number += 1
    if starts is not None and number:
        starts.append(text.byte(text.at))
    text.take("]", "the end")


class _Text:
    """A window on a file of JSON text that holds one value, and a little more, at a time."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._name = name
        self._stream, self._characters = stream, codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._window, self.at = "", 0
        self.began = 0  # where in the window the last value began
        self._told, self._byte = 0, 0  # a place in the window, and which byte of the file that is

    def byte(self, place: int) -> int:
        """Which byte of the file is at a place in the window, not before the last such place."""
        passed = place - self._told
        if not self._window.isascii():
            passed = len(self._window[self._told : place].encode("utf-8", "surrogateescape"))
        self._told, self._byte = place, self._byte + passed
        return self._byte

    def value(self, where: str) -> Any:
        """The next value. It is tried on what is there, then on twice as much, so the time stays linear."""
        wanted = _BUFFER
        if not self._something():
            raise self._error(f"{where}: the file ends")
        while True:
            try:
                value, end = _decoded(self._window, self.at)
                # A number at the border of what was read may go on behind it.
                if end < len(self._window) or not isinstance(value, int | float) or not self._more(wanted):
                    self.began, self.at = self.at, end
                    return value
            except json.JSONDecodeError as error:
                if len(self._window) - self.at > LONGEST or not self._more(wanted):
                    raise self._error(f"{where}: {error.msg}") from None
                wanted *= 2

    def next_value(self) -> Any:
        """The value after a comma, if all of it is at hand: the quick way through what has just been read."""
        comma = _COMMA.match(self._window, self.at)
        if comma is None:
            return _NOT_AT_HAND
        try:
            value, end = _DECODE(self._window, comma.end())
        except (ValueError, RecursionError):
            return _NOT_AT_HAND
        if end == len(self._window):
            return _NOT_AT_HAND
        self.began, self.at = comma.end(), end
        return value

    def comes(self, mark: str, where: str) -> bool:
        """Whether the mark is next, after white space."""
        if not self._something():
            raise self._error(f"{where}: the file ends")
        return self._window.startswith(mark, self.at)

    def take(self, mark: str, where: str) -> None:
        if not self.comes(mark, where):
            raise self._error(f"{where}: {mark!r} should follow, not {self._window[self.at :][:20]!r}")
        self.at += len(mark)

    def end(self) -> None:
        if self._something():
            raise self._error(f"its end: more follows, {self._window[self.at :][:20]!r}")

    def _something(self) -> bool:
        """Skips white space; whether there is anything after it."""
        while True:
            rest = _SPACE.match(self._window, self.at)
            assert rest is not None  # it may be empty
            self.at = rest.end()
            if self.at < len(self._window):
                return True
            if not self._more(_BUFFER):
                return False

    def _more(self, size: int) -> bool:
        data = self._stream.read(size)
        if self.byte(self.at) == 0 and data.startswith(codecs.BOM_UTF8):  # which is no character of the window
            self._byte = len(codecs.BOM_UTF8)
        self._told = 0
        self._window, self.at = self._window[self.at :] + self._characters.decode(data, final=not data), 0
        return bool(data)

    def _error(self, what: str) -> InputError:
        return InputError(f"{self._name}: not whole JSON at {what}; is it cut off?")


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends. Raises JSONDecodeError: not JSON, or not all of it."""
    try:
        return _DECODE(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a whole number with more digits than Python turns into one
        return _LARGE.raw_decode(text, at)
    except RecursionError:
        depth = 0
        for mark in _MARKS.finditer(text, at):
            if mark[0] == '"':
                break
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
            if depth == 0:
                return TOO_DEEP, mark.end()
    raise json.JSONDecodeError("nested too deeply, and without end", text, at)


_DECODE = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_MARKS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)  # a lone " opens what is not all here
_LARGE = json.JSONDecoder(parse_int=float)
_NOT_AT_HAND = object()
TOO_DEEP = object()
"""What stands for an entry that no decoder gets to the bottom of."""
