"Filters: poses are recovered from matches, errors are distances, rejections have reasons, and rollouts that cannot be measured are rejected."
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.actions import parse_actions, plan
from world2vlm.core.camera import intrinsics, move, project, transform, unproject, yaw
from world2vlm.core.records import keyframe_poses, Rollout, Scene
from world2vlm.scenes.room import Room, room_scenes
from world2vlm.teachers.filters import Filter, filter_rollouts, fitted_pose, pose_errors
from world2vlm.teachers.filters import _measure_rollout, _measure_view, _motion_from_depth, _motion_from_matches, _rejection_reason, _relabel_rollout, _share_in_view, _turn_of_homography
from world2vlm.teachers.simulator import Simulator

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
    visible = np.isfinite(b).all(1)
    return a[visible].astype(np.float32), b[visible].astype(np.float32), depth


@settings(max_examples=20, deadline=None)
@given(angles, st.floats(-180, 180), lengths)
def test_pose_from_depth(turn, heading, length):
    "With a quarter of the matches wrong, rotation, direction and length are recovered."
    pose = move(length * np.sin(np.radians(heading)), 0, length * np.cos(np.radians(heading))) @ yaw(turn)
    a, b, depth = matches(pose, outliers=30)
    motion = _motion_from_depth(a, b, K, depth)
    errors = pose_errors(motion.pose, pose)
    assert motion.metric and errors["rotation"] < .5 and errors["direction"] < 3 and abs(errors["scale"] - 1) < .05


@settings(max_examples=20, deadline=None)
@given(angles)
def test_a_turn_is_a_turn(turn):
    "Without depth a turn on the spot is recognised, with its angle."
    a, b, _ = matches(yaw(turn))
    motion = _motion_from_matches(a, b, K)
    assert not np.any(motion.pose[:3, 3]) and pose_errors(motion.pose, yaw(turn), metric=False)["rotation"] < .5


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
    paths = [plan(parse_actions(text)) for text in ("turn left 20 degrees", "turn left 10 degrees", "move forward 0.5 meters")]
    return scene, Simulator().imagine(scene, paths)


def test_truth_passes_and_wrong_views_do_not(imagined):
    scene, (turn, small, step) = imagined
    wrong, blank = replace(turn, images=small.images), replace(step, images=np.full_like(step.images, 90))
    rejected = []
    good = list(filter_rollouts(scene, [turn, small, step, wrong, blank], reject=lambda *row: rejected.append(row)))
    assert [r.actions for r in good] == [turn.actions, small.actions, step.actions] and all("inliers" in r.fidelity for r in good)
    names, reasons = zip(*rejected)
    assert names == (f"{scene.id}: turn left 20 degrees", f"{scene.id}: move forward 0.5 meters")
    assert reasons[0].startswith("rotation: ") and reasons[1].startswith("inliers: 0 ")
    assert len(list(filter_rollouts(scene, [turn, blank]))) == 1  # without `reject` it goes silently


def test_relabelled_views_pass(imagined):
    scene, (turn, small, step) = imagined
    wrong = replace(turn, images=small.images)
    relabelled, = filter_rollouts(scene, [wrong], Filter(relabel=True))
    assert relabelled.fidelity["relabelled"] == 1 and abs(relabelled.actions[0].amount - 10) <= 1 and (relabelled.images == small.images).all()
    assert not _rejection_reason(_measure_rollout(scene, relabelled))
    opposite = replace(rollout_of(turn, "turn right 20 degrees"), images=small.images)
    assert _relabel_rollout(opposite, _measure_view(scene, small.images[0], keyframe_poses(small)[0])[1]) is None


def rollout_of(rollout, text):
    path = plan(parse_actions(text))
    return replace(rollout, actions=tuple(path.actions), poses=path.poses, keyframes=tuple(path.keyframes))


def test_render_and_compare_finds_the_pose(imagined):
    scene, (turn, _, step) = imagined
    room = Room(scene.room.seed)
    for rollout, error in ((turn, yaw(7)), (step, move(.05, 0, .15) @ yaw(-5))):
        pose = keyframe_poses(rollout)[0] @ error
        view = room.render(scene.room.pose @ pose, scene.K, scene.size).image
        fitted = fitted_pose(room, scene, view, keyframe_poses(rollout)[0])
        assert np.linalg.norm(fitted[:3, 3] - pose[:3, 3]) < .03 and pose_errors(fitted, pose)["rotation"] < 1


def test_turn_of_a_homography():
    R, spread = _turn_of_homography(2 * K @ yaw(-30)[:3, :3].T @ np.linalg.inv(K), K)
    np.testing.assert_allclose(R, yaw(-30)[:3, :3], atol=1e-9)
    assert spread < 1e-9


# What anchor and view have in common.
NARROW = Scene("narrow", np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8), intrinsics(128, 96, 54))


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 120), st.floats(20, 100))
def test_the_share_in_view_is_that_of_the_picture_plane(turn, fov):
    "Property: a turn takes the columns beyond its edge out of view; left and right alike, and a move of unknown scale nothing."
    scene = replace(NARROW, K=intrinsics(128, 96, fov))
    half = np.radians(fov / 2)
    inner = np.tan(np.clip(np.radians(turn) - half, -half, half))
    columns = (np.tan(half) - inner) / (2 * np.tan(half))
    right = _share_in_view(scene, yaw(turn))
    assert .6 * columns - .02 <= right <= columns + .02  # rows leave the view too
    assert right == pytest.approx(_share_in_view(scene, yaw(-turn)), abs=1e-6) == pytest.approx(_share_in_view(scene, move(1, 0, 2) @ yaw(turn)), abs=1e-6)


def test_the_share_in_view_after_a_move():
    wall = replace(NARROW, depth=np.full((96, 128), 2, np.float32))
    assert _share_in_view(wall, move(0, 0, 1)) == pytest.approx(1 / 4, abs=.02) and _share_in_view(wall, move(0, 0, -1)) == 1
    assert _share_in_view(wall, move(0, 0, 3)) == 0 and _share_in_view(replace(wall, depth=0 * wall.depth), move(0, 0, 1)) == 0


def turned(degrees: float, n: int):
    "A rollout of `NARROW` after a turn, and a matcher that gives `n` right matches."
    path = plan(parse_actions(f"turn right {degrees} degrees"))
    rollout = Rollout("narrow", "demo", 0, path.actions, path.poses, path.keyframes, NARROW.image[None])
    rng, (w, h) = np.random.default_rng(1), NARROW.size
    inner = np.clip(degrees - 27, -27, 27)
    x = w / 2 + NARROW.K[0, 0] * np.tan(np.radians(rng.uniform(inner, 27, n)))
    a = np.stack([x, rng.uniform(h * .3, h * .7, n)], 1)
    b = project(np.concatenate([a, np.ones((n, 1))], 1) @ np.linalg.inv(NARROW.K).T @ yaw(degrees)[:3, :3], NARROW.K)[0]
    return rollout, lambda *_: (a.astype(np.float32), b.astype(np.float32))


@pytest.mark.parametrize("degrees, n, passes", [(10, 20, True), (10, 13, False), (40, 6, True), (40, 5, False), (40, 4, False)])
def test_matches_are_wanted_in_proportion(degrees, n, passes):
    "Twenty where all of the anchor is in view, six where a turn by 40 degrees leaves 27 %."
    rollout, matcher = turned(degrees, n)
    bounds, rejected = Filter(inliers=20, sharpness=0, agreement=0), []
    good = list(filter_rollouts(NARROW, [rollout], bounds, lambda *row: rejected.append(row), matcher))
    assert bool(good) == passes and [reason.split(":")[0] for _, reason in rejected] == ["inliers"] * (not passes)


@pytest.mark.parametrize("degrees", [50, 60, 100])
def test_without_overlap_nothing_is_testable(degrees):
    rollout, _ = turned(degrees, 0)
    bounds, rejected = Filter(inliers=20, sharpness=0), []
    def never(*_): raise AssertionError("nothing to match")
    [kept] = filter_rollouts(NARROW, [rollout], bounds, matcher=never)
    assert kept.fidelity["overlap"] < .1 and not kept.fidelity.keys() & {"inliers", "agreement", "rotation"}
    assert not list(filter_rollouts(NARROW, [rollout], replace(bounds, untestable="drop"), lambda *row: rejected.append(row), never))
    [(name, reason)] = rejected
    assert name == f"narrow: turn right {degrees} degrees" and reason.startswith("not testable: anchor and view have ") and reason.endswith("less than 10%")
    assert rejected and not list(filter_rollouts(NARROW, [rollout], replace(bounds, sharpness=2)))  # what can be tested still is


@pytest.mark.parametrize("measures, reason", [
    ({}, ""), ({"rotation": 5.0, "scale": 1.35, "inliers": 8.0, "sharpness": 0.3, "agreement": 14.0, "direction": 20.0, "drift": 0.1}, ""),
    ({"inliers": 7.0}, "inliers: 7 is below 8"), ({"sharpness": 0.2}, "sharpness: 0.2 is below 0.3"), ({"agreement": 13.9}, "agreement: 13.9 is below 14"),
    ({"rotation": 5.1}, "rotation: 5.1 is above 5"), ({"direction": 21.0}, "direction: 21 is above 20"), ({"drift": 0.2}, "drift: 0.2 is above 0.1"),
    ({"scale": 1.4}, "scale: 1.4 is off by more than 1.35"), ({"scale": 0.7}, "scale: 0.7 is off by more than 1.35"), ({"scale": 0.75}, ""),
])
def test_each_bound_has_its_reason(measures, reason):
    assert _rejection_reason(measures) == reason
