"The stage annotate: what is kept of detections, whose camera counts, batches that exceed the memory, kills; and plain photos of rooms, from a folder to all eight tasks."
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import annotated_rooms
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from world2vlm.core.camera import Action, intrinsics
from world2vlm.core.actions import plan
from world2vlm.core.config import ConfigError
from world2vlm.core.records import Instance, Scene, transitions_of
from world2vlm.core.runs import read_jsonl
from world2vlm.dataset.annotation import _mapping, make_annotations
from world2vlm.dataset.schema import from_row, to_row
from world2vlm.dataset.shards import read_dataset, validate_dataset, write_shards
from world2vlm.dataset.synthesis import make_scenes, Scenes
from world2vlm.scenes.annotate import _annotate_scenes, _keep_objects, _merge_doubles, _open_roles, Annotate, DepthMap, Detection
from world2vlm.scenes.photos import photo_scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.cases import _referring_phrase
from world2vlm.tasks.tasks import TASKS
from world2vlm.tasks.visibility import mask_box
from world2vlm.teachers.base import load_teacher

W, H = 100, 80
HERE = "test_annotate"
ignore = lambda *row: None


def detection(label, x1, y1, x2, y2, score=0.9):
    "A rectangle of pixels."
    mask = np.zeros((H, W), bool)
    mask[y1:y2, x1:x2] = True
    return Detection(label, (x1 / W, y1 / H, x2 / W, y2 / H), mask, score)


def kept(*detections, **bounds):
    instances, other_labels, left_out = _keep_objects(list(detections), Annotate(**bounds))
    return [(i.label, i.score) for i in instances], sorted(other_labels), dict(Counter(reason.split(":")[0] for _, reason in left_out))


def photo(name="photo", seed=0, **known):
    "A picture of noise, of which nothing is known."
    return Scene(name, np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8), intrinsics(W, H, 54), **known)


# What is kept of detections
def test_filters_count_what_they_leave_out():
    "One of each kind; the bounds are those of the paper."
    good, unsure, small, large = detection("chair", 20, 20, 50, 50), detection("lamp", 60, 20, 80, 50, 0.2), detection("cup", 60, 60, 65, 70), detection("rug", 2, 2, 97, 78, 0.8)
    border, empty, noise = detection("door", 0, 5, 15, 18), detection("cat", 9, 9, 9, 9), detection("dog", 5, 60, 25, 78, 0.05)
    labels, others, left_out = kept(good, unsure, small, large, border, empty, noise, merge_iou=0.9)
    assert labels == [("chair", 0.9)] and others == ["cup", "door", "lamp", "rug"]
    assert left_out == {"unsure": 1, "small": 1, "large": 1, "border": 1, "empty": 1}


@pytest.mark.parametrize("bounds, box, reason", [
    ({"confidence": 0.9}, (20, 20, 50, 50), ""), ({"confidence": 0.91}, (20, 20, 50, 50), "unsure"), ({}, (1, 1, 50, 50), ""), ({}, (0, 1, 50, 50), "border"), ({}, (20, 20, 99, 79), ""),
    ({}, (20, 20, 100, 79), "border"), ({}, (20, 20, 50, 80), "border"), ({"border": 0.0}, (0, 0, 50, 50), ""), ({}, (20, 20, 30, 28), ""), ({}, (20, 20, 29, 28), "small"),
    ({"area": (0.2, 0.6)}, (20, 20, 50, 50), "small"), ({}, (2, 2, 82, 62), ""), ({}, (2, 2, 82, 63), "large")])
def test_bounds_hold_at_their_edges(bounds, box, reason):
    labels, _, left_out = kept(detection("chair", *box), **bounds)
    assert list(left_out) == ([reason] if reason else []) and len(labels) == (not reason)


def test_one_object_is_one_instance():
    "Two boxes of one chair, the same under another name, and a part of it; another chair beside it stays."
    chair, again, couch = detection("chair", 10, 10, 40, 40), detection("chair", 12, 10, 42, 40, 0.7), detection("couch", 10, 12, 40, 42, 0.8)
    seat, cushion, other = detection("chair", 15, 20, 30, 30, 0.6), detection("cushion", 15, 20, 30, 30, 0.5), detection("chair", 50, 10, 80, 40, 0.4)
    labels, others, left_out = kept(again, seat, other, couch, chair, cushion)
    assert labels == [("chair", 0.9), ("cushion", 0.5), ("chair", 0.4)] and others == ["couch"] and left_out == {"double": 3}
    assert kept(again, chair, merge_iou=0.95, merge_part=1.0)[0] == [("chair", 0.9), ("chair", 0.7)]


def test_a_double_of_little_confidence_makes_no_name_ambiguous():
    "A detector sees a sure chair a second time with a score of 0.2; that is no second chair."
    chair, double = detection("chair", 10, 10, 40, 40), detection("chair", 11, 10, 41, 41, 0.2)
    assert kept(chair, double) == ([("chair", 0.9)], [], {"double": 1})


def test_a_mask_that_does_not_fit_its_box_is_left_out():
    "A mask that ran out into the wall, and a box of x, y, width, height."
    good = detection("chair", 40, 30, 70, 60)
    wall, shape = good._replace(mask=detection("", 2, 2, 97, 77).mask), good._replace(box=(0.4, 0.375, 0.45, 0.4))
    assert kept(wall) == ([], ["chair"], {"mask": 1}) and kept(shape, area=(0, 1)) == ([], ["chair"], {"mask": 1})
    assert kept(wall, box_iou=0.1)[0] == [("chair", 0.9)]


rectangles = st.tuples(st.integers(0, 60), st.integers(0, 50), st.integers(1, 40), st.integers(1, 30), st.sampled_from(["chair", "lamp", "table"]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(rectangles, max_size=8))
def test_merging_is_complete_and_depends_on_no_order(parts):
    config = Annotate()
    detections = [detection(label, x, y, x + w, y + h, score + 1e-6 * i) for i, (x, y, w, h, label, score) in enumerate(parts) if score < 0.99]
    distinct, doubles = _merge_doubles(detections, config)
    assert len(distinct) + len(doubles) == len(detections) and all(a.score <= b.score for a, b in doubles)
    assert [d.score for d in distinct] == sorted((d.score for d in distinct), reverse=True)
    again, more = _merge_doubles(detections[::-1], config)
    assert [d.score for d in again] == [d.score for d in distinct] and len(more) == len(doubles)
    assert _merge_doubles(distinct, config)[1] == []


def test_a_box_in_pixels_costs_the_objects_of_one_picture():
    class Pixels:
        def objects(self, images): return [[detection("chair", 10, 10, 40, 40)._replace(box=(10, 10, 40, 40) if k else (0.1, 0.1, 0.4, 0.5))] for k in range(len(images))]
    globals()["Pixels"], rejected = Pixels, []
    scenes = _annotate_scenes([photo("a"), photo("b")], Annotate(objects=f"{HERE}:Pixels"), lambda *row: rejected.append(row))
    assert [s.instances and len(s.instances) for s in scenes] == [1, None] and rejected[0][0] == "b" and "as fractions in [0, 1]" in rejected[0][1]


# Names that are unique among all detections
def test_a_name_is_unique_only_among_all_detections():
    "A sure chair is `the chair` unless another may be there: unsure, too small, or at the border."
    for other in (detection("chair", 60, 10, 80, 40, 0.15), detection("chair", 60, 60, 63, 64), detection("Chair #2", 0, 50, 20, 70), detection("armchair", 60, 60, 63, 64), detection("office chair", 60, 10, 80, 40, 0.2)):
        class Room:
            def objects(self, images): return [[detection("chair", 10, 10, 40, 40), detection("lamp", 45, 10, 58, 40), other]]
        globals()["Room"] = Room
        [scene] = _annotate_scenes([photo()], Annotate(objects=f"{HERE}:Room"), ignore, mark=repr(other.box))
        chair, lamp = scene.instances
        assert [i.label for i in scene.instances] == ["chair", "lamp"] and "chair" in scene.other_labels[0].lower()
        assert _referring_phrase(chair, scene) == "the chair at [100, 125, 400, 500]" and _referring_phrase(lamp, scene) == "the lamp"


def test_questions_give_the_box_of_an_object_whose_name_is_not_unique():
    room = next(s for s in room_scenes(20, 7) if len({i.label for i in s.instances}) == len(s.instances) >= 3)
    [rollout] = load_teacher("simulator").imagine(room, [plan([Action("turn_left", 10)])])
    texts = {}
    for names in ((), tuple(i.label for i in room.instances)):
        scene = replace(room, other_labels=names)
        examples = [e for t in transitions_of(scene, rollout) for task in ("D1", "D2") for e in TASKS[task].derive(t, np.random.default_rng(0))]
        texts[names] = [e.question for e in examples]
    plain, stated = texts.values()
    assert plain and len(plain) == len(stated) and not any(" at [" in q for q in plain) and all(" at [" in q for q in stated)


# Evidence
def test_evidence_and_names_are_columns():
    scene = photo(K_evidence="exif", depth=np.ones((H, W), np.float32), depth_evidence="estimated", other_labels=("lamp", "chair 2", "chair"),
                  instances=[Instance(1, "chair", np.ones((H, W), bool), 0.25)])
    again = from_row("scenes", to_row("scenes", scene))
    assert (again.K_evidence, again.depth_evidence, again.other_labels, again.instances[0].score) == ("exif", "estimated", ("chair", "lamp"), 0.25)
    assert (photo().K_evidence, photo().depth_evidence, photo(depth_evidence="measured").depth_evidence) == ("assumed", "none", "none")
    assert photo(depth=np.ones((H, W), np.float32)).depth_evidence == "assumed"
    for wrong in ({"K_evidence": "guessed"}, {"K_evidence": "none"}, {"depth": np.ones((H, W), np.float32), "depth_evidence": "seen"}):
        with pytest.raises(ValueError, match="evidence of photo: expected one of exact, measured, exif, estimated, assumed"): photo(**wrong)
    with pytest.raises(ValueError, match="score: expected a number in"): Instance(1, "chair", np.ones((2, 2), bool), 1.5)


def test_rooms_are_exact(tmp_path):
    stats = make_scenes(Scenes(n=2), tmp_path / "scenes")
    assert stats["counts"]["K_evidence"] == stats["counts"]["depth_evidence"] == {"exact": 2}


class Lens:
    "A camera of 90 degrees, and one of 60 from the depth."
    def camera(self, images): return [intrinsics(i.shape[1], i.shape[0], 90) for i in images]
    def depth(self, images, Ks): return [DepthMap(np.full(i.shape[:2], 2.0 if K is None else 1.0, np.float32), None, intrinsics(i.shape[1], i.shape[0], 60)) for i, K in zip(images, Ks)]


def focal(fov): return W / 2 / np.tan(np.radians(fov / 2))


@pytest.mark.parametrize("known, roles, evidence, expected", [
    ("manifest exif file", "camera depth", "measured", focal(40)), ("exif file", "camera depth", "exif", 26 / np.hypot(36, 24) * np.hypot(W, H)), ("file", "camera depth", "measured", 123),
    ("", "camera depth", "estimated", focal(90)), ("", "depth", "estimated", focal(60)), ("", "", "assumed", focal(54))])
def test_the_best_evidence_of_the_camera_wins(tmp_path, known, roles, evidence, expected):
    "Manifest, then EXIF, then a file of nerfstudio or COLMAP, then the models, then what is assumed."
    picture = Image.fromarray(photo().image)
    if "exif" in known: picture.getexif().get_ifd(0x8769)[0xA405] = 26
    picture.save(tmp_path / "a.jpg", exif=picture.getexif())
    if "file" in known: (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 123, "w": W, "h": H}))
    if "manifest" in known: (tmp_path / "manifest.json").write_text(json.dumps([{"file": "a.jpg", "fov_deg": 40}]))
    scenes = list(photo_scenes(tmp_path)) if known != "exif file" else None
    if scenes is None:
        with pytest.warns(UserWarning, match="transforms.json: not used for pictures with a focal length in EXIF"): scenes = list(photo_scenes(tmp_path))
    [scene] = _annotate_scenes(scenes, Annotate(**dict.fromkeys(roles.split(), f"{HERE}:Lens")), ignore)
    assert (scene.K_evidence, scene.K[0, 0]) == (evidence, pytest.approx(expected, rel=1e-6))
    if "depth" in roles: assert scene.depth_evidence == "estimated" and scene.depth.max() == (2.0 if roles == "depth" and not known else 1.0), "a known camera is given to the depth"


def test_colmap_is_evidence_too(tmp_path):
    Image.fromarray(photo().image).save(tmp_path / "a.png")
    (tmp_path / "cameras.txt").write_text(f"1 PINHOLE {W} {H} 77 78 50 40\n")
    [scene] = photo_scenes(tmp_path)
    assert (scene.K_evidence, scene.K[0, 0], scene.K[1, 1], scene.source) == ("measured", 77, 78, "photo; K from cameras.txt")


def test_what_is_known_stays():
    "Rooms, measured depth and drawn objects are not annotated again."
    room = next(room_scenes(1, 3))
    measured = photo("measured", depth=np.full((H, W), 3, np.float32), depth_evidence="measured", K_evidence="measured")
    config = Annotate(camera=f"{HERE}:Lens", depth=f"{HERE}:Lens")
    first, second, third = _annotate_scenes([room, photo(), measured], config, ignore)
    assert first is room and third is measured and second.depth_evidence == "estimated"


def test_depth_of_little_confidence_is_unknown():
    class Depth:
        def depth(self, images, Ks):
            metres = np.full((H, W), 2.0)
            metres[0], metres[1], metres[2] = np.nan, -1, np.inf
            return [(metres, np.tile(np.linspace(0, 1, W), (H, 1)), None)]
    globals()["Depth"] = Depth
    [scene] = _annotate_scenes([photo()], Annotate(depth=f"{HERE}:Depth", depth_confidence=0.5), ignore)
    assert (scene.depth[:3] == 0).all() and (scene.depth[3:, :50] == 0).all() and (scene.depth[3:, 50:] == 2).all() and scene.depth.dtype == np.float32


class Both:
    "One model for depth and objects; how often it was opened."
    opened = 0
    def __init__(self): type(self).opened += 1
    def depth(self, images, Ks): return [np.ones(i.shape[:2], np.float32) for i in images]
    def objects(self, images): return [[detection("chair", 10, 10, 40, 40)] for _ in images]


def test_one_annotator_in_two_roles_is_opened_once():
    for _ in range(3): [scene] = _annotate_scenes([photo()], Annotate(objects=f"{HERE}:Both", depth=f"{HERE}:Both"), ignore)
    assert Both.opened == 1 and scene.depth is not None and len(scene.instances) == 1


@pytest.mark.parametrize("options, workers, device", [
    ({}, 8, "cpu"), ({"depth": {"device": "cuda"}}, 8, "cuda"), ({"objects": {"device": "cpu"}, "depth": {"device": "cuda"}}, 8, "cuda"), ({"depth": {"device": "cuda:1"}}, 1, "cpu")])
def test_workers_share_gpus_unless_one_is_named(options, workers, device):
    "On `cuda` each process gets a GPU of its own from `parallel_map`; a GPU with a number is for a single process, which sees them all."
    mapping = _mapping(Annotate(objects=f"{HERE}:Both", depth=f"{HERE}:Both", options=options, workers=8))
    assert mapping == dict(workers=workers, executor="processes", device=device)


# Batches
class Limited:
    "At most so many pictures at a time; the sizes of all batches."
    def __init__(self, at_once: int = 99, kind: str = "torch"): self.at_once, self.kind, self.batches = at_once, kind, []
    def depth(self, images, Ks):
        self.batches.append(len(images))
        errors = {"torch": torch.OutOfMemoryError("CUDA out of memory"), "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "python": MemoryError(), "other": RuntimeError("no")}
        if len(images) > self.at_once: raise errors[self.kind]
        return [np.full(i.shape[:2], i.mean() + 1, np.float32) for i in images]


@pytest.mark.parametrize("kind", ["torch", "cpu", "python"])
def test_a_batch_that_exceeds_the_memory_is_halved_and_said(kind, caplog):
    scenes = [photo(str(i), i) for i in range(11)]
    config = Annotate(depth=f"{HERE}:Limited", options={"depth": {"at_once": 3, "kind": kind}}, batch_size=8)
    with caplog.at_level(logging.WARNING): found = _annotate_scenes(scenes, config, ignore, mark=kind)
    assert [s.depth[0, 0] for s in found] == [np.float32(s.image.mean() + 1) for s in scenes]
    opened = _open_roles(config, kind)["depth"]
    assert opened.annotator.batches == [8, 4, 2, 2, 2, 2, 2, 1] and opened.batch_size == 2, "and it stays so for the shards to come"
    assert [r.message for r in caplog.records] == ["annotate.depth: 8 pictures exceed the memory, from now on 4 at a time", "annotate.depth: 4 pictures exceed the memory, from now on 2 at a time"]


def test_a_single_picture_that_exceeds_the_memory_is_one_error():
    config = Annotate(depth=f"{HERE}:Limited", options={"depth": {"at_once": 0}})
    with pytest.raises(MemoryError, match="annotate.depth: a single picture exceeds the memory; make scenes.size smaller, or take a smaller checkpoint"): _annotate_scenes([photo()], config, ignore)
    with pytest.raises(RuntimeError, match="^no$"): _annotate_scenes([photo()], Annotate(depth=f"{HERE}:Limited", options={"depth": {"at_once": 0, "kind": "other"}}), ignore)


def test_answers_of_another_number_are_an_error():
    class Lazy:
        def objects(self, images): return [[]]
    globals()["Lazy"] = Lazy
    with pytest.raises(ValueError, match="annotate.objects: 1 answers to 2 pictures"): _annotate_scenes([photo("a"), photo("b")], Annotate(objects=f"{HERE}:Lazy"), ignore)


@pytest.mark.parametrize("make, message", [
    (lambda: Annotate(objects="nowhere:Thing"), ""), (lambda: Annotate(unsure=0.4), "unsure <= confidence"), (lambda: Annotate(area=(0.5, 0.2)), "Annotate.area: the smallest, then the largest"), (lambda: Annotate(options={"depth": {"checkpoint": "x"}}), "options.depth: no annotator")])
def test_wrong_settings_of_annotators(make, message, tmp_path):
    if message:
        with pytest.raises(ValueError, match=message): make()
    else:
        write_shards("scenes", tmp_path / "scenes", lambda index, reject: [photo()])
        with pytest.raises(ConfigError, match="annotator of objects 'nowhere:Thing': No module named 'nowhere'"): make_annotations(make(), tmp_path / "scenes", tmp_path / "out")


# The stage
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "24 views of rooms as plain JPEGs, as six shards of scenes."
    home = tmp_path_factory.mktemp("photos")
    annotated_rooms.save_photos(home / "photos", 24, 64)
    make_scenes(Scenes(source="photos", folder=str(home / "photos"), n=0, size=(64, 64), per_shard=4), home / "scenes")
    return home


def config_of(home, **options):
    roles = dict.fromkeys(("objects", "depth", "camera"), "annotated_rooms:Truth")
    return Annotate(**roles, options=dict.fromkeys(roles, {"truth": str(home / "photos.json")}), **options)


def made(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def annotated(photos):
    make_annotations(config_of(photos), photos / "scenes", photos / "annotated")
    return photos / "annotated"


def test_the_stage_counts_evidence_and_lists_licences(photos, annotated):
    stats = json.loads((annotated / "stats.json").read_text())
    assert validate_dataset("scenes", annotated) == [] and stats["counts"]["K_evidence"] == stats["counts"]["depth_evidence"] == {"estimated": 24}
    card = (annotated / "README.md").read_text()
    assert "of the weights that annotated it, simulator: Apache-2.0" in card and stats["recipe"]["weights"] == {"simulator": "Apache-2.0"} and "| `K_evidence` | estimated: 24 |" in card
    rejects = read_jsonl(annotated / "rejects.jsonl")
    assert {row["stage"] for row in rejects} == {"annotate"} and {"border", "small"} <= stats["reasons"].keys() and sum(stats["reasons"].values()) == len(rejects)
    assert any(row["input"].startswith(f"{annotated_rooms.FIRST}.jpg: ") for row in rejects), "each names its picture and object"
    truth = {s.id: s for s in room_scenes(24, annotated_rooms.SEED, start=annotated_rooms.FIRST)}
    for scene in read_dataset("scenes", annotated):
        room = truth[f"room-{Path(scene.id).stem}"]
        assert np.allclose(scene.K, room.K) and (scene.depth == room.depth).all() and scene.room is None
        assert all(any((i.mask == o.mask).all() for o in room.instances) for i in scene.instances)


def test_several_processes_give_the_same_bytes(photos, annotated):
    make_annotations(config_of(photos, workers=2), photos / "scenes", photos / "twice")
    assert made(photos / "twice") == made(annotated)


def test_without_annotators_the_scenes_pass_unchanged(photos):
    make_annotations(Annotate(), photos / "scenes", photos / "passed")
    assert made(photos / "passed") == made(photos / "scenes") and validate_dataset("scenes", photos / "passed") == []


STAGE = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_annotate import config_of
from world2vlm.dataset.annotation import make_annotations
make_annotations(config_of(Path(sys.argv[1]), batch_size=1), sys.argv[1] + "/scenes", sys.argv[2])
"""


@pytest.mark.proof
def test_a_killed_stage_goes_on_where_it_was(photos, annotated, tmp_path):
    "The shards that were done are not made again, and the bytes are those of a run that nobody disturbed."
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    start = lambda: subprocess.Popen([sys.executable, "-c", STAGE, str(photos), str(out), str(Path(__file__).parent)], cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process = start()
    while process.poll() is None and len(list(partial.glob("data/*.parquet"))) < 2: time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in partial.glob("data/*.parquet")}
    assert not out.exists() and 2 <= len(done) < 6, "the kill came too late to tell anything"
    again = start()
    assert again.wait() == 0, again.stderr.read().decode()
    assert all((out / "data" / p.name).stat().st_mtime_ns == t for p, t in done.items()) and not partial.exists()
    make_annotations(config_of(photos, batch_size=1), photos / "scenes", tmp_path / "whole")
    assert made(out) == made(tmp_path / "whole")


def test_a_changed_annotator_starts_afresh(photos, tmp_path):
    "Its checkpoints and the file of its class belong to what the stage depends on."
    (tmp_path / "own.py").write_text("class Flat:\n    def __init__(self, weights: str): self.weights = weights\n    def depth(self, images, Ks):\n        import numpy as np\n"
                                     "        return [np.full(i.shape[:2], float(open(self.weights).read()), np.float32) for i in images]\n")
    sys.path.insert(0, str(tmp_path))
    config = Annotate(depth="own:Flat", options={"depth": {"weights": str(tmp_path / "weights.txt")}})
    for metres in (2, 3):
        (tmp_path / "weights.txt").write_text(str(metres))
        make_annotations(config, photos / "scenes", tmp_path / "out")
        assert {s.depth.max() for s in read_dataset("scenes", tmp_path / "out")} == {metres}
    sys.path.remove(str(tmp_path))


# The proof: plain photos, all eight tasks
@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    "60 photos of rooms that no training saw, annotated with the truth and with the errors of models."
    home = tmp_path_factory.mktemp("proof")
    annotated_rooms.save_photos(home / "photos", 60, 64)
    return {name: annotated_rooms.audit(annotated_rooms.make_data(home / "photos", home / str(i), 64, "reprojection", **annotated_rooms.ERRORS[name]))
            for i, name in enumerate(("exact", "all three"))}


@pytest.mark.proof
def test_plain_photos_yield_all_eight_tasks(proof):
    exact = proof["exact"]
    assert exact["photos"] == 60 and set(exact["labels"]) == set(TASKS) and all(row["examples"] >= 20 for row in exact["labels"].values())
    assert exact["right"] >= 0.97 and min(row["value"] for task, row in exact["labels"].items() if task != "D1") >= 0.97 and exact["labels"]["D1"]["value"] >= 0.85
    assert exact["views"] > 400 and exact["views_with_examples"] >= 0.9 and exact["box_stated_in_D3"] >= 0.85


@pytest.mark.proof
def test_errors_of_models_cost_what_they_should(proof):
    "Motions stay right whatever the annotator says; boxes suffer from eroded masks, and views from a wrong depth."
    exact, wrong = proof["exact"], proof["all three"]
    assert set(wrong["labels"]) >= {"A1", "A2", "A3", "A4", "D1", "D2", "D3"} and all(wrong["labels"][task]["value"] == 1 for task in ("A1", "A2", "A3", "A4", "D3"))
    assert wrong["labels"]["D1"]["value"] < exact["labels"]["D1"]["value"] and wrong["objects"] < exact["objects"] and wrong["view_difference"] > exact["view_difference"]


def test_tracked_figures_are_of_these_runs():
    "data/annotate.json is what `make photos` writes."
    figures = json.loads((Path(__file__).parent.parent / "data/annotate.json").read_text())
    assert set(figures) == {f"reprojection, {name}" for name in annotated_rooms.ERRORS} | {"svc, exact"}
    for name, run in figures.items():
        assert run["photos"] == 60 and set(run["labels"]) >= {"A1", "A2", "A3", "A4", "D1", "D2", "D3"}
        if name.endswith("exact"): assert set(run["labels"]) == set(TASKS) and run["right"] >= 0.97 and run["labels"]["D1"]["value"] >= 0.85 and run["views_with_examples"] >= 0.9
