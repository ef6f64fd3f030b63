"Evaluating a teacher: the truth is perfect, a mirrored teacher scores badly, tables add up."
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action, yaw
from world2vlm.core.actions import plan
from world2vlm.core.config import repo_root
from world2vlm.dataset.synthesis import Scenes
from world2vlm.evaluation.teacher_quality import _EvaluatedView, evaluate_teacher, _evaluate_view, measures_table, quality_table, scores_by_motion_size, TeacherQuality
from world2vlm.evaluation.teacher_quality import _baseline_views, _evaluate_shard, _fitted_turn, _probe_motions, _ranked_views
from world2vlm.evaluation.view_scores import _agrees, _detail, _known_objects, _nearest_surface, _object_scores, _view_scores
from world2vlm.scenes.panoramas import _place_and_heading, crop_panorama, panorama_scenes, read_panorama
from world2vlm.scenes.room import Room, room_scenes
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.filters import fitted_pose, pose_errors

CONFIG = TeacherQuality(Scenes(first=700_000, n=4, seed=1, size=(64, 64), per_shard=2), turns=(10, 30), moves=(0.3,), poses=False)


@pytest.fixture(scope="module")
def scene(): return next(room_scenes(1, 3, (64, 64)))


def test_the_truth_is_perfect():
    for view in _evaluate_shard(0, "simulator", replace(CONFIG, poses=True)):
        assert view.scores["psnr teacher"] > 70 and view.scores["ssim teacher"] == pytest.approx(1) and view.scores["rotation"] < 0.5 and view.scores.get("move", 0) < 0.1
        assert all(view.scores[f"psnr {name}"] <= view.scores["psnr teacher"] for name in ("copy", "without depth", "mirrored in", "smoothed in"))
        assert {view.scores.get(f"{name} teacher", 1) for name in ("sharpness", "found", "continued")} == {1}


def test_a_mirrored_teacher_scores_badly(scene):
    "The commonest bug of the field: left and right exchanged."
    left, right = (load_teacher("simulator", radius=0.0).imagine(scene, [plan([Action(kind, 20)])], 0)[0] for kind in ("turn_left", "turn_right"))
    wrong = _evaluate_view(scene, replace(left, images=right.images), left, fit=partial(fitted_pose, Room(scene.room.seed), scene))
    assert wrong.scores["rotation"] > 15 and wrong.scores["psnr teacher"] < wrong.scores["psnr without depth"]


def test_baselines_use_what_they_may(scene):
    turn, move = plan([Action("turn_right", 30)]).poses[-1], plan([Action("forward", 0.4)]).poses[-1]
    (turned, unseen), (moved, _) = _baseline_views(scene, turn), _baseline_views(scene, move)
    assert (turned["without depth"] == turned["mirrored in"]).all() and (turned["copy"] == scene.image).all() and 0.2 < unseen.mean() < 0.6
    assert (moved["without depth"] == scene.image).all() and (moved["mirrored in"] != scene.image).any()
    assert (turned["smoothed in"][~unseen] == turned["mirrored in"][~unseen]).all() and (turned["smoothed in"][unseen] != turned["mirrored in"][unseen]).any()


# Turns at real places.
PLACES = replace(CONFIG, scenes=Scenes("panoramas", panoramas=str(repo_root() / "data/panoramas"), places=("interior", "hall", "forest_2", "city"), n=4, per_shard=2), turns=(10, 50))


@settings(max_examples=8, deadline=None)
@given(error=st.floats(-15, 15), turn=st.sampled_from([-40, 10, 60]), place=st.sampled_from(PLACES.scenes.places))
def test_the_turn_of_a_view_is_recovered(error, turn, place):
    "Property: where the view shows another turn than the requested one, the fit finds that turn."
    panorama, [anchor] = read_panorama(f"{PLACES.scenes.panoramas}/{place}.png"), panorama_scenes([place], 1, 3, folder=PLACES.scenes.panoramas)
    view = crop_panorama(panorama, (heading := _place_and_heading(anchor)[1]) + turn + error, anchor.K, anchor.size)
    assert pose_errors(_fitted_turn(panorama, heading, anchor, view, yaw(turn)), yaw(turn + error))["rotation"] < .3


def test_the_truth_is_perfect_at_real_places_and_a_mirrored_teacher_is_not():
    true = evaluate_teacher(load_teacher("panorama", folder=PLACES.scenes.panoramas), replace(PLACES, poses=True))
    assert len(true) == 8 and {v.kind for v in true} == {"turn"} and all(v.scores["psnr teacher"] > 70 and v.scores["rotation"] < .3 for v in true)
    class Mirrored:
        name, exact = "mirrored", False
        def imagine(self, scene, trajectories, seed=0, reject=None):
            opposite = [plan([a.opposite for a in t.actions]) for t in trajectories]
            views = load_teacher("panorama", folder=PLACES.scenes.panoramas).imagine(scene, opposite)
            return [replace(v, actions=t.actions, poses=t.poses) for v, t in zip(views, trajectories)]
    wrong = evaluate_teacher(Mirrored(), replace(PLACES, poses=True))
    assert np.median([v.scores["rotation"] for v in wrong]) > 10 and np.mean([v.scores["seen teacher"] for v in wrong]) < 18


def test_reprojection_is_right_where_the_anchor_saw():
    "Measured beforehand: 32 to 34 dB on seen pixels, copying the anchor 13 to 16."
    rows = scores_by_motion_size(evaluate_teacher("reprojection", PLACES))
    for row in rows:
        assert row["seen teacher"] > 29 and row["seen copy"] < 20 and row["unseen teacher"] < row["seen teacher"] - 8
        assert row["ssim seen teacher"] > .9 > row["ssim seen copy"] and row["seen smoothed in"] > 25 > row["unseen smoothed in"]
    assert "| turn | 8 | smoothed |" in measures_table(rows)
    assert quality_table(rows).count("\n") == len(rows) + 1


def test_every_scene_has_every_size_once(scene):
    for seed in range(3):
        motions = _probe_motions(scene, replace(CONFIG, seed=seed))
        assert [a.amount for (a,) in motions] == [10, 30, 0.3] and all(len(actions) == 1 for actions in motions)


def test_tables_add_up():
    views = evaluate_teacher("reprojection", CONFIG)
    rows = scores_by_motion_size(views)
    assert sum(r["n"] for r in rows if r["amount"] is None) == len(views) == sum(r["n"] for r in rows if r["amount"] is not None)
    for kind in ("turn", "move"):
        [whole] = [r for r in rows if r["kind"] == kind and r["amount"] is None]
        assert whole["psnr copy"] == pytest.approx(np.mean([v.scores["psnr copy"] for v in views if v.kind == kind]))
    assert quality_table(rows).count("\n") == len(rows) + 1


def test_worst_and_best_are_chosen_by_rule():
    views = [_EvaluatedView("turn", 10, {"psnr teacher": float(k)}, "", np.zeros((3, 8, 8, 3), np.uint8)) for k in range(10)]
    assert {name: [v.scores["psnr teacher"] for v in ranked] for name, ranked in _ranked_views(views, 2).items()} == {"worst": [0, 1], "median": [4, 5], "best": [9, 8]}


def test_few_unseen_pixels_are_not_scored_separately(scene):
    scores = _view_scores({"copy": scene.image}, scene.image, np.zeros((64, 64), bool))
    assert not any(name.startswith("unseen") for name in scores) and scores["seen copy"] == scores["psnr copy"]


def test_tables_read_the_tracked_metrics():
    "The keys of a metrics file of the stage are those that the table reads."
    rows = json.loads((repo_root() / "data/mini/metrics/teacher_quality.json").read_text())["by size"]
    lines = quality_table(rows).splitlines()
    assert len(lines) == len(rows) + 2 and {line.count("|") for line in lines} == {14}
    one_view = replace(CONFIG, scenes=replace(CONFIG.scenes, n=1, per_shard=1), turns=(), moves=(0.5,), poses=True)
    of_every_view = {key for key in rows[0] if not key.startswith("continued")}  # an object that crosses the old border is not in every view
    assert of_every_view <= scores_by_motion_size(_evaluate_shard(0, "reprojection", one_view))[0].keys()


# Scores of parts of a view

def split_scene(colour=(200, 40, 40)):
    "A grey wall with a box that the old border at column 32 cuts."
    truth, ids = np.full((64, 64, 3), 120, np.uint8), np.zeros((64, 64), np.uint16)
    truth[20:40, 20:50], ids[20:40, 20:50] = colour, 7
    unseen = np.zeros((64, 64), bool)
    unseen[:, 32:] = True
    return truth, ids, unseen


def test_objects_continue_or_end_at_the_old_border():
    truth, ids, unseen = split_scene()
    ends, other = truth.copy(), truth.copy()
    ends[:, 32:] = 120
    other[20:40, 20:32] = 120
    objects = _known_objects(truth, ids, unseen)
    assert [(name, i) for name, i, _ in objects] == [("found", 7), ("continued", 7)]
    assert _object_scores(truth, truth, ids, objects) == {"found": 1.0, "continued": 1.0}
    assert _object_scores(ends, truth, ids, objects) == {"found": 1.0, "continued": 0.0}
    assert _object_scores(other, truth, ids, objects) == {"found": 0.0, "continued": 1.0}
    everywhere = np.broadcast_to(np.uint8([200, 40, 40]), truth.shape).copy()
    assert _object_scores(everywhere, truth, ids, objects) == {"found": 1.0, "continued": 1.0}  # only four pixels around it count
    assert (_nearest_surface(everywhere, truth, ids) == 7).all() and not _known_objects(truth, 0 * ids, unseen)
    assert [name for name, _, _ in _known_objects(truth, ids, np.zeros_like(unseen))] == ["found"]


def test_objects_of_the_colour_of_the_wall_do_not_count():
    truth, ids, unseen = split_scene((120, 120, 120))
    assert _known_objects(truth, ids, unseen) == []


def test_half_of_the_union_must_agree():
    mask, part = np.zeros((20, 20), bool), np.ones((20, 20), bool)
    mask[5:15, 5:15] = True
    for columns, right in ((10, True), (5, True), (4, False)): assert _agrees(mask & (np.arange(20) < 5 + columns), mask, part) == right
    assert not _agrees(np.ones_like(mask), mask, part)


def test_detail_leaves_the_seam_out():
    rng = np.random.default_rng(0)
    unseen = np.zeros((64, 64), bool)
    unseen[:, 32:] = True
    seam = np.full((64, 64, 3), 90, np.uint8)
    seam[:, 32:] = 160
    noisy = np.clip(seam + rng.normal(0, 8, seam.shape), 0, 255).astype(np.uint8)
    assert _detail(seam, unseen) == 0 < 100 < _detail(noisy, unseen)
    scores = _view_scores({"blur": seam, "same": noisy}, noisy, unseen)
    assert scores["sharpness same"] == 1 and scores["sharpness blur"] == 0 and scores["psnr same"] > scores["unseen blur"] and "found same" not in scores
