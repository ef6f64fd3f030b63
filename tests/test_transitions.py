"Our own benchmark: exact answers, balanced sides, the same bytes again."
from collections import Counter

import numpy as np
import pytest

from world2vlm.actions import Action, plan
from world2vlm.benchmarks import BENCHMARKS, control, row_of, with_interval
from world2vlm.dataset import validate
from world2vlm.generation import Imagine, Scenes, Supervise
from world2vlm.scenes import rooms
from world2vlm.tasks import TASKS
from world2vlm.transitions import Transitions, make_transitions, of_aim, of_camera, of_consequence, of_perspective, one_of, place, score_transitions, single
from world2vlm.transport import transitions
from world2vlm.worldmodels import load

CONFIG = Transitions(Scenes(n=8, first=970_000, seed=3, size=(64, 64), per_shard=4), Imagine(presets={"single": 4, "forward_turn": 1}), Supervise(per_scene=2))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    out = tmp_path_factory.mktemp("transitions") / "made"
    make_transitions(CONFIG, out)
    return out


@pytest.fixture(scope="module")
def items(home): return BENCHMARKS["transitions"].load(str(home))


def test_twelve_kinds_and_right_answers_score_one(items):
    assert {i.kind for i in items} == set(TASKS) | {"camera", "consequence", "aim", "perspective"}
    assert len({i.id for i in items}) == len(items)
    assert all(row_of(i, i.gold)["mark"] == pytest.approx(1) for i in items)
    assert score_transitions([row_of(i, "") for i in items])["all kinds"]["overall"] == 0


def test_valid_and_the_same_bytes_again(home, tmp_path):
    assert validate("scenes", home / "scenes") == [] and validate("examples", home / "examples") == []
    make_transitions(CONFIG, tmp_path / "again")
    for path in sorted(home.rglob("*.parquet")): assert path.read_bytes() == (tmp_path / "again" / path.relative_to(home)).read_bytes()


def test_sides_are_balanced_over_many_rooms():
    rng, said = np.random.default_rng(0), Counter()
    for scene in rooms(40, 5, (64, 64)): said.update(c.right for c in one_of(of_aim(scene), rng))
    assert sum(said.values()) > 20 and abs(said["left"] - said["right"]) <= 3 * np.sqrt(sum(said.values()))


def test_after_the_turn_that_aim_asks_for_the_object_is_nearer_to_the_middle():
    truth, checked = load("simulator", radius=0.0), 0
    for scene in rooms(6, 11, (64, 64)):
        for case in of_aim(scene, least=12.0):
            one = next(i for i in single(scene) if str(i.id) == case.about)
            after = truth.imagine(scene, [plan([Action(f"turn_{case.right}", 10)])], 0)[0]
            columns = np.flatnonzero((after.ids[-1] == one.id).any(0))
            before = abs(np.flatnonzero(one.mask.any(0)).mean() - 31.5)
            if len(columns) and not one.mask[:, [0, -1]].any(): assert abs(columns.mean() - 31.5) < before; checked += 1
    assert checked > 5


def test_what_is_said_of_consequences_is_seen():
    truth, checked = load("simulator"), 0
    for scene in rooms(5, 12, (64, 64)):
        for rollout in truth.imagine(scene, [plan([Action(k, 20)]) for k in ("turn_left", "turn_right")], 0, lambda *_: None):
            for t in transitions(scene, rollout):
                for case in of_consequence(t):
                    columns = np.flatnonzero((t.ids_after == int(case.about)).any(0))
                    assert (columns.mean() > 31.5) == (case.right == "right"); checked += 1
    assert checked > 5


def test_camera_names_the_action_without_its_amount():
    scene = next(rooms(1, 12, (64, 64)))
    for kind, right, wrong in (("turn_left", "turned left", "turned right"), ("turn_right", "turned right", "turned left")):
        rollout = load("simulator").imagine(scene, [plan([Action(kind, 20)])], 0)[0]
        case = of_camera(transitions(scene, rollout)[0])[0]
        assert (case.right, case.wrong) == (right, wrong) and "20" not in case.question


def test_an_object_behind_the_named_place_is_on_the_other_side():
    "Looking back at the camera exchanges left and right for all that lies near the line of sight's plane."
    scene = next(s for s in rooms(30, 21, (64, 64)) if of_perspective(s))
    by_id = {str(i.id): place(scene, i) for i in single(scene)}
    for case in of_perspective(scene):
        a, b = (by_id[i][[0, 2]] for i in case.about.split("-"))
        right = np.array([-a[1], a[0]]) / np.linalg.norm(a)  # of who stands at a and looks at the origin
        assert (case.right == "right") == ((b - a) @ right > 0)
        ahead = -a / np.linalg.norm(a)
        assert np.allclose(right, [ahead[1], -ahead[0]])  # as x is to the right of z


def test_controls_and_intervals(items):
    first = with_interval(control(items, "first"), score_transitions, 50)
    assert set(first) == {"all kinds", "eight tasks", "as SAT"} and all(r["low"] <= r["overall"] <= r["high"] and r["n"] == len(items) for r in first.values())
    assert 0.2 < first["as SAT"]["overall"] < 0.8
