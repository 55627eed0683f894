from tests.s3 import *  # noqa: F403  (fixtures)
