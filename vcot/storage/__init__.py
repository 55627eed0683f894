"""The only room that speaks S3."""

from vcot.storage.folders import fetch_folder, folder_digest, put_folder
from vcot.storage.store import Changed, Entry, NotFound, Store, append, join, name, numbered, state_of

__all__ = [
    "Changed",
    "Entry",
    "NotFound",
    "Store",
    "append",
    "fetch_folder",
    "folder_digest",
    "join",
    "name",
    "numbered",
    "put_folder",
    "state_of",
]
