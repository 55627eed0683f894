"""Distillation: rows that lack reasoning get it, from code or from a model.

A teacher takes Samples and gives each of them a lesson (one Trace or more) or a refusal with its reason. Annotated
objects are put into the text by our code; what a model proposes beside them must stand the checks of trust.py.

    template.py                                          needs no model
    answer_aware.py · rationalise.py · two_level/        ways in which a model is asked (row.Way); each makes Requests,
                                                         reads replies (reply.py, structured.py, shapes.py), and knows
                                                         no endpoint
    prompts/                                             what it is told
    prose.py · conclusion.py                             what its sentences may not hold, and what they must end in
    checks.py · crops.py · trust.py · funnel.py          whether it is believed, and who fell where
    model.py · desk.py · endpoint.py · replies.py        many rows at once; each request is paid for once
    plan.py · treasury.py · budget.py · account.py       the ceiling, shared out and kept in storage
    batches.py · dryrun.py                               replies at half the price, and what a run would cost
    report/                                              report.json and its page

What asks a model is slow to load, so it is not imported here.
"""

from vcot.teacher.row import Lesson, Outcome, Teacher
from vcot.teacher.template import TemplateTeacher

__all__ = ["Lesson", "Outcome", "Teacher", "TemplateTeacher"]
