"""Two-level distillation: the whole image in words, then each thing in it on its own, judged, then put together.

    captions → objects → crops → branches → verdicts → synthesis → gates

Each step is a map over rows with records of its own (vcot/records/steps.py). `way.TwoLevel` does all of them for a row
in memory; `chain.Chain` does one after the other over a shard and keeps what each made in storage.
"""
