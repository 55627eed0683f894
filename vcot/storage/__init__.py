"""The only room that speaks S3."""

from vcot.storage.folders import fetch_folder, folder_digest, put_folder
from vcot.storage.local import Changed, Entry, NotFound
from vcot.storage.reread import confirmed, read_json
from vcot.storage.store import Store, append, join, name, numbered, state_of
