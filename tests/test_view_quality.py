"Judging a teacher: the truth is perfect, a mirrored teacher is found out, tables add up."
from dataclasses import replace

import numpy as np
import pytest

from world2vlm.core.camera import Action
from world2vlm.core.actions import plan
from world2vlm.dataset.synthesis import Scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.scenes.room import Room
from world2vlm.evaluation.teacher_quality import JudgedView, TeacherQuality, scores_by_motion_size, _ranked_views, judge_teacher, judge_view, _view_scores, _probe_motions, quality_table, _baseline_views, _judge_shard
from world2vlm.teachers.base import load_teacher

CONFIG = TeacherQuality(Scenes(first=700_000, n=4, seed=1, size=(64, 64), per_shard=2), turns=(10, 30), moves=(0.3,), poses=False)


@pytest.fixture(scope="module")
def scene(): return next(room_scenes(1, 3, (64, 64)))


def test_the_truth_is_perfect():
    for view in _judge_shard(0, "simulator", replace(CONFIG, poses=True)):
        assert view.told["psnr teacher"] > 70 and view.told["ssim teacher"] == pytest.approx(1) and view.told["rotation"] < 0.5 and view.told.get("move", 0) < 0.1
        assert all(view.told[f"psnr {name}"] <= view.told["psnr teacher"] for name in ("copy", "without depth", "mirrored in", "smoothed in"))


def test_a_mirrored_teacher_is_found_out(scene):
    "The commonest bug of the field: left and right exchanged."
    left, right = (load_teacher("simulator", radius=0.0).imagine(scene, [plan([Action(kind, 20)])], 0)[0] for kind in ("turn_left", "turn_right"))
    wrong = judge_view(scene, replace(left, images=right.images), left.images[0], room=Room(scene.room.seed))
    assert wrong.told["rotation"] > 15 and wrong.told["psnr teacher"] < wrong.told["psnr without depth"]


def test_rivals_know_what_they_may(scene):
    turn, move = plan([Action("turn_right", 30)]).poses[-1], plan([Action("forward", 0.4)]).poses[-1]
    assert (_baseline_views(scene, turn)["without depth"] == _baseline_views(scene, turn)["mirrored in"]).all()
    assert (_baseline_views(scene, move)["without depth"] == scene.image).all() and 0.2 < _baseline_views(scene, turn)["unseen"].mean() < 0.6


def test_every_scene_has_every_size_once(scene):
    for seed in range(3):
        asked = _probe_motions(scene, replace(CONFIG, seed=seed))
        assert [a.amount for (a,) in asked] == [10, 30, 0.3] and all(len(actions) == 1 for actions in asked)


def test_tables_add_up():
    views = judge_teacher("reprojection", CONFIG)
    rows = scores_by_motion_size(views)
    assert sum(r["n"] for r in rows if r["amount"] is None) == len(views) == sum(r["n"] for r in rows if r["amount"] is not None)
    for kind in ("turn", "move"):
        [whole] = [r for r in rows if r["kind"] == kind and r["amount"] is None]
        assert whole["psnr copy"] == pytest.approx(np.mean([v.told["psnr copy"] for v in views if v.kind == kind]))
    assert quality_table(rows).count("\n") == len(rows) + 1


def test_worst_and_best_are_chosen_by_rule():
    views = [JudgedView("turn", 10, {"psnr teacher": float(k)}, "", np.zeros((3, 8, 8, 3), np.uint8)) for k in range(10)]
    assert {name: [v.told["psnr teacher"] for v in few] for name, few in _ranked_views(views, 2).items()} == {"worst": [0, 1], "median": [4, 5], "best": [9, 8]}


def test_few_unseen_pixels_are_not_judged_by_themselves(scene):
    assert not any(name.startswith("unseen") for name in _view_scores({"copy": scene.image}, scene.image, np.zeros((64, 64), bool)))
