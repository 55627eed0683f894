"""`https://a/v1=2,https://b/v1`: endpoints that share the work, and the weight of each. Knows no client."""

from __future__ import annotations

import math
from typing import NamedTuple


class Address(NamedTuple):
    url: str
    weight: float


def read_address(written: str) -> Address:
    """Raises ValueError: it is no address of an endpoint."""
    url, sign, weight = written.rpartition("=")
    if not sign or "/" in weight:  # a query may hold "=", and a port or path may follow it
        url, weight = written, "1"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{written}: it should begin with http:// or https://, as in https://host/v1=2")
    try:
        share = float(weight)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise ValueError(f"{written}: the weight {weight!r} should be a number above 0, as in https://host/v1=2")
    return Address(url, share)
