"Visibility of an object: definitions on hand-made scenes, agreement with the truth in rooms."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import Action
from world2vlm.core.actions import plan
from world2vlm.core.camera import intrinsics, yaw
from world2vlm.core.records import Instance, Scene
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.visibility import _agreement, _cached, _exact_visibility, _hidden_outline, _pixel_angles, _surface_map, _tile_angles, _touches_border, _warped_visibility
from world2vlm.tasks.visibility import _CAUSES, Visibility, candidates, error_cause, mask_box, visibility_of
from world2vlm.core.records import Transition, iou, transitions_of
from world2vlm.core.records import Rollout
from world2vlm.teachers.base import load_teacher

K = intrinsics(64, 64, 90)


def boards(*items, wall=4.0, id="boards"):
    "A wall and boards (depth, x1, y1, x2, y2 in pixels), flat to the camera, the first before the others."
    depth, instances = np.full((64, 64), wall, np.float32), []
    for n, (z, x1, y1, x2, y2) in reversed(list(enumerate(items, 1))):
        depth[y1:y2, x1:x2] = z
    for n, (z, x1, y1, x2, y2) in enumerate(items, 1):
        mask = np.zeros((64, 64), bool)
        mask[y1:y2, x1:x2] = True
        instances.append(Instance(n, f"grey board {n}", mask & (depth == z)))
    return Scene(id, np.zeros((64, 64, 3), np.uint8), K, depth, instances)


def after(scene, *actions, index=-1):
    "The last transition of a rollout that needs no picture."
    t = plan(list(actions))
    images = np.zeros((len(t.keyframes), 64, 64, 3), np.uint8)
    return transitions_of(scene, Rollout(scene.id, "none", 0, t.actions, t.poses, t.keyframes, images))[index]


def box(o): return np.array(o.box) * 64


def test_a_turn_moves_the_box_by_the_tangent():
    scene = boards((2.0, 30, 24, 34, 40))
    o = visibility_of(after(scene, Action("turn_right", 20)), 1)
    edges = 32 + 32 * np.tan(np.arctan(np.array([-2, 2]) / 32) - np.radians(20))
    assert o.visible_share == pytest.approx(1, abs=0.02) and np.abs(box(o)[[0, 2]] - edges).max() < 0.6
    assert o.mask.shape == (64, 64) and o.mask.any() and not o.cut_before


@pytest.mark.parametrize("kind, expected", [("right", [14, 24, 30, 40]), ("left", [34, 24, 50, 40]), ("forward", [21.3, 21.3, 42.7, 42.7]), ("backward", [25.6, 25.6, 38.4, 38.4])])
def test_a_move_carries_the_box_by_depth(kind, expected):
    scene = boards((1.6, 24, 24, 40, 40))
    amount = 0.5 if kind in ("right", "left") else 0.4
    o = visibility_of(after(scene, Action(kind, amount)), 1)
    assert np.abs(box(o) - expected).max() <= 0.75 and o.visible_share == pytest.approx(1, abs=0.03)


def test_far_is_not_gone():
    "Three metres further back the board has a ninth of its pixels left and is still all there."
    o = visibility_of(after(boards((1.5, 24, 24, 40, 40)), Action("backward", 3)), 1)
    assert o.mask.sum() < 0.15 * 256 and o.visible_share > 0.9


def test_behind_the_camera_is_gone():
    scene = boards((1.0, 24, 24, 40, 40))
    for actions in ([Action("turn_left", 180)], [Action("forward", 2)], [Action("turn_right", 100)]):
        o = visibility_of(after(scene, *actions), 1)
        assert (o.visible_share, o.box, o.mask.any()) == (0, None, False)


def test_half_out_of_the_picture():
    "A board with its middle on the border shows half of its solid angle, clipped at 0."
    degrees = np.degrees(np.arctan(1) - np.arctan(0))
    scene = boards((2.0, 28, 24, 36, 40))
    o = visibility_of(after(scene, Action("turn_right", float(degrees))), 1)
    assert o.visible_share == pytest.approx(0.5, abs=0.06) and o.box[0] == 0


def test_a_nearer_board_hides():
    "The near board moves over the far one."
    scene = boards((1.0, 8, 20, 20, 44), (3.0, 30, 28, 36, 36))
    assert visibility_of(after(scene, Action("turn_left", 5)), 2).visible_share > 0.95
    o = visibility_of(after(scene, Action("left", 0.9)), 2)  # near one by 28.8 pixels to the right, far one by 9.6
    assert o.visible_share < 0.05
    half = visibility_of(after(scene, Action("left", 0.6)), 2)  # near 27.2..39.2, far 36.4..42.4
    assert 0.35 < half.visible_share < 0.75 and box(half)[0] == pytest.approx(39.2, abs=0.8)


def test_unknown_space_hides_nothing():
    scene = boards((3.0, 30, 28, 36, 36))
    depth = scene.depth.copy()
    depth[:, :28] = 0
    blind = Scene("blind", scene.image, K, depth, scene.instances)
    assert visibility_of(after(blind, Action("left", 0.9)), 1).visible_share > 0.95


def test_growing_beyond_the_picture():
    "So near that it fills the view: the whole is larger than the view, the share falls, the box is the picture."
    o = visibility_of(after(boards((1.2, 16, 16, 48, 48)), Action("forward", 0.9)), 1)
    assert o.box == (0, 0, 1, 1) and 0.3 < o.visible_share < 0.75


@pytest.mark.parametrize("amount", [-1.0, -0.4, 0.3, 0.7])
def test_a_pole_one_pixel_wide_stays_whole(amount):
    scene = boards((2.0, 32, 16, 33, 50))
    o = visibility_of(after(scene, Action("forward" if amount > 0 else "backward", abs(amount))), 1)
    assert o.visible_share > 0.85
    assert (box(o)[3] - box(o)[1]) == pytest.approx(34 * 2 / (2 - amount), abs=1.5)


def test_overlapping_masks_of_a_detector():
    "Masks may overlap: each is followed on its own."
    scene = boards((2.0, 24, 24, 40, 40))
    part = Instance(2, "left half", scene.instances[0].mask & (np.arange(64) < 32))
    both = Scene("both", scene.image, K, scene.depth, [*scene.instances, part])
    whole, half = (visibility_of(after(both, Action("turn_right", 10)), i) for i in (1, 2))
    assert whole.visible_share == pytest.approx(half.visible_share, abs=0.03)
    assert box(half)[0] == box(whole)[0] and box(half)[2] < box(whole)[2]


def test_photos_can_turn_but_not_move():
    scene = boards((2.0, 24, 24, 40, 40))
    photo = Scene("photo", scene.image, K, None, scene.instances)
    t = after(photo, Action("turn_right", 10), Action("forward", 0.3), index=0)
    same = visibility_of(after(scene, Action("turn_right", 10)), 1)
    assert visibility_of(t, 1).box == same.box
    moved = after(photo, Action("turn_right", 10), Action("forward", 0.3))
    with pytest.raises(ValueError, match="scene photo has no depth"):
        visibility_of(moved, 1)


@given(degrees=st.floats(-89, 89), left=st.integers(0, 56), width=st.integers(2, 20), top=st.integers(0, 56))
@settings(max_examples=40, deadline=None)
def test_turns_agree_with_geometry(degrees, left, width, top):
    "The share left by a turn is that of the pixels whose rays lie in the new view."
    scene = boards((2.0, left, top, min(left + width, 64), top + 8))
    mask = scene.instances[0].mask
    o = visibility_of(after(scene, Action("turn_right" if degrees > 0 else "turn_left", abs(degrees) + 0.1)), 1)
    turn = yaw(degrees + np.copysign(0.1, degrees if degrees else -1.0))[:3, :3]
    v, u = np.mgrid[:64, :64] + 0.5
    x, y, z = np.einsum("ij,ihw->jhw", turn, np.stack([(u - 32) / 32, (v - 32) / 32, np.ones_like(u)]))
    seen = mask & (z > 0) & (abs(x) < z) & (abs(y) < z)
    angle = _pixel_angles(K, (64, 64))
    rim = 1.5 / min(width, 64 - left, 8)  # one row or column more or less
    assert o.visible_share == pytest.approx(angle[seen].sum() / angle[mask].sum(), abs=0.02 + rim)
    assert 0 <= o.visible_share <= 1 and (o.box is None) == (o.visible_share == 0)
    if o.box: assert 0 <= o.box[0] < o.box[2] <= 1 and 0 <= o.box[1] < o.box[3] <= 1


def test_solid_angles():
    "One face of a cube is a sixth of the sphere; tiles and pixels agree from where the anchor stood."
    assert _pixel_angles(K, (64, 64)).sum() == pytest.approx(4 * np.pi / 6, rel=1e-3)
    slanted = np.repeat((3 / (1 + 0.4 * (np.arange(64) - 31.5) / 32))[None], 64, 0)
    np.testing.assert_allclose(_tile_angles(slanted, K, np.zeros(3)), _pixel_angles(K, (64, 64)), rtol=1e-6)


def test_flags_and_filters():
    scene = boards((1.0, 10, 10, 20, 30), (3.0, 15, 15, 30, 25), (2.0, 0, 40, 8, 50), (2.0, 50, 50, 53, 53))
    near, far, cut, small = scene.instances
    assert [_touches_border(i.mask) for i in scene.instances] == [False, False, True, False]
    assert _hidden_outline(near.mask, scene.depth) == 0 and _hidden_outline(far.mask, scene.depth) == pytest.approx(10 / 40)
    assert _hidden_outline(far.mask, None) == 0
    assert candidates(scene) == [near, far, cut]
    blind = Scene("blind", scene.image, K, np.where(near.mask, 0, scene.depth).astype(np.float32), scene.instances)
    assert candidates(blind) == [far, cut]
    assert candidates(Scene("bare", scene.image, K)) == []
    o = visibility_of(after(scene, Action("turn_left", 10)), 3)
    assert o.cut_before and visibility_of(after(scene, Action("turn_left", 10)), 2).hidden_before == pytest.approx(0.25)


def test_transitions_share_the_anchor():
    scene = boards((2.0, 24, 24, 40, 40))
    first, last = (after(scene, Action("turn_left", 10), Action("forward", 0.2), index=i) for i in (0, 1))
    assert [len(t.actions) for t in (first, last)] == [1, 2] and first.image_before is scene.image
    assert first.ids_after is None and first.evidence == "warped" and _cached(last, _surface_map) is _cached(last, _surface_map)
    with pytest.raises(ValueError, match="given with scene 'other'"):
        transitions_of(boards(id="other"), first.rollout)
    with pytest.raises(ValueError, match="no instance 7"):
        visibility_of(first, 7)
    with pytest.raises(ValueError, match="gave no ids"):
        _exact_visibility(first, scene.instances[0])


def test_footprint_and_iou():
    assert mask_box(np.zeros((4, 4), bool)) is None
    assert mask_box(np.ones((4, 4), bool)) == (0, 0, 1, 1)
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1 and iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0


def test_causes():
    def made(share, cut=False, hidden=0.0, side=10):
        mask = np.zeros((64, 64), bool)
        mask[:20, :side] = True
        return Visibility(share, mask_box(mask), mask, cut, hidden)
    pairs = [(made(1, cut=True), made(1)), (made(1, hidden=0.3), made(1)), (made(1, side=2), made(1)), (made(0.5), made(1)), (made(1), made(0.5)), (made(1), made(1))]
    assert tuple(error_cause(*p) for p in pairs) == _CAUSES
    figures = _agreement(pairs)
    assert figures["boxes"] == 6 and figures["agree"] == 1 and _agreement(pairs[2:3])["iou"] == pytest.approx(0.2)
    wrong = _agreement([(made(0.0), made(1.0)), (made(0.1), made(1.0))])
    assert (wrong["agree"], wrong["decided"], wrong["disagreements"]) == (0, 0.5, 1)
    assert _agreement([])["pairs"] == 0 and np.isnan(_agreement([])["iou"])


def measure(size, count, seed):
    "Pairs of outcomes over `count` transitions at least."
    rng, pairs, n = np.random.default_rng(seed), [], 0
    kinds = [("turn_left", 10, 6), ("turn_right", 10, 6), ("forward", 0.1, 15), ("backward", 0.1, 15), ("left", 0.1, 15), ("right", 0.1, 15)]
    def action():
        kind, unit, most = kinds[rng.choice(6, p=[0.25, 0.25, 0.125, 0.125, 0.125, 0.125])]
        return Action(kind, round(float(unit * rng.integers(1 if unit == 10 else 2, most + 1)), 1))
    for scene in room_scenes(1000, seed, size=(size, size), fov_deg=90):
        for rollout in load_teacher("simulator").imagine(scene, [plan([action() for _ in range(rng.integers(1, 4))]) for _ in range(10)]):
            for t in transitions_of(scene, rollout):
                n += 1
                pairs += [(_exact_visibility(t, i), _warped_visibility(t, i)) for i in candidates(scene)]
        if n >= count: return pairs


@pytest.mark.parametrize("size, count, iou_all", [(64, 200, 0.75), (112, 100, 0.78)])
def test_warping_agrees_with_the_truth(size, count, iou_all):
    pairs = measure(size, count, 31)
    figures, clean = _agreement(pairs), _agreement([pair for pair in pairs if error_cause(*pair) not in ("cut", "hidden")])
    assert figures["pairs"] > count and figures["decided"] > 0.85
    assert figures["agree"] >= 0.97
    assert clean["iou"] >= 0.85 and figures["iou"] >= iou_all
