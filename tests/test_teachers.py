"Teachers: the contract, names and options, signs of the simulator, rejections, determinism, and a teacher of a user's own."
import numpy as np
import pytest

from world2vlm.core.camera import Action, move
from world2vlm.core.actions import format_actions, plan
from world2vlm.core.config import ConfigError
from world2vlm.core.records import keyframe_poses, Scene
from world2vlm.core.runs import read_jsonl
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import Imagine, make_rollouts, make_scenes, Scenes
from world2vlm.evaluation.teacher_quality import evaluate_teacher, TeacherQuality
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers.base import load_teacher, teacher_with_options
from world2vlm.teachers.filters import Filter
from world2vlm.teachers.reprojection import reproject

SIZE = (64, 64)


@pytest.fixture(scope="module")
def scenes(): return list(room_scenes(5, 21, size=SIZE, fov_deg=90))


@pytest.fixture(scope="module")
def scene(scenes): return scenes[0]


def middle(mask): return np.argwhere(mask).mean(0)[::-1]


@pytest.mark.parametrize("kind, amount, sign", [("turn_right", 10, -1), ("turn_left", 10, 1), ("right", 0.3, -1), ("left", 0.3, 1)])
def test_simulator_signs(scenes, kind, amount, sign):
    "Content goes the other way than the camera, except for an object that another one uncovers."
    shifts = []
    for scene in scenes:
        for rollout in load_teacher("simulator").imagine(scene, [plan([Action(kind, amount)])]):
            for item in scene.instances:
                after = rollout.ids[0] == item.id
                if min(after.sum(), item.mask.sum()) > 30 and not (after | item.mask)[:, [0, -1]].any():
                    shifts.append(middle(after)[0] - middle(item.mask)[0])
    assert len(shifts) >= 3 and np.mean(np.sign(shifts) == sign) > 0.8


def test_simulator_forward_grows(scenes):
    ratios = []
    for scene in scenes:
        for rollout in load_teacher("simulator").imagine(scene, [plan([Action("forward", 0.4)])]):
            for item in scene.instances:
                after = rollout.ids[0] == item.id
                if item.mask.sum() > 30 and not (after | item.mask)[[0, -1]].any() and not (after | item.mask)[:, [0, -1]].any():
                    ratios.append(after.sum() / item.mask.sum())
    assert len(ratios) >= 3 and np.median(ratios) > 1.05


def test_moves_follow_the_heading(scene):
    "Turn right 90 then forward is a move to the right of the anchor."
    trajectory = plan([Action("turn_right", 90), Action("forward", 1)])
    np.testing.assert_allclose(keyframe_poses(trajectory)[1][:3, 3], [1, 0, 0], atol=1e-9)


def test_collisions_are_rejected_between_keyframes(scene):
    "There and back again ends in free space, yet the path goes through the wall."
    there_and_back = plan([Action("forward", 20), Action("backward", 20)])
    for name in ("simulator", "reprojection"):
        rejected = {}
        assert load_teacher(name).imagine(scene, [there_and_back], reject=rejected.__setitem__) == []
        [(key, reason)] = rejected.items()
        assert key == f"{scene.id}: move forward 20 meters; move backward 20 meters" and reason.startswith("collision")


def test_rejections_name_the_remedy(scene):
    photo, reasons = Scene("photo", scene.image, scene.K), []
    def reject(name, reason): reasons.append(reason)
    trajectories = [plan([Action("forward", 0.5)]), plan([Action("turn_left", 100)]), plan([Action("turn_left", 20)])]
    rollouts = load_teacher("reprojection").imagine(photo, trajectories, reject=reject)
    assert [r.actions for r in rollouts] == [trajectories[2].actions]
    assert "depth map of scene photo" in reasons[0] and "max_unseen" in reasons[1]
    assert load_teacher("reprojection", max_unseen=1.0).imagine(photo, trajectories[1:2])[0].fidelity["unseen"] == 1.0
    assert load_teacher("simulator").imagine(photo, trajectories, reject=reject) == []
    assert "no room: scene photo" in reasons[-1]
    with pytest.raises(ValueError, match="needs depth"):
        reproject(scene.image, scene.K, move(z=0.1))


@pytest.mark.parametrize("name", ["simulator", "reprojection"])
def test_an_empty_trajectory_is_rejected(scene, name):
    rejected = {}
    rollouts = load_teacher(name).imagine(scene, [plan([]), plan([Action("turn_left", 10)])], reject=rejected.__setitem__)
    assert len(rollouts) == 1 and rejected == {f"{scene.id}: ": "empty: the trajectory has no action"}


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


@pytest.mark.parametrize("name, options, message", [
    ("svc2", {}, "teacher 'svc2': unknown; choose one of simulator, reprojection"),
    ("reprojection", {"unseen": 0.3}, "'unseen'; its options are: max_unseen, radius"),
    ("own_teachers:Mirrored", {}, "teacher 'own_teachers:Mirrored': .*no attribute 'Mirrored'"),
    ("nowhere_to_be_found:Mirrored", {}, "teacher 'nowhere_to_be_found:Mirrored': No module named"),
    ("own_teachers:Turning", {"step": 2}, "'step'; its options are: degrees"),
    ("own_teachers:Nameless", {}, "Nameless has no name, imagine"),
    ("own_teachers:Needy", {}, "missing a required argument: 'path'; its options are: path"),
])
def test_load_rejects_what_it_does_not_know(own, name, options, message):
    with pytest.raises(ConfigError, match=message): load_teacher(name, **options)


OWN = """
import numpy as np
from world2vlm.core.records import keyframe_poses
from world2vlm.teachers.base import collect_rollouts

class Turning:
    name, exact = "turning", False
    def __init__(self, degrees: float = 90.0): self.degrees = degrees  # across the picture

    def imagine(self, scene, trajectories, seed=0, reject=None):
        def views(t):
            if not all(a.is_turn for a in t.actions): return "move: turns only"
            yaws = [np.degrees(np.arctan2(pose[0, 2], pose[2, 2])) for pose in keyframe_poses(t)]
            return dict(images=np.stack([np.roll(scene.image, -round(yaw / self.degrees * scene.size[0]), 1) for yaw in yaws]))
        return collect_rollouts(self, scene, trajectories, views, seed, reject)

class Nameless:
    exact = False

class Needy(Turning):
    def __init__(self, path): self.path = path
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module of a user, importable here and in worker processes."
    (tmp_path / "module").mkdir()
    (tmp_path / "module/own_teachers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "module")
    yield "own_teachers:Turning"
    import sys
    sys.modules.pop("own_teachers", None)


def test_an_own_teacher_runs_in_the_stages(own, tmp_path):
    "By name with options, in worker processes; its rollouts carry its own name, what it rejects is logged, and filters go by the given name."
    make_scenes(Scenes(n=4, per_shard=2, size=SIZE), tmp_path / "scenes")
    config = Imagine(presets={"single": 4}, options={own: {"degrees": 45.0}}, workers=2)
    stats = make_rollouts(config, own, tmp_path / "scenes", tmp_path / "by_name")
    rollouts = list(read_dataset("rollouts", tmp_path / "by_name"))
    anchors = {s.id: s.image for s in read_dataset("scenes", tmp_path / "scenes")}
    assert stats["rows"] == len(rollouts) > 0 and {r.teacher for r in rollouts} == {"turning"}
    for r in rollouts:
        shift = round(r.actions[0].amount / 45 * SIZE[0]) * (1 if r.actions[0].kind == "turn_left" else -1)
        assert (r.images[0] == np.roll(anchors[r.scene_id], shift, 1)).all()
    log = read_jsonl(tmp_path / "by_name/rejects.jsonl")
    assert log and all(row["input"].startswith("room-") and "move " in row["input"] and row["reason"] == "move: turns only" for row in log)
    teacher = load_teacher(own, degrees=45.0)
    make_rollouts(Imagine(presets={"single": 4}, workers=2), teacher, tmp_path / "scenes", tmp_path / "by_object")
    again = list(read_dataset("rollouts", tmp_path / "by_object"))
    assert [(r.scene_id, r.actions, r.images.tobytes()) for r in again] == [(r.scene_id, r.actions, r.images.tobytes()) for r in rollouts]
    strict = Imagine(presets={"single": 4}, filters={own: Filter(matches=False, agreement=100)})
    assert make_rollouts(strict, own, tmp_path / "scenes", tmp_path / "strict")["reasons"].keys() >= {"agreement", "move"}


def test_an_own_teacher_is_evaluated(own):
    config = TeacherQuality(Scenes(first=700_000, n=2, seed=1, size=SIZE, per_shard=1), turns=(10, 30), moves=(0.3,), poses=False, workers=2)
    views = evaluate_teacher(own, config)
    assert len(views) == 4 and {v.kind for v in views} == {"turn"}  # it rejects moves
    assert [v.scores for v in evaluate_teacher(load_teacher(own), config)] == [v.scores for v in views]


def test_options_go_to_the_named_teacher(own):
    options = {"simulator": {"radius": 0.3}, own: {"degrees": 60.0}}
    assert teacher_with_options("simulator", options).radius == 0.3 and teacher_with_options(own, options).degrees == 60
    assert teacher_with_options("reprojection", options).radius == 0.2
    teacher = load_teacher("simulator", radius=0.1)
    assert teacher_with_options(teacher, options) is teacher and teacher.radius == 0.1
