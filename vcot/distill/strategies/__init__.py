"""Ways in which a model is asked for reasoning: each file of this folder is the strategy of its name (see
vcot/distill/strategy.py)."""

from pkgutil import iter_modules

NAMES: tuple[str, ...] = tuple(sorted(file.name.replace("_", "-") for file in iter_modules(__path__)))
