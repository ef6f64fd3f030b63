"The official scores of answers that harnesses disagree about, pinned."
import time

import pytest
from hypothesis import given, strategies as st

from world2vlm.evaluation.benchmarks.mindcube import _SETTINGS, _mindcube_letter, _mindcube_scores, _mindcube_setting
from world2vlm.evaluation.benchmarks.vsibench import _number_anywhere, _relative_accuracy, VSI_RULES, _vsi_score, _vsi_scores
from world2vlm.evaluation.benchmarks.sat import sat_verdict

SAT = {"Left.": "correct", "**left**": "correct", "The answer is left": "correct", "left\n": "wrong", "right\nleft": "correct", "left\nright": "wrong",
       "It is right, not left": "correct", "the leftmost one": "correct", "bright": "wrong", "A": "out of control", "(a)": "out of control", "": "out of control"}


@pytest.mark.parametrize("raw,verdict", SAT.items())
def test_sat(raw, verdict): assert sat_verdict(raw, ["left", "right"], "left") == verdict


@pytest.mark.parametrize("raw", ["I do not know", "Nothing is visible", "cannot tell", "yes, I can't say no"])
def test_sat_finds_no_in_words(raw): assert sat_verdict(raw, ["no", "yes"], "no") == "correct"


def test_relative_accuracy_loses_steps_to_rounding():
    assert [round(_relative_accuracy(100 + e, 100), 6) for e in range(0, 60, 5)] == [1, 1, .9, .8, .6, .6, .5, .4, .3, .1, .1, 0]
    assert _relative_accuracy(None, 3) == _relative_accuracy(float("nan"), 3) == _relative_accuracy(float("inf"), 3) == 0


@given(st.floats(.1, 1e3), st.floats(-1e3, 1e3))
def test_relative_accuracy_is_a_share(gold, answer):
    score = _relative_accuracy(answer, gold)
    assert 0 <= score <= 1 and _relative_accuracy(gold, gold) == 1 and abs(score * 10 - round(score * 10)) < 1e-9


@pytest.mark.parametrize("raw,first,anywhere", [("3 chairs", 1, 1), ("3.", 1, 1), ("three", 0, 1), ("There are 3", 0, 1), ("~3", 0, 1), ("3m", 0, 1), ("", 0, 0), ("-3", 0, 0)])
def test_numbers_by_both_rules(raw, first, anywhere):
    assert _vsi_score(raw, "object_counting", "3") == first and _vsi_score(raw, "object_counting", "3", "lmms-eval 2026-07") == anywhere


@pytest.mark.parametrize("text,number", [("twenty-one", 21), ("one hundred", 100), ("two hundred and five", 205), ("Twenty one chairs", 21), ("about one hundred fifty", 150),
                                         ("one thousand two hundred and thirty-four", 1234), ("seventeen", 17), ("one and two", 1), ("two, three", 2), ("zero", 0), ("someone", None)])
def test_compound_number_words_count_as_one_number(text, number):
    assert _number_anywhere(text) == number
    if number: assert _vsi_score(text, "object_counting", str(number), "lmms-eval 2026-07") == 1 and _vsi_score(text, "object_counting", str(number)) == 0


@pytest.mark.parametrize("rule", VSI_RULES)
@pytest.mark.parametrize("raw,gold,score", [("0", "0", 1), ("0.0", "0.0", 1), ("3", "0", 0), ("nothing", "0", 0), ("nan", "0", 0)])
def test_a_true_count_of_zero_has_a_score(raw, gold, score, rule): assert _vsi_score(raw, "object_counting", gold, rule) == score


@pytest.mark.parametrize("junk", ["twenty-", "one hundred and ", "1", "-", "1.", "<Answer>", "A. ", "A ", "*A", "\n", "answer is ", "\u0130"])
def test_official_rules_stay_linear(junk):
    text = (junk * 10**6)[:10**6] + "x"
    for read in (lambda: _number_anywhere(text), lambda: _mindcube_letter(text), lambda: sat_verdict(text, ["left", "right"], "left"), lambda: _vsi_score(text, "route_planning", "B")):
        start = time.process_time()
        read()
        assert time.process_time() - start < 1


def test_number_words(): assert [_number_anywhere(text) for text in ("eleven chairs", "none", "twenty", "ninety of them")] == [11, None, 20, 90]


@pytest.mark.parametrize("raw,score", [("B", 1), ("b", 1), ("B.", 1), ("B. chair", 1), ("\nB", 1), ("(B)", 0), ("B)", 0), (" B", 0), ("B\nbecause", 0), ("The answer is B", 0)])
def test_letters(raw, score): assert _vsi_score(raw, "route_planning", "B") == score


def test_overall_is_the_mean_of_tasks():
    rows = [dict(question_type="object_counting", score=1.0)] * 9 + [dict(question_type=f"object_rel_direction_{d}", score=s) for d, s in (("easy", 1.0), ("hard", 0.0), ("hard", 0.0))]
    means = _vsi_scores(rows)
    assert means["object_rel_direction"] == .5 and means["overall"] == .75 and means["micro"] == pytest.approx(10 / 12)


MINDCUBE = {"<answer>B. Chair</answer>": "B", "(B)": "B", "**B**": "B", "The answer is B": "B", "b": None, "Chair": None, "": None, "C. Left, because A. Right is hidden.": "A",
            "A. Plan B. ": "B", "A chair is on the left": "A", "I am at point E. So D": "E", "The answer is Below": "B", "My answer is Chair": "C", "I think A or B": "A"}


@pytest.mark.parametrize("raw,letter", MINDCUBE.items())
def test_mindcube(raw, letter): assert _mindcube_letter(raw) == letter


@given(st.text(max_size=60))
def test_any_text_has_a_letter_or_none(raw): assert _mindcube_letter(raw) in {*"ABCDE", None}


def test_mindcube_leaves_translation_out():
    rows = [dict(id=f"{setting}_1", score=float(setting == "translation")) for setting in _SETTINGS]
    assert _mindcube_scores(rows)["overall"] == 0 and "translation" not in _mindcube_scores(rows)
    assert [_mindcube_setting(name) for name in ("aroundnew_group1_q2", "among_group1", "x")] == ["around", "among", "other"]


def test_nothing_answered_is_an_error():
    for scores in (_vsi_scores, _mindcube_scores):
        with pytest.raises(ValueError, match="no answered"): scores([])
