"Rendering: depth is analytic, no ray escapes, and light casts shadows."
import numpy as np
import pytest

from world2vlm.core.camera import intrinsics, transform, unproject
from world2vlm.scenes.rendering import _cast_rays, _light_at, cast_pixels
from world2vlm.scenes.room import _level_pose, Room

SIZE, K = (48, 48), intrinsics(48, 48, 90)
ROOMS = [Room(seed) for seed in range(6)]


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
    t, ones = np.linspace(-1, 1, 1500), np.ones(1500)
    lines = [(x * w / 2 * ones, -y * h * ones, t * d / 2) for x in (-1, 1) for y in (0, 1)]
    lines += [(t * w / 2, -y * h * ones, z * d / 2 * ones) for z in (-1, 1) for y in (0, 1)]
    lines += [(x * w / 2 * ones, -h * (t + 1) / 2, z * d / 2 * ones) for x in (-1, 1) for z in (-1, 1)]
    rays = np.concatenate([np.stack(line, 1) for line in lines]) - (.1, -1.3, .2)
    geom, distance, _ = _cast_rays(room.model, np.array([.1, -1.3, .2]), rays / np.linalg.norm(rays, axis=1, keepdims=True))
    assert (geom >= 0).all() and (distance < np.linalg.norm(rays, axis=1) + .05).all()


def test_depth_ahead_is_analytic():
    "A wall that the camera looks at squarely has one depth in all columns."
    room = Room(7, (6., 5., 2.6))
    for turn, distance in ((0, 2.5 - .4), (90, 3. - .3), (180, 2.5 + .4), (270, 3. + .3)):
        hits = cast_pixels(room.model, _level_pose(.3, .4, turn, 2.3), K, np.array([[24., 24.], [20., 24.]]))
        bare = room.solids.owner[hits.geom] == 0
        assert np.all((np.abs(hits.z - distance) < 1e-6) | (np.abs(hits.z - distance + .03) < 1e-5) | ~bare)


def test_shadow_under_a_table():
    room = next(r for r in ROOMS if any(label.endswith("table") for label in r.instances.values()))
    item = next(i for i in room.items if i.label.endswith("table"))
    pose = np.array([[1, 0, 0, item.x], [0, 0, 1, -.5], [0, -1, 0, item.z], [0, 0, 0, 1.]])  # from below the top, down
    share = _light_at(room.light, room.solids, cast_pixels(room.model, pose, K, np.array([[24., 24.]])))
    assert share[0] < .5 and room.light.values.min() >= 0 and room.light.values.max() == 1
