from tests.training.toy import *  # noqa: F403  (fixtures)
