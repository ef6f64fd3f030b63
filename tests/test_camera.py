"Signs and identities of the camera conventions."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action, check_pose, homography, intrinsics, is_pure_turn, move, project, relative_motion, relative_pose
from world2vlm.core.camera import resize_K, transform, unproject, yaw

settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")

angles = st.floats(-180, 180)
metres = st.floats(-10, 10)
poses = st.builds(lambda a, x, z, b: yaw(a) @ move(x=x, z=z) @ yaw(b), angles, metres, metres, angles)


def tilted(degrees):
    "A camera that looks down by `degrees`."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    pose = np.eye(4)
    pose[1:3, 1:3] = [[c, s], [-s, c]]
    return pose


def test_a_right_turn_looks_right_and_sends_the_image_left():
    s, c = np.sin(np.radians(30)), np.cos(np.radians(30))
    assert np.allclose(yaw(30)[:3, :3], [[c, 0, s], [0, 1, 0], [-s, 0, c]])
    K, ahead = intrinsics(64, 64, 90), np.array([0, 0, 3.0])
    pixel, _ = project(transform(relative_pose(yaw(20), np.eye(4)), ahead), K)
    assert pixel[0] < 32 and pixel[1] == 32


def test_a_step_right_sends_the_image_left_and_a_step_forward_brings_it_near():
    ahead = np.array([0, 0, 3.0])
    assert np.allclose(transform(relative_pose(move(x=1), np.eye(4)), ahead), [-1, 0, 3])
    assert np.allclose(transform(relative_pose(move(z=1), np.eye(4)), ahead), [0, 0, 2])


def test_moves_follow_the_heading():
    assert np.allclose((yaw(90) @ move(z=2))[:3, 3], [2, 0, 0])


@given(poses, poses, poses)
def test_poses_compose(a, b, c):
    assert np.allclose(relative_pose(a, b) @ relative_pose(b, c), relative_pose(a, c), atol=1e-9)
    assert np.allclose(relative_pose(a, b) @ relative_pose(b, a), np.eye(4), atol=1e-9)


@given(angles)
def test_left_then_right_is_nothing(degrees):
    assert np.allclose(yaw(degrees) @ yaw(-degrees), np.eye(4))


@given(poses, st.floats(-179.9, 179.9), metres, metres)
def test_motion_is_what_was_done(a, degrees, x, z):
    motion = relative_motion(a, a @ move(x=x, z=z) @ yaw(degrees))
    assert np.isclose(motion.rotation_deg, degrees, atol=1e-6) and np.allclose(motion.translation, [x, 0, z], atol=1e-9)
    assert motion.tilt_deg == 0 and np.allclose(move(*motion.translation) @ yaw(motion.rotation_deg), move(x=x, z=z) @ yaw(degrees))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(20, 140), st.integers(0, 2**32 - 1))
def test_project_undoes_unproject(width, height, fov, seed):
    K, depth = intrinsics(width, height, fov), np.random.default_rng(seed).uniform(0.1, 20, (height, width))
    pixels, again = project(unproject(depth, K), K)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    assert np.allclose(again, depth) and np.allclose(pixels, np.stack([x, y], -1))


def test_unknown_depth_and_points_behind_have_no_pixel():
    K = intrinsics(2, 1, 90)
    points = unproject(np.array([[0.0, 1.0]]), K)
    pixels, _ = project(points, K)
    assert (points[0, 0] == 0).all() and np.isnan(pixels[0, 0]).all() and np.isfinite(pixels[0, 1]).all()
    assert np.isnan(project(np.array([0, 0, -1.0]), K)[0]).all()


def test_the_edges_of_the_image_are_the_field_of_view():
    rays = unproject(np.ones((1, 64)), intrinsics(64, 1, 90))[0]
    assert np.isclose(rays[0, 0] - 1 / 64, -1) and np.isclose(rays[-1, 0] + 1 / 64, 1)  # half a pixel inside +-45 degrees


@given(angles.filter(lambda a: abs(a) < 40), st.floats(0, 64), st.floats(0, 48))
def test_homography_is_a_turn_of_the_rays(degrees, x, y):
    K_a, K_b = intrinsics(64, 48, 90), intrinsics(80, 60, 70)
    point = np.linalg.inv(K_a) @ [x, y, 1]
    expected, depth = project(transform(relative_pose(yaw(degrees), np.eye(4)), point), K_b)
    pixel = homography(K_a, K_b, yaw(degrees)[:3, :3]) @ [x, y, 1]
    if depth > 0.05: assert np.allclose(pixel[:2] / pixel[2], expected)


def test_resized_images_keep_their_rays():
    K = intrinsics(64, 48, 80)
    assert np.allclose(resize_K(K, (64, 48), (640, 480)), intrinsics(640, 480, 80))
    point = np.array([0.3, -0.2, 2])
    assert np.allclose(project(point, resize_K(K, (64, 48), (32, 96)))[0], project(point, K)[0] * [0.5, 2])


def test_tilt_is_not_yaw():
    motion = relative_motion(np.eye(4), yaw(25) @ tilted(10))
    assert np.isclose(motion.tilt_deg, 10, atol=0.5) and np.isclose(motion.rotation_deg, 25, atol=0.5)


@pytest.mark.parametrize("action, degrees, shift", [
    (Action("right", 0.4), 0, [0.4, 0, 0]), (Action("left", 0.4), 0, [-0.4, 0, 0]), (Action("backward", 2), 0, [0, 0, -2]), (Action("forward", 2), 0, [0, 0, 2]),
    (Action("turn_right", 30), 30, [0, 0, 0]), (Action("turn_left", 30), -30, [0, 0, 0]), (Action("turn_left", 180), 180, [0, 0, 0]),
])
def test_poses_of_actions(action, degrees, shift):
    motion = relative_motion(np.eye(4), action.pose())
    assert np.isclose(motion.rotation_deg, degrees) and np.allclose(motion.translation, shift) and motion.tilt_deg == 0
    assert is_pure_turn(action.pose()) == action.is_turn and np.isclose(motion.distance, np.linalg.norm(shift))
    assert np.allclose(action.pose() @ action.opposite.pose(), np.eye(4))


@pytest.mark.parametrize("pose", [np.eye(3), np.full((4, 4), np.nan), np.diag([1, 1, -1, 1.0]), np.diag([2, 2, 2, 1.0]), np.ones((4, 4))])
def test_what_is_no_pose_is_refused(pose):
    with pytest.raises(ValueError, match="second pose"): relative_motion(np.eye(4), pose)
    with pytest.raises(ValueError, match="teacher"): check_pose(pose, "teacher")


@pytest.mark.parametrize("size_fov", [(0, 4, 90), (4, 4, 0), (4, 4, 180), (4, 4, float("nan"))])
def test_impossible_cameras_are_refused(size_fov):
    with pytest.raises(ValueError, match="intrinsics"): intrinsics(*size_fov)
