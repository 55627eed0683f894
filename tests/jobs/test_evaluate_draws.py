"""evaluate with several replies to each question, of the rehearsal base: drawn, scored, chosen among, and kept."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings, run
from tests.fakes.markers import stage_marker
from vcot.answers import same
from vcot.errors import Interrupted, SettingsError
from vcot.evaluation.models import ModelRunner
from vcot.evaluation.runner import Reply, read_replies
from vcot.grounding.tags import split_answer
from vcot.records import Folder, read_samples
from vcot.records.shards import CONVERT, EVALUATE, TRAIN
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import folder_digest

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "rehearsal"
DRAWS, ROWS = 4, 12
ASK: dict[str, Any] = {
    "subject": str(BASE), "conditions": "real", "samples": DRAWS, "temperature": 0.8, "ask": "ground,direct,look-again",
    "max_new_tokens": 64, "per_device_eval_batch_size": 5, "rows_per_shard": 6, "dtype": "float32",
    "max_unusable_share": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def samples_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("rows"))
    convert: dict[str, Any] = {"source": "scenes", "scenes": 20, "validation_share": 0.5}
    run_convert(ConvertSettings(run_uri=uri, num_shards=1, **convert))
    return join(uri, "convert")


def evaluate(run_uri: str, samples_uri: str, **settings: Any) -> dict[str, Any]:
    run(EvaluateSettings(run_uri=run_uri, samples_uri=samples_uri, **{"max_samples": ROWS, **ASK, **settings}))
    found: dict[str, Any] = json.loads(Store().read(join(run_uri, "evaluate", "report.json")))
    return found


def replies(run_uri: str) -> list[Reply]:
    marker = Folder(Store(), run_uri, EVALUATE).marker()
    assert marker is not None
    return list(read_replies(Store(), join(run_uri, "evaluate"), marker.shards))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, samples_uri: str) -> tuple[str, dict[str, Any]]:
    run_uri = str(tmp_path_factory.mktemp("runs") / "one")
    return run_uri, evaluate(run_uri, samples_uri)


def drawn(run_uri: str, way: str = "ground", model: str = "subject") -> Iterator[tuple[Reply, list[Reply]]]:
    """Of each question the greedy reply and the draws."""
    greedy, draws = {}, defaultdict(list)
    for reply in (each for each in replies(run_uri) if each.model == model):
        if reply.way == way and reply.draw:
            draws[reply.score.sample].append(reply)
        elif reply.way == way:
            greedy[reply.score.sample] = reply
    for name, one in greedy.items():
        yield one, draws[name]


def by_hand(draws: list[Reply], method: str) -> Reply:
    """The choice, told anew: texts of a scene are one answer if one accepts the other."""
    groups: list[list[int]] = []
    said = [split_answer(each.score.text)[1] for each in draws]
    for number, answer in enumerate(said):
        if answer is None:
            continue
        for group in groups:
            if same(answer, [said[group[0]] or ""]):
                group.append(number)
                break
        else:
            groups.append([number])
    if not groups:
        return draws[0]
    if method == "majority":
        return draws[max(groups, key=len)[0]]
    likely = [
        sum(math.exp(each.answer_logprobs[column]) for each in draws if each.answer_logprobs is not None)
        for column in range(len(groups))
    ]
    return draws[groups[likely.index(max(likely))][0]]


def test_every_question_is_answered_so_often_beside_the_greedy_reply(one):
    run_uri, report = one
    for way in ("ground", "direct", "look-again"):
        found = list(drawn(run_uri, way))
        assert len(found) == ROWS
        assert all([each.draw for each in draws] == [1, 2, 3, 4] for _, draws in found)
    texts = [[each.completion.text for each in draws] for _, draws in drawn(run_uri)]
    assert any(len(set(each)) > 1 for each in texts)
    assert [row["way"] for row in report["selection"]] == ["ground", "direct", "look-again"]
    assert [point["limit"] for point in report["selection"][0]["by_samples"]] == [1, 2, 4]


def test_the_numbers_are_those_of_the_replies(one):
    run_uri, report = one
    found = list(drawn(run_uri))
    last = report["selection"][0]["by_samples"][-1]
    right = {
        "greedy": [greedy.score.answer == "right" for greedy, _ in found],
        "oracle": [any(each.score.answer == "right" for each in draws) for _, draws in found],
        "majority": [by_hand(draws, "majority").score.answer == "right" for _, draws in found],
        "marginal": [by_hand(draws, "marginal").score.answer == "right" for _, draws in found],
    }
    for name, each in right.items():
        assert last["accuracy"][name]["value"] == pytest.approx(sum(each) / ROWS, abs=1e-6), name
        if name != "greedy":
            apart = (sum(each) - sum(right["greedy"])) / ROWS
            assert last["difference"][name]["value"] == pytest.approx(apart, abs=1e-6)
    assert right["oracle"] != right["greedy"]
    spent = sum(each.completion.tokens_out for _, draws in found for each in draws) / ROWS
    assert last["tokens"] == pytest.approx(spent, abs=0.01)
    assert not last["missing"]
    (curve, *_) = report["calibration"]
    assert sum(each["replies"] for each in curve["bins"]) == curve["replies"] == ROWS
    mean = sum(each["accuracy"] * each["replies"] for each in curve["bins"]) / ROWS
    assert mean == pytest.approx(last["accuracy"]["majority"]["value"], abs=1e-5)


def test_a_way_without_a_rationale_of_its_own_has_no_marginal_and_the_reason(one):
    run_uri, report = one
    for way, why in ((1, "without a rationale"), (2, "in a second turn")):
        for point in report["selection"][way]["by_samples"]:
            assert why in point["missing"]["marginal"]
            assert "marginal" not in point["accuracy"]
    assert all(each.answer_logprobs is None for each in replies(run_uri) if each.way != "ground" or not each.draw)
    page = Path(run_uri, "evaluate", "report.html").read_text()
    assert "<h2>Several replies</h2>" in page
    assert page.count("<svg") == 3
    assert "marginal is missing: the answer is given without a rationale" in page


def test_what_a_draw_says_itself_is_scored_as_it_was_drawn(one):
    """The log-probability of its answer is the sum over its last tokens; those of all tokens came with the draw."""
    from vcot.tokens import Encoder, contract_of, load_processor

    processor = load_processor(BASE, min_pixels=56 * 56, max_pixels=112 * 112)
    encoder = Encoder(processor, contract_of(processor, mode="multimodal", frame="thousandths", max_length=512))
    compared = 0
    for _, draws in drawn(one[0]):
        for place, each in enumerate(draws):
            answer = split_answer(each.score.text)[1]
            first = next(i for i, other in enumerate(draws) if split_answer(other.score.text)[1] == answer)
            ended = each.completion.finish_reason == "stop" and each.completion.text.endswith(f"Answer: {answer}")
            if answer is None or first != place or not ended or each.answer_logprobs is None:
                continue
            assert each.completion.logprobs is not None
            own = math.fsum(each.completion.logprobs[-len(encoder.said(f" {answer}", ended=True)) :])
            assert min(abs(own - scored) for scored in each.answer_logprobs) < 1e-3
            compared += 1
    assert compared >= ROWS


def test_killed_while_scoring_it_goes_on_to_the_same_bytes(one, samples_uri, tmp_path, monkeypatch):
    scored: list[int] = []
    real = ModelRunner.score

    def dying(self: Any, model: Any, prompts: Any, continuations: Any) -> Any:
        scored.append(len(prompts))
        if len(scored) == 2:
            raise Interrupted("killed")
        return real(self, model, prompts, continuations)

    monkeypatch.setattr(ModelRunner, "score", dying)
    with pytest.raises(Interrupted):
        evaluate(str(tmp_path / "killed"), samples_uri)
    asked: list[int] = []
    ask = ModelRunner.ask
    monkeypatch.setattr(
        ModelRunner, "ask", lambda self, model, prepared, decoding: (
            asked.append(decoding.samples), ask(self, model, prepared, decoding)
        )[1],
    )  # fmt: skip
    report = evaluate(str(tmp_path / "killed"), samples_uri)
    assert asked[0] == DRAWS  # greedy replies and the first unit's draws were there; the second unit's were not
    shards = [
        {path.name: path.read_bytes() for path in Path(run_uri, "evaluate", "shards").iterdir()}
        for run_uri in (str(tmp_path / "killed"), one[0])
    ]
    assert shards[0] == shards[1]
    assert report["selection"] == one[1]["selection"]
    assert report["calibration"] == one[1]["calibration"]


def test_a_model_that_cannot_score_has_everything_but_the_marginal(samples_uri, tmp_path, monkeypatch, capsys):
    made = ModelRunner.__init__

    def without(self: Any, *given: Any) -> None:
        made(self, *given)
        self.can_score = False

    monkeypatch.setattr(ModelRunner, "__init__", without)
    report = evaluate(str(tmp_path / "one"), samples_uri, ask="ground", max_samples=3)
    (row,) = report["selection"]
    assert set(row["by_samples"][-1]["accuracy"]) == {"greedy", "majority", "cisc", "best_of_n", "oracle"}
    assert row["by_samples"][-1]["missing"] == {
        "marginal": "this model does not say how likely it finds a given answer"
    }
    assert "Several replies: ground, of 4: greedy " in capsys.readouterr().out


def test_lacot_is_its_double_loop_over_what_is_stored(one, samples_uri, capsys):
    """Beside the first evaluation, whose replies it finds in the cache."""
    run_uri = str(Path(one[0]).parent / "lacot")
    report = evaluate(run_uri, samples_uri, ask="ground", vote="lacot,marginal,greedy")
    last = report["selection"][0]["by_samples"][-1]
    assert [*last["accuracy"]] == ["greedy", "lacot", "marginal"]
    right, ended = [], 0
    for _, draws in drawn(run_uri):
        answers = [split_answer(each.score.text)[1] for each in draws]
        columns: list[str] = []
        for answer in filter(None, answers):
            columns += [] if any(same(answer, [c]) for c in columns) else [answer]
        best, chosen = -math.inf, draws[0]
        for answer, each in zip(answers, draws, strict=True):
            if answer is None:
                assert (each.answer_tokens, each.rationale_tokens) == (None, None)
                continue
            column = next(i for i, c in enumerate(columns) if same(answer, [c]))
            row = []
            for other in draws:
                if other.answer_logprobs is not None:
                    rationale = other.completion.logprobs[: other.rationale_tokens]
                    likely = sum(rationale) + other.answer_logprobs[column]
                    row.append(likely / (len(rationale) + other.answer_tokens[column]))
            if (mean := sum(row) / len(row)) > best + 1e-12:
                best, chosen = mean, each
            if each.completion.finish_reason == "stop" and columns[column] == answer:
                assert each.rationale_tokens + each.answer_tokens[column] == each.completion.tokens_out
                ended += 1
        right.append(chosen.score.answer == "right")
    assert ended >= ROWS
    assert last["accuracy"]["lacot"]["value"] == pytest.approx(sum(right) / ROWS, abs=1e-6)
    cost = last["cost"]
    assert cost["lacot"] == cost["marginal"]
    assert cost["lacot"]["scored"] < cost["lacot, as published"]["scored"]
    assert cost["lacot, as published"]["passes"] <= DRAWS**2
    assert (cost["greedy"]["passes"], cost["greedy"]["replies"]) == (0, 1)
    said = capsys.readouterr().out
    assert "4 replies" in said
    assert "lacot, as published" in Path(run_uri, "evaluate", "report.html").read_text()


def test_nothing_is_scored_for_ways_of_choosing_that_do_not_need_it(one, samples_uri, monkeypatch):
    monkeypatch.setattr(ModelRunner, "score", None)
    run_uri = str(Path(one[0]).parent / "unscored")
    report = evaluate(run_uri, samples_uri, ask="ground", vote="best,majority")
    last = report["selection"][0]["by_samples"][-1]
    assert [*last["accuracy"]] == ["best_of_n", "majority"]
    assert not last["difference"]
    assert all(each.answer_logprobs is each.rationale_tokens is None for each in replies(run_uri))
    whole = one[1]["selection"][0]["by_samples"][-1]["accuracy"]
    assert last["accuracy"] == {name: whole[name] for name in ("best_of_n", "majority")}


@pytest.mark.parametrize(
    ("vote", "why"),
    [
        ("majorty", "no such way to choose: majorty; did you mean majority? There are greedy, majority, cisc, "),
        ("greedy,marginals", "no such way to choose: marginals; did you mean marginal?"),
        ("", "at least one way to choose is needed; there are greedy, "),
    ],
)
def test_a_way_to_choose_that_there_is_not_is_refused(vote, why):
    with pytest.raises(SettingsError, match=re.escape(why)):
        EvaluateSettings.of({"run_uri": "runs/x", "vote": vote, "samples": 8})


def test_choosing_among_one_reply_is_refused():
    with pytest.raises(SettingsError, match=r"--vote marginal: of one reply there is nothing to choose; --samples 8"):
        EvaluateSettings.of({"run_uri": "runs/x", "vote": "marginal"})


def test_diversity_is_that_of_the_replies_and_the_known_routes(tmp_path, capsys):
    convert: dict[str, Any] = {
        "source": "scenes", "world": "routes", "side": 4, "steps": "2,3", "scenes": 16, "validation_share": 0.5,
    }  # fmt: skip
    run_convert(ConvertSettings(run_uri=str(tmp_path / "rows"), num_shards=1, **convert))
    rows = str(tmp_path / "rows" / "convert")
    report = evaluate(
        str(tmp_path / "one"), rows, ask="ground,reason,direct", max_samples=6, max_new_tokens=32, vote="majority"
    )
    assert [way["way"] for way in report["diversity"]] == ["ground", "reason"]
    way = report["diversity"][0]
    found = list(drawn(str(tmp_path / "one")))
    texts = [[split_answer(each.score.text)[0] for each in draws] for _, draws in found]
    assert way["figures"]["distinct"]["count"] == 6 * DRAWS
    assert way["figures"]["distinct_rationales"]["value"] <= sum(len(set(each)) for each in texts) / 6
    assert way["figures"]["self_similarity"]["count"] == 6 * 6
    marker = Folder(Store(), str(tmp_path / "rows"), CONVERT).marker()
    assert marker is not None
    asked = {one.score.sample for one, _ in found}
    known = [len(each.reasoning) for each in read_samples(Store(), rows, marker) if each.id in asked]
    assert way["figures"]["coverage"]["count"] == sum(known) >= 2 * 6
    assert way["figures"]["coverage_of_many"]["count"] == sum(many for many in known if many >= 6)
    assert [point["draws"] for point in way["by_draws"]] == [1, 2, 4]
    assert sum(part["questions"] for part in way["by_metadata"]["steps"]) == 6
    assert "how far 4 replies to a question differ" in capsys.readouterr().out
    assert "How far do the replies differ?" in (tmp_path / "one" / "evaluate" / "report.html").read_text()


def test_a_model_with_rationales_of_their_own_answers_and_its_answers_are_scored(samples_uri, tmp_path):
    """Each draw's own answer is as likely as it was when it was drawn; asked for the answer alone, it has no rationale,
    and in its own form the base has none that is a turn."""
    from tests.training.toy import encoder_of, tuned_adapter

    encoder = encoder_of(BASE, roles=("rationale",))
    folder = Folder(Store(), str(tmp_path), TRAIN)
    files = put_folder(Store(), tuned_adapter(BASE, encoder, tmp_path / "tuning"), join(folder.uri, "model"))
    contract = encoder.contract.model_copy(update={"ways": ("ground", "direct")})
    told = {"base_uri": str(BASE), "base_sha256": folder_digest(Store(), str(BASE)), "files": files}
    folder.finish(stage_marker("train", contract=contract, **told))
    report = evaluate(str(tmp_path), samples_uri, subject=None, ask="ground,look-again,direct", max_samples=5)
    said = replies(str(tmp_path))
    assert {one.model for one in said} == {"base", "native", "subject"}
    end, compared = encoder.eos_token_ids[0], 0
    for one in said:
        assert "<|im_start|>assistant" not in one.completion.text
    for _, draws in drawn(str(tmp_path), model="subject"):
        assert all(len(each.answer_logprobs or [0]) for each in draws)
        for place, each in enumerate(draws):
            text, likely = each.completion.text, each.completion.logprobs
            answer = split_answer(text)[1]
            first = next(i for i, other in enumerate(draws) if split_answer(other.score.text)[1] == answer)
            if answer is None or first != place or not text.endswith(f"\nAnswer: {answer}"):
                continue
            assert each.answer_logprobs is not None
            ids = encoder.said(text, ended=True)
            own = len(encoder.said(f" {answer}", ended=True, rationale=False))
            if each.completion.finish_reason != "stop" or len(ids) != each.completion.tokens_out:
                continue
            assert ids.count(end) == 2
            assert likely[ids.index(end) + 1 :][: len(encoder.between)] == (0.0,) * len(encoder.between)
            assert min(abs(math.fsum(likely[-own:]) - scored) for scored in each.answer_logprobs) < 1e-3
            compared += 1
    assert compared > 3
    assert report["made_with"]["own_form_of_the_base"]["family"] == "its contract.json"


def test_without_draws_nothing_is_said_of_them(samples_uri, tmp_path, capsys):
    report = evaluate(str(tmp_path / "one"), samples_uri, ask="ground", max_samples=2, samples=1)
    assert report["selection"] == report["calibration"] == report["diversity"] == []
    assert (
        "Several replies" not in capsys.readouterr().out + (tmp_path / "one" / "evaluate" / "report.html").read_text()
    )
