"Teachers: signs, agreement with the truth, refusals, determinism."
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action
from world2vlm.core.actions import plan
from world2vlm.core.camera import intrinsics, move, yaw
from world2vlm.core.records import Scene
from world2vlm.scenes.room import room_scenes
from world2vlm.scenes.room import Room
from world2vlm.teachers.reprojection import _clearance, reproject, slope, splat, turn_index, _turn_view
from world2vlm.core.records import keyframe_poses
from world2vlm.teachers.base import load_teacher

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
def middle(mask): return np.argwhere(mask).mean(0)[::-1]
def psnr(a, b, seen): return 20 * np.log10(255) - 10 * np.log10(((a[seen].astype(float) - b[seen]) ** 2).mean())


def views(teacher, scene, *actions):
    [rollout] = teacher.imagine(scene, [plan(list(actions))])
    return rollout


@pytest.mark.parametrize("kind, amount, sign", [("turn_right", 15, -1), ("turn_left", 15, 1), ("right", 0.4, -1), ("left", 0.4, 1)])
def test_reprojection_signs(kind, amount, sign):
    "The leading edge of the disc is measured; what opens behind it is mirrored in and may be red."
    def edge(image): return np.flatnonzero(red(image).any(0))[-1 if sign > 0 else 0] + 0.5
    before = ball()
    after = views(load_teacher("reprojection"), before, Action(kind, amount)).images[0]
    expected = 32 * np.tan(np.radians(amount) + np.arctan(6 / 32)) - 6 if "turn" in kind else 32 * amount / 2
    assert edge(after) - edge(before.image) == pytest.approx(sign * expected, abs=1)


@pytest.mark.parametrize("kind, factor", [("forward", 2 / 1.5), ("backward", 2 / 2.5)])
def test_reprojection_sizes(kind, factor):
    before = ball()
    after = views(load_teacher("reprojection"), before, Action(kind, 0.5)).images[0]
    assert np.sqrt(red(after).sum() / red(before.image).sum()) == pytest.approx(factor, rel=0.08)


@pytest.mark.parametrize("kind, amount, sign", [("turn_right", 10, -1), ("turn_left", 10, 1), ("right", 0.3, -1), ("left", 0.3, 1)])
def test_simulator_signs(scenes, kind, amount, sign):
    "Content goes the other way than the camera, but for an object that something else uncovers."
    shifts = []
    for scene in scenes:
        for rollout in load_teacher("simulator").imagine(scene, [plan([Action(kind, amount)])]):
            for thing in scene.instances:
                after = rollout.ids[0] == thing.id
                if min(after.sum(), thing.mask.sum()) > 30 and not (after | thing.mask)[:, [0, -1]].any():
                    shifts.append(middle(after)[0] - middle(thing.mask)[0])
    assert len(shifts) >= 3 and np.mean(np.sign(shifts) == sign) > 0.8


def test_simulator_forward_grows(scenes):
    ratios = []
    for scene in scenes:
        for rollout in load_teacher("simulator").imagine(scene, [plan([Action("forward", 0.4)])]):
            for thing in scene.instances:
                after = rollout.ids[0] == thing.id
                if thing.mask.sum() > 30 and not (after | thing.mask)[[0, -1]].any() and not (after | thing.mask)[:, [0, -1]].any():
                    ratios.append(after.sum() / thing.mask.sum())
    assert len(ratios) >= 3 and np.median(ratios) > 1.05


def test_moves_follow_the_heading(scene):
    "Turn right 90 then forward is a move to the right of the anchor."
    trajectory = plan([Action("turn_right", 90), Action("forward", 1)])
    np.testing.assert_allclose(keyframe_poses(trajectory)[1][:3, 3], [1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("pose", [yaw(10), yaw(-20), yaw(35), move(z=0.3), move(x=0.3), move(x=-0.3), move(z=-0.3), yaw(15) @ move(z=0.3)])
def test_reprojection_agrees_with_truth(scenes, pose):
    "Where the anchor saw the place, the picture is right; new things in free space are left out by taking the median scene."
    found = []
    for scene in scenes:
        room = Room(scene.room.seed)
        if room.clear((scene.room.pose @ pose)[None], 0.1):
            view, unseen = reproject(scene.image, scene.K, pose, scene.depth)
            found.append(psnr(room.render(scene.room.pose @ pose, scene.K, SIZE).image, view, ~unseen))
    assert len(found) >= 2 and np.median(found) > 23


@given(degrees=st.floats(-170, 170))
@settings(max_examples=30, deadline=None)
def test_turn_needs_no_depth_and_keeps_colours(degrees):
    "A picture of one colour stays so, and what is seen is exactly what lies within both fields of view."
    image = np.full((64, 64, 3), 77, np.uint8)
    view, unseen = _turn_view(image, K, yaw(degrees)[:3, :3])
    assert (view[~unseen] == 77).all()
    x = (np.arange(64) + 0.5 - 32) / 32
    column = np.abs(np.degrees(np.arctan(x)) + degrees) < 45  # the middle row sees straight ahead
    assert (np.abs(column.astype(int) - ~unseen[32])).sum() <= 1


@given(forward=st.floats(-1, 1.5), right=st.floats(-1, 1), degrees=st.floats(-50, 50), slant=st.floats(-0.5, 0.5))
@settings(max_examples=30, deadline=None)
def test_a_plane_has_no_cracks(forward, right, degrees, slant):
    "A slanted wall is carried as one piece: every cell whose ray meets it within the anchor's picture is filled, at the right depth."
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
    assert z.min() == pytest.approx(1.0) and np.isinf(z).any()  # and behind the disc a place opens that nobody saw
    owners = index[index >= 0]
    assert np.isin(np.flatnonzero(red(scene.image)), owners).all()


def test_unknown_depth_is_unseen():
    depth = np.full((64, 64), 2.0, np.float32)
    depth[:, :32] = 0
    image = np.full((64, 64, 3), 90, np.uint8)
    view, unseen = reproject(image, K, move(x=0.01), depth)
    assert unseen[:, :31].all() and not unseen[:, 33:-1].any()
    assert (np.abs(view.astype(int) - 90) <= 1).all()  # mirrored in at its rim


def test_standing_still_is_the_anchor(scene):
    view, unseen = reproject(scene.image, scene.K, np.eye(4), scene.depth)
    assert np.array_equal(view, scene.image) and not unseen.any()
    assert np.array_equal(turn_index(K, np.eye(3), SIZE).ravel(), np.arange(64 * 64))


def test_slope_of_a_thin_pole():
    "A pole one pixel wide is flat, and leaves its background flat."
    inverse = np.full((3, 7), 0.2)
    inverse[:, 3] = 1.0
    assert (slope(inverse, 1) == 0).all()


def test_collisions_are_refused_between_keyframes(scene):
    "There and back again ends in free space, yet the way goes through the wall."
    there_and_back = plan([Action("forward", 20), Action("backward", 20)])
    for name in ("simulator", "reprojection"):
        refused = []
        assert load_teacher(name).imagine(scene, [there_and_back], reject=lambda why, t: refused.append((why, t))) == []
        assert refused[0][0].startswith("collision") and refused[0][1] is there_and_back


def test_clearance_does_not_tunnel():
    wall = np.full((64, 64), 2.0, np.float32)
    poses = np.stack([np.eye(4), move(z=4.0)])  # one large step
    assert _clearance(poses, wall, K) < 0.06


def test_refusals_name_the_remedy(scene):
    photo, refused = Scene("photo", scene.image, scene.K), []
    wanted = [plan([Action("forward", 0.5)]), plan([Action("turn_left", 100)]), plan([Action("turn_left", 20)])]
    got = load_teacher("reprojection").imagine(photo, wanted, reject=lambda why, t: refused.append(why))
    assert [r.actions for r in got] == [wanted[2].actions]
    assert "depth map of scene photo" in refused[0] and "max_unseen" in refused[1]
    assert load_teacher("reprojection", max_unseen=1.0).imagine(photo, wanted[1:2])[0].fidelity["unseen"] == 1.0
    assert load_teacher("simulator").imagine(photo, wanted, reject=lambda why, t: refused.append(why)) == []
    assert "no room: scene photo" in refused[-1]
    with pytest.raises(ValueError, match="needs depth"):
        reproject(scene.image, scene.K, move(z=0.1))


@pytest.mark.parametrize("name", ["simulator", "reprojection"])
def test_rollouts_are_whole_and_repeatable(scene, name):
    trajectories = [plan([Action("turn_left", 20), Action("forward", 0.3)]), plan([Action("turn_right", 10)])]
    first, again = (load_teacher(name).imagine(scene, trajectories, seed=7) for _ in range(2))
    assert len(first) == 2
    for t, a, b in zip(trajectories, first, again):
        assert (a.scene_id, a.teacher, a.seed, a.actions, a.keyframes) == (scene.id, name, 7, t.actions, t.keyframes)
        assert a.images.shape == (len(t.actions), 64, 64, 3) and a.images.dtype == np.uint8
        assert a.images.tobytes() == b.images.tobytes() and a.fidelity == b.fidelity
        assert (a.ids is not None) == load_teacher(name).exact
    if name == "simulator":
        assert first[0].ids.shape == (2, 64, 64) and first[0].ids.dtype == np.uint16


def test_load_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="teacher 'svc2': unknown; choose one of simulator, reprojection"):
        load_teacher("svc2")
    with pytest.raises(ValueError, match="no option unseen, radus: it has max_unseen, radius"):
        load_teacher("reprojection", unseen=0.3, radus=1)


def test_speed(scene):
    "One view is a few milliseconds; the limit is loose because machines are shared."
    pose, took = yaw(20) @ move(z=0.3), []
    for _ in range(5):
        start = time.perf_counter()
        reproject(scene.image, scene.K, pose, scene.depth)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.025
