"Pretraining: questions that are true and say nothing of motion, the same stream for the same seed, a probe that tells right from wrong."
from itertools import islice

import numpy as np
import pytest

from world2vlm.students import pretraining, static_questions
from world2vlm.students.models import Reply
from world2vlm.students.pretraining import Base, probe, probe_examples
from world2vlm.students.static_questions import QUESTIONS, question_stream, question_weights

# all objects shift right by .3 of the width, 5 of 16 columns
FIRST = [static_questions._VisibleObject(1, "red box", (.1, .5, .3, .7), 2), static_questions._VisibleObject(2, "blue ball", (.3, .5, .4, .6), 3)]
SECOND = [static_questions._VisibleObject(1, "red box", (.4, .5, .6, .7), 2), static_questions._VisibleObject(2, "blue ball", (.6, .5, .7, .6), 3)]


@pytest.mark.parametrize("phase", Base().curriculum)
def test_pretraining_teaches_no_motion(phase):
    "No question of the base says how the camera moved: motion words occur where they are repeated, which carries no information."
    shares = dict(two_views=phase.two_views, shifts=phase.shifts, format_practice=phase.format_practice)
    for row in islice(question_stream(3, from_start=phase.from_start, **shares), 300):
        if not row["question"].startswith("Repeat: "):
            assert not any(word in row["question"] + row["answer"] for word in ("turn", "forward", "backward", "degrees"))


def test_stream_is_reproducible():
    a, b = (list(islice(question_stream(5, from_start=.5, format_practice=.5), 60)) for _ in range(2))
    assert all(x["question"] == y["question"] and x["answer"] == y["answer"] for x, y in zip(a, b))
    assert all((np.array(p) == np.array(q)).all() for x, y in zip(a, b) for p, q in zip(x["images"], y["images"]))


@pytest.mark.parametrize("shares", [{}, dict(two_views=.55, shifts=.4), dict(two_views=.65, shifts=.2, format_practice=.6)])
def test_weights_are_the_shares(shares):
    "The weights sum to one, and the three shares can be read back from them."
    weights = question_weights(**shares)
    two = {name for name, question in QUESTIONS.items() if question.pictures == 2} - {"repeat"}
    practice = {"suppose", "slide", "same"}
    assert set(weights) == set(QUESTIONS) and sum(weights.values()) == pytest.approx(1)
    assert sum(weights[name] for name in two) == pytest.approx(shares.get("two_views", .4))
    assert sum(weights[name] for name in practice) == pytest.approx(.95 * shares.get("format_practice", 0))
    assert weights["shift"] == pytest.approx(shares.get("shifts", 0) * sum(weights[name] for name in two - practice))


def test_a_kind_that_two_views_do_not_allow_is_drawn_again():
    rng, weights = np.random.default_rng(0), question_weights(two_views=.9)
    kinds = [static_questions._draw_question(FIRST, SECOND[:1], rng, weights)[2] for _ in range(50)]
    apart = [static_questions._draw_question(FIRST, [], rng, weights)[0] for _ in range(50)]
    assert set(kinds) == {1, 2} and not any("pictures" in question or "second" in question for question in apart)


def test_format_practice_is_true():
    "What a question says of two boxes is what the boxes say; the letter of a choice is that of the true option."
    rng, forms = np.random.default_rng(0), set()
    for question, answer in filter(None, (static_questions._ask_change(FIRST, SECOND, rng) for _ in range(200))):
        options = dict(line.split(". ", 1) for line in question.splitlines()[1:-1])
        if question.startswith("Claim"): assert answer == ("true" if "right 5" in question else "false"); forms.add("claim")
        elif options: assert options[answer] == "right 5"; forms.add("choice")
        else: assert "right 5" in answer; forms.add("text")
    assert forms == {"claim", "choice", "text"}
    for question, answer in filter(None, (static_questions._ask_same(FIRST, SECOND, rng) for _ in range(50))):
        same = ("[100, 500, 300, 700]" in question) == ("[400, 500, 600, 700]" in question)
        if question.endswith("Answer yes or no."): assert answer == ("yes" if same else "no")
    for question, answer in (static_questions._ask_imagined_shift(FIRST, rng) for _ in range(100)):
        if "box [x1" in question and "left" in question and "red box" in question:
            assert answer.startswith("[0, ") or int(answer[1:].split(",")[0]) < 100


class Copy:
    "A student that knows the right answers, but only of pictures that belong to their question."
    def __init__(self, examples): self.answers = {(e.question, e.images[0].tobytes()): e.answer for e in examples}
    def reply(self, prompts, max_new_tokens): return [Reply(self.answers.get((p.pieces[-1], p.pieces[0].tobytes()), "hm"), 1) for p in prompts]


def test_probe_tells_right_from_wrong():
    "Right answers score one, answers to the pictures of another room less, and every kind is asked."
    examples = probe_examples(8)
    scores = probe(Copy(examples), examples)
    assert set(scores) == set(QUESTIONS) - {"repeat"} and all(score["seen"] == 1 and score["blind"] < 1 for score in scores.values())
    assert all(len(e.images) == QUESTIONS[e.task].pictures for e in examples)
    assert pretraining._score_answer("red box 1 2; blue ball 3 4", "red box 1 2; blue ball 3 5") == .5
