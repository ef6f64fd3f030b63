"Held-out evaluation: the image-free baseline, the shuffled-image control, and the stages that put them beside the students."
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_answering import make_examples, without_time
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import HeldOut, make_held_out, Scenes, Supervise
from world2vlm.evaluation.held_out import (
    _majority_rows, _most_frequent_answer, _random_rows, _shuffle_images, _training_groups, Evaluate, evaluate_arm, evaluate_base, _other_scene_indices,
    read_runs)
from world2vlm.evaluation.statistics import score_rows
from world2vlm.students.models import Reply


@pytest.fixture(scope="module")
def train() -> list:
    return make_examples(6, seed=1)


@pytest.fixture(scope="module")
def held_out() -> list:
    return make_examples(4, seed=1000)


# --- image-free baseline

def test_majority_reads_training_answers_only(train, held_out):
    rows = _majority_rows(_training_groups(train), held_out)
    spoiled = [replace(example, answer="turn left 10 degrees") for example in held_out]
    assert [row["response"] for row in _majority_rows(_training_groups(train), spoiled)] == [row["response"] for row in rows]
    groups = Counter((row["task"], row["phrasing"]) for row in rows)
    assert len({(row["task"], row["phrasing"], row["response"]) for row in rows}) == len(groups)  # one constant each
    assert score_rows(rows)["graded"]["mean"]["score"] < 0.75
    assert all(row["response"] == "" and row["parsed"] is None for row in _majority_rows({}, held_out))


def test_the_most_frequent_answer(train):
    yes_no = [example for example in train if example.task == "D2" and example.phrasing == "direct"]
    assert yes_no, "the training examples hold no direct D2 question"
    answers = Counter(example.answer for example in yes_no)
    assert answers[_most_frequent_answer(yes_no)] == max(answers.values())


def test_boxes_take_the_median_of_each_side(train):
    example = next(e for e in train if e.task == "D1" and not e.choices)
    boxes = [(0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.4), (0.5, 0.5, 1, 1)]
    examples = [replace(example, target=example.target | dict(box=list(box))) for box in boxes]
    assert _most_frequent_answer(examples) == "[100, 0, 300, 400]"


def test_one_answer_in_two_wordings_counts_as_one(train):
    example = next(e for e in train if e.task == "D2" and e.phrasing == "sentence")
    no, yes = (example.target | dict(yes=value) for value in (False, True))
    examples = [replace(example, answer=text, target=target) for text, target in (
        ("No, the sofa stays in view.", no), ("No, the lamp stays in view.", no),
        ("Yes, the sofa disappears from view.", yes))]
    assert _most_frequent_answer(examples).startswith("No")


def test_random_answers_are_letters_or_training_answers(train, held_out):
    groups = _training_groups(train)
    rows = _random_rows(groups, held_out)
    assert [row["response"] for row in rows] == [row["response"] for row in _random_rows(groups, held_out[::-1])][::-1]
    for row, example in zip(rows, held_out):
        own = [other.answer for other in train if (other.task, other.phrasing) == (example.task, example.phrasing)]
        assert row["response"] in (example.choices or own or [""])
    asked = [replace(example, id=f"{example.id}-{i}") for example in held_out if example.choices for i in range(60)]
    exact = np.mean([row["score"]["exact"] for row in _random_rows(groups, asked)])
    assert abs(exact - np.mean([1 / len(example.choices) for example in asked])) < 0.06  # the chance of a random letter
    assert all(row["response"] == "" for row in _random_rows({}, held_out) if row["phrasing"] != "choice")


# --- shuffled-image control

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), st.integers(0, 5))
def test_others_come_from_other_scenes(scenes, seed):
    if len(set(scenes)) < 2:
        with pytest.raises(ValueError, match="at least two scenes"):
            _other_scene_indices(scenes, np.random.default_rng(seed))
        return
    others = _other_scene_indices(scenes, np.random.default_rng(seed))
    assert all(scenes[j] != scene for scene, j in zip(scenes, others))
    if 2 * max(Counter(scenes).values()) <= len(scenes):
        assert sorted(others) == list(range(len(scenes)))  # no pictures are lost


def test_shuffling_changes_pictures_and_nothing_else(held_out):
    shuffled = _shuffle_images(held_out, seed=3)
    owner = {id(image): example.scene_id for example in held_out for image in example.images}
    for example, other in zip(held_out, shuffled):
        assert replace(other, images=example.images) == example
        assert len(other.images) == len(example.images)
        assert all(owner[id(image)] != example.scene_id for image in other.images)
    again = _shuffle_images(held_out, seed=3)
    assert all(a.images is b.images for a, b in zip(shuffled, again))
    a2 = [example for example in held_out if example.task == "A2"]
    rare = [example for example in held_out if example.task != "A2"] + a2[:1]
    for example, other in zip(rare, _shuffle_images(rare)):  # a task of one scene borrows
        assert owner[id(other.images[0])] != example.scene_id
    with pytest.raises(ValueError, match="at least two scenes"):
        _shuffle_images([example for example in held_out if example.scene_id == held_out[0].scene_id])


# --- stages

class Colour:
    "A user's own engine: it answers with its name and the mean of the first picture, so pictures decide all it says."
    opened, calls_left = [], 10**6

    def __init__(self, checkpoint, **options):
        self.name = Path(checkpoint).name
        Colour.opened.append((self.name, options))

    def key(self, settings): return f"{self.name} {settings}"

    def reply(self, prompts, max_new_tokens):
        if not Colour.calls_left: raise KeyboardInterrupt
        Colour.calls_left -= 1
        return [Reply(self.answer(prompt.pieces), max_new_tokens) for prompt in prompts]

    def answer(self, pieces): return f"{self.name} {pieces[0].mean():.3f}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("held_out")
    for name, first in (("questions", 900_000), ("examples", 0)):
        make_held_out(HeldOut(Scenes(n=3, first=first), supervise=Supervise(per_scene=2)), home / name)
    for name in ("base", "sft", "grpo"):
        (home / name).mkdir()
        (home / name / "weights").write_text(name)
    return home


CONFIG = Evaluate(engine=f"{__name__}:Colour", batch_size=4, max_new_tokens=5, box_format="pixels")


def arm(folders, out):
    students = {"sft": folders / "sft", "grpo": folders / "grpo"}
    return evaluate_arm(CONFIG, students, folders / "questions", folders / "examples", out)


def by_id(runs): return {name: {row["id"]: row for row in without_time(rows)} for name, rows in runs.items()}


def test_the_stages_give_the_runs_of_a_report(folders, tmp_path):
    Colour.opened.clear()
    base = evaluate_base(CONFIG, folders / "base", folders / "questions", tmp_path / "base")
    runs = base | arm(folders, tmp_path / "arm")
    assert list(runs) == ["base", "sft", "grpo", "blind", "majority", "random"]
    assert by_id(runs) == by_id(read_runs(tmp_path / "base", tmp_path / "arm"))
    options = dict(box_format="pixels", attention="sdpa", max_pixels=0, dtype="auto")
    assert Colour.opened == [(name, options) for name in ("base", "sft", "grpo")]  # each once, in the order of training
    questions, training = (list(read_dataset("examples", folders / name)) for name in ("questions", "examples"))
    mean = lambda examples, name: [f"{name} {example.images[0].mean():.3f}" for example in examples]
    responses = {name: [row["response"] for row in rows] for name, rows in runs.items()}
    assert all(responses[name] == mean(questions, name) for name in ("base", "sft", "grpo"))
    assert responses["blind"] == mean(_shuffle_images(questions, CONFIG.seed), "grpo") != responses["grpo"]
    assert responses["majority"] == [row["response"] for row in _majority_rows(_training_groups(training), questions)]
    assert responses["random"] == [row["response"] for row in _random_rows(_training_groups(training), questions)]


def test_several_processes_write_the_same_files(folders, tmp_path):
    arm(folders, tmp_path / "one")
    students = {"sft": folders / "sft", "grpo": folders / "grpo"}
    runs = evaluate_arm(replace(CONFIG, workers=2), students, folders / "questions", folders / "examples", tmp_path / "two")
    files = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert by_id(runs) == by_id(read_runs(tmp_path / "two"))


def test_an_arm_that_was_killed_goes_on_where_it_was(folders, tmp_path):
    whole = arm(folders, tmp_path / "whole")
    batches = 3 * -(-len(whole["sft"]) // CONFIG.batch_size)
    Colour.calls_left = batches // 2
    with pytest.raises(KeyboardInterrupt): arm(folders, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    Colour.calls_left = batches - batches // 2  # enough for what is missing, and no more
    assert by_id(arm(folders, tmp_path / "killed")) == by_id(whole) and Colour.calls_left == 0
    Colour.calls_left = 10**6
    for path in (tmp_path / "whole").iterdir(): assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
