"What a student writes is read as its answer, and never its reasoning; hostile text neither crashes nor slows a reader."
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action
from world2vlm.core.records import Example
from world2vlm.evaluation.answering import answer_row
from world2vlm.evaluation.view_search import _read_scores
from world2vlm.tasks.answers import BOX_ANSWER, MOTION_ANSWER, TRUE_FALSE, YES_NO, convert_boxes, final_answer, _read_answer_box
from world2vlm.tasks.rewards import paper_reward
from world2vlm.tasks.tasks import TASKS

CHOICES = {"A": "move right 0.4 meters", "B": "move left 0.4 meters", "C": "move right 0.7 meters", "D": "move left 0.7 meters"}
LEFT = (Action("left", 0.4),)


def example(task, answer, truth, choices=None):
    kind = TASKS[task].answer_type
    return Example(f"room/0/{task}", task, "inverse", [np.zeros((8, 8, 3), np.uint8)], "?", answer, kind.target(truth), "room", "simulator", "test", "exact", "choice" if choices else "direct", choices)


CASES = {"A2": ("turn left 20 degrees", "turn right 30 degrees", (Action("turn_right", 30.0),)), "D1": ("[0, 0, 9, 9]", "[100, 200, 300, 400]", (0.1, 0.2, 0.3, 0.4)),
         "D2": ("no", "yes", True), "A4": ("false", "true", True), "A3": ("move forward 1 meters", "turn left 20 degrees; move forward 0.5 meters", (Action("turn_left", 20.0), Action("forward", 0.5)))}
FORMS = ["<think>{wrong}? No.</think><answer>{right}</answer>", "<think>{wrong}</think>\n\n{right}", "{wrong}? No.</think>{right}", "<THINK>\n{wrong}\n</THINK>\n<Answer>\n{right}\n</Answer>", "{wrong} <think>no</think> {right}",
         "First {wrong}, so \\boxed{{{right}}}.", "$\\boxed{{\\text{{{right}}}}}$", "<answer>{wrong}</answer> wait <answer>{right}</answer>", "{wrong}\n<answer>{right}", "<answer>\\boxed{{{right}}}</answer>",
         "<think>{wrong} <answer>{wrong}</answer></think><answer>{right}</answer>", "<thinking>{wrong}</thinking>{right}", "<reasoning>{wrong}</reasoning><final_answer>{right}</final_answer>",
         "◁think▷{wrong}◁/think▷{right}", "<think>a <think>{wrong}</think> {wrong}</think>{right}", "{wrong} <|begin_of_box|>{right}<|end_of_box|>", "<think>{wrong}</think>{right}<think>{wrong}"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", CASES)
def test_reasoning_is_never_the_answer(task, form):
    wrong, right, truth = CASES[task]
    text, question = form.format(wrong=wrong, right=right), example(task, right, truth)
    assert TASKS[task].parse(text) == TASKS[task].answer_type.read(text) == truth
    assert answer_row(question, text)["score"] == answer_row(question, right)["score"] and answer_row(question, text)["score"]["overall"] == 1


@pytest.mark.parametrize("text", ["<think>turn left 20 degrees", "turn left 20 degrees</think>", "<think>turn left 20 degrees</think>", "turn left 20 degrees <answer></answer>", "<think></think>", "turn left 20 degrees \\boxed{}"])
def test_reasoning_without_an_answer_is_unreadable(text):
    assert TASKS["A2"].parse(text) is None and TASKS["A2"].score(text, example("A2", "turn left 20 degrees", (Action("turn_left", 20.0),)))["overall"] == 0


@pytest.mark.parametrize("text", ["<answer>B</answer>", r"\boxed{B}", "`B`", "(B)", "**B**", "B\n\nBecause the lamp moved.", "B.", '"B"', "[B]", "B;", r"$\boxed{\text{B}}$", "The final answer is (B).", "**Answer:** B", "Answer: option B",
                                  "<think>A or C?</think>B", "<think>A</think><answer>B. move left 0.4 meters</answer>", "It is not A.\n\nB", "A chair moved.\nAnswer: B", "move left 0.4 meters", "B\r\nbecause"])
def test_a_choice_is_read_in_any_usual_form(text):
    assert TASKS["A1"].parse(text, example("A1", "B", LEFT, CHOICES)) == LEFT


@pytest.mark.parametrize("text", ["E", "A chair moved.", "", "B or C", "A\nB\nC\nD", "<think>B</think>", "A's move"])
def test_no_choice_is_read_where_none_is_made(text): assert TASKS["A1"].parse(text, example("A1", "B", LEFT, CHOICES)) is None


@pytest.mark.parametrize("box", [f"[0, 0, 9, {'9' * 310}]", f"[{'9' * 310}, 0, 9, 9]", f"[-{'9' * 400}, -{'9' * 400}, {'9' * 400}, {'9' * 400}]", f"[0, 0, 9, {'9' * 5000}.5]"])
@pytest.mark.parametrize("size", [(64, 64), (1288, 728), (4000, 3000)])
def test_a_box_of_hundreds_of_digits_scores_zero(box, size):
    text = convert_boxes(box, "pixels", size, back=True)
    assert _read_answer_box(text) is None and _read_answer_box(box) is None
    row = answer_row(example("D1", "[100, 200, 300, 400]", (0.1, 0.2, 0.3, 0.4)), text)
    assert row["parsed"] is None and row["score"]["overall"] == 0
    assert np.isfinite(paper_reward("D1", "[100, 200, 300, 400]", box)["overall"])


def test_amounts_that_no_float_adds_are_unreadable():
    huge = "9" * 308
    assert MOTION_ANSWER.read(f"move left {huge} meters; move left {huge} meters") is None and MOTION_ANSWER.read(f"turn left {'9' * 310} degrees") is None


def test_scores_of_views_are_not_read_from_reasoning():
    assert _read_scores("<think>Output: 1, 2</think>Output: 8, 9", 2) == [8, 9] == _read_scores("8, 9", 2) and _read_scores("<think>8, 9", 2) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "yes", "B", "turn left 20 degrees", "[1, 2, 3, 4]", " ", "\n", "<|begin_of_box|>", "é"]), max_size=12))
def test_any_order_of_tags_is_read_once(parts):
    answer = final_answer("".join(parts))
    assert final_answer(answer).strip() == answer.strip() or "\\boxed" in "".join(parts)
    for task in CASES: TASKS[task].parse("".join(parts))
    if not any(p.startswith(("<", "\\")) for p in parts): assert answer == "".join(parts) or not answer.strip()


JUNK = ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "{", "<", " ", "\n", "[", "[1, ", "1", "bbox ", "yes ", "n't ", "turn left ", "turn left 1", "1 m ", "°", "° ", "a\n", "*", ". ", "\u0130", "\\text{", "left ", "the answer is "]


@pytest.mark.parametrize("junk", JUNK)
def test_a_megabyte_of_junk_is_read_within_a_second(junk):
    text, question = (junk * 10**6)[:10**6], example("A1", "B", LEFT, CHOICES)
    readers = [MOTION_ANSWER.read, BOX_ANSWER.read, YES_NO.read, TRUE_FALSE.read, lambda t: TASKS["A1"].score(t, question), lambda t: convert_boxes(t, "pixels", (64, 64), True),
               lambda t: paper_reward("A3", "turn left 20 degrees", t), lambda t: _read_scores(t, 3)]
    for read in readers:
        start = time.process_time()
        read(text + "x")
        assert time.process_time() - start < 1
