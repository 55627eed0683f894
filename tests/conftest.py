"""For the tests of all rooms."""

import os

from hypothesis import HealthCheck, settings

from tests.s3 import *  # noqa: F403  (fixtures)
from vcot.storage import reread

# Tests damage many objects in one process.
reread.PAUSE, reread.PAUSES_IN_VAIN = 0.01, 1_000_000

# Set before torch is imported: on two cores, two test processes with two threads each spend 20 times the CPU spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example that takes long says how busy the machine is, and nothing about what it tests.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
