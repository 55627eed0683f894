"""For the tests of all rooms."""

from hypothesis import HealthCheck, settings

from tests.s3 import *  # noqa: F403  (fixtures)
from vcot.storage import reread

reread.PAUSE = 0.01  # between two reads of what looks damaged; tests damage much

# An example that takes long says how busy the machine is, and nothing about what it tests.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
