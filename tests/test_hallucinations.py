"Hallucinations: an object that geometry puts into a view must be detected there; verdicts, figures, bytes, resume, wrong detectors."
import json
import shutil
from collections import Counter, namedtuple
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.actions import plan, Ranges
from world2vlm.core.camera import Action, intrinsics, yaw
from world2vlm.core.config import ConfigError, repo_root
from world2vlm.core.records import Instance, Rollout, Scene, transitions_of
from world2vlm.core.runs import read_jsonl
from world2vlm.core.stages import fingerprint
from world2vlm.dataset import synthesis
from world2vlm.dataset.annotation import _annotator_files, _mapping
from world2vlm.dataset.shards import read_dataset, validate_dataset
from world2vlm.dataset.synthesis import Imagine, make_questions, make_rollouts, make_scenes, Scenes, stats_summary, Supervise
from world2vlm.tasks.cases import object_id
from world2vlm.scenes.annotate import _open_annotator, _open_role, _open_roles
from world2vlm.tasks.hallucinations import _detect_again, _is_detected, _with_verdicts, HallucinationCheck
from world2vlm.tasks.tasks import TASKS
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.reprojection import turn_index

Detection = namedtuple("Detection", "label box mask score")

DETECTOR = '''
import hashlib
from collections import namedtuple
import numpy as np
Detection = namedtuple("Detection", "label box mask score")

class Lookup:
    "Knows what is in each picture of a table; `lost` objects are not detected outside of the anchor, which comes first."
    def __init__(self, table, lost=0): self.table, self.lost, self.calls = np.load(table), lost, 0
    def objects(self, images):
        self.calls += 1
        def ids_of(image): return self.table[hashlib.sha256(image.tobytes()).hexdigest()]
        def detect(ids, lost): return [Detection("thing", (0, 0, 1, 1), ids == n, 0.9) for n in np.unique(ids) if n and n != lost]
        return [detect(ids_of(image), self.lost * (k > 0)) for k, image in enumerate(images)]
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Rooms, their true views, and a module with a detector that knows them all."
    import hashlib
    home = tmp_path_factory.mktemp("hallucinations")
    make_scenes(Scenes(n=6, per_shard=3, seed=1), home / "scenes")
    make_rollouts(Imagine(presets={"single": 6}, ranges=Ranges((.2, 1, .1), (10, 60, 10))), "simulator", home / "scenes", home / "rollouts")
    ids = lambda scene: sum((i.id * i.mask.astype(np.uint16) for i in scene.instances), np.zeros(scene.image.shape[:2], np.uint16))
    pictures = [(s.image, ids(s)) for s in read_dataset("scenes", home / "scenes")]
    pictures += [pair for r in read_dataset("rollouts", home / "rollouts") for pair in zip(r.images, r.ids)]
    np.savez(home / "table.npz", **{hashlib.sha256(image.tobytes()).hexdigest(): ids for image, ids in pictures})
    (home / "detector_of_a_test.py").write_text(DETECTOR)
    return home


@pytest.fixture
def check(home, monkeypatch):
    monkeypatch.syspath_prepend(home)
    _open_annotator.cache_clear(), _open_role.cache_clear()
    return HallucinationCheck("detector_of_a_test:Lookup", {"table": str(home / "table.npz")})


def made(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(home, out, check, **settings):
    return make_questions(Supervise(hallucinations=check, balance=(), **settings), home / "scenes", home / "rollouts", out)


def test_true_views_are_confirmed(home, check, tmp_path):
    plain, checked = run(home, tmp_path / "plain", HallucinationCheck()), run(home, tmp_path / "checked", check)
    assert plain["rows"] == checked["rows"] and "agreement" not in plain and set(plain["counts"]["evidence"]) == {"exact"}
    assert set(checked["counts"]["evidence"]) == {"exact", "exact, confirmed"}
    texts = lambda name: [(e.id, e.question, e.answer) for e in read_dataset("examples", tmp_path / name)]
    assert texts("plain") == texts("checked"), "the check draws nothing at random"
    tasks, sizes = checked["agreement"]["tasks"], checked["agreement"]["motion_sizes"]
    assert all(cell["confirmed"] == 1 for cell in [*tasks.values(), *sizes]) and set(tasks) <= set(TASKS) and {"D1", "D3", "A2"} <= set(tasks)
    assert sum(cell["n"] for cell in tasks.values()) == sum(cell["n"] for cell in sizes) == checked["counts"]["evidence"]["exact, confirmed"]
    assert stats_summary(checked)["agreement"] == checked["agreement"] == json.loads((tmp_path / "checked/stats.json").read_text())["agreement"]


def test_a_lost_object_is_dropped_or_marked(home, check, tmp_path):
    "Questions about the object that the teacher left out go; those about others stay."
    lost = replace(check, options=check.options | {"lost": 1})
    marked, dropped = run(home, tmp_path / "marked", replace(lost, contradicted="mark")), run(home, tmp_path / "dropped", lost)
    verdicts = {e.id: e.evidence for e in read_dataset("examples", tmp_path / "marked")}
    contradicted = {name for name, evidence in verdicts.items() if evidence == "exact, contradicted"}
    assert contradicted and {e.id for e in read_dataset("examples", tmp_path / "dropped")} == verdicts.keys() - contradicted
    about = lambda name: next(e for e in read_dataset("examples", tmp_path / "marked", id=name))
    assert all(object_id(about(name)) in (1, None) for name in contradicted)
    assert marked["agreement"] == dropped["agreement"] and marked["agreement"]["tasks"]["D1"]["confirmed"] < 1
    rows = [row for row in read_jsonl(tmp_path / "dropped/rejects.jsonl") if row["reason"].endswith("contradicted by the detector")]
    assert sum(int(row["input"].split()[2]) for row in rows) == len(contradicted) and all(row["stage"] == "supervise" for row in rows)
    assert all(validate_dataset("examples", tmp_path / name) == [] for name in ("marked", "dropped"))


def test_what_leaves_the_view_is_not_tested(home, check, tmp_path):
    run(home, tmp_path / "out", replace(check, contradicted="mark"), tasks=("D2",))
    evidence = Counter((e.target["yes"], e.evidence) for e in read_dataset("examples", tmp_path / "out"))
    assert (True, "exact") in evidence and not any(gone and "," in text for gone, text in evidence)
    balanced = make_questions(Supervise(hallucinations=check, tasks=("D2",)), home / "scenes", home / "rollouts", tmp_path / "balanced")
    answers = Counter(e.target["yes"] for e in read_dataset("examples", tmp_path / "balanced"))
    assert balanced["rows"] and answers[True] == answers[False], "a remark in the evidence does not part yes from no"


def test_the_same_bytes_again_and_after_a_kill(home, check, tmp_path, monkeypatch):
    run(home, tmp_path / "whole", check)
    derive, calls = synthesis.derive_examples, []
    def dies(*args, **options):
        calls.append(args[2])
        if args[2] == "shard 1" and len(calls) < 3: raise KeyboardInterrupt
        return derive(*args, **options)
    monkeypatch.setattr(synthesis, "derive_examples", dies)
    with pytest.raises(KeyboardInterrupt): run(home, tmp_path / "killed", check)
    assert (tmp_path / "killed.partial/figures/00000.json").exists() and not (tmp_path / "killed").exists()
    run(home, tmp_path / "killed", check)
    assert calls == ["shard 0", "shard 1", "shard 1"], "the figures of the finished shard are kept"
    assert made(tmp_path / "killed") == made(tmp_path / "whole") and not (tmp_path / "whole/figures").exists()


def test_the_anchor_and_all_views_are_one_call(home, check):
    scene = next(read_dataset("scenes", home / "scenes"))
    transitions = [t for r in read_dataset("rollouts", home / "rollouts", scene_id=scene.id) for t in transitions_of(scene, r)]
    detector = _open_roles(check.annotators)["objects"].annotator
    before = detector.calls
    answers = _detect_again(transitions, check)
    assert len(answers) == len(transitions) > 2 and detector.calls == before + 1


# Geometry.
SIZE, K = (96, 96), intrinsics(96, 96, 70)


def blob(x: float, y: float, r: float) -> np.ndarray:
    rows, columns = np.mgrid[:96, :96] + .5
    return (columns - x) ** 2 + (rows - y) ** 2 < r**2


class Fixed:
    "Gives the same masks for the anchor and, in order, for the views."
    def __init__(self, *masks): self.masks = masks
    def objects(self, images): return [[Detection("cup", (0, 0, 1, 1), mask, .5)] for mask in self.masks]


@settings(max_examples=25, deadline=None)
@given(turn=st.floats(-25, 25), x=st.floats(38, 58), y=st.floats(38, 58))
def test_the_mask_moves_with_the_turn(turn, x, y):
    "Property: a detection where the turn brings the object confirms it, one where the opposite turn would bring it does not."
    mask = blob(x, y, 11)
    scene = Scene("photo", np.zeros((96, 96, 3), np.uint8), K, instances=[Instance(1, "cup", mask)])
    path = plan([Action("turn_right" if turn >= 0 else "turn_left", abs(turn))])
    rollout = Rollout("photo", "demo", 0, path.actions, path.poses, path.keyframes, scene.image[None])
    transitions = transitions_of(scene, rollout)[-1:]
    def after(degrees):
        index = turn_index(K, yaw(degrees)[:3, :3], SIZE)
        return (index >= 0) & mask.ravel()[index]
    [right] = _detect_again(transitions, HallucinationCheck(), detector=Fixed(mask, after(turn)))
    [wrong] = _detect_again(transitions, HallucinationCheck(), detector=Fixed(mask, after(-turn)))
    assert right == {1: True} and (abs(turn) < 12 or wrong == {1: False})


def test_only_what_the_anchor_saw_is_compared():
    "The border cuts the object; the view shows all of it, and the new part does not count against it."
    mask = blob(93, 48, 14)
    scene = Scene("photo", np.zeros((96, 96, 3), np.uint8), K, instances=[Instance(1, "cup", mask)])
    path = plan([Action("turn_right", 20)])
    [transition] = transitions_of(scene, Rollout("photo", "demo", 0, path.actions, path.poses, path.keyframes, scene.image[None]))
    index = turn_index(K, yaw(20)[:3, :3], SIZE)
    seen = (index >= 0) & mask.ravel()[index]
    whole = seen | (index < 0) & (np.abs(np.mgrid[:96, :96][0] - 48) < 14)
    assert whole.sum() > 2 * seen.sum()
    assert _detect_again([transition], HallucinationCheck(min_iou=.9), detector=Fixed(mask, whole)) == [{1: True}]
    assert _detect_again([transition], HallucinationCheck(), detector=Fixed(blob(20, 20, 9), whole)) == [{}], "not known in the anchor, so not tested"


def test_too_many_views_at_once_are_halved():
    scene = next(iter(synthesis.shard_scenes(0, print, Scenes(n=1, seed=1))))
    [rollout] = load_teacher("simulator").imagine(scene, [plan([Action("turn_left", 20)])])
    transitions, seen = transitions_of(scene, rollout) * 3, []
    class Small:
        def objects(self, images):
            seen.append(len(images))
            if len(images) > 2: raise MemoryError("the device is full")
            return [[Detection(i.label, None, i.mask, 1.0) for i in scene.instances] for _ in images]
    answers = _detect_again(transitions, HallucinationCheck(min_iou=0), detector=Small())
    assert seen == [4, 2, 2] and len(answers) == 3 and all(answer and all(answer.values()) for answer in answers)


def test_another_checkpoint_or_device_is_another_run(home, check, tmp_path):
    "A detector on cuda gets one process for each GPU; the files that it reads count for the data set."
    shutil.copy(home / "table.npz", tmp_path / "table.npz")
    own = replace(check, options={"table": str(tmp_path / "table.npz")})
    assert _mapping(replace(own, options=own.options | {"device": "cuda"}).annotators)["device"] == "cuda"
    marks = []
    for content in (None, b"another"):
        if content: (tmp_path / "table.npz").write_bytes(content)
        marks.append(fingerprint(Supervise(hallucinations=own), *_annotator_files(own.annotators)))
    assert str(tmp_path / "table.npz") in _annotator_files(own.annotators) and marks[0] != marks[1]


def test_the_licence_of_its_weights_is_stated(home, check, tmp_path):
    assert run(home, tmp_path / "out", check)["recipe"]["weights"] == {"detector_of_a_test:Lookup": "unknown"}
    assert "weights" not in run(home, tmp_path / "plain", HallucinationCheck())["recipe"]


def test_a_move_without_depth_is_not_tested():
    scene = Scene("photo", np.zeros((96, 96, 3), np.uint8), K, instances=[Instance(1, "cup", blob(48, 48, 12))])
    path = plan([Action("forward", .5)])
    rollout = Rollout("photo", "demo", 0, path.actions, path.poses, path.keyframes, scene.image[None])
    assert _detect_again(transitions_of(scene, rollout), HallucinationCheck(), detector=Fixed(scene.instances[0].mask, blob(48, 48, 14))) == [{}]


@pytest.mark.parametrize("detected, share, verdict", [({}, .5, ""), ({1: True, 2: False}, .5, "confirmed"), ({1: True, 2: False}, .6, "contradicted"), ({2: False}, .1, "contradicted")])
def test_the_whole_view_needs_a_share(detected, share, verdict):
    scene = next(iter(synthesis.shard_scenes(0, print, Scenes(n=1, seed=1))))
    [rollout] = load_teacher("reprojection").imagine(scene, [plan([Action("turn_left", 20)])])
    [transition] = transitions_of(scene, rollout)
    [(said, example)] = _with_verdicts(TASKS["A2"].derive(transition, np.random.default_rng(0)), detected, HallucinationCheck(min_share=share))
    assert said == verdict and example.evidence == "warped" + f", {verdict}" * bool(verdict)


def test_the_class_counts_where_it_is_asked_for_and_the_score_always():
    cup, everywhere = Instance(1, "red cup", blob(48, 48, 12)), np.ones((96, 96), bool)
    found = lambda label, **bounds: _is_detected(cup, cup.mask, everywhere, [Detection(label, None, cup.mask, 1.0)], HallucinationCheck(**bounds))
    assert found("plate") and found("Cup", same_class=True) and not found("plate", same_class=True) and not found("", same_class=True)
    unsure = Detection("cup", None, cup.mask, .25)
    assert not _is_detected(cup, cup.mask, everywhere, [unsure], HallucinationCheck()) and _is_detected(cup, cup.mask, everywhere, [unsure], HallucinationCheck(confidence=.2))


@pytest.mark.parametrize("name, options, message", [
    ("yolo", {}, "expected one of none, detector, module:Class, got 'yolo'"), ("nowhere:Detector", {}, "annotator of objects 'nowhere:Detector': No module named 'nowhere'"),
    ("json:JSONDecoder", {}, "JSONDecoder has no objects"), ("detector_of_a_test:Lookup", {"tabel": "x"}, "its options are: table, lost")])
def test_a_wrong_detector_is_one_clear_error(home, check, tmp_path, name, options, message):
    with pytest.raises(ConfigError) as error: run(home, tmp_path / "out", HallucinationCheck(name, options))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_wrong_detections_name_the_detector():
    scene = Scene("photo", np.zeros((96, 96, 3), np.uint8), K, instances=[Instance(1, "cup", blob(48, 48, 12))])
    path = plan([Action("turn_left", 10)])
    transitions = transitions_of(scene, Rollout("photo", "demo", 0, path.actions, path.poses, path.keyframes, scene.image[None]))
    for masks, message in ((([blob(48, 48, 9)]), "annotate.objects: 1 answers to 2 pictures"),
                           ([blob(48, 48, 9)] + [np.ones((8, 8), bool)], r"the mask of 'cup' is bool \[8, 8\], expected bool \[96, 96\]"),
                           ([blob(48, 48, 9).astype(float)] * 2, "is float64")):
        with pytest.raises(ValueError, match=message): _detect_again(transitions, HallucinationCheck(), detector=Fixed(*masks))


def test_settings():
    for wrong in ({"min_iou": 1.5}, {"min_share": 0}, {"contradicted": "keep"}, {"detecter": "x:Y"}):
        with pytest.raises(ConfigError): Supervise(hallucinations=wrong)
    assert Supervise(hallucinations={"min_iou": .3}).hallucinations == HallucinationCheck(min_iou=.3) and Supervise().hallucinations.detector == "none"


def test_the_tracked_figures_tell_a_wrong_teacher_from_a_right_one():
    "data/hallucinations.json is what `make photos` writes."
    figures = json.loads((repo_root() / "data/hallucinations.json").read_text())
    share = {name: sum(c["n"] * c["confirmed"] for c in f["tasks"].values()) / sum(c["n"] for c in f["tasks"].values()) for name, f in figures.items()}
    assert share["mirrored"] < .5 < .75 < share["svc"] < share["simulator"] and all(c["n"] > 40 for f in figures.values() for c in f["tasks"].values())
