"Reprojection: signs, agreement with the truth, no cracks, occlusion, clearance, determinism."
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action, intrinsics, move, yaw
from world2vlm.core.actions import plan
from world2vlm.core.records import Scene
from world2vlm.scenes.room import Room, room_scenes
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.reprojection import _clearance, reproject, slope, splat, turn_index, _turn_view

SIZE = (64, 64)
K = intrinsics(*SIZE, 90)


@pytest.fixture(scope="module")
def scenes():
    return list(room_scenes(5, 21, size=SIZE, fov_deg=90))


@pytest.fixture(scope="module")
def scene(scenes):
    return scenes[0]


def ball(depth=2.0, column=32, row=32, radius=6):
    "A red disc before a grey wall, both flat to the camera; the wall is twice as far."
    v, u = np.mgrid[:64, :64] + 0.5
    disc = (u - column) ** 2 + (v - row) ** 2 < radius**2
    image = np.where(disc[..., None], [220, 20, 20], 128).astype(np.uint8)
    return Scene("ball", image, K, np.where(disc, depth, 2 * depth).astype(np.float32))


def red(image): return (image[..., 0].astype(int) - image[..., 1]) > 100
def psnr(a, b, where): return 20 * np.log10(255) - 10 * np.log10(((a[where].astype(float) - b[where]) ** 2).mean())


def view_after(scene, action):
    [rollout] = load_teacher("reprojection").imagine(scene, [plan([action])])
    return rollout.images[0]


@pytest.mark.parametrize("kind, amount, sign", [("turn_right", 15, -1), ("turn_left", 15, 1), ("right", 0.4, -1), ("left", 0.4, 1)])
def test_reprojection_signs(kind, amount, sign):
    "The leading edge of the disc is measured; what opens behind it is a mirror image and may be red."
    def edge(image): return np.flatnonzero(red(image).any(0))[-1 if sign > 0 else 0] + 0.5
    before = ball()
    after = view_after(before, Action(kind, amount))
    expected = 32 * np.tan(np.radians(amount) + np.arctan(6 / 32)) - 6 if "turn" in kind else 32 * amount / 2
    assert edge(after) - edge(before.image) == pytest.approx(sign * expected, abs=1)


@pytest.mark.parametrize("kind, factor", [("forward", 2 / 1.5), ("backward", 2 / 2.5)])
def test_reprojection_sizes(kind, factor):
    before = ball()
    after = view_after(before, Action(kind, 0.5))
    assert np.sqrt(red(after).sum() / red(before.image).sum()) == pytest.approx(factor, rel=0.08)


@pytest.mark.parametrize("pose", [yaw(10), yaw(-20), yaw(35), move(z=0.3), move(x=0.3), move(x=-0.3), move(z=-0.3), yaw(15) @ move(z=0.3)])
def test_reprojection_agrees_with_truth(scenes, pose):
    "Where the anchor saw the place, the picture is right; new things in free space are left out by taking the median scene."
    scores = []
    for scene in scenes:
        room = Room(scene.room.seed)
        if room.clear((scene.room.pose @ pose)[None], 0.1):
            view, unseen = reproject(scene.image, scene.K, pose, scene.depth)
            scores.append(psnr(room.render(scene.room.pose @ pose, scene.K, SIZE).image, view, ~unseen))
    assert len(scores) >= 2 and np.median(scores) > 23


@given(degrees=st.floats(-170, 170))
@settings(max_examples=30, deadline=None)
def test_turn_needs_no_depth_and_keeps_colours(degrees):
    "A picture of one colour stays so, and the known pixels are exactly those within both fields of view."
    image = np.full((64, 64, 3), 77, np.uint8)
    view, unseen = _turn_view(image, K, yaw(degrees)[:3, :3])
    assert (view[~unseen] == 77).all()
    x = (np.arange(64) + 0.5 - 32) / 32
    column = np.abs(np.degrees(np.arctan(x)) + degrees) < 45  # the middle row sees straight ahead
    assert (np.abs(column.astype(int) - ~unseen[32])).sum() <= 1


@given(forward=st.floats(-1, 1.5), right=st.floats(-1, 1), degrees=st.floats(-50, 50), slant=st.floats(-0.5, 0.5))
@settings(max_examples=30, deadline=None)
def test_a_plane_has_no_cracks(forward, right, degrees, slant):
    "A slanted wall is warped as one piece: every cell whose ray meets it within the anchor's picture is filled, at the right depth."
    x = (np.arange(64) + 0.5 - 32) / 32
    depth = np.repeat((3 / (1 + slant * x))[None], 64, 0)  # the plane z + slant x = 3
    pose = move(x=right, z=forward) @ yaw(degrees)
    index, z = splat(depth, K, pose, over=2)
    u, v = np.meshgrid((np.arange(128) + 0.5) / 2, (np.arange(128) + 0.5) / 2)
    rays = np.stack([(u - 32) / 32, (v - 32) / 32, np.ones_like(u)], -1) @ pose[:3, :3].T
    along = (3 - pose[2, 3] - slant * pose[0, 3]) / (rays[..., 2] + slant * rays[..., 0])
    points = pose[:3, 3] + along[..., None] * rays
    with np.errstate(all="ignore"):
        met = (along > 0.05) & (points[..., 2] > 0) & (np.abs(points[..., :2] / points[..., 2:]) < 0.98).all(-1)
    assert (index[met] >= 0).mean() > 0.999 if met.any() else True
    filled = met & (index >= 0)
    np.testing.assert_allclose(z[filled], along[filled], rtol=0.15)


def test_near_hides_far():
    scene = ball(depth=1.0, column=20)
    index, z = splat(scene.depth, K, move(x=-0.2))
    assert z.min() == pytest.approx(1.0) and np.isinf(z).any()  # and behind the disc an unseen region opens
    owners = index[index >= 0]
    assert np.isin(np.flatnonzero(red(scene.image)), owners).all()


def test_unknown_depth_is_unseen():
    depth = np.full((64, 64), 2.0, np.float32)
    depth[:, :32] = 0
    image = np.full((64, 64, 3), 90, np.uint8)
    view, unseen = reproject(image, K, move(x=0.01), depth)
    assert unseen[:, :31].all() and not unseen[:, 33:-1].any()
    assert (np.abs(view.astype(int) - 90) <= 1).all()  # its mirror image at the rim


def test_standing_still_is_the_anchor(scene):
    view, unseen = reproject(scene.image, scene.K, np.eye(4), scene.depth)
    assert np.array_equal(view, scene.image) and not unseen.any()
    assert np.array_equal(turn_index(K, np.eye(3), SIZE).ravel(), np.arange(64 * 64))


def test_slope_of_a_thin_pole():
    "A pole one pixel wide is flat, and leaves its background flat."
    inverse = np.full((3, 7), 0.2)
    inverse[:, 3] = 1.0
    assert (slope(inverse, 1) == 0).all()


def test_clearance_does_not_tunnel():
    wall = np.full((64, 64), 2.0, np.float32)
    poses = np.stack([np.eye(4), move(z=4.0)])  # one large step
    assert _clearance(poses, wall, K) < 0.06


def test_speed(scene):
    "One view is a few milliseconds; the limit is loose because machines are shared."
    pose, seconds = yaw(20) @ move(z=0.3), []
    for _ in range(5):
        start = time.perf_counter()
        reproject(scene.image, scene.K, pose, scene.depth)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.025
