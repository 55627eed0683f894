"""Distillation: rows that lack reasoning get it, from code or from a model.

A teacher takes Samples and gives each of them reasoning (one Trace or more) or a refusal with its reason. Annotated
objects are put into the text by our code; what a model proposes beside them must stand the checks of verification.py.

    template.py                                          needs no model
    strategy.py · strategies/                            ways in which a model is asked: each makes Requests and reads
                                                         replies (dialogue.py, reply.py), and knows no endpoint
    prompts/ · objects.py                                what it is told
    prose.py · conclusion.py                             what its sentences may not hold, and what they must end in
    verification.py · funnel.py                          whether it is believed, and who fell where
    runner.py · client.py · endpoint.py                  many rows at once; each request is paid for once
    budget.py · costs.py · prices.py                     the budget, one ledger for all processes; what tokens cost
    batch.py · estimate.py                               replies at half the price, and what a run would cost

What asks a model is slow to load, so it is not imported here.
"""

from vcot.distill.row import DistilledReasoning, Outcome, Teacher
from vcot.distill.template import TemplateTeacher

__all__ = ["DistilledReasoning", "Outcome", "Teacher", "TemplateTeacher"]
