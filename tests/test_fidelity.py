"Fidelity: poses come back from matches, errors are distances, the gate says why, and what cannot be measured is not kept."
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.actions import parse_actions, plan
from world2vlm.core.camera import intrinsics, move, project, transform, unproject, yaw
from world2vlm.teachers.filters import Filter, fitted_pose, _motion_from_depth, _motion_from_matches, filter_rollouts, measure_rollout, pose_errors, _relabel_rollout, _measure_view, _turn_of_homography, rejection_reason
from world2vlm.scenes.room import room_scenes
from world2vlm.scenes.room import Room
from world2vlm.teachers.simulator import Simulator
from world2vlm.core.records import keyframe_poses

K = intrinsics(112, 112, 90)
angles, lengths = st.floats(-40, 40), st.floats(.15, 1)


def matches(pose, outliers=0, seed=0, n=120):
    "Random points in space as two cameras see them, some of them matched wrongly; and the depth of the first view."
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.5, 5, (112, 112)).astype(np.float32)
    y, x = rng.integers(0, 112, (2, n))
    points = unproject(depth, K)[y, x]
    b, z = project(transform(np.linalg.inv(pose), points), K)[:2]
    a = np.stack([x, y], 1) + .5
    b[:outliers] += rng.uniform(20, 60, (outliers, 2))
    seen = np.isfinite(b).all(1)
    return a[seen].astype(np.float32), b[seen].astype(np.float32), depth


@settings(max_examples=20, deadline=None)
@given(angles, st.floats(-180, 180), lengths)
def test_pose_from_depth(turn, way, length):
    "With a quarter of the matches wrong, rotation, direction and length come back."
    pose = move(length * np.sin(np.radians(way)), 0, length * np.cos(np.radians(way))) @ yaw(turn)
    a, b, depth = matches(pose, outliers=30)
    found = _motion_from_depth(a, b, K, depth)
    errors = pose_errors(found.pose, pose)
    assert found.metric and errors["rotation"] < .5 and errors["direction"] < 3 and abs(errors["scale"] - 1) < .05


@settings(max_examples=20, deadline=None)
@given(angles)
def test_a_turn_is_a_turn(turn):
    "Without depth a turn on the spot is recognised, and its angle found."
    a, b, _ = matches(yaw(turn))
    found = _motion_from_matches(a, b, K)
    assert not np.any(found.pose[:3, 3]) and pose_errors(found.pose, yaw(turn), metric=False)["rotation"] < .5


def test_a_move_is_no_turn():
    pose = move(.6, 0, .2) @ yaw(10)
    a, b, _ = matches(pose)
    errors = pose_errors(_motion_from_matches(a, b, K).pose, pose, metric=False)
    assert errors["rotation"] < 1 and errors["direction"] < 5 and "scale" not in errors


@settings(deadline=None)
@given(angles, angles, lengths)
def test_errors_are_distances(a, b, length):
    one, other = move(0, 0, length) @ yaw(a), move(0, 0, length) @ yaw(b)
    assert pose_errors(one, one)["rotation"] < 1e-4 and pose_errors(one, one)["scale"] == pytest.approx(1)
    assert pose_errors(one, other)["rotation"] == pytest.approx(abs(a - b), abs=1e-4) == pose_errors(other, one)["rotation"]


def test_too_few_matches_are_none():
    assert _motion_from_matches(np.zeros((7, 2), np.float32), np.zeros((7, 2), np.float32), K) is None
    assert _motion_from_depth(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32), K, np.ones((112, 112), np.float32)) is None


@pytest.fixture(scope="module")
def imagined():
    scene = next(room_scenes(1, seed=4, size=(112, 112)))
    ways = [plan(parse_actions(text)) for text in ("turn left 20 degrees", "turn left 10 degrees", "move forward 0.5 meters")]
    return scene, Simulator().imagine(scene, ways)


def test_truth_passes_and_lies_do_not(imagined):
    scene, (turn, small, step) = imagined
    lie, blank = replace(turn, images=small.images), replace(step, images=np.full_like(step.images, 90))
    told = []
    kept = list(filter_rollouts(scene, [turn, small, step, lie, blank], reject=lambda why, r: told.append(why)))
    assert [k.actions for k in kept] == [turn.actions, small.actions, step.actions]
    assert told[0].startswith("rotation: ") and told[1].startswith("inliers: 0 ") and all("inliers" in k.fidelity for k in kept)


def test_relabelled_lies_are_true(imagined):
    scene, (turn, small, step) = imagined
    lie = replace(turn, images=small.images)
    kept, = filter_rollouts(scene, [lie], Filter(relabel=True))
    assert kept.fidelity["relabelled"] == 1 and abs(kept.actions[0].amount - 10) <= 1 and (kept.images == small.images).all()
    assert not rejection_reason(measure_rollout(scene, kept))
    other_way = replace(plan_of(turn, "turn right 20 degrees"), images=small.images)
    assert _relabel_rollout(other_way, _measure_view(scene, small.images[0], keyframe_poses(small)[0])[1]) is None


def plan_of(rollout, text):
    way = plan(parse_actions(text))
    return replace(rollout, actions=tuple(way.actions), poses=way.poses, keyframes=tuple(way.keyframes))


def test_render_and_compare_finds_the_pose(imagined):
    scene, (turn, _, step) = imagined
    room = Room(scene.room.seed)
    for rollout, off in ((turn, yaw(7)), (step, move(.05, 0, .15) @ yaw(-5))):
        shown = keyframe_poses(rollout)[0] @ off
        view = room.render(scene.room.pose @ shown, scene.K, scene.size).image
        found = fitted_pose(room, scene, view, keyframe_poses(rollout)[0])
        assert np.linalg.norm(found[:3, 3] - shown[:3, 3]) < .03 and pose_errors(found, shown)["rotation"] < 1


def test_turn_of_reads_a_homography():
    R, spread = _turn_of_homography(2 * K @ yaw(-30)[:3, :3].T @ np.linalg.inv(K), K)
    np.testing.assert_allclose(R, yaw(-30)[:3, :3], atol=1e-9)
    assert spread < 1e-9
