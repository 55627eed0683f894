"""Why a stage may end badly, and the exit code of each reason.

    Exception
    └── VcotError                 1    anything that has no better name
        ├── GateFailed           20    evaluate: a quality gate was not passed
        ├── BudgetSpent          21    distill: the money, token or request limit is reached
        ├── UsageError           64    wrong usage: an unknown flag, a scheme nobody speaks
        ├── InputError           65    input breaks its contract, or changed while it was read
        ├── TemporaryError       75    storage, network or scratch disk, for now: try again
        ├── SettingsError        78    wrong settings: a value, a key that is refused, a missing bucket
        ├── Interrupted         143    stopped by SIGTERM after saving (130 from the keyboard)
        ├── StageFailed           3    pipeline only: a stage failed
        └── NotWhole              4    --part look: something is left to do

The codes follow sysexits.h where it has a word for the case; Kubernetes Jobs act on them
(fail at once, or retry), so a new reason needs a line here before it needs a class elsewhere.
Messages are for people: the thing as they wrote it, the value they gave, what would be right.
"""

from __future__ import annotations


class VcotError(Exception):
    """An end that was foreseen: one clear line, an exit code, no traceback."""

    exit_code: int = 1


class GateFailed(VcotError):
    exit_code = 20


class BudgetSpent(VcotError):
    exit_code = 21


class UsageError(VcotError):
    exit_code = 64


class InputError(VcotError):
    exit_code = 65


class TemporaryError(VcotError):
    exit_code = 75


class SettingsError(VcotError):
    exit_code = 78


class Interrupted(VcotError):
    """Work was stopped from outside and what has a safe form was saved."""

    exit_code = 143


class KeyboardStop(Interrupted):
    """The same, asked for from the keyboard."""

    exit_code = 130


class StageFailed(VcotError):
    exit_code = 3


class NotWhole(VcotError):
    exit_code = 4
