"""A part of the budget in storage: what was taken from it stands there before it is spent.

    <stage>/_budget/00003/0000000001.json    {"holder": "pod-a", "taken": [picodollars, tokens, requests]}
                          0000000002.json    {"holder": "pod-a", "taken": [-…]}: given back

Entries are numbered and written once, so of two processes that take at the same moment one must look again: the sum
never passes the part, whoever takes. What a killed process had taken and not given back counts as spent.
"""

from __future__ import annotations

import json

from vcot.errors import InputError
from vcot.storage import Store
from vcot.storage.numbered import append, numbered
from vcot.teacher.amount import NOTHING, Amount


class Account:
    """Args: where its entries are, the most that may be taken from it in all, and who takes."""

    def __init__(self, store: Store, uri: str, part: Amount, holder: str) -> None:
        self.part = part
        self._store, self._uri, self._holder = store, uri, holder
        self._taken, self._last = NOTHING, 0

    def take(self, least: Amount, wanted: Amount) -> Amount | None:
        """Takes as much of `wanted` as is left; None, and nothing happens, where that is not `least`."""
        while True:
            granted = wanted.least(self.part.minus(self._taken)).most(NOTHING)
            if not least.within(granted):
                self._catch_up()  # somebody may have given back
                granted = wanted.least(self.part.minus(self._taken)).most(NOTHING)
                if not least.within(granted):
                    return None
            if self._write(granted):
                return granted

    def give_back(self, amount: Amount) -> None:
        """Below nothing where more was spent than was taken: then it stands here, too."""
        while amount != NOTHING and not self._write(NOTHING.minus(amount)):
            pass

    def left(self) -> Amount:
        return self.part.minus(self.taken())

    def taken(self) -> Amount:
        """By all holders so far."""
        self._catch_up()
        return self._taken

    def _write(self, taken: Amount) -> bool:
        """Whether it became the next entry; else the entries of others are known now."""
        entry = json.dumps({"holder": self._holder, "taken": taken}).encode()
        if append(self._store, self._uri, entry, self._last) is None:
            self._catch_up()
            return False
        self._taken, self._last = self._taken.plus(taken), self._last + 1
        return True

    def _catch_up(self) -> None:
        for number, uri in numbered(self._store, self._uri).items():
            if number > self._last:
                self._taken, self._last = self._taken.plus(_read(self._store, uri)), number


def _read(store: Store, uri: str) -> Amount:
    try:
        taken = json.loads(store.read(uri))["taken"]
        return Amount(*(int(number) for number in taken))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{uri} is not an entry of a budget ({error}); use another run name") from None
