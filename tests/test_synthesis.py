"The stages that make data: splits, subsampling, a choice of tasks, and teachers given by name, by `module:Class` or as objects."
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_of_rooms import ITEMS

from world2vlm.core.config import ConfigError, load_settings
from world2vlm.core.runs import rng_for
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import (HeldOut, Imagine, Scenes, Supervise, answer_counts, make_held_out, make_questions, make_rollouts, make_scenes,
                                         _split_of, subsample, trajectories_of)


@settings(max_examples=50, deadline=None)
@given(id=st.text(max_size=20), seed=st.integers(0, 5))
def test_split_is_one_of_the_names(id, seed):
    assert _split_of(id, seed) in ("train", "val", "test") and _split_of(id, seed) == _split_of(id, seed)
    assert _split_of(id, seed, {"a": 0.0, "b": 1.0, "c": 0.0}) == "b"


def test_split_shares_and_seeds():
    ids = [f"room-{i:06d}" for i in range(4000)]
    first = [_split_of(i, 0, {"train": 0.5, "val": 0.3, "test": 0.2}) for i in ids]
    assert [round(first.count(name) / 4000, 1) for name in ("train", "val", "test")] == [0.5, 0.3, 0.2]
    assert sum(a != b for a, b in zip(first, (_split_of(i, 1, {"train": 0.5, "val": 0.3, "test": 0.2}) for i in ids))) > 1000
    assert [_split_of(f"room-{i:06d}") for i in range(6)] == ["train"] * 4 + ["test", "train"]
    for shares in ({"train": 0.5}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(ValueError, match="add up to 1"): _split_of("x", shares=shares)


# A choice of tasks.
def ignore(input, reason): pass


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(Scenes(n=4, per_shard=2, seed=1), folder / "scenes")
    return folder / "scenes"


@pytest.fixture(scope="module")
def rollouts(scenes):
    make_rollouts(Imagine(presets={"single": 4}), "simulator", scenes, scenes.parent / "rollouts")
    return scenes.parent / "rollouts"


def test_only_the_tasks_of_the_settings_are_asked(scenes, rollouts, tmp_path):
    stats = make_questions(Supervise(tasks=("D1", "A2")), scenes, rollouts, tmp_path / "examples")
    assert set(stats["counts"]["task"]) == {"A2", "D1"} == {e.task for e in read_dataset("examples", tmp_path / "examples")}


def test_an_unknown_task_is_an_error(scenes, rollouts, tmp_path):
    with pytest.raises(ConfigError, match="task"): make_questions(Supervise(tasks=("A9",)), scenes, rollouts, tmp_path / "examples")


OWN_TASK = '''
from dataclasses import replace
from world2vlm.tasks.tasks import TASKS
TURN = replace(TASKS["A2"], questions=("How did the camera turn?",))
'''


def test_an_own_task_is_named_by_its_module(scenes, rollouts, tmp_path, monkeypatch):
    (tmp_path / "own_task_of_a_test.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    make_questions(Supervise(tasks=("own_task_of_a_test:TURN",)), scenes, rollouts, tmp_path / "examples")
    examples = list(read_dataset("examples", tmp_path / "examples"))
    assert examples and {e.task for e in examples} == {"own_task_of_a_test:TURN"} and all("How did the camera turn?" in e.question for e in examples)


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(0, 5), seed=st.integers(0, 9))
def test_subsampling_keeps_the_order_and_at_most_the_limit(limit, seed):
    examples = ITEMS["examples"]
    sample = subsample(examples, limit, rng_for(seed, "x"))
    counts, places = Counter(e.task for e in sample), [next(i for i, e in enumerate(examples) if e is s) for s in sample]
    assert places == sorted(places) and counts == {task: min(limit, n) for task, n in Counter(e.task for e in examples).items() if limit}


def test_opposite_answers_are_balanced(scenes, rollouts, tmp_path):
    for name, balance in (("balanced", ("A2", "D2")), ("all", ())): make_questions(Supervise(balance=balance), scenes, rollouts, tmp_path / name)
    balanced, everything = answer_counts(tmp_path / "balanced"), answer_counts(tmp_path / "all")
    for task, pair in (("D2", ("yes", "no")), ("A2", ("turn_left", "turn_right"))):
        first, second = (balanced.get(task, {}).get(answer, 0) for answer in pair)
        assert first == second <= min(everything[task].get(answer, 0) for answer in pair)
    assert sum(balanced.get("A2", {}).values()) < sum(everything["A2"].values()) and balanced["D1"] == everything["D1"]


# Teachers.
OWN_TEACHER = '''
import numpy as np
from world2vlm.core.records import Rollout

class Still:
    name, exact = "still", False
    def __init__(self, brightness=1.0): self.brightness = brightness
    def imagine(self, scene, trajectories, seed=0, reject=None):
        image = (scene.image * self.brightness).astype(np.uint8)
        return [Rollout(scene.id, self.name, seed, t.actions, t.poses, t.keyframes, np.stack([image] * len(t.keyframes))) for t in trajectories]
'''


def test_a_teacher_by_its_module_and_as_an_object(scenes, tmp_path, monkeypatch):
    (tmp_path / "own_teacher_of_a_test.py").write_text(OWN_TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_teacher_of_a_test:Still"
    config = Imagine(presets={"single": 2}, options={name: {"brightness": 0.5}})
    make_rollouts(config, name, scenes, tmp_path / "by_name")
    make_rollouts(config, sys.modules["own_teacher_of_a_test"].Still(0.5), scenes, tmp_path / "object")
    pairs = list(zip(read_dataset("rollouts", tmp_path / "by_name"), read_dataset("rollouts", tmp_path / "object"), strict=True))
    assert len(pairs) == 8 and all((a.images == b.images).all() and a.teacher == b.teacher == "still" for a, b in pairs)
    dark = {s.id: (s.image * 0.5).astype(np.uint8) for s in read_dataset("scenes", scenes)}
    assert all((a.images == dark[a.scene_id]).all() for a, _ in pairs)


def test_all_teachers_get_the_same_trajectories():
    config = Imagine(presets={"single": 20})
    first, second = ([t.actions for t in trajectories_of(f"room-{i:06d}", config)] for i in (0, 1))
    assert first == [t.actions for t in trajectories_of("room-000000", config)] != second and len(set(first)) == len(first)


# Settings of the pipeline.
@pytest.mark.parametrize("profile", ["smoke", "mini", "gpu", "paper"])
@pytest.mark.parametrize("section, cls", [("scenes", Scenes), ("imagine", Imagine), ("supervise", Supervise), ("held_out", HeldOut)])
def test_params_fit_the_settings(profile, section, cls):
    assert isinstance(load_settings(cls, section, profile), cls)


def test_held_out_questions_are_exact_and_of_the_test_split(tmp_path):
    config = HeldOut(Scenes(n=2, first=900_000, per_shard=2), Imagine(presets={"single": 2}), Supervise(per_scene=1))
    stats = make_held_out(config, tmp_path / "held_out")
    assert stats["rows"] and stats["counts"]["split"].keys() == {"test"} and stats["counts"]["evidence"].keys() == {"exact"}
    assert all(e.scene_id >= "room-900000" for e in read_dataset("examples", tmp_path / "held_out"))
    assert max(stats["counts"]["task"].values()) <= 2
