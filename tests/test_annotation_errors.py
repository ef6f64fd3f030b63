"Wrong annotations: each error is what it says, none changes nothing, and larger ones leave fewer right labels."
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from world2vlm.core.actions import Ranges
from world2vlm.core.camera import Action, intrinsics, is_pure_turn, relative_motion, unproject
from world2vlm.core.config import ConfigError, repo_root
from world2vlm.core.records import iou, Rollout, Scene, Transition, transitions_of
from world2vlm.core.runs import rng_for
from world2vlm.core.stages import recipe_of
from world2vlm.dataset.synthesis import exact_rollouts, Imagine, Scenes
from world2vlm.evaluation.annotation_errors import AnnotationErrors
from world2vlm.evaluation.annotation_errors import (_add_noise, _annotate_with, _annotated_scenes, _bleed_depth, _check_labels, _derived_examples, _displayed_pose, _error_figure,
                                                    _Errors, _grow_masks, _KINDS, _label_value, _merge_masks, _miss_masks, _photo_transition, _right_share, _studied_errors,
                                                    _tolerated_range, _widen_view, _with_class_names)
from world2vlm.tasks.rules import Rules
from world2vlm.tasks.tasks import TASKS

IMAGINE = Imagine(presets={"single": 4, "forward_turn": 1}, ranges=Ranges((0.2, 1.5, 0.1), (10, 60, 10)), seed=3)
NONE = {kind: () for kind in (*_KINDS, "multiples")}
SMALL = AnnotationErrors(Scenes(first=650_000, n=4, seed=1, size=(80, 60), fov_deg=65, per_shard=2), IMAGINE, **NONE)
MASKS = arrays(bool, st.tuples(st.integers(1, 4), st.integers(3, 14), st.integers(3, 14)))
DEPTHS = arrays(np.float32, st.tuples(st.integers(4, 16), st.integers(4, 16)), elements=st.floats(0.5, 8, width=32) | st.just(0.0))


@pytest.fixture(scope="module")
def motions():
    "Some motions of two rooms with true annotations: turns, moves and both."
    pairs = exact_rollouts(0, lambda *_: None, SMALL.scenes, IMAGINE)
    return [t for room, rollouts in pairs for rollout in rollouts for t in transitions_of(_with_class_names(room), rollout)]


# Masks
@given(MASKS, st.floats(0, 6), st.floats(0, 6))
def test_masks_shrink_and_grow(masks, a, b):
    small, large = sorted((a, b))
    nested = [_grow_masks(masks, pixels) for pixels in (-large, -small, 0, small, large)]
    assert all((inner <= outer).all() for inner, outer in zip(nested, nested[1:])) and (nested[2] == masks).all()
    assert (_grow_masks(nested[1], small) <= masks).all(), "an erosion followed by a dilation adds nothing"


@given(MASKS, st.floats(0, 1), st.integers(0, 99))
def test_merged_masks_keep_all_pixels(masks, share, seed):
    merged = _merge_masks(masks, share, rng_for(seed))
    assert (merged.any(0) == masks.any(0)).all() and merged.any((1, 2)).sum() <= masks.any((1, 2)).sum()
    assert (_merge_masks(masks, 0, rng_for(seed)) == masks).all()
    if masks.any((1, 2)).sum() == 1: assert (merged == masks).all()


def test_only_neighbours_merge():
    apart = np.zeros((3, 8, 20), bool)
    for i, x in enumerate((0, 5, 12)): apart[i, 2:6, x:x + 5] = True  # the first two touch
    merged = _merge_masks(apart, 1, rng_for(0))
    assert merged.sum((1, 2)).tolist() == [40, 0, 20]


@given(MASKS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_larger_share_misses_more(masks, a, b, seed):
    few, many = (_miss_masks(masks, share, rng_for(seed)) for share in sorted((a, b)))
    assert (many <= few).all() and (few <= masks).all()
    assert all((mask == full).all() or not mask.any() for mask, full in zip(few, masks))


def test_the_share_of_missed_objects():
    assert _miss_masks(np.ones((4000, 1, 1), bool), 0.2, rng_for(0)).mean() == pytest.approx(0.8, abs=0.02)


# Depth and camera
@given(DEPTHS, st.floats(0, 0.4), st.floats(0, 4), st.integers(0, 99))
def test_unknown_depth_stays_unknown(depth, share, pixels, seed):
    for wrong in (_add_noise(depth, share, rng_for(seed)), _bleed_depth(depth, pixels)):
        assert wrong.dtype == np.float32 and ((wrong > 0) == (depth > 0)).all()
    assert (_add_noise(depth, 0, rng_for(seed)) == depth).all() and (_bleed_depth(depth, 0) == depth).all()
    if (depth > 0).any():
        wrong, known = _bleed_depth(depth, pixels)[depth > 0], depth[depth > 0]
        assert wrong.min() >= known.min() * (1 - 1e-5) and wrong.max() <= known.max() * (1 + 1e-5)


@given(st.floats(0.01, 0.3), st.integers(0, 99))
def test_noise_has_its_standard_deviation(share, seed):
    logs = np.log(_add_noise(np.full((60, 80), 2, np.float32), share, rng_for(seed)) / 2)
    assert logs.std() == pytest.approx(share, rel=1e-3)
    assert np.abs(np.diff(logs, axis=1)).mean() < share, "neighbours have nearly the same error"


def test_bleeding_leaves_planes_and_blurs_edges():
    y, x = np.mgrid[:60, :80]
    floor = (20 / (10 + y)).astype(np.float32)
    assert np.allclose(_bleed_depth(floor, 2)[10:-10], floor[10:-10], rtol=1e-3)
    step = np.where(x < 40, 1, 4).astype(np.float32)
    changed = [(np.abs(_bleed_depth(step, pixels) / step - 1) > 0.05)[0].sum() for pixels in (0, 1, 2, 4)]
    assert changed == sorted(set(changed)) and changed[0] == 0


@given(st.floats(20, 100), st.floats(-0.4, 0.4))
def test_the_field_of_view_grows(fov, error):
    K = intrinsics(64, 48, fov)
    assert np.allclose(_widen_view(K, error, 64), intrinsics(64, 48, fov * (1 + error))) and (_widen_view(K, 0, 64) == K).all()


@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_the_scale_scales(motions, factor):
    scene = motions[0].scene
    wrong = _annotate_with(_Errors(depth_scale=factor - 1), scene)
    assert np.allclose(unproject(wrong.depth, wrong.K), factor * unproject(scene.depth, scene.K), rtol=1e-5)


def test_no_error_changes_nothing(motions):
    for scene in {id(t.scene): t.scene for t in motions}.values():
        same = _annotate_with(_Errors(), scene, seed=5)
        assert (same.depth == scene.depth).all() and (same.K == scene.K).all() and [i.id for i in same.instances] == [i.id for i in scene.instances]
        assert all((a.mask == b.mask).all() for a, b in zip(same.instances, scene.instances))


# Labels
ERRORS = [_Errors(masks_grown=2), _Errors(depth_scale=0.4), _Errors(field_of_view=0.2), _Errors(0, 0.5, 0.3, 0.1, 0.1, 1, 0.1)]


def spoilt(example):
    "The same question with a wrong label."
    target = dict(example.target)
    if target["yes"] is not None: target["yes"] = not target["yes"]
    elif target["box"] is not None: target["box"] = [0.0, 0.0, 0.01, 0.01]
    elif example.task != "D3": target["actions"] = [action | {"amount": action["amount"] + 90} for action in target["actions"]]
    question = re.sub(r"\[[\d, ]+\]", "[0, 0, 1, 1]", example.question) if example.task == "D3" else example.question
    return replace(example, target=target, question=question)


def test_right_labels_are_right_and_wrong_ones_wrong(motions):
    values = {task: [] for task in TASKS}
    for exact in motions:
        for e in _derived_examples(_photo_transition(exact, exact.scene)).values():
            value, other = _label_value(e, exact), _label_value(spoilt(e), exact)
            assert 0 <= other <= value <= 1 or other == 1 - value
            if e.target["yes"] is None: assert other < 0.1
            values[e.task].append(value)
    assert all(np.mean(v) > 0.8 for v in values.values() if v) and sum(map(bool, values.values())) >= 7, values


@pytest.mark.parametrize("errors", ERRORS, ids=["masks", "depth", "camera", "all"])
def test_boxes_are_compared_with_the_true_ids(motions, errors):
    for exact in motions:
        for e in _derived_examples(_photo_transition(exact, _annotate_with(errors, exact.scene))).values():
            if e.task != "D1": continue
            y, x = np.nonzero(exact.ids_after == int(e.id.split("/")[-1]))
            w, h = exact.scene.size
            true = (x.min() / w, y.min() / h, (x.max() + 1) / w, (y.max() + 1) / h) if len(x) else (0, 0, 0, 0)
            assert _label_value(e, exact) == pytest.approx(iou(e.target["box"], true))


@pytest.mark.parametrize("errors", ERRORS, ids=["masks", "depth", "camera", "all"])
def test_kept_geometry_is_what_would_be_computed_again(motions, errors):
    texts = lambda examples: {id: (e.question, e.answer) for id, e in examples.items()}
    for exact in motions:
        wrong, known = _annotate_with(errors, exact.scene), _photo_transition(exact, exact.scene)
        _derived_examples(known)
        shared = _photo_transition(exact, wrong, known)
        assert bool(shared.cache) == (not errors.field_of_view and (is_pure_turn(exact.pose) or (wrong.depth == exact.scene.depth).all()))
        assert texts(_derived_examples(shared)) == texts(_derived_examples(_photo_transition(exact, wrong)))


def test_motions_do_not_depend_on_annotations(motions):
    "The labels of A1 to A4, which are right for the simulator's views."
    for exact in motions:
        wrong = _photo_transition(exact, _annotate_with(ERRORS[-1], exact.scene))
        for task in ("A1", "A2", "A3", "A4"):
            [right, other] = [[e.target for e in TASKS[task].derive(t, rng_for(0))] for t in (exact, wrong)]
            assert right == other


def test_turns_need_no_depth(motions):
    texts = lambda scene: {id: (e.question, e.answer) for id, e in _derived_examples(_photo_transition(exact, scene)).items()}
    for exact in (t for t in motions if is_pure_turn(t.pose)):
        deeper = _annotate_with(_Errors(depth_scale=1.5, depth_noise=0.1), exact.scene)
        assert texts(deeper) == texts(exact.scene) and np.allclose(_displayed_pose(exact, deeper), exact.pose, atol=1e-3)


def test_an_annotator_without_errors_agrees_with_itself(motions):
    for exact in motions:
        known = _derived_examples(_photo_transition(exact, exact.scene))
        labels = _check_labels(known, known, exact, _displayed_pose(exact, exact.scene))
        assert len(labels) == len(known) and all(label["remaining"] for label in labels)
        assert all(label["right"] for label in labels if label["task"][0] == "A")


# Motions that a warp displays
def transition_of(action, depth, K):
    "One `action` before a surface."
    h, w = depth.shape
    image = np.zeros((h, w, 3), np.uint8)
    return Transition(Scene("wall", image, K, depth, []), Rollout("wall", "simulator", 0, (action,), action.pose()[None], (0,), image[None]), 0)


SURFACE = np.add.outer(np.linspace(1.5, 4, 48), np.linspace(0, 2, 64)).astype(np.float32)
MOVES = st.builds(Action, st.sampled_from(["forward", "backward", "left", "right"]), st.floats(0.2, 1))
TURNED = st.builds(Action, st.sampled_from(["turn_left", "turn_right"]), st.floats(10, 60))


@given(MOVES, st.floats(-0.3, 0.4))
def test_depth_scales_the_move_that_a_warp_displays(action, error):
    exact = transition_of(action, SURFACE, intrinsics(64, 48, 65))
    displayed = _displayed_pose(exact, _annotate_with(_Errors(depth_scale=error), exact.scene))
    assert np.allclose(displayed[:3, 3] * (1 + error), exact.pose[:3, 3], atol=5e-3) and np.allclose(displayed[:3, :3], np.eye(3), atol=5e-3)


@given(TURNED, st.floats(0.02, 0.2))
def test_a_wider_view_displays_a_smaller_turn(action, error):
    exact = transition_of(action, SURFACE, intrinsics(64, 48, 65))
    wrong = {e: _annotate_with(_Errors(field_of_view=e), exact.scene) for e in (-error, 0, error)}
    turns = {e: relative_motion(np.eye(4), _displayed_pose(exact, scene)) for e, scene in wrong.items()}
    assert turns[0].rotation_deg == pytest.approx(relative_motion(np.eye(4), exact.pose).rotation_deg)
    assert abs(turns[error].rotation_deg) < abs(turns[0].rotation_deg) < abs(turns[-error].rotation_deg)
    assert all(turn.distance == 0 for turn in turns.values())


def test_nothing_in_view_displays_what_is_asked():
    exact = transition_of(Action("turn_left", 180), SURFACE, intrinsics(64, 48, 65))
    assert (_displayed_pose(exact, _annotate_with(_Errors(field_of_view=0.1), exact.scene)) == exact.pose).all()


# Shares
def labels_of(yes, right, wrong, rooms=10): return [dict(scene_id=str(i % rooms), yes=yes, right=i >= wrong) for i in range(right + wrong)]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_shares_lie_in_their_intervals(right, wrong, rooms):
    share = _right_share(labels_of(None, right, wrong, rooms))
    if right + wrong == 0: assert set(share.values()) == {None}; return
    assert share["right"] == pytest.approx(right / (right + wrong)) and share["right_yes"] is None
    if min(rooms, right + wrong) > 1: assert 0 <= share["low"] <= share["right"] <= share["high"] <= 1 and share["low"] < share["high"]


def test_yes_and_no_weigh_the_same():
    yes, no = labels_of(True, 90, 10), labels_of(False, 5, 5)
    both, parts = _right_share(yes + no), [_right_share(yes), _right_share(no)]
    assert both["right"] == pytest.approx(0.7) and both["right_yes"] == pytest.approx(0.9)
    assert both["right"] - both["low"] == pytest.approx(np.hypot(*(p["right"] - p["low"] for p in parts)) / 2)


def test_copies_within_a_room_are_no_evidence():
    rows = [dict(scene_id=str(i), yes=None, right=i % 4 > 0) for i in range(40)]
    width = lambda rows: _right_share(rows)["high"] - _right_share(rows)["low"]
    assert width(rows * 5) == pytest.approx(width(rows), rel=0.1) and width([r | dict(scene_id=f"{r['scene_id']}-{k}") for r in rows for k in range(5)]) < 0.6 * width(rows)


# Study
def rows(study, **where): return [row for row in study["labels"] if all(row[name] == value for name, value in where.items())]


@pytest.fixture(scope="module")
def study():
    return replace(SMALL, masks_grown=(3, -1), objects_missed=(0.0, 0.2, 0.6), depth_scale=(-0.6, -0.1, 0.0, 1.5), depth_noise=(0.1,),
                                             field_of_view=(-0.3, 0.3)).measure()


@pytest.mark.parametrize("studied, other", [("objects_missed", "masks_grown"), ("depth_scale", "depth_noise")])
def test_an_amount_of_zero_is_no_error(study, studied, other):
    "Also where it is studied like any other amount."
    measures = [[{n: v for n, v in row.items() if n != "kind"} for row in rows(study, kind=kind, amount=0)] for kind in (studied, other)]
    assert measures[0] == measures[1] and sum(row["n"] for row in measures[0]) > 50


def test_every_kind_starts_from_no_error(study):
    assert {row["kind"] for row in study["labels"]} == {"masks_grown", "objects_missed", "depth_scale", "depth_noise", "field_of_view"}
    assert all(row["remaining"] == 1 and row["abs_rel"] == 0 and row["n"] for row in rows(study, amount=0))
    assert all(row["right"] == 1 for row in rows(study, amount=0) if row["task"][0] == "A")


def test_large_errors_are_worse_than_small_ones(study):
    def right(kind, amount, task="D1"): return rows(study, kind=kind, amount=amount, task=task)[0]["right"]
    assert right("depth_scale", 0) >= right("depth_scale", -0.1) > right("depth_scale", -0.6) and right("depth_scale", 1.5) < right("depth_scale", 0)
    assert right("masks_grown", 3) < right("masks_grown", 0) and max(right("field_of_view", a) for a in (-0.3, 0.3)) < right("field_of_view", 0)
    assert right("depth_scale", 1.5, "A1") < right("depth_scale", -0.1, "A1") and right("depth_scale", 1.5, "A2") == 1
    assert max(right("field_of_view", a, "A2") for a in (-0.3, 0.3)) < 1
    missed = [rows(study, kind="objects_missed", amount=amount, task="D2")[0]["remaining"] for amount in (0, 0.2, 0.6)]
    assert missed[0] > missed[1] > missed[2]


def test_abs_rel_is_that_of_the_depth(study):
    assert {row["abs_rel"] for row in rows(study, kind="depth_scale", amount=1.5)} == {1.5}
    assert all(0.05 < row["abs_rel"] < 0.1 for row in rows(study, kind="depth_noise", amount=0.1)), "normal errors of 0.1 have a mean of 0.08"


def test_signs_of_several_errors_are_drawn(motions):
    "For each room, the same for every multiple."
    config = replace(SMALL, multiples=(1, 2), depth_model=_Errors(depth_scale=0.1))
    ratios = set()
    for scene in {t.scene.id: t.scene for t in motions}.values():
        for number in range(6):
            annotated = _annotated_scenes(replace(scene, id=f"{scene.id}-{number}"), config)
            one, two = (float(np.median(annotated["depth_model", m].depth / scene.depth)) - 1 for m in (1, 2))
            assert two == pytest.approx(2 * one, abs=1e-5)
            ratios.add(round(one, 5))
    assert ratios == {-0.1, 0.1}


def test_the_same_settings_give_the_same_study():
    config = replace(SMALL, scenes=replace(SMALL.scenes, n=2), masks_grown=(1,), objects_missed=(0.3,), depth_noise=(0.2,), multiples=(1,))
    first, again, other = (c.measure() for c in (config, replace(config, workers=1), replace(config, seed=1)))
    assert json.dumps(first) == json.dumps(again) and first["labels"] != other["labels"]
    assert "workers" not in first["settings"]


def test_the_sum_over_shards_is_that_of_one_shard():
    config = replace(SMALL, depth_scale=(0.3,))
    whole, parts = (replace(config, scenes=replace(SMALL.scenes, per_shard=n)).measure() for n in (4, 1))
    assert whole["labels"] == parts["labels"]


@pytest.mark.parametrize("change, field", [
    (dict(objects_missed=(1.2,)), "objects_missed"), (dict(objects_merged=(-0.1,)), "objects_merged"), (dict(depth_scale=(-1.0,)), "depth_scale"),
    (dict(depth_noise=("much",)), "depth_noise"), (dict(depth_bleeding=(-1,)), "depth_bleeding"), (dict(masks_grown=(100,)), "masks_grown"),
    (dict(field_of_view=(2.0,)), "field_of_view"), (dict(multiples=(-1,)), "multiples"), (dict(scenes=Scenes("photos", "pictures")), "scenes.source"),
    (dict(together=_Errors(objects_missed=0.6), multiples=(2,)), "objects_missed")])
def test_bad_settings_are_refused(change, field):
    with pytest.raises(ConfigError, match=field): replace(SMALL, **change)


# Limits and figures
def test_limits_lie_between_the_studied_amounts(study):
    low, high = _tolerated_range(study, "depth_scale", "D1", 0.9)
    assert -0.6 < low <= -0.1 and 0 <= high < 1.5
    assert _tolerated_range(study, "depth_scale", "D1", 0.0) == (None, None) and _tolerated_range(study, "depth_scale", "D1", 1.01) == (0, 0)


def test_a_figure_has_a_panel_for_each_kind(study):
    axes = [axes for axes in _error_figure(study).axes if axes.lines]
    assert len(axes) == 5 and all(len(a.lines) == len(a.collections) == 4 for a in axes)
    assert len([a for a in _error_figure(study, ("A1",), ("depth_scale",)).axes if a.lines]) == 1


def test_the_tracked_study_is_that_of_the_defaults():
    tracked = json.loads((repo_root() / "data/annotation_errors.json").read_text())
    assert tracked["settings"] == json.loads(json.dumps(recipe_of(AnnotationErrors()))), "run `make annotation-errors`"
    studied = {(kind, amount) for kind, amount in _studied_errors(AnnotationErrors()) if kind != "none"}
    assert {(row["kind"], row["amount"], row["task"]) for row in tracked["labels"]} == {(*p, t) for p in studied | {(k, 0) for k, _ in studied} for t in TASKS}
    assert all(row["low"] <= row["right"] <= row["high"] for row in tracked["labels"] if row["low"] is not None)
    assert all(row["remaining"] == 1 and row["right"] > 0.95 for row in rows(tracked, amount=0))
