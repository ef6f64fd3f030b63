"Our own benchmark: exact answers, balanced sides, the same bytes again."
from collections import Counter

import numpy as np
import pytest

from world2vlm.core.camera import Action
from world2vlm.core.actions import plan
from world2vlm.evaluation.benchmarks.base import CONTROLS, control_rows, open_benchmark
from world2vlm.evaluation.statistics import score_with_interval
from world2vlm.dataset.shards import validate_dataset
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.tasks import TASKS
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark, _aim_questions, _camera_questions, _consequence_questions, _perspective_questions, _draw_by_coin, _object_centre, _score_rooms, _unique_instances
from world2vlm.core.records import transitions_of
from world2vlm.teachers.base import load_teacher

CONFIG = RoomsBenchmark(Scenes(n=8, first=970_000, seed=3, size=(64, 64), per_shard=4), Imagine(presets={"single": 4, "forward_turn": 1}), Supervise(per_scene=2))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    out = tmp_path_factory.mktemp("rooms") / "made"
    make_rooms_benchmark(CONFIG, out)
    return out


@pytest.fixture(scope="module")
def items(home): return open_benchmark("rooms").load(str(home))


def test_twelve_kinds_and_right_answers_score_one(items):
    assert {i.kind for i in items} == set(TASKS) | {"camera", "consequence", "aim", "perspective"}
    assert len({i.id for i in items}) == len(items)
    row = open_benchmark("rooms").row
    assert all(row(i, i.gold)["score"] == pytest.approx(1) and row(i, i.gold)["scene_id"] == i.example.scene_id for i in items)
    assert _score_rooms([row(i, "") for i in items])["all kinds"]["overall"] == 0


def test_valid_and_the_same_bytes_again(home, tmp_path):
    assert validate_dataset("scenes", home / "scenes") == [] and validate_dataset("examples", home / "examples") == []
    make_rooms_benchmark(CONFIG, tmp_path / "again")
    for path in sorted(home.rglob("*.parquet")): assert path.read_bytes() == (tmp_path / "again" / path.relative_to(home)).read_bytes()


def test_sides_are_balanced_over_many_rooms():
    rng, sides = np.random.default_rng(0), Counter()
    for scene in room_scenes(40, 5, (64, 64)): sides.update(c.right for c in _draw_by_coin(_aim_questions(scene), rng))
    assert sum(sides.values()) > 20 and abs(sides["left"] - sides["right"]) <= 3 * np.sqrt(sum(sides.values()))


def test_after_the_turn_that_aim_asks_for_the_object_is_nearer_to_the_middle():
    truth, checked = load_teacher("simulator", radius=0.0), 0
    for scene in room_scenes(6, 11, (64, 64)):
        for case in _aim_questions(scene, min_angle=12.0):
            named = next(i for i in _unique_instances(scene) if str(i.id) == case.about)
            after = truth.imagine(scene, [plan([Action(f"turn_{case.right}", 10)])], 0)[0]
            columns = np.flatnonzero((after.ids[-1] == named.id).any(0))
            before = abs(np.flatnonzero(named.mask.any(0)).mean() - 31.5)
            if len(columns) and not named.mask[:, [0, -1]].any(): assert abs(columns.mean() - 31.5) < before; checked += 1
    assert checked > 5


def test_consequences_are_those_of_the_simulator():
    truth, checked = load_teacher("simulator"), 0
    for scene in room_scenes(5, 12, (64, 64)):
        for rollout in truth.imagine(scene, [plan([Action(k, 20)]) for k in ("turn_left", "turn_right")], 0, lambda *_: None):
            for t in transitions_of(scene, rollout):
                for case in _consequence_questions(t):
                    columns = np.flatnonzero((t.ids_after == int(case.about)).any(0))
                    assert (columns.mean() > 31.5) == (case.right == "right"); checked += 1
    assert checked > 5


def test_camera_names_the_action_without_its_amount():
    scene = next(room_scenes(1, 12, (64, 64)))
    for kind, right, wrong in (("turn_left", "turned left", "turned right"), ("turn_right", "turned right", "turned left")):
        rollout = load_teacher("simulator").imagine(scene, [plan([Action(kind, 20)])], 0)[0]
        case = _camera_questions(transitions_of(scene, rollout)[0])[0]
        assert (case.right, case.wrong) == (right, wrong) and "20" not in case.question


def test_an_object_behind_the_named_place_is_on_the_other_side():
    "Looking back at the camera exchanges left and right for all that lies near the line of sight's plane."
    scene = next(s for s in room_scenes(30, 21, (64, 64)) if _perspective_questions(s))
    by_id = {str(i.id): _object_centre(scene, i) for i in _unique_instances(scene)}
    for case in _perspective_questions(scene):
        a, b = (by_id[i][[0, 2]] for i in case.about.split("-"))
        right = np.array([-a[1], a[0]]) / np.linalg.norm(a)  # of who stands at a and looks at the origin
        assert (case.right == "right") == ((b - a) @ right > 0)
        ahead = -a / np.linalg.norm(a)
        assert np.allclose(right, [ahead[1], -ahead[0]])  # as x is to the right of z


def test_controls_and_intervals(items):
    first = score_with_interval(control_rows("rooms", items, "first"), _score_rooms, 50)
    assert set(first) == {"all kinds", "eight tasks", "as SAT"} and all(r["low"] <= r["overall"] <= r["high"] for r in first.values())
    assert first["all kinds"]["n"] == len(items) == first["eight tasks"]["n"] + first["as SAT"]["n"]
    assert 0.2 < first["as SAT"]["overall"] < 0.8
