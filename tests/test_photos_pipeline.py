"The stages that make data, on photographs that scikit-image ships: from a folder with a manifest to examples."
import hashlib, json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from skimage.feature import match_template

from world2vlm.core.camera import Action
from world2vlm.core.actions import Ranges, format_actions, plan
from world2vlm.core.runs import read_jsonl
from world2vlm.dataset.shards import read_dataset, validate_dataset
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise, make_rollouts, make_scenes, make_questions
from world2vlm.tasks.tasks import TASKS
from world2vlm.tasks.rules import Rules
from world2vlm.teachers.base import load_teacher

SHIPPED = Path(skimage.__file__).parent / "data"
SIZE = (96, 72)
MOTIONS = Imagine(presets={"single": 24, "shift_forward_turn": 3}, ranges=Ranges(move=(0.1, 0.4, 0.1), turn=(5, 10, 5)), seed=5)
QUESTIONS = Supervise(rules=Rules(move=(0.1, 0.4), turn=(5, 10), turn_gap=5), balance=())


def ids(shape: tuple, *boxes: tuple) -> np.ndarray:
    "A label map of rectangles x1, y1, x2, y2."
    labels = np.zeros(shape, np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes, 1): labels[y1:y2, x1:x2] = number
    return labels


def save(folder: Path, *broken: dict) -> None:
    "Three real pictures: one with a measured camera and depth and with objects, one with objects, one bare; and what is `broken`."
    for name in ("motorcycle_left.png", "rocket.jpg", "chelsea.png"): (folder / name).write_bytes((SHIPPED / name).read_bytes())
    disparity = np.load(SHIPPED / "motorcycle_disp.npz")["arr_0"]
    np.save(folder / "depth.npy", np.where(np.isfinite(disparity), 994.978 * 0.193001 / (disparity + 31.086), 0).astype(np.float32))
    Image.fromarray(ids((500, 741), (121, 236, 281, 404), (515, 290, 684, 450))).save(folder / "wheels.png")
    Image.fromarray(ids((427, 640), (300, 127, 344, 405), (158, 122, 210, 415), (437, 122, 480, 415))).save(folder / "towers.png")
    (folder / "manifest.json").write_text(json.dumps([
        {"file": "motorcycle_left.png", "id": "motorcycle", "K": [[994.978, 0, 311.193], [0, 994.978, 254.877], [0, 0, 1]], "depth": "depth.npy",
         "ids": "wheels.png", "labels": {"1": "rear wheel", "2": "front wheel"}},
        *broken,
        {"file": "rocket.jpg", "id": "rocket", "fov_deg": 40, "ids": "towers.png", "labels": {"1": "white rocket", "2": "left tower", "3": "right tower"}},
        {"file": "chelsea.png", "id": "chelsea"}]))


def run(pictures: Path, out: Path) -> Path:
    "All stages that make data."
    make_scenes(Scenes(source="photos", folder=str(pictures), n=0, size=SIZE, fov_deg=54, per_shard=2), out / "scenes")
    make_rollouts(MOTIONS, "reprojection", out / "scenes", out / "rollouts")
    make_questions(QUESTIONS, out / "scenes", out / "rollouts", out / "examples")
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    save(folder)
    return folder


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory): return run(pictures, tmp_path_factory.mktemp("data"))


def test_examples_are_valid(data):
    for kind in ("scenes", "rollouts", "examples"): assert validate_dataset(kind, data / kind) == []
    examples = list(read_dataset("examples", data / "examples"))
    assert {(e.teacher, e.evidence) for e in examples} == {("reprojection", "warped")}
    for e in examples:
        assert len(e.images) == TASKS[e.task].n_images and {i.shape for i in e.images} == {(SIZE[1], SIZE[0], 3)}
        assert TASKS[e.task].score(e.answer, e)["overall"] == 1


def test_tasks_follow_from_what_is_known(data):
    tasks = {}
    for e in read_dataset("examples", data / "examples"): tasks.setdefault(e.scene_id, set()).add(e.task)
    turns = {"A2", "A4"}
    assert tasks == {"motorcycle": {*TASKS}, "rocket": turns | {"D1", "D2", "D3", "D4"}, "chelsea": turns}


def test_moves_need_depth(data):
    moved = {r.scene_id for r in read_dataset("rollouts", data / "rollouts") if any(not a.is_turn for a in r.actions)}
    rejects = [row for row in read_jsonl(data / "rollouts/rejects.jsonl") if "no depth" in row["reason"]]
    assert moved == {"motorcycle"} and {row["input"].split(":")[0] for row in rejects} == {"rocket", "chelsea"}
    assert all("move" in row["input"] and row["stage"] == "imagine" for row in rejects)


def place(scene, image: np.ndarray) -> tuple[float, float]:
    "Column and row in `image` of what the middle of the anchor shows."
    w, h = scene.size
    part = scene.image[h // 2 - 12:h // 2 + 12, w // 2 - 12:w // 2 + 12].mean(-1)
    y, x = np.unravel_index(match_template(image.mean(-1), part).argmax(), (h - 23, w - 23))
    return x + 12 - w // 2, y + 12 - h // 2


def test_turned_pictures_move_the_right_way(data):
    "A turn to the left brings the picture to the right, by as much as the camera says."
    scenes, checked = {s.id: s for s in read_dataset("scenes", data / "scenes")}, set()
    for r in read_dataset("rollouts", data / "rollouts"):
        scene, (first, *rest) = scenes[r.scene_id], r.actions
        if rest or not first.is_turn: continue
        focal, off = scene.K[0, 0], SIZE[0] / 2 - scene.K[0, 2]
        angle = np.arctan(off / focal) + np.radians(first.amount) * (1 if first.kind == "turn_left" else -1)
        x, y = place(scene, r.images[0])
        assert abs(x - (focal * np.tan(angle) - off)) <= 1.5 and abs(y) <= 1, (r.scene_id, format_actions(r.actions))
        checked.add((r.scene_id, first.kind))
    assert len(checked) == 6


def test_moved_picture_matches_the_second_camera(data):
    "The other picture of the stereo pair was taken 0.193001 m to the right."
    scene = next(read_dataset("scenes", data / "scenes", id="motorcycle"))
    [rollout] = load_teacher("reprojection").imagine(scene, [plan([Action("right", 0.193001)])])
    left, right = (np.array(Image.open(SHIPPED / f"motorcycle_{side}.png")).mean(-1) for side in ("left", "right"))
    disparity = match_template(right[180:320], left[180:320, 300:440]).argmax() - 300  # around the middle of the crop
    assert place(scene, rollout.images[0])[0] == pytest.approx((disparity - 31.086) * SIZE[1] / 500, abs=1)  # 31.086 pixels between the principal points


def test_rerun_is_byte_equal(data, pictures, tmp_path):
    again = run(pictures, tmp_path)
    digests = lambda folder: {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert digests(again) == digests(data)


def test_broken_inputs_cost_one_line_each(tmp_path):
    whole, folder = (SHIPPED / "chelsea.png").read_bytes(), tmp_path / "pictures"
    folder.mkdir()
    (folder / "cut.png").write_bytes(whole[:len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("These are words.")
    Image.new("1", (12_000, 9_000)).save(folder / "bomb.png")
    hole = np.full((300, 451), 2, np.float32)
    hole[9, 9] = np.nan
    np.save(folder / "nan.npy", hole)
    broken = [{"file": name} for name in ("cut.png", "empty.png", "text.jpg", "bomb.png", "../chelsea.png")]
    broken += [{"file": "chelsea.png", "id": "a", "depth": "nan.npy"}, {"file": "chelsea.png", "id": "b", "K": [[500, 0, 9000], [0, 500, 150], [0, 0, 1]]}]
    save(folder, *broken)
    out = run(folder, tmp_path / "data")
    rejects = read_jsonl(out / "scenes/rejects.jsonl")
    reasons = ("damaged", "empty", "not a picture", "too large", "leaves the folder", "NaN", "wrong K")
    assert [row["input"] for row in rejects] == [entry["file"] for entry in broken]
    assert all(reason in row["reason"] for reason, row in zip(reasons, rejects, strict=True))
    assert {e.scene_id for e in read_dataset("examples", out / "examples")} == {"motorcycle", "rocket", "chelsea"}
