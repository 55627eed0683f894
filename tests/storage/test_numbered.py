"""A list of write-once objects: it grows, and nobody's entry is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from vcot.storage import Store, append, join, numbered

store = Store()


def test_a_number_that_is_taken_stays_as_it_is(any_place: str) -> None:
    assert numbered(store, any_place) == {}
    assert append(store, any_place, b"first", after=0) == join(any_place, "0000000001.json")
    assert append(store, any_place, b"second", after=0) is None
    assert store.read(numbered(store, any_place)[1]) == b"first"


def test_other_objects_are_passed_over(any_place: str) -> None:
    append(store, any_place, b"{}", after=0)
    for name in ("notes.md", "0000000002.json.bak", "12.json", "below/0000000003.json"):
        store.write(join(any_place, name), b"?")
    assert list(numbered(store, any_place)) == [1]
    assert numbered(store, any_place + "/") == numbered(store, any_place)


def test_of_many_writers_each_gets_a_number(any_place: str) -> None:
    def write(writer: int) -> None:
        while append(store, any_place, b"%d" % writer, after=max(numbered(store, any_place), default=0)) is None:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    there = numbered(store, any_place)
    assert list(there) == list(range(1, 9))
    assert sorted(int(store.read(uri)) for uri in there.values()) == list(range(8))
