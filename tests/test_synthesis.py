"The stages that make data: splits, subsampling, a choice of tasks, sources and their shares, moves without a scale, and teachers given by name, by `module:Class` or as objects."
import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records_of_rooms import ITEMS

from world2vlm.core.actions import plan, Ranges
from world2vlm.core.camera import Action
from world2vlm.core.config import ConfigError, load_settings, repo_root
from world2vlm.core.records import Rollout, transitions_of
from world2vlm.core.runs import read_jsonl, rng_for
from world2vlm.dataset.shards import read_dataset, validate_dataset
from world2vlm.dataset.synthesis import (HeldOut, Imagine, Scenes, Supervise, answer_counts, make_held_out, make_questions, make_rollouts, make_scenes,
                                         _parts, shard_scenes, _split_of, stats_summary, subsample, trajectories_of)
from world2vlm.scenes.panoramas import panorama_scenes, TRAINING_PLACES
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.rules import Rules
from world2vlm.tasks.tasks import TASKS
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.filters import Filter


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


# Several sources.
FOLDER = str(repo_root() / "data/panoramas")
PLACES = Scenes("panoramas", panoramas=FOLDER, places=("hall", "lab", "studio"), n=7, per_shard=3, size=(32, 32))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), share=st.integers(0, 20), per_shard=st.integers(1, 9), first=st.integers(0, 5))
def test_shares_of_the_sources(n, share, per_shard, first):
    "Property: the parts add up to `n`, each within one of its share, and the shards hold every scene once."
    config = Scenes({"panoramas": share / 20, "rooms": 1 - share / 20}, panoramas=FOLDER, places=("hall", "lab"), n=n, first=first, per_shard=per_shard)
    parts = {part.source: part.n for part in _parts(config)}
    assert sum(parts.values()) == n == config.total and all(abs(parts.get(name, 0) - part * n) <= 1 for name, part in config.source.items())
    spans = [_span(config, i) for i in range(config.n_shards)]
    for source, number in parts.items():
        assert [i for name, start, count in spans if name == source for i in range(start, start + count)] == list(range(first, first + number))
    assert all(1 <= count <= per_shard for _, _, count in spans)


def _span(config: Scenes, index: int) -> tuple:
    "Source, first scene and number of scenes of a shard."
    from unittest.mock import patch
    from world2vlm.dataset import synthesis
    calls = []
    with patch.object(synthesis, "_place_scenes", lambda part, start, n: calls.append((part.source, start, n))), \
         patch.object(synthesis, "room_scenes", lambda start, n, **_: calls.append(("rooms", start, n))): shard_scenes(index, ignore, config)
    return calls[0]


def test_a_mixture_is_its_parts(tmp_path):
    "The same rooms and the same views as alone, with one process and with two; each place has its share, the places take turns."
    mixed = replace(PLACES, source={"rooms": 0.5, "panoramas": 0.5}, n=10, seed=1)
    stats = make_scenes(mixed, tmp_path / "one")
    make_scenes(replace(mixed, workers=2), tmp_path / "two")
    assert {p.name: p.read_bytes() for p in (tmp_path / "one/data").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "two/data").iterdir()}
    alone = [s for i, n in (("rooms", 5), ("panoramas", 5)) for s in _all(replace(mixed, source=i, n=n))]
    scenes = list(read_dataset("scenes", tmp_path / "one"))
    assert [s.id for s in scenes] == [s.id for s in alone] and all((a.image == b.image).all() for a, b in zip(scenes, alone))
    assert stats["counts"]["source"] == {"room": 5, "panorama hall": 2, "panorama lab": 2, "panorama studio": 1}
    assert validate_dataset("scenes", tmp_path / "one") == []


def _all(config: Scenes) -> list: return [scene for i in range(config.n_shards) for scene in shard_scenes(i, ignore, config)]


def test_views_of_panoramas_do_not_depend_on_the_number(tmp_path):
    few, many, late = _all(PLACES), _all(replace(PLACES, n=12, per_shard=5)), _all(replace(PLACES, first=3, n=4))
    by_id = {s.id: s.source for s in many}
    assert len(by_id) == 12 and all(by_id[s.id] == s.source for s in [*few, *late]) and {s.id for s in late} <= {s.id for s in few}
    assert [s.source for s in panorama_scenes(["hall"], 4, 0, folder=FOLDER, start=2)] == [s.source for s in panorama_scenes(["hall"], 6, 0, folder=FOLDER)][2:]


def test_all_views_of_a_place_are_in_one_split(tmp_path):
    config = replace(PLACES, places=TRAINING_PLACES, n=40, per_shard=20)
    make_scenes(config, tmp_path / "scenes")
    make_rollouts(Imagine(presets={"single": 8}, ranges=Ranges(turn=(10, 60, 10))), load_teacher("panorama", folder=FOLDER), tmp_path / "scenes", tmp_path / "rollouts")
    stats = make_questions(Supervise(shares={"train": 0.5, "val": 0.5}), tmp_path / "scenes", tmp_path / "rollouts", tmp_path / "examples")
    places = {}
    for e in read_dataset("examples", tmp_path / "examples"): places.setdefault(e.scene_id.rpartition("-")[0], set()).add(e.split)
    assert len(places) == 10 and all(len(splits) == 1 for splits in places.values()) and set(stats["counts"]["split"]) == {"train", "val"}
    assert stats["views"] == {"plain pictures": {"imagined": stats["views"]["plain pictures"]["imagined"], "used": stats["views"]["plain pictures"]["imagined"], "share": 1.0}}


def test_pictures_bound_the_mixture(tmp_path):
    "Three pictures at a share of a quarter: twelve scenes at most."
    for i in range(3): Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    config = Scenes({"photos": 0.25, "rooms": 0.75}, folder=str(tmp_path), n=0, size=(32, 32), per_shard=4)
    assert [(part.source, part.n) for part in _parts(config)] == [("rooms", 9), ("photos", 3)]
    assert [(part.source, part.n) for part in _parts(replace(config, n=4))] == [("rooms", 3), ("photos", 1)]
    stats = make_scenes(config, tmp_path / "out")
    assert stats["counts"]["source"] == {"room": 9, "photo": 3}
    for path in tmp_path.glob("*.png"): path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of its pictures can be used"): make_scenes(config, tmp_path / "out")


@pytest.mark.parametrize("wrong, message", [
    ({"source": "panorama"}, "Scenes.source: expected one of rooms, photos, panoramas, got 'panorama' (str); did you mean panoramas?"),
    ({"source": {"room": 1.0}}, "Scenes.source.room: expected one of rooms, photos, panoramas, got 'room' (str); did you mean rooms?"),
    ({"source": {"rooms": 1.5}}, "Scenes.source.rooms: expected a number >= 0 and <= 1, got 1.5"),
    ({"source": {"rooms": 0.5, "photos": 0.4}}, "Scenes.source: the shares {'rooms': 0.5, 'photos': 0.4} do not add up to 1"),
    ({"source": {}}, "do not add up to 1"), ({"places": ()}, "Scenes.places: empty")])
def test_wrong_sources_are_refused(wrong, message):
    with pytest.raises(ValueError) as error: Scenes(**wrong)
    assert message in str(error.value)


def test_a_source_without_scenes_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="Scenes.n: 0; give the number"): make_scenes(replace(PLACES, source={"rooms": 0.5, "panoramas": 0.5}, n=0), tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere.png: not a readable panorama"): make_scenes(replace(PLACES, places=("nowhere",)), tmp_path / "out")
    with pytest.raises(ValueError, match="no folder of pictures"): make_scenes(Scenes({"rooms": 0.5, "photos": 0.5}), tmp_path / "out")


# Moves without a scale.
class Recorder:
    "A teacher that shows the anchor again and remembers what it was asked."
    name, exact = "recorder", False
    def __init__(self, **fidelity): self.wishes, self.fidelity = [], fidelity
    def imagine(self, scene, trajectories, seed=0, reject=None):
        self.wishes += trajectories
        return [Rollout(scene.id, self.name, seed, t.actions, t.poses, t.keyframes, np.stack([scene.image] * len(t.keyframes)), fidelity=dict(self.fidelity)) for t in trajectories]


MOTIONS = Imagine(presets={"single": 12, "turn_forward": 3}, ranges=Ranges((.2, 1, .1), (10, 60, 10)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_scenes(PLACES, folder / "scenes")
    return folder / "scenes"


def test_moves_without_a_scale_are_refused_before_the_teacher_is_asked(plain, tmp_path):
    teacher = Recorder()
    stats = make_rollouts(MOTIONS, teacher, plain, tmp_path / "rollouts")
    assert teacher.wishes and all(a.is_turn for t in teacher.wishes for a in t.actions) and stats["rows"] == len(teacher.wishes)
    rejects = read_jsonl(tmp_path / "rollouts/rejects.jsonl")
    assert stats["rows"] + len(rejects) == sum(len(trajectories_of(s.id, MOTIONS)) for s in read_dataset("scenes", plain))
    assert all("move" in row["input"] and row["reason"].startswith("no depth: 'move") and "set imagine.nominal" in row["reason"] for row in rejects)
    sizes = {(row["kind"], row["up_to"]): row for row in stats["motion_sizes"]}
    assert sizes["move", 1]["imagined"] == sizes["sequence", 0]["imagined"] == 0 < sizes["move", 1]["refused"] and sizes["turn", 10]["kept"] == 1
    figures = make_questions(Supervise(), plain, tmp_path / "rollouts", tmp_path / "examples")["views"]["plain pictures"]
    assert figures["share"] == 1 and figures["imagined"] == stats["rows"]


def test_nominal_metres_are_marked_from_the_rollout_to_the_example(plain, tmp_path):
    "The paper's own photo arm: moves from plain pictures, in units that nothing measures."
    teacher, nominal = Recorder(), replace(MOTIONS, nominal=True)
    make_rollouts(nominal, teacher, plain, tmp_path / "rollouts")
    rollouts = list(read_dataset("rollouts", tmp_path / "rollouts"))
    assert all(("nominal" in r.fidelity) == any(not a.is_turn for a in r.actions) for r in rollouts) and {"forward", "turn_left"} <= {a.kind for r in rollouts for a in r.actions}
    only_turns = make_questions(Supervise(), plain, tmp_path / "rollouts", tmp_path / "turns")
    assert set(only_turns["counts"]["task"]) == {"A2", "A4"} and set(only_turns["counts"]["evidence"]) == {"warped"} and only_turns["views"]["plain pictures"]["share"] < .7
    stats = make_questions(Supervise(rules=Rules(nominal=True)), plain, tmp_path / "rollouts", tmp_path / "all")
    assert set(stats["counts"]["task"]) == {"A1", "A2", "A3", "A4"} and stats["views"]["plain pictures"]["share"] == 1
    for e in read_dataset("examples", tmp_path / "all"):
        if e.task != "A4": assert e.evidence == ("warped" if e.task == "A2" else "warped, nominal")
    assert {e.evidence for e in read_dataset("examples", tmp_path / "all", task="A4")} == {"warped", "warped, nominal"}


def test_a_teacher_with_a_scale_of_its_own_is_not_nominal(plain, tmp_path):
    make_rollouts(replace(MOTIONS, nominal=True), Recorder(nominal=0.0), plain, tmp_path / "rollouts")
    assert {r.fidelity.get("nominal") for r in read_dataset("rollouts", tmp_path / "rollouts")} == {0.0}
    assert {"A1", "A3"} <= set(make_questions(Supervise(), plain, tmp_path / "rollouts", tmp_path / "examples")["counts"]["task"])


def test_objects_are_not_followed_through_a_move_without_depth():
    [scene] = room_scenes(1, seed=4)
    bare = replace(scene, depth=None, room=None)
    [rollout] = Recorder(nominal=1.0).imagine(bare, [plan([Action("turn_left", 20), Action("forward", .5)])])
    rng, rules = np.random.default_rng(0), Rules(nominal=True)
    turned, moved = ({e.task for task in TASKS.values() for e in task.derive(t, rng, rules)} for t in transitions_of(bare, rollout))
    assert {"A2", "D1", "D2"} <= turned and moved == {"A3", "A4"}


# What the gate keeps.
class Judged(Recorder): name = "svc"  # whose filter applies


def test_the_gate_is_reported_by_the_size_of_the_motion(plain, tmp_path):
    config = replace(MOTIONS, presets={"single": 30}, filters={"svc": Filter(matches=False, agreement=200, sharpness=0, min_overlap=.45, untestable="keep")})
    stats = make_rollouts(config, Judged(), plain, tmp_path / "keep")
    sizes = {row["up_to"]: row for row in stats["motion_sizes"] if row["kind"] == "turn"}
    assert set(sizes) == {10, 20, 30, 40, 50, 60} and all(sizes[turn]["kept"] == 0 for turn in (10, 20, 30, 40)), "nothing agrees to 200 dB"
    assert sizes[60]["not_testable"] == sizes[60]["kept"] == 1, "at 90 degrees a turn by 60 leaves 37 %"
    assert stats_summary(stats)["motion_sizes"] == stats["motion_sizes"] == json.loads((tmp_path / "keep/stats.json").read_text())["motion_sizes"]
    strict = replace(config, filters={"svc": replace(config.filters["svc"], untestable="drop")})
    dropped = {row["up_to"]: row for row in make_rollouts(strict, Judged(), plain, tmp_path / "drop")["motion_sizes"] if row["kind"] == "turn"}
    assert (dropped[60]["kept"], dropped[60]["not_testable"]) == (0, 1) and dropped[60]["imagined"] == sizes[60]["imagined"]


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


def test_plain_jpegs_are_used_up(tmp_path):
    "A folder of JPEGs, no manifest and no depth: nothing is imagined that no question can use."
    (tmp_path / "photos").mkdir()
    for i, scene in enumerate(panorama_scenes(("hall", "lab"), 3, 0, (96, 72), 54, FOLDER)): Image.fromarray(scene.image).save(tmp_path / f"photos/{i}.jpg")
    make_scenes(Scenes("photos", str(tmp_path / "photos"), n=0, size=(96, 72), per_shard=4), tmp_path / "scenes")
    config = Imagine(presets={"single": 6, "forward_turn": 1, "turn_forward": 1}, ranges=Ranges((.2, 1.5, .1), (10, 60, 10)))
    imagined = make_rollouts(config, "reprojection", tmp_path / "scenes", tmp_path / "rollouts")
    [(kind, views)] = make_questions(Supervise(), tmp_path / "scenes", tmp_path / "rollouts", tmp_path / "examples")["views"].items()
    assert kind == "plain pictures" and views["imagined"] == imagined["rows"] > 6 and views["share"] >= .9
