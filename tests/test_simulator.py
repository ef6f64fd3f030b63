"Rooms: deterministic, geometrically exact, and with places to stand."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import intrinsics, move, project, relative_pose, transform, unproject, yaw
from world2vlm.scenes.furniture import OBJECT_COLOURS, FURNITURE, Item, _footprints_apart, furnish, _draw_labels
from world2vlm.scenes.room import Room, _has_space_ahead, _clearance, _visible_objects, _level_pose, _start_pose
from world2vlm.scenes.textures import _line, _noise, Face
from world2vlm.scenes.rendering import _light_at, cast_pixels, _cast_rays

SIZE, K = (48, 48), intrinsics(48, 48, 90)
ROOMS = [Room(seed) for seed in range(6)]


def test_same_seed_same_bytes():
    a, b = Room(3), Room(3)
    pose = a.start(np.random.default_rng(1), K, SIZE)
    assert (pose == b.start(np.random.default_rng(1), K, SIZE)).all()
    for left, right in zip(a.render(pose, K, SIZE), b.render(pose, K, SIZE)):
        assert left.tobytes() == right.tobytes()
    assert Room(4).instances != a.instances


def test_view_types():
    view = ROOMS[0].render(_level_pose(0, 0, 0), intrinsics(40, 24, 80), (40, 24))
    assert view.image.shape == (24, 40, 3) and view.image.dtype == np.uint8
    assert view.depth.shape == view.ids.shape == (24, 40) and view.depth.dtype == np.float32 and view.ids.dtype == np.uint16
    assert (view.depth > 0).all()


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_labels(room):
    labels = list(room.instances.values())
    nouns = [label.split()[-1] for label in labels]
    assert 7 <= len(labels) <= 12 and len(set(labels)) == len(labels)
    assert all(label.split()[0] in OBJECT_COLOURS and label.split()[1] in FURNITURE and len(label.split()) == 2 for label in labels)
    assert list(room.instances) == list(range(1, len(labels) + 1))


def test_most_rooms_have_a_noun_in_two_colours():
    nouns = [[label.split()[-1] for label in Room(seed).instances.values()] for seed in range(30)]
    assert sum(len(set(n)) < len(n) for n in nouns) >= 25


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), area=st.floats(16, 49))
def test_shopping_list(seed, area):
    labels = _draw_labels(np.random.default_rng(seed), area)
    assert 7 <= len(labels) <= 12 and len(set(labels)) == len(labels)
    assert len({label.split()[1] for label in labels}) < len(labels)


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_objects_stand_apart_and_inside(room):
    floor = [i for i in room.items if i.parent < 0]
    assert all(_footprints_apart(a, b) for n, a in enumerate(floor) for b in floor[:n])
    body = room.solids.owner > 0
    reach = np.sqrt((room.solids.half[body][:, [0, 2]]**2).sum(1))
    assert (np.abs(room.solids.centre[body][:, [0, 2]]) < np.array(room.size[:2]) / 2).all() and (reach < 3).all()
    for i in room.items:
        if i.parent >= 0:
            under = room.items[i.parent]
            assert under.label.endswith(("table", "cabinet")) and i.base > .6 and np.hypot(i.x - under.x, i.z - under.z) < max(under.half)


def test_depth_of_walls_floor_and_ceiling():
    room = ROOMS[1]
    w, d, h = room.size
    view = room.render(_level_pose(.2, -.1, 0), K, SIZE)
    assert view.depth.dtype == np.float32
    points = transform(_level_pose(.2, -.1, 0), unproject(view.depth, K))[view.ids == 0]
    gap = np.stack([w / 2 - np.abs(points[:, 0]), d / 2 - np.abs(points[:, 2]), -points[:, 1], h + points[:, 1]])
    assert gap.min() > -1e-5  # nothing outside of the shell
    assert (gap.min(0) < .061).all() and (gap.min(0) < 1e-5).mean() > .6  # panels are 3 cm thick, the lamp 6 cm
    down = _level_pose(0, 0, 0) @ np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.]])
    corner = room.render(down, K, SIZE).depth
    assert np.isclose(corner[room.render(down, K, SIZE).ids == 0].max(), 1.25, atol=1e-6)  # z-depth of the floor, everywhere the same


@pytest.mark.parametrize("room", [*ROOMS, Room(7, (5.37, 6.11, 2.6))], ids=lambda r: r.size)
def test_no_ray_slips_through_a_seam(room):
    w, d, h = room.size
    t, one = np.linspace(-1, 1, 1500), np.ones(1500)
    lines = [(x * w / 2 * one, -y * h * one, t * d / 2) for x in (-1, 1) for y in (0, 1)]
    lines += [(t * w / 2, -y * h * one, z * d / 2 * one) for z in (-1, 1) for y in (0, 1)]
    lines += [(x * w / 2 * one, -h * (t + 1) / 2, z * d / 2 * one) for x in (-1, 1) for z in (-1, 1)]
    rays = np.concatenate([np.stack(line, 1) for line in lines]) - (.1, -1.3, .2)
    geom, far, _ = _cast_rays(room.model, np.array([.1, -1.3, .2]), rays / np.linalg.norm(rays, axis=1, keepdims=True))
    assert (geom >= 0).all() and (far < np.linalg.norm(rays, axis=1) + .05).all()


def test_depth_ahead_is_analytic():
    "A wall that the camera looks at squarely has one depth in all columns."
    room = Room(7, (6., 5., 2.6))
    for turn, distance in ((0, 2.5 - .4), (90, 3. - .3), (180, 2.5 + .4), (270, 3. + .3)):
        hits = cast_pixels(room.model, _level_pose(.3, .4, turn, 2.3), K, np.array([[24., 24.], [20., 24.]]))
        bare = room.solids.owner[hits.geom] == 0
        assert np.all((np.abs(hits.z - distance) < 1e-6) | (np.abs(hits.z - distance + .03) < 1e-5) | ~bare)


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_ids_agree_with_instances_and_places(room):
    pose = room.start(np.random.default_rng(0), K, SIZE)
    view = room.render(pose, K, SIZE)
    assert set(np.unique(view.ids)) - {0} <= set(room.instances)
    points = transform(pose, unproject(view.depth, K))
    for i, item in enumerate(room.items, 1):
        seen = points[view.ids == i]
        own = np.abs((seen[:, [0, 2]] - (item.x, item.z)) @ [[np.cos(item.yaw), np.sin(item.yaw)], [-np.sin(item.yaw), np.cos(item.yaw)]])
        assert (own <= np.array(item.half) + 1e-4).all() and (seen[:, 1] <= 1e-5).all()


def test_ids_do_not_depend_on_supersampling():
    room = ROOMS[2]
    pose = room.start(np.random.default_rng(0), K, SIZE)
    fine, hard = room.render(pose, K, SIZE), room.render(pose, K, SIZE, supersample=False)
    assert (fine.ids == hard.ids).all() and (fine.depth == hard.depth).all() and (fine.image != hard.image).any()


def nearest_hue(pixels):
    "The chromatic colour name whose direction in RGB is nearest to the median of `pixels`."
    names = [name for name in OBJECT_COLOURS if name not in ("black", "white")]
    unit = np.array([OBJECT_COLOURS[name] for name in names])
    return names[int(np.argmax(unit @ np.median(pixels, 0) / np.linalg.norm(unit, axis=1)))]


def test_colours_can_be_read_from_pixels():
    found = []
    for room in ROOMS:
        view = room.render(room.start(np.random.default_rng(0), K, SIZE), K, SIZE)
        for i, label in room.instances.items():
            pixels, colour = view.image[view.ids == i] / 255, label.split()[0]
            if len(pixels) >= 30 and colour not in ("black", "white"):
                found.append(nearest_hue(pixels) == colour)
    assert len(found) > 10 and np.mean(found) > .85


def test_turning_right_moves_things_left():
    room = ROOMS[4]
    pose = room.start(np.random.default_rng(0), K, SIZE)
    before, after = room.render(pose, K, SIZE).ids, room.render(pose @ yaw(15), K, SIZE).ids
    both = [i for i in room.instances if (before == i).sum() > 8 and (after == i).sum() > 8]
    moved = [np.nonzero(after == i)[1].mean() - np.nonzero(before == i)[1].mean() for i in both]
    assert moved and max(moved) < -2


def test_moving_forward_brings_walls_nearer():
    room = Room(7, (6., 5., 2.6))
    a, b = _level_pose(0, 0, 0, 2.3), _level_pose(0, 0, 0, 2.3) @ move(0, 0, .5)
    ahead = [cast_pixels(room.model, p, K, np.array([[24., 24.]])).z[0] for p in (a, b)]
    assert np.isclose(ahead[0] - ahead[1], .5, atol=1e-6)


def test_views_agree_with_each_other():
    "Points carried from one view to another lie on, or behind, what the other view sees."
    room = ROOMS[0]
    pose = room.start(np.random.default_rng(2), K, SIZE)
    other = pose @ move(.1, 0, 0) @ yaw(10)
    points = unproject(room.render(pose, K, SIZE).depth, K).reshape(-1, 3)
    pixels, z = project(transform(relative_pose(other, pose), points), K)
    inside = (z > .1) & (pixels > 0).all(1) & (pixels < 48).all(1)
    seen = cast_pixels(room.model, other, K, pixels[inside]).z
    assert (seen <= z[inside] + 1e-4).all() and (np.abs(seen - z[inside]) < 1e-4).mean() > .7


def test_clear():
    room = ROOMS[3]
    item = next(i for i in room.items if i.parent < 0)
    free = room.start(np.random.default_rng(0), K, SIZE)
    assert room.clear(free) is True and room.clear(free[None], .3) is True
    assert room.clear(_level_pose(item.x, item.z, 0)) is False
    assert room.clear(_level_pose(room.size[0], 0, 0)) is False and room.clear(_level_pose(0, -room.size[1] / 2 + .1, 0)) is False
    assert room.clear(np.array([free, _level_pose(item.x, item.z, 0)])) is False  # all of them must be free


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-3.4, 3.4), z=st.floats(-3.4, 3.4), turn=st.floats(-180, 180))
def test_clearance_is_conservative(x, z, turn):
    "No ray at any height meets anything within the clearance."
    room = ROOMS[5]
    free = _clearance(room, _level_pose(x, z, turn))[0]
    if free <= .01: return
    flat = intrinsics(24, 24, 100)
    for height in (.2, .7, 1.25):
        pose = _level_pose(x, z, turn, height)
        hits = cast_pixels(room.model, pose, flat, np.column_stack([np.arange(24) + .5, np.full(24, 12.)]))
        far = np.hypot(*(hits.point[:, [0, 2]] - pose[[0, 2], 3]).T)
        assert (far >= free - .031).all()  # panels stand out 3 cm from the wall


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_start_has_a_view(seed):
    room = ROOMS[seed % 6]
    pose = room.start(np.random.default_rng(seed), K, SIZE)
    assert room.clear(pose, .35) and _has_space_ahead(room, pose[None])[0]
    assert pose[1, 3] == -1.25 and np.allclose(pose[1, :3], (0, 1, 0)) and np.allclose(pose[:3, 1], (0, 1, 0))
    ids = room.render(pose, K, SIZE).ids
    assert sum((ids == i).sum() >= .005 * ids.size for i in room.instances) >= 3
    assert set(_visible_objects(room, pose, K, SIZE)) <= set(np.unique(ids).tolist())


def test_start_says_when_there_is_none():
    with pytest.raises(ValueError, match="room 0: no start pose sees 13 objects"):
        _start_pose(ROOMS[0], np.random.default_rng(0), K, SIZE, objects=13)


def test_camera_outside_is_refused():
    with pytest.raises(ValueError, match="inside of the room"):
        ROOMS[0].render(_level_pose(20, 0, 0), K, SIZE)
    with pytest.raises(ValueError, match="camera pose"):
        ROOMS[0].render(np.ones((4, 4)), K, SIZE)


def test_small_room_is_refused():
    with pytest.raises(ValueError, match="larger size"):
        furnish(np.random.default_rng(0), (1.5, 1.5, 2.6))


def test_shadow_under_a_table():
    room = next(r for r in ROOMS if any(label.endswith("table") for label in r.instances.values()))
    item = next(i for i in room.items if i.label.endswith("table"))
    look = np.array([[1, 0, 0, item.x], [0, 0, 1, -.5], [0, -1, 0, item.z], [0, 0, 0, 1.]])  # from below the top, down
    share = _light_at(room.light, room.solids, cast_pixels(room.model, look, K, np.array([[24., 24.]])))
    assert share[0] < .5 and room.light.values.min() >= 0 and room.light.values.max() == 1


def test_apart():
    at = lambda x, turn: Item("", [], x, 0., turn, half=(.5, .2))
    assert _footprints_apart(at(0, 0), at(1.1, 0)) and not _footprints_apart(at(0, 0), at(.9, 0)) and _footprints_apart(at(0, 0), at(.8, np.pi / 2))


def test_noise_is_uniform_and_fixed():
    i, j = np.meshgrid(np.arange(-50, 50), np.arange(-50, 50))
    values = _noise(i, j)
    assert values.dtype == np.float32 and 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - .5) < .02 and (values == _noise(i, j)).all() and (values != _noise(i, j, 1)).mean() > .99


def test_line_keeps_its_area():
    "However wide the pixels, a line darkens by its own width."
    for blur in (.002, .01, .05):
        u = np.arange(-.5, .5, blur, np.float32)
        zero = np.zeros_like(u)
        f = Face(u, zero, zero, zero, zero > 0, zero + np.float32(blur), zero)
        assert np.isclose(_line(f, u, .02).sum() * blur, .02, atol=.004)
