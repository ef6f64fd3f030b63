"Pretraining: questions that are true and say nothing of motion, a killed run that ends as an unbroken one, a probe that tells right from wrong."
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from toy_training import one_thread, weights
from world2vlm.core.records import iou
from world2vlm.students import answer_forms, pretraining, static_forms, static_questions, view_pairs
from world2vlm.students.launch import launch_distributed
from world2vlm.students.models import load_student, Reply
from world2vlm.students.pretraining import Base, Phase, probe, probe_examples, train_base
from world2vlm.students.static_questions import QUESTIONS
from world2vlm.students.training import read_training_log
from world2vlm.students.view_pairs import PairStream
from world2vlm.tasks.answers import MOTION_ANSWER, _read_answer_box

SMALL = dict(workers=0, rooms=2, per_room=4, check_every=2, check_pairs=1, save_every=1, log_every=1)
TOY = Base((Phase(2, 2, 0), Phase(3, 2, 150, prompts_every=2)), processes=1, **SMALL)
MOTION = re.compile(r"camera|turn|forward|backward|degree|\bmove", re.I)

# all objects shift right by .3 of the width, 5 of 16 columns
FIRST = [answer_forms._VisibleObject(1, "red box", (.1, .5, .3, .7), 2), answer_forms._VisibleObject(2, "blue ball", (.3, .5, .4, .6), 3)]
SECOND = [answer_forms._VisibleObject(1, "red box", (.4, .5, .6, .7), 2), answer_forms._VisibleObject(2, "blue ball", (.6, .5, .7, .6), 3)]


@pytest.fixture(scope="module")
def rows(): return [row for row in map(PairStream(3, view_pairs._PairMix(1200, .5), rooms=4, per_room=8).__getitem__, range(60))]


def test_base_teaches_no_motion(rows):
    "No question of the base says how the camera moved: words of motion occur where they are repeated, whatever the pictures show."
    branches = [branch for row in rows for branch in row.branches]
    assert len(branches) > 500
    assert not [b[:2] for b in branches if not b.question.startswith("Repeat: ") and MOTION.search(b.question + b.answer)]
    repeated = [b for b in branches if b.question.startswith("Repeat: ")]
    spelled = [b for b in repeated if MOTION.search(b.question.split(".\n")[0])]  # others repeat a box or a name
    assert spelled and all(MOTION_ANSWER.read(re.split(r"\.\n|\. Claim| Answer", b.question)[0]) for b in spelled)


def test_repeated_motions_know_nothing_of_the_views():
    "The same motion is asked for whatever the views are."
    asked = [static_questions._repeat_motion(first, second, np.random.default_rng(k)) for k in range(20) for first, second in ((FIRST, SECOND), ([], []))]
    assert asked[::2] == asked[1::2]


def test_compared_texts_differ_and_the_answer_is_true():
    "One of four letters bears the text; a claim is true where it repeats it."
    for k in range(60):
        asked = static_questions._ask_comparison(FIRST, SECOND, np.random.default_rng(k))
        text = re.match(r"(?:Boxes.*?\] )?.*?Repeat: (.*?)\.(?:\n| Claim)", asked.question, re.S)[1]
        options = dict(re.findall(r"^([A-D])\. (.*)$", asked.question.split("Claim")[0], re.M))
        if "Claim" not in asked.question:
            assert options[asked.answer] == text and len(set(options.values())) == 4
            continue
        claim, letters = re.search(r"Claim: (.*?)\.(?:\n| |$)", asked.question)[1], dict(re.findall(r"^([AB])\. (true|false)$", asked.question, re.M))
        assert letters.get(asked.answer, re.sub(r".*the claim is |\.", "", asked.answer)) == str(claim == text).lower()


def test_motions_in_prompts_know_nothing_of_the_views():
    "Captions of views are the same for other views."
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 2
    captions = lambda objects: [piece for piece in static_forms._ask_scores(pictures, objects, np.random.default_rng(3))[0].pieces if str(piece).startswith("Imagined")]
    assert captions([FIRST, SECOND]) == captions([FIRST, FIRST]) != []


def test_choices_know_nothing_of_motion_but_its_spelling():
    "Two choices are static; words of motion are repeated, whatever the views are."
    asked = [static_forms._static_choice(FIRST, SECOND, np.random.default_rng(k)) for k in range(300)]
    spelled = [texts for texts in filter(None, asked) if MOTION.search(" ".join(texts))]
    assert spelled and all(question == f"Repeat: {right}." for question, right, _ in spelled)
    copied = lambda objects: [static_forms._copied_choice(objects, np.random.default_rng(k)) for k in range(30)]
    assert copied(FIRST) == copied([]) and {wrong for *_, wrong in copied([])} >= {"turned left", "turned right"}


def test_sides_are_true():
    "The red box is left of the middle, the blue ball too; five columns of sixteen to the right bring both near the middle or past it."
    for k in range(200):
        if not (asked := static_forms._side_choice(FIRST, np.random.default_rng(k))): continue
        question, right, wrong = asked
        x = .2 if "red box" in question else .35
        if shift := re.search(r"shifts (left|right) (\d+)", question): x += (1 if shift[1] == "right" else -1) * int(shift[2]) / 16
        assert ("left" in right) == (x < .5) and ("left" in wrong) == (x > .5)


def test_answers_are_true(rows):
    "Boxes belong to their objects, absent objects are absent, claims are judged by what is visible."
    for seed in range(30):
        room = view_pairs._sample_room(900 + seed % 3)
        rng, objects = np.random.default_rng(seed), room.objects[seed % len(room.objects)]
        if not objects: continue
        by_label = {o.label: o for o in objects}
        for practice in (0, 1):
            asked = static_questions._ask_location(objects, rng, practice)
            label = re.search(r"Where is the (\w+ \w+)\?", asked.question)[1]
            options = dict(re.findall(r"^([A-D])\. (.*)$", asked.question, re.M))
            assert iou(_read_answer_box(options.get(asked.answer, asked.answer)), by_label[label].box) > .95
            assert asked.target == (0, by_label[label].id) and len(set(options.values())) == len(options)
            asked = static_questions._ask_presence(objects, rng, 0)
            label = re.search(r"Is there an? (\w+ \w+)\?", asked.question)[1]
            assert asked.answer == ("yes" if label in by_label else "no")
            if asked.answer == "no": assert label not in objects[0].in_room
        places = static_questions._ask_listing(objects, rng).answer.split("; ")
        assert [place.split(" [")[0] for place in places] == [o.label for o in objects]


def test_changes_are_true():
    rng, forms = np.random.default_rng(0), set()
    for question, answer, _ in filter(None, (static_questions._ask_change(FIRST, SECOND, rng, 1) for _ in range(300))):
        options, claim = dict(re.findall(r"^([A-D])\. (.*)$", question, re.M)), "Claim" in question
        answer = options.get(answer, answer)
        if claim and "so the" not in answer: assert answer == ("true" if "right 5" in question.split(".")[0] else "false"); forms.add("claim")
        else: assert "right 5" in answer; forms.add("letter" if options else "text")
    assert forms == {"claim", "letter", "text"}
    for question, answer, _ in filter(None, (static_questions._ask_same(FIRST, SECOND, rng) for _ in range(50))):
        same = ("[100, 500, 300, 700]" in question) == ("[400, 500, 600, 700]" in question)
        assert answer == ("yes" if same else "no")


def test_scores_say_what_a_view_shows():
    cut = answer_forms._VisibleObject(1, "red box", (0, .5, .3, .7), 2)
    assert [static_forms._view_score("red box", objects) for objects in ([], FIRST, [cut], [cut, *FIRST])] == [0, 9, 5, 9]


def test_a_row_depends_on_its_number_alone():
    a, b = (pretraining._PhaseRows(TOY, 1) for _ in range(2))
    assert len(a) == 6
    for number in (5, 0, 3, 5):
        x, y = a[number], b[number]
        assert [(q, t) for q, t, *_ in x.branches] == [(q, t) for q, t, *_ in y.branches] and x.answer == y.answer
        assert all(np.array_equal(p, q) for p, q in zip(x.pictures, y.pictures))
    assert {bool(a[number].prompt) for number in range(6)} == {True, False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    return train_base(TOY, tmp_path_factory.mktemp("base") / "whole")


def test_a_plain_checkpoint(trained):
    "The heads are gone, the phases are joined, every part of the loss is in the log, and on unseen places too."
    model, processor = load_student(str(trained))
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration" and not any("heads" in name for name in model.state_dict())
    assert not list(trained.glob("phase-*"))
    log = read_training_log(trained)
    assert {line["step"] for line in log if "eval_rooms_flow" in line} == {2, 4, 5} and {line["phase"] for line in log} == {0, 1}
    assert {"eval_places_matched", "eval_rooms_pointed", "eval_rooms_number"} <= {name for line in log for name in line}
    assert processor.tokenizer.decode(processor.tokenizer("[0, 64, 3, 12]")["input_ids"]) == "[0, 64, 3, 12]"
    assert len(processor.tokenizer("[0, 64, 3, 12]")["input_ids"]) == 9


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_pretraining import TOY
from transformers import Trainer
from world2vlm.students.pretraining import train_base
save = Trainer._save_checkpoint
def save_and_die(*args, **kwargs):
    save(*args, **kwargs)
    if os.path.exists("{checkpoint}/trainer_state.json"): os.kill(os.getpid(), signal.SIGKILL)
Trainer._save_checkpoint = save_and_die
train_base(TOY, "{out}")
"""


@pytest.mark.parametrize("phase, step", [(0, 1), (1, 1), (1, 2)])
@pytest.mark.proof
def test_a_killed_run_ends_with_the_same_weights(trained, tmp_path, one_thread, phase, step):
    "Killed -9 after a checkpoint of any phase, then run again."
    out = tmp_path / "base"
    code = KILLED.format(tests=os.path.dirname(__file__), out=out, checkpoint=out / f"phase-{phase}/checkpoints/checkpoint-{step}")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (out / "model.safetensors").exists()
    resumed, whole = weights(train_base(TOY, out)), weights(trained)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.proof
def test_two_processes_train_one_student(tmp_path):
    "Each reads rooms of its own; the weights stay equal, and there is one checkpoint."
    config = Base((Phase(1, 2, 0), Phase(2, 2, 100)), processes=2, **SMALL)
    assert pretraining._PhaseRows(config, 0).streams[0].seed != pretraining._PhaseRows(config, 0).streams[1].seed
    launch_distributed(train_base, config, str(tmp_path / "base"))
    out = tmp_path / "base"
    assert read_training_log(out)[-1]["step"] == 3 and load_student(str(out))


class Copy:
    "A student that knows the right answers, but only of pictures that belong to their question."
    def __init__(self, questions): self.answers = {self.of(q.prompt): q.answer for q in questions}
    def of(self, prompt): return tuple(piece if isinstance(piece, str) else piece.tobytes() for piece in prompt.pieces)
    def reply(self, prompts, max_new_tokens): return [Reply(self.answers.get(self.of(prompt), "hm"), 1) for prompt in prompts]


def test_probe_tells_right_from_wrong():
    "Right answers score one, answers to the pictures of another room less, and every kind is asked."
    questions = probe_examples(6)
    scores = probe(Copy(questions), questions)
    assert set(scores) == {*QUESTIONS, "choice", "scores"} and all(score["seen"] == 1 and score["blind"] < 1 for score in scores.values())
    assert scores["scores"]["readable"] == 1


@pytest.mark.parametrize("answer, truth, score", [
    ("[0, 0, 500, 500]", "[0, 0, 500, 600]", 1), ("[0, 0, 500, 100]", "[0, 0, 500, 600]", 0), ("hm", "[0, 0, 500, 600]", 0),
    ("red box [1, 2, 3, 4]; blue ball [1, 2, 3, 4]", "red box [1, 2, 3, 4]; blue ball [500, 2, 600, 4]", .5),
    ("2.1 meters", "2 meters", 1), ("3 meters", "2 meters", 0), ("9, 0, 5", "9, 0, 9", 2 / 3), ("9, 0", "9, 0, 9", 0),
    ("yes", "yes", 1), ("", "yes", 0)])
def test_scores_of_answers(answer, truth, score): assert pretraining._score_answer(answer, truth) == pytest.approx(score)
