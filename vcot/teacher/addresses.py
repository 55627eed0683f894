"""`https://a/v1=2,B_KEY@https://b/v1`: endpoints that share the work, the weight of each, and the variable that holds
its key. Knows no client."""

from __future__ import annotations

import math
from typing import NamedTuple

from vcot import uris


class Address(NamedTuple):
    url: str
    weight: float
    key: str | None = None
    """Name of the variable that holds its key; None: nobody said which."""


def read_address(written: str) -> Address:
    """Raises ValueError: it is no address of an endpoint."""
    name, sign, address = written.rpartition("@http")
    key, address = (name, f"http{address}") if sign else (None, written)
    if key is not None and not uris.VARIABLE.fullmatch(key):
        raise ValueError(
            "before the @ stands the name of the variable that holds the key, as in B_API_KEY@https://b/v1"
        )
    url, sign, weight = address.rpartition("=")
    if not sign or "/" in weight:  # a query may hold "=", and a port or path may follow it
        url, weight = address, "1"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{written}: it should begin with http:// or https://, as in https://host/v1=2")
    try:
        share = float(weight)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise ValueError(f"{written}: the weight {weight!r} should be a number above 0, as in https://host/v1=2")
    return Address(url, share, key)
