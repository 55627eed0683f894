"""What a reply is worth: its form, its answer, its boxes. Pure functions of a text and its Sample, each 0..1.

How they are weighed against each other is for the training to say.
"""

from vcot.rewards.answer import answer_reward
from vcot.rewards.boxes import box_reward, soft_f1_with_spare
from vcot.rewards.format import Rule, broken_rules, format_reward

__all__ = ["Rule", "answer_reward", "box_reward", "broken_rules", "format_reward", "soft_f1_with_spare"]
