"""An evaluation as lmms-eval logs one (``--log_samples``), so that its tools and its users' read ours.

``lmms-eval/vcot_samples_<task>_<way>.jsonl``, a line for each row, in the fields of lmms-eval 0.7
(lmms_eval/evaluator.py, loggers/evaluation_tracker.py): doc_id, target, filtered_resps, token_counts, doc_hash, input,
and one field for each measure. A task is a suite; rows of none are of the task ``vcot``. `score` is what its
comparison of runs reads first: the worth of the answer by the suite's measure, else 1 for a right one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from vcot.evaluation.config import Way
from vcot.evaluation.metrics import boxes_found
from vcot.evaluation.report import Evidence
from vcot.evaluation.runner import Reply
from vcot.evaluation.suites.tables import Replies
from vcot.records import Sample, Score

Prompted = Callable[[Sample, Way], str]


def sample_logs(evidence: Evidence, suites: Mapping[str, Replies], prompt: Prompted) -> dict[str, bytes]:
    """Name of a file → its lines: the subject's greedy replies to the real images, of each suite and way.

    suites: what each sees of the replies. prompt: the words that a sample was asked with. A file's doc_id is the place
    of the row in the evaluation.
    """
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for way, replies in evidence.ways.items():
        seen = {name: {one.sample.id: one.worth for one in each[way]} for name, each in suites.items()}
        for number, (sample, reply) in enumerate(zip(evidence.samples, replies["real"], strict=True)):
            if reply is None:
                continue
            worths = {name: each[sample.id] for name, each in seen.items() if sample.id in each}
            worths = worths or {"vcot": float(reply.score.answer == "right")}
            for task, worth in worths.items():
                lines[f"vcot_samples_{task.replace('-', '_')}_{way.replace('-', '_')}.jsonl"].append(
                    _line(number, sample, reply, prompt(sample, way), worth)
                )
    return {name: b"".join(map(_json, each)) for name, each in lines.items()}


def _json(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _line(number: int, sample: Sample, reply: Reply, prompt: str, worth: float | None) -> dict[str, Any]:
    said = reply.completion
    line = {
        "doc_id": number,
        "target": sample.answers[0],
        "filtered_resps": said.text,
        "token_counts": [{"input_tokens": said.tokens_in, "output_tokens": said.tokens_out}],
        "doc_hash": hashlib.sha256(sample.line()).hexdigest(),
        "input": prompt,
        "sample": sample.id,
    }
    return line | ({} if worth is None else {"score": round(worth, 6)}) | _of_boxes(reply.score)


def _of_boxes(score: Score) -> dict[str, float]:
    """Means over the true boxes of the row; nothing where there are none."""
    if not score.true_boxes:
        return {}
    return {
        "mean_iou": round(math.fsum(score.ious) / score.true_boxes, 6),
        "accuracy_at_50": round(boxes_found(score) / score.true_boxes, 6),
    }
