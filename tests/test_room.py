"Rooms: deterministic, geometrically exact, with places to stand, and scenes that can be made again."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import intrinsics, move, project, relative_pose, transform, unproject, yaw
from world2vlm.scenes.furniture import OBJECT_COLOURS
from world2vlm.scenes.rendering import cast_pixels
from world2vlm.scenes.room import (_clearance, _has_space_ahead, _level_pose, _room_scene, _visible_objects, Room, room_scenes,
                                   start_pose)

SIZE, K = (48, 48), intrinsics(48, 48, 90)
ROOMS = [Room(seed) for seed in range(6)]


def test_same_seed_same_bytes():
    a, b = Room(3), Room(3)
    pose = start_pose(a, np.random.default_rng(1), K, SIZE)
    assert (pose == start_pose(b, np.random.default_rng(1), K, SIZE)).all()
    for left, right in zip(a.render(pose, K, SIZE), b.render(pose, K, SIZE)):
        assert left.tobytes() == right.tobytes()
    assert Room(4).instances != a.instances


def test_view_types():
    view = ROOMS[0].render(_level_pose(0, 0, 0), intrinsics(40, 24, 80), (40, 24))
    assert view.image.shape == (24, 40, 3) and view.image.dtype == np.uint8
    assert view.depth.shape == view.ids.shape == (24, 40) and view.depth.dtype == np.float32 and view.ids.dtype == np.uint16
    assert (view.depth > 0).all()


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_ids_agree_with_instances_and_places(room):
    pose = start_pose(room, np.random.default_rng(0), K, SIZE)
    view = room.render(pose, K, SIZE)
    assert set(np.unique(view.ids)) - {0} <= set(room.instances)
    points = transform(pose, unproject(view.depth, K))
    for i, item in enumerate(room.items, 1):
        surface = points[view.ids == i]
        own = np.abs((surface[:, [0, 2]] - (item.x, item.z)) @ [[np.cos(item.yaw), np.sin(item.yaw)], [-np.sin(item.yaw), np.cos(item.yaw)]])
        assert (own <= np.array(item.half) + 1e-4).all() and (surface[:, 1] <= 1e-5).all()


def test_ids_do_not_depend_on_supersampling():
    room = ROOMS[2]
    pose = start_pose(room, np.random.default_rng(0), K, SIZE)
    fine, hard = room.render(pose, K, SIZE), room.render(pose, K, SIZE, supersample=False)
    assert (fine.ids == hard.ids).all() and (fine.depth == hard.depth).all() and (fine.image != hard.image).any()


def nearest_hue(pixels):
    "The chromatic colour name whose direction in RGB is nearest to the median of `pixels`."
    names = [name for name in OBJECT_COLOURS if name not in ("black", "white")]
    unit = np.array([OBJECT_COLOURS[name] for name in names])
    return names[int(np.argmax(unit @ np.median(pixels, 0) / np.linalg.norm(unit, axis=1)))]


def test_colours_can_be_read_from_pixels():
    correct = []
    for room in ROOMS:
        view = room.render(start_pose(room, np.random.default_rng(0), K, SIZE), K, SIZE)
        for i, label in room.instances.items():
            pixels, colour = view.image[view.ids == i] / 255, label.split()[0]
            if len(pixels) >= 30 and colour not in ("black", "white"):
                correct.append(nearest_hue(pixels) == colour)
    assert len(correct) > 10 and np.mean(correct) > .85


def test_turning_right_moves_objects_left():
    room = ROOMS[4]
    pose = start_pose(room, np.random.default_rng(0), K, SIZE)
    before, after = room.render(pose, K, SIZE).ids, room.render(pose @ yaw(15), K, SIZE).ids
    both = [i for i in room.instances if (before == i).sum() > 8 and (after == i).sum() > 8]
    shifts = [np.nonzero(after == i)[1].mean() - np.nonzero(before == i)[1].mean() for i in both]
    assert shifts and max(shifts) < -2


def test_moving_forward_brings_walls_nearer():
    room = Room(7, (6., 5., 2.6))
    a, b = _level_pose(0, 0, 0, 2.3), _level_pose(0, 0, 0, 2.3) @ move(0, 0, .5)
    ahead = [cast_pixels(room.model, p, K, np.array([[24., 24.]])).z[0] for p in (a, b)]
    assert np.isclose(ahead[0] - ahead[1], .5, atol=1e-6)


def test_views_agree_with_each_other():
    "Points of one view lie on, or behind, the surfaces of another view."
    room = ROOMS[0]
    pose = start_pose(room, np.random.default_rng(2), K, SIZE)
    other = pose @ move(.1, 0, 0) @ yaw(10)
    points = unproject(room.render(pose, K, SIZE).depth, K).reshape(-1, 3)
    pixels, z = project(transform(relative_pose(other, pose), points), K)
    inside = (z > .1) & (pixels > 0).all(1) & (pixels < 48).all(1)
    surface = cast_pixels(room.model, other, K, pixels[inside]).z
    assert (surface <= z[inside] + 1e-4).all() and (np.abs(surface - z[inside]) < 1e-4).mean() > .7


def test_clear():
    room = ROOMS[3]
    item = next(i for i in room.items if i.parent < 0)
    free = start_pose(room, np.random.default_rng(0), K, SIZE)
    assert room.clear(free) is True and room.clear(free[None], .3) is True
    assert room.clear(_level_pose(item.x, item.z, 0)) is False
    assert room.clear(_level_pose(room.size[0], 0, 0)) is False and room.clear(_level_pose(0, -room.size[1] / 2 + .1, 0)) is False
    assert room.clear(np.array([free, _level_pose(item.x, item.z, 0)])) is False  # all of them must be free


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-3.4, 3.4), z=st.floats(-3.4, 3.4), turn=st.floats(-180, 180))
def test_clearance_is_conservative(x, z, turn):
    "No ray at any height hits a surface within the clearance."
    room = ROOMS[5]
    free = _clearance(room, _level_pose(x, z, turn))[0]
    if free <= .01: return
    flat = intrinsics(24, 24, 100)
    for height in (.2, .7, 1.25):
        pose = _level_pose(x, z, turn, height)
        hits = cast_pixels(room.model, pose, flat, np.column_stack([np.arange(24) + .5, np.full(24, 12.)]))
        distance = np.hypot(*(hits.point[:, [0, 2]] - pose[[0, 2], 3]).T)
        assert (distance >= free - .031).all()  # panels stand out 3 cm from the wall


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_start_pose_has_a_view(seed):
    room = ROOMS[seed % 6]
    pose = start_pose(room, np.random.default_rng(seed), K, SIZE)
    assert room.clear(pose, .35) and _has_space_ahead(room, pose[None])[0]
    assert pose[1, 3] == -1.25 and np.allclose(pose[1, :3], (0, 1, 0)) and np.allclose(pose[:3, 1], (0, 1, 0))
    ids = room.render(pose, K, SIZE).ids
    assert sum((ids == i).sum() >= .005 * ids.size for i in room.instances) >= 3
    assert set(_visible_objects(room, pose, K, SIZE)) <= set(np.unique(ids).tolist())


def test_no_start_pose_is_an_error():
    with pytest.raises(ValueError, match="room 0: no start pose sees 13 objects"):
        start_pose(ROOMS[0], np.random.default_rng(0), K, SIZE, min_objects=13)


def test_camera_outside_is_refused():
    with pytest.raises(ValueError, match="inside of the room"):
        ROOMS[0].render(_level_pose(20, 0, 0), K, SIZE)
    with pytest.raises(ValueError, match="camera pose"):
        ROOMS[0].render(np.ones((4, 4)), K, SIZE)


def test_rooms_depend_on_seed_and_index_alone():
    whole, part = list(room_scenes(4, seed=3)), list(room_scenes(2, seed=3, start=2))
    for a, b in zip(whole[2:], part, strict=True):
        assert a.id == b.id and a.room.seed == b.room.seed
        assert a.image.tobytes() == b.image.tobytes() and a.depth.tobytes() == b.depth.tobytes()
    assert len({s.image.tobytes() for s in whole}) == 4
    assert next(room_scenes(1, seed=4)).image.tobytes() != whole[0].image.tobytes()


def test_room_view_renders_the_anchor_again():
    scene = _room_scene(1, seed=0, size=(80, 60), fov_deg=70)
    view = Room(scene.room.seed).render(scene.room.pose, scene.K, scene.size)
    assert (view.image == scene.image).all() and (view.depth == scene.depth).all()
    assert sum(i.mask.sum() for i in scene.instances) == (view.ids > 0).sum()
    assert all((view.ids[i.mask] == i.id).all() for i in scene.instances)


def test_a_room_without_a_view_is_counted():
    rejects = []
    with pytest.raises(RuntimeError, match="none of 3 rooms"): _room_scene(5, seed=0, fov_deg=0.5, reject=lambda *row: rejects.append(row), tries=3)
    assert [name for name, _ in rejects] == ["room-000005"] * 3 and all(reason.startswith("no start pose") for _, reason in rejects)
