"Scores with intervals: coverage under clustering, known values, paired differences, benchmarks with rules of their own."
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from world2vlm.evaluation.statistics import (
    _bootstrap_means, _copied_rows, _design_effect, _draw_groups, _fold_by_scene, _group_rows, _percentile_interval,
    _paired_difference, paired_scores, score_rows, score_runs, score_with_interval, wilson_interval)


def simulated(n_scenes: int, per_scene: int, seed: int, task: str = "D2", spread: float = 0.3) -> list[dict]:
    "Rows of scenes that are easy or hard as a whole."
    rng, out = np.random.default_rng(seed), []
    for s in range(n_scenes):
        ease = np.clip(0.6 + spread * rng.standard_normal(), 0, 1)
        out += [dict(id=f"{task}-{s}-{q}", task=task, direction="forward", phrasing="direct", scene_id=f"s{s}", parsed=True,
                     score=dict.fromkeys(("overall", "exact"), float(rng.random() < ease))) for q in range(per_scene)]
    return out


def varied(seed: int = 0) -> list[dict]:
    "Rows of several tasks, directions, phrasings and kinds of scores."
    rng, out = np.random.default_rng(seed), []
    for s in range(20):
        for task in ("A1", "A3", "D2", "D4"):
            for q in range(int(rng.integers(0, 4))):
                value = float(rng.random() < 0.6) if task[0] == "D" else float(rng.random())
                out.append(dict(id=f"{s}-{task}-{q}", task=task, direction="forward" if task[0] == "D" else "inverse",
                                phrasing=("direct", "choice", "sentence")[q], scene_id=f"s{s}", parsed=None if q == 2 else "yes",
                                score=dict(overall=value, format=float(q != 2), exact=float(value == 1))))
    return out


# --- intervals

@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_inside(n, share):
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1 and low < high


def test_wilson_known_values():
    assert np.allclose(wilson_interval(0.5, 100), (0.40383, 0.59617), atol=1e-5)
    assert np.allclose(wilson_interval(0.0, 10), (0.0, 0.27753), atol=1e-5)


def test_intervals_cover_the_truth_although_questions_of_a_scene_resemble_each_other():
    truth = np.mean([row["score"]["overall"] for row in simulated(20000, 1, 99)])
    hits = Counter()
    for seed in range(150):
        rows = simulated(40, 5, seed)
        cell = score_rows(rows, samples=300)["exactly right"]["tasks"]["D2"]  # all scores 0 or 1: Wilson on the effective n
        low, high = _percentile_interval(_bootstrap_means(_fold_by_scene(rows), 300)[:, 0], 40)
        naive = wilson_interval(cell["score"], cell["n"])
        hits.update(wilson=int(cell["low"] <= truth <= cell["high"]), bootstrap=int(low <= truth <= high),
                    naive=int(naive[0] <= truth <= naive[1]))
    assert min(hits["wilson"], hits["bootstrap"]) >= 136 > 128 > hits["naive"], hits


def test_design_effect_limits():
    assert _design_effect(np.array([1.0, 1, 1]), np.ones(3)) == 1.0
    same = _design_effect(np.array([4.0, 0, 4, 0] * 10), np.full(40, 4.0))  # four copies of one answer
    assert 3.9 < same < 4.2


def test_score_weighs_tasks_alike_and_names_everything():
    rows = varied()
    result = score_rows(rows)
    assert result["n"] == len(rows) and result["scenes"] == len({row["scene_id"] for row in rows})
    graded = result["graded"]
    assert np.isclose(graded["mean"]["score"], np.mean([cell["score"] for cell in graded["tasks"].values()]))
    for task, cell in graded["tasks"].items():
        own = [row for row in rows if row["task"] == task]
        assert cell["n"] == len(own) and np.isclose(cell["score"], np.mean([row["score"]["overall"] for row in own]))
        assert cell["low"] <= cell["score"] <= cell["high"]
        assert np.isclose(result["exactly right"]["tasks"][task]["score"], np.mean([row["score"]["exact"] for row in own]))
        assert np.isclose(result["parts"][task]["answered"], np.mean([row["parsed"] is not None for row in own]))
        assert np.isclose(result["parts"][task]["parts"]["format"], np.mean([row["score"]["format"] for row in own]))
        assert set(cell["phrasings"]) == {row["phrasing"] for row in own}
    assert repr(result) == repr(score_rows(list(rows)))
    assert {d: cell["n"] for d, cell in graded["directions"].items()} == Counter(row["direction"] for row in rows)
    with pytest.raises(ValueError, match="empty"):
        score_rows([])


def test_a_score_does_not_depend_on_the_order_of_the_rows():
    rows = varied(1)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert np.isclose(score_rows(rows)["graded"]["mean"]["low"], score_rows(shuffled)["graded"]["mean"]["low"])
    score = lambda some: {"mean": dict(overall=float(np.mean([row["score"]["overall"] for row in some])))}
    a, b = score_with_interval(rows, score, 50)["mean"], score_with_interval(shuffled, score, 50)["mean"]
    assert np.allclose([a["low"], a["high"]], [b["low"], b["high"]])


def test_one_scene_gives_no_interval():
    for marks in (score_rows(simulated(1, 5, 0))[name] for name in ("exactly right", "graded")):
        assert np.isnan([marks["mean"]["low"], marks["tasks"]["D2"]["high"]]).all()


# --- paired differences

def test_paired_is_narrow_antisymmetric_and_exact():
    a = simulated(60, 4, 0)
    b = [dict(row, score={name: 0.9 * value for name, value in row["score"].items()}) for row in a]
    gain = _paired_difference(a, b)
    assert np.isclose(gain["difference"], score_rows(a)["exactly right"]["mean"]["score"] - score_rows(b)["exactly right"]["mean"]["score"])
    assert gain["low"] > 0 and np.isclose(_paired_difference(b, a)["difference"], -gain["difference"])
    assert gain["high"] - gain["low"] < 0.3 * (score_rows(a)["exactly right"]["mean"]["high"] - score_rows(a)["exactly right"]["mean"]["low"])
    shuffled = [b[i] for i in np.random.default_rng(0).permutation(len(b))]
    assert _paired_difference(a, shuffled) == gain


MEAN = lambda rows: {"mean": dict(overall=float(np.mean([row["score"]["overall"] for row in rows])))}


@pytest.mark.parametrize("compare", [_paired_difference, lambda a, b: paired_scores(a, b, MEAN, 10)], ids=["rows", "benchmark"])
@pytest.mark.parametrize("spoil", [
    lambda rows: rows[1:], lambda rows: rows + rows[:1], lambda rows: [dict(rows[0], id="other")] + rows[1:]])
def test_paired_refuses_other_questions(compare, spoil):
    rows = simulated(5, 2, 0)
    with pytest.raises(ValueError, match="same questions once"):
        compare(rows, spoil(rows))


def test_missing_runs_stay_empty():
    rows = simulated(10, 2, 0)
    results = score_runs(dict(base=rows, sft=rows, grpo=None))
    assert results["grpo"] is None and "over" not in results["base"]
    assert results["sft"]["over"]["difference"] == 0 and results["sft"]["over"]["reference"] == "base"
    assert "over" not in score_runs(dict(base=None, sft=rows))["sft"]


def test_a_task_that_other_pictures_answer_as_well_is_unsolved():
    "Paired by question: the difference must be clear of 0, also where both are high, and only the blinded student has it."
    blind = simulated(60, 4, 0, "A1") + simulated(60, 4, 1, "D2")
    better = [row | dict(score=dict(overall=1.0, exact=1.0)) if row["task"] == "A1" else row for row in blind]
    results = score_runs(dict(sft=better, grpo=better, blind=blind), samples=300)
    assert results["grpo"]["unsolved"] == ["D2"] and "unsolved" not in results["sft"] and "over blind" not in results["blind"]
    gap = results["grpo"]["over blind"]["tasks"]
    assert gap["A1"]["low"] > 0 == gap["D2"]["difference"]
    worse = [row | dict(score=dict(overall=0.0, exact=0.0)) for row in blind]
    assert score_runs(dict(grpo=worse, blind=blind), samples=300)["grpo"]["unsolved"] == ["A1", "D2"]
    single = simulated(1, 5, 0)  # no interval, nothing shown
    assert score_runs(dict(grpo=single, blind=single))["grpo"]["unsolved"] == ["D2"]


def test_marks_are_given_by_task_and_by_phrasing():
    rows = varied()
    result = score_rows(rows)
    for name, key in (("exactly right", "exact"), ("graded", "overall")):
        for phrasing, cell in result[name]["phrasings"].items():
            own = [row for row in rows if row["phrasing"] == phrasing]
            by_task = [np.mean([row["score"][key] for row in own if row["task"] == task]) for task in {row["task"] for row in own}]
            assert cell["n"] == len(own) and np.isclose(cell["score"], np.mean(by_task)) and cell["low"] <= cell["score"] <= cell["high"]
    assert list(result)[2] == "exactly right" and result["exactly right"]["mean"]["score"] < result["graded"]["mean"]["score"]


# --- benchmarks

def test_both_ways_share_one_resampling():
    "With the mean over rows as the benchmark's score, both bootstraps give the same interval."
    rows = [row | dict(score=dict.fromkeys(("overall", "exact"), row["score"]["overall"] * 0.99)) for row in simulated(30, 4, 3)]  # not 0 or 1
    ours, benchmark = score_rows(rows, samples=400, seed=5)["graded"]["mean"], score_with_interval(rows, MEAN, 400, 5)["mean"]
    assert np.allclose([ours["score"], ours["low"], ours["high"]], [benchmark[key] for key in ("overall", "low", "high")])
    other = [row | dict(score=dict(overall=0.5, exact=0.5)) for row in rows]
    a, b = _paired_difference(rows, other, 400, 5), paired_scores(rows, other, MEAN, 400, 5)["mean"]
    assert np.allclose([a["difference"], a["low"], a["high"]], [b["difference"], b["low"], b["high"]])


def test_groups_are_scenes_or_both_orders_of_a_question():
    rows = [dict(id=f"test-{q}#{order}") for q in (2, 0, 1) for order in (1, 0)]
    assert [[row["id"] for row in group] for group in _group_rows(rows)] == [[f"test-{q}#0", f"test-{q}#1"] for q in range(3)]
    assert [len(group) for group in _group_rows(simulated(6, 3, 0))] == [3] * 6
    assert [row["id"] for row in _copied_rows(_group_rows(rows)[0], 4)] == ["test-0-4#0", "test-0-4#1"]
    assert len({row["id"] for k in range(3) for row in _copied_rows(simulated(6, 3, 0), k)}) == 54  # no two alike


def test_draws_hold_as_many_groups_as_there_are():
    draws = _draw_groups(7, 500, 0)
    assert (draws.sum(1) == 7).all() and (draws >= 0).all() and np.allclose(draws.mean(0), 1, atol=0.15)
    assert (draws == _draw_groups(7, 500, 0)).all() and (draws != _draw_groups(7, 500, 1)).any()


def test_a_rule_that_rarely_applies_has_an_interval_of_its_own_draws():
    "A rule that is absent from a draw does not count there."
    rows = [dict(id=str(i), kind="rare" if i == 0 else "common") for i in range(8)]
    def score(rows): return {kind: dict(overall=1.0) for kind in sorted({row["kind"] for row in rows})}
    result = score_with_interval(rows, score, 50)
    assert result["rare"] == dict(overall=1.0, low=1.0, high=1.0, n=8)
