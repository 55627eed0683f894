"""Distillation: rows that lack reasoning get it, from code or from a model.

A teacher takes Samples and gives each of them a lesson (one Trace or more) or a refusal with its reason. It
never types a box: places come from the evidence of the Sample, put into the text by our code.

`template` needs no model. `model` asks an OpenAI-compatible endpoint; what it imports is slow to load, so it is
not imported here.
"""

from vcot.teacher.row import Lesson, Outcome, Teacher
from vcot.teacher.template import TemplateTeacher

__all__ = ["Lesson", "Outcome", "Teacher", "TemplateTeacher"]
