from tests.fakes.families import *  # noqa: F403  (fixtures)
from tests.training.toy import *  # noqa: F403  (fixtures)
