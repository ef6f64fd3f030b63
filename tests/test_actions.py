"Actions: exact paths, words both ways, sampling."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import ACTION_KINDS, Action
from world2vlm.core.actions import PRESETS, Ranges, format_actions, merge_actions, parse_actions, plan, sample_actions
from world2vlm.core.actions import _count_steps
from world2vlm.core.camera import relative_motion

settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")

A = Action
grid = st.builds(A, st.sampled_from(ACTION_KINDS), st.integers(1, 600).map(lambda k: k / 10))  # single turns stay below half a turn
actions = st.builds(A, st.sampled_from(ACTION_KINDS), st.floats(0, 1e6))
paths = st.lists(grid, max_size=4)


def test_signs():
    def end(*path): return plan(path).poses[-1]
    assert np.allclose(end(A("turn_right", 90))[:3, 2], [1, 0, 0])  # the new forward axis is the old right
    assert np.allclose(end(A("turn_left", 30))[:3, 2], [-0.5, 0, np.sqrt(0.75)])
    for kind, direction in dict(forward=[0, 0, 1], backward=[0, 0, -1], left=[-1, 0, 0], right=[1, 0, 0]).items():
        assert np.allclose(end(A(kind, 2))[:3, 3], 2 * np.array(direction))
    assert np.allclose(end(A("turn_right", 90), A("forward", 1), A("left", 2))[:3, 3], [1, 0, 2])  # moves follow the heading


@given(paths, st.floats(0.2, 1e3), st.floats(5, 1e3))
def test_paths_are_fine_exact_and_start_at_the_identity(path, move_step, turn_step):
    t = plan(path, move_step, turn_step)
    assert np.array_equal(t.poses[0], np.eye(4)) and t.poses.dtype == np.float64
    assert len(t) == 1 + sum(_count_steps(a, move_step, turn_step) for a in path) and len(t.keyframes) == len(path)
    for a, b in zip(t.poses, t.poses[1:]):
        step = relative_motion(a, b)
        assert step.distance <= move_step + 1e-6 and abs(step.rotation_deg) <= turn_step + 1e-5
    assert np.allclose(t.poses[-1], plan(path, 1e9, 1e9).poses[-1], atol=1e-9)  # the step does not change where it ends
    assert not path or t.keyframes[-1] == len(t) - 1


@given(grid)
def test_motion_of_a_plan_is_the_plan(action):
    motion = relative_motion(*plan([action]).poses[[0, -1]])
    amount = abs(motion.rotation_deg) if action.is_turn else motion.distance
    assert np.isclose(amount, action.amount if not action.is_turn else min(action.amount % 360, -action.amount % 360), atol=1e-6)
    assert np.allclose(plan([action]).poses[-1], action.pose(), atol=1e-9)


@given(paths, paths)
def test_plans_compose(first, second):
    both = plan(first + second).poses[-1]
    assert np.allclose(plan(first).poses[-1] @ plan(second).poses[-1], both, atol=1e-8)


@given(paths)
def test_opposite_actions_lead_home(path):
    home = path + [action.opposite for action in reversed(path)]
    assert np.allclose(plan(home).poses[-1], np.eye(4), atol=1e-8) and merge_actions(home) == []


@given(paths)
def test_merging_keeps_the_path_and_is_canonical(path):
    short = merge_actions(path)
    assert merge_actions(short) == short and len(short) <= len(path) and all(a.amount for a in short)
    assert np.allclose(plan(short).poses[-1], plan(path).poses[-1], atol=1e-4)


def test_merge_examples():
    assert merge_actions([A("forward", 0.1), A("forward", 0.2)]) == [A("forward", 0.3)]
    assert merge_actions([A("turn_left", 30), A("turn_right", 50)]) == [A("turn_right", 20)]
    assert merge_actions([A("left", 1), A("forward", 0), A("right", 1), A("forward", 1)]) == [A("forward", 1)]


def test_keyframes_end_the_actions():
    path = [A("left", 0.4), A("forward", 1.1), A("turn_left", 50)]
    t = plan(path)
    for i, (start, end) in enumerate(zip((0, *t.keyframes), t.keyframes)): assert np.allclose(t.poses[start] @ path[i].pose(), t.poses[end])


@given(st.lists(actions, max_size=5))
def test_words_read_back(path):
    assert parse_actions(format_actions(path)) == path


def test_words():
    assert format_actions([A("forward", 0.5), A("turn_left", 30.0), A("left", 2)]) == "move forward 0.5 meters; turn left 30 degrees; move left 2 meters"
    assert format_actions([]) == ""


F, L, TL, TR = A("forward", 0.5), A("left", 0.4), A("turn_left", 30), A("turn_right", 30)


@pytest.mark.parametrize("text, expected", [
    ("Move Forward 0.5 Meters; Turn Left 30 Degrees.", [F, TL]),
    ("move forward 0.5 m, turn left 30°", [F, TL]),
    ("1. Go forwards 0.5 metres\n2. Rotate left 30 deg", [F, TL]),
    ("1) walk ahead .5m 2) turn 30 degrees to the left", [F, TL]),
    ("First, move straight ahead by about 0.5 meter and then rotate to the left by 30 degrees", [F, TL]),
    ("First left 30 degrees, then forward 0.5 m", [TL, F]),
    ("Step 1: forward 0.5 meters. Step 2: turn 30° clockwise", [F, TR]),
    ("The camera moved 0.5 m forward, 0.4 m left, then turned counter-clockwise 30°", [F, L, TL]),
    ("a left turn of 30 degrees and a step backwards of 50 cm", [TL, A("backward", 0.5)]),
    ("**turn_left** (30), `move_forward(0.5)`", [TL, F]),
    ("forward 0,5 m", [F]),
    ("strafe left 0.4", [L]),
    (r"turn right $30^\circ$", [TR]),
    ("<answer>turn right by 30 degrees</answer>", [TR]),
    ("I think move right 0.3 meters.", [A("right", 0.3)]),
    ("turn left 30; turn left 30", [TL, TL]),
    ("move forward 0 meters", [A("forward", 0)]),
])
def test_reader_accepts(text, expected):
    assert parse_actions(text) == expected


@pytest.mark.parametrize("text", [
    "", "no idea", "yes", "move forward", "turn around", "left 30", "30 degrees", "0.5 meters",
    "turn left 0.5 meters", "move left 30 degrees", "turn forward 30 degrees",  # verb and unit disagree
    "move forward -1 meters", "turn left −30 degrees",  # a sign
    "move forward 1/2 meters", "turn left 10-20 degrees", "turn left 10 to 20 degrees",  # not one number
    "move right 1,000 meters", "move right 1e3 meters",
    "move forward 3 feet", "move forward 2 steps", "turn left 1 rad",  # other units
    "move forward " + "9" * 400 + " meters",
])
def test_reader_refuses(text):
    assert parse_actions(text) == []


@given(st.text(max_size=200))
def test_reader_never_fails(text):
    assert all(a.kind in ACTION_KINDS for a in parse_actions(text))


@pytest.mark.parametrize("junk", ["turn ", "turn left 30 degrees ", "2 m forward ", "move to the ", "9", "turn left the "])
def test_reader_is_linear(junk):
    parse_actions(junk * 10_000)  # a quadratic reader takes half a minute


@given(st.sampled_from(list(PRESETS)), st.integers(0, 2**32 - 1))
def test_samples_follow_their_preset(preset, seed):
    ranges = Ranges(move=(0.2, 1.5, 0.1), turn=(10, 60, 10))
    path = sample_actions(np.random.default_rng(seed), preset, ranges)
    assert path == sample_actions(np.random.default_rng(seed), preset, ranges)
    assert all(a.kind in slot for a, slot in zip(path, PRESETS[preset], strict=True))
    assert all(a.amount in ranges.values(a.kind) for a in path) and merge_actions(path) == path


def test_the_papers_grids():
    assert Ranges().values("forward") == [k / 10 for k in range(1, 61)] and Ranges().values("turn_left") == [10.0 * k for k in range(1, 11)]
    kinds = [sample_actions(np.random.default_rng(seed))[0].kind for seed in range(200)]
    assert set(kinds) == set(ACTION_KINDS)


@pytest.mark.parametrize("make, message", [
    (lambda: A("up", 1), "Action.kind: 'up'"),
    (lambda: A("left", -1), "opposite kind"),
    (lambda: A("left", float("nan")), "finite"),
    (lambda: A("left", "1"), "finite"),
    (lambda: A("left", True), "finite"),
    (lambda: Ranges(move=(1, 0.5, 0.1)), "Ranges.move"),
    (lambda: Ranges(turn=(10, 20)), "Ranges.turn"),
    (lambda: sample_actions(np.random.default_rng(0), "spin"), "unknown preset 'spin'"),
    (lambda: plan([A("left", 1)], move_step=0), "steps must be positive"),
])
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")): make()
