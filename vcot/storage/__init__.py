"""The only room that speaks S3."""

from vcot.storage.store import Changed, Entry, NotFound, Store, join, name

__all__ = ["Changed", "Entry", "NotFound", "Store", "join", "name"]
