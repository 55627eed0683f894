from tests.tokens.base import *  # noqa: F403
