"""Ways in which a model is asked for reasoning: each file is a strategy of its name (see vcot/teacher/strategy.py)."""
