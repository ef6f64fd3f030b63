"Wrong annotations: each error is what it says, none changes nothing, and larger ones leave fewer right labels."
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from world2vlm.core.actions import Ranges
from world2vlm.core.camera import intrinsics, is_pure_turn, unproject
from world2vlm.core.config import ConfigError, repo_root
from world2vlm.core.records import transitions_of
from world2vlm.core.runs import rng_for
from world2vlm.core.stages import recipe_of
from world2vlm.dataset.synthesis import exact_rollouts, Imagine, Scenes
from world2vlm.evaluation.annotation_errors import AnnotationErrors, measure_annotation_errors
from world2vlm.evaluation.annotation_errors import (_add_noise, _annotate_with, _bleed_depth, _count_labels, _derived_examples, _error_figure, _Errors, _grow_masks, _KINDS,
                                                    _label_shares, _label_value, _merge_masks, _miss_masks, _photo_transition, _studied_errors, _tolerated_range,
                                                    _widen_view, _with_class_names)
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


@pytest.mark.parametrize("errors", ERRORS, ids=["masks", "depth", "camera", "all"])
def test_values_are_those_of_the_audits(motions, errors):
    "By the true ids a label has the value that the audit of its task gives it; a motion stays what it is."
    for exact in motions:
        for e in _derived_examples(_photo_transition(exact, _annotate_with(errors, exact.scene))).values():
            value, audited = _label_value(e, exact), TASKS[e.task].audit(e, exact, Rules())
            assert value == pytest.approx(audited) if e.task != "D3" else audited == 1


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
    "The labels of A1 to A4, which are therefore not studied."
    for exact in motions:
        wrong = _photo_transition(exact, _annotate_with(ERRORS[-1], exact.scene))
        for task in ("A1", "A2", "A3", "A4"):
            [right, other] = [[e.target for e in TASKS[task].derive(t, rng_for(0))] for t in (exact, wrong)]
            assert right == other


def test_an_annotator_without_errors_agrees_with_itself(motions):
    for exact in motions:
        known = _derived_examples(warped := _photo_transition(exact, exact.scene))
        counts = _count_labels(known, known, exact, warped)
        assert all(counts[t, "questions"] == counts[t, "same"] == counts[t, "remaining"] for t in ("D1", "D2", "D3", "D4"))


# Study
def rows(study, **where): return [row for row in study["labels"] if all(row[name] == value for name, value in where.items())]
def total(study, measure, **where): return sum(row[measure] for row in rows(study, **where))


@pytest.fixture(scope="module")
def study():
    return measure_annotation_errors(replace(SMALL, masks_grown=(3, -1), objects_missed=(0.0, 0.2, 0.6), depth_scale=(-0.6, -0.1, 0.0, 1.5), depth_noise=(0.0,),
                                             field_of_view=(-0.3, 0.3)))


@pytest.mark.parametrize("kind", ["objects_missed", "depth_scale", "depth_noise"])
def test_an_amount_of_zero_agrees_wholly(study, kind):
    measures = [[{n: v for n, v in row.items() if n != "kind"} for row in rows(study, kind=k, amount=0)] for k in ("none", kind)]
    assert measures[0] == measures[1] and sum(row["questions"] for row in measures[0]) > 50
    assert all(row["questions"] == row["same"] == row["remaining"] for row in measures[0])


def test_large_errors_are_worse_than_small_ones(study):
    def right(kind, amount, motion, task="D1"):
        where = dict(kind=kind, amount=amount, motion=motion, task=task)
        return total(study, "right", **where) / total(study, "questions", **where)
    none = right("none", 0, "move")
    assert none >= right("depth_scale", -0.1, "move") > right("depth_scale", -0.6, "move") and right("depth_scale", 1.5, "move") < none
    assert right("masks_grown", 3, "move") < none and max(right("field_of_view", a, "turn") for a in (-0.3, 0.3)) < right("none", 0, "turn")
    missed = [total(study, "remaining", kind="objects_missed", amount=amount) for amount in (0, 0.2, 0.6)]
    assert missed[0] > missed[1] > missed[2]


def test_turns_need_no_depth(study):
    turns = [[{n: row[n] for n in ("questions", "right", "iou")} for row in rows(study, kind=kind, amount=amount, motion="turn")]
             for kind, amount in (("none", 0), ("depth_scale", 1.5), ("depth_scale", -0.6))]
    assert turns[0] == turns[1] == turns[2]


def test_the_same_settings_give_the_same_study():
    config = replace(SMALL, scenes=replace(SMALL.scenes, n=2), masks_grown=(1,), objects_missed=(0.3,), depth_noise=(0.2,), multiples=(1,))
    first, again, other = (measure_annotation_errors(c) for c in (config, replace(config, workers=1), replace(config, seed=1)))
    assert json.dumps(first) == json.dumps(again) and first["labels"] != other["labels"]
    assert first["motions"] == other["motions"] and "workers" not in first["settings"]


def test_the_sum_over_shards_is_that_of_one_shard():
    config = replace(SMALL, depth_scale=(0.3,))
    whole, parts = (measure_annotation_errors(replace(config, scenes=replace(SMALL.scenes, per_shard=n))) for n in (4, 1))
    assert whole["labels"] == parts["labels"] and whole["motions"] == parts["motions"]


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


def test_shares_start_from_no_error(study):
    shares = _label_shares(study)
    assert {row["kind"] for row in shares} == {"masks_grown", "objects_missed", "depth_scale", "depth_noise", "field_of_view"}
    zero = [row for row in shares if row["amount"] == 0 and row["questions"]]
    assert zero and all(row["remaining"] == row["same"] == 1 for row in zero)
    assert len(_error_figure(study).axes) >= 5


def test_the_tracked_study_is_that_of_the_defaults():
    tracked = json.loads((repo_root() / "data/annotation_errors.json").read_text())
    assert tracked["settings"] == json.loads(json.dumps(recipe_of(AnnotationErrors()))), "run `make annotation-errors`"
    assert {(row["kind"], row["amount"]) for row in tracked["labels"]} == set(_studied_errors(AnnotationErrors()))
    assert all(row["questions"] == row["same"] == row["remaining"] for row in rows(tracked, kind="none"))
