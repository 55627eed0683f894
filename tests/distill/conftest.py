"""For the tests of distill's parts: a key for a scripted teacher, and pauses a thousandth as long, as for its stage."""

from tests.jobs.conftest import clean, quick_teacher  # noqa: F401
