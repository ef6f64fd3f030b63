"""Views of rooms that no training saw, as a folder of plain JPEGs: an annotator that knows the truth, or errs as models do, and the stages that make data.

`python tests/annotated_rooms.py` (the target `photos` of the Makefile) writes data/annotate.json: which tasks appear, how right the labels are by the simulator, and how many
imagined views end in an example; and data/hallucinations.json: what a detector without training finds again in the views of each teacher."""
import hashlib
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from world2vlm.core.actions import format_actions, plan
from world2vlm.core.config import load_settings, repo_root
from world2vlm.core.records import Example, Instance, iou, Rollout, Scene, Transition, transitions_of
from world2vlm.core.runs import rng_for, rounded, write_json
from world2vlm.dataset.annotation import make_annotations
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import Imagine, make_questions, make_rollouts, make_scenes, Scenes, Supervise
from world2vlm.scenes.annotate import Annotate, DepthMap, Detection
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.cases import object_id
from world2vlm.tasks.hallucinations import HallucinationCheck
from world2vlm.tasks.rewards import BOX_PATTERN
from world2vlm.tasks.tasks import TASKS
from world2vlm.tasks.visibility import mask_box
from world2vlm.teachers.simulator import Simulator

FIRST, SEED, FOV = 905_000, 1, 90  # rooms that no stage uses


@lru_cache(maxsize=None)
def room(number: int, side: int) -> Scene: return next(room_scenes(1, SEED, (side, side), FOV, start=number))


def digest(image: np.ndarray) -> str: return hashlib.sha256(image.tobytes()).hexdigest()


def save_photos(folder: Path, n: int, side: int) -> None:
    "Views of `n` rooms as JPEG, and beside the folder what picture shows which room."
    folder.mkdir(parents=True)
    truth = {}
    for number in range(FIRST, FIRST + n):
        path = folder / f"{number}.jpg"
        Image.fromarray(room(number, side).image).save(path, quality=95)
        truth[digest(np.asarray(Image.open(path)))] = number
    folder.with_suffix(".json").write_text(json.dumps(truth))


@dataclass
class Truth:
    "An annotator in all roles that knows the room of each picture, and errs as far as it is told."
    truth: str  # file: digest of a picture -> number of its room
    depth_scale: float = 1.0  # what depth is multiplied by
    eroded: int = 0  # pixels that masks lose at their outline
    missed: float = 0.0  # share of the objects that are not found
    licences = {"simulator": "Apache-2.0"}

    def rooms(self, images: list) -> list[Scene]:
        numbers = json.loads(Path(self.truth).read_text())
        return [room(numbers[digest(image)], image.shape[0]) for image in images]

    def camera(self, images): return [scene.K for scene in self.rooms(images)]
    def depth(self, images, Ks): return [DepthMap(scene.depth * np.float32(self.depth_scale)) for scene in self.rooms(images)]
    def objects(self, images): return [list(self._detections(scene)) for scene in self.rooms(images)]

    def _detections(self, scene: Scene):
        from scipy.ndimage import binary_erosion
        rng = rng_for(scene.id, "missed")
        for instance in scene.instances:
            mask = binary_erosion(instance.mask, iterations=self.eroded, border_value=1) if self.eroded else instance.mask
            if rng.random() >= self.missed and mask.any(): yield Detection(instance.label, mask_box(mask), mask, 0.9)


@dataclass
class Colours:
    "A detector without training: the regions of one colour in a picture. It knows no names."
    radius: int = 5  # pixels within which colours are smoothed
    tolerance: int = 20  # of 255, between neighbours of one region
    smallest: int = 12  # pixels of a region
    licences = {"no weights": "none"}

    def objects(self, images: list) -> list[list[Detection]]: return [list(self._regions(image)) for image in images]

    def _regions(self, image: np.ndarray):
        import cv2
        flat, (h, w) = cv2.pyrMeanShiftFiltering(image, self.radius, self.tolerance), image.shape[:2]
        free, step = np.ones((h, w), bool), (self.tolerance // 2,) * 3
        while free.any():
            y, x = np.argwhere(free)[0]
            filled = np.pad(~free, 1).astype(np.uint8)  # what floodFill may not enter
            cv2.floodFill(flat.copy(), filled, (int(x), int(y)), 0, step, step, cv2.FLOODFILL_MASK_ONLY | 4 | 2 << 8)
            mask = filled[1:-1, 1:-1] == 2
            free &= ~mask
            if mask.sum() >= self.smallest: yield Detection("region", mask_box(mask), mask, 1.0)


@dataclass(frozen=True)
class Mirrored:
    "A teacher with the commonest bug of the field: it turns and steps to the wrong side."
    name = "mirrored"
    exact = False

    def imagine(self, scene: Scene, trajectories: list, seed: int = 0, reject=None) -> list[Rollout]:
        other = {"left": "right", "right": "left", "turn_left": "turn_right", "turn_right": "turn_left"}
        wrong = [plan([replace(a, kind=other.get(a.kind, a.kind)) for a in t.actions]) for t in trajectories]
        imagined = {r.actions: r for r in Simulator().imagine(scene, wrong, seed, reject)}
        pairs = [(t, imagined[w.actions]) for t, w in zip(trajectories, wrong) if w.actions in imagined]
        return [Rollout(scene.id, self.name, seed, t.actions, t.poses, t.keyframes, r.images) for t, r in pairs]


def agreement(work: Path, n: int, side: int) -> dict:
    "How often the detector of colours confirms in the views of each teacher what geometry says: all, by task, by size of motion."
    make_scenes(Scenes(n=n, first=FIRST, seed=SEED, size=(side, side), fov_deg=FOV, per_shard=20), work / "scenes")
    imagine, figures = replace(load_settings(Imagine, "imagine", "mini"), workers=1), {}
    check = HallucinationCheck(f"{Path(__file__).stem}:Colours", contradicted="mark")
    supervise = replace(load_settings(Supervise, "supervise", "mini"), per_scene=0, workers=1, hallucinations=check)
    for name, teacher in {"simulator": "simulator", "svc": "svc", "smoothed": "smoothed", "mirrored": f"{Path(__file__).stem}:Mirrored"}.items():
        make_rollouts(imagine, teacher, work / "scenes", work / f"rollouts {name}")
        figures[name] = make_questions(supervise, work / "scenes", work / f"rollouts {name}", work / f"examples {name}")["agreement"]
    return figures


def make_data(photos: Path, out: Path, side: int, teacher: str, **errors) -> dict[str, Path]:
    "All stages that make data, with the motions and rules of the profile `mini`."
    options = {"truth": str(photos.with_suffix(".json")), **errors}
    name = f"{Path(__file__).stem}:Truth"
    roles = dict.fromkeys(("objects", "depth", "camera"), name)
    folders = {part: out / part for part in ("scenes", "annotated", "rollouts", "examples")}
    make_scenes(Scenes(source="photos", folder=str(photos), n=0, size=(side, side), per_shard=20), folders["scenes"])
    make_annotations(Annotate(**roles, options=dict.fromkeys(roles, options)), folders["scenes"], folders["annotated"])
    imagine = replace(load_settings(Imagine, "imagine", "mini"), workers=1)
    make_rollouts(imagine, teacher, folders["annotated"], folders["rollouts"])
    supervise = replace(load_settings(Supervise, "supervise", "mini"), per_scene=0, workers=1)
    make_questions(supervise, folders["annotated"], folders["rollouts"], folders["examples"])
    return folders


def true_scene(scene: Scene) -> tuple[Scene, dict[int, int]]:
    "The room of an annotated photo, with the ids that the annotated objects have there, and further ids for all others."
    number, side = int(Path(scene.id).stem), scene.size[0]
    truth = room(number, side)
    overlap = lambda a, b: (a.mask & b.mask).sum() / (a.mask | b.mask).sum()
    own = {}
    for instance in scene.instances: own.setdefault(max(truth.instances, key=lambda i: overlap(i, instance)).id, instance.id)
    new = {i.id: own.get(i.id, 10_000 + i.id) for i in truth.instances}
    return replace(truth, id=scene.id, instances=[Instance(new[i.id], i.label, i.mask) for i in truth.instances]), new


def view_name(rollout: Rollout, index: int) -> str:
    "How the ids of all examples about a view begin."
    path = hashlib.sha256(f"{rollout.seed} {format_actions(rollout.actions)}".encode()).hexdigest()[:8]
    return f"{rollout.scene_id}/{rollout.teacher}/{path}/{index}"


def stated_iou(example: Example, exact: Transition) -> float:
    "Overlap of the last box in a question with the truth."
    *_, box = [[float(v) / 1000 for v in match.groups()] for match in BOX_PATTERN.finditer(example.question)]
    return iou(box, mask_box(exact.ids_after == object_id(example)) or (0, 0, 0, 0))


def true_transitions(scene: Scene, rollouts: list) -> dict[str, Transition]:
    "The start of the id of every example of `rollouts` -> what the simulator shows of the same motion."
    truth, new = true_scene(scene)
    ids = np.zeros(20_001, np.uint16)
    ids[list(new)] = list(new.values())
    found = {}
    for rollout in rollouts:
        try: [exact] = Simulator(radius=-np.inf).imagine(truth, [plan(rollout.actions)], rollout.seed)  # also over and through furniture that the photo does not show
        except ValueError: continue  # outside of the room
        found |= {view_name(rollout, t.index): t for t in transitions_of(truth, replace(exact, ids=ids[exact.ids]))}
    return found


def audit(folders: dict[str, Path]) -> dict:
    "Which tasks appear, how right they are, and how many imagined views are of use."
    rules, scenes = load_settings(Supervise, "supervise", "mini").rules, {s.id: s for s in read_dataset("scenes", folders["annotated"])}
    rollouts, values, stated, differences, views, used, unknown = defaultdict(list), defaultdict(list), [], [], 0, set(), 0
    for rollout in read_dataset("rollouts", folders["rollouts"]):
        rollouts[rollout.scene_id].append(rollout)
        views += len(rollout.keyframes)
    transitions = {key: t for name, mine in rollouts.items() for key, t in true_transitions(scenes[name], mine).items()}
    imagined = {view_name(r, i): image for mine in rollouts.values() for r in mine for i, image in enumerate(r.images)}
    differences = [np.abs(imagined[key] - t.image_after.astype(float)).mean() for key, t in transitions.items()]
    for example in read_dataset("examples", folders["examples"]):
        view = "/".join(example.id.split("/")[:4])
        used.add(view)
        if view not in transitions: unknown += 1  # the true camera would stand outside of the room: nothing to compare with
        else: values[example.task].append(TASKS[example.task].audit(example, transitions[view], rules))
        if example.task == "D3" and view in transitions: stated.append(stated_iou(example, transitions[view]))
    labels = {task: {"examples": len(v), "measure": "mean IoU" if task == "D1" else "right", "value": float(np.mean(v))} for task, v in sorted(values.items())}
    right = [x for task, v in values.items() if task != "D1" for x in v]
    return {"photos": len(scenes), "objects": sum(len(s.instances) for s in scenes.values()), "left_out": json.loads((folders["annotated"] / "stats.json").read_text())["reasons"],
            "views": views, "views_with_examples": len(used) / max(views, 1), "view_difference": float(np.mean(differences)), "labels": labels,
            "right": float(np.mean(right)), "box_stated_in_D3": float(np.mean(stated)) if stated else None, "examples_without_truth": unknown}


ERRORS = {"exact": {}, "depth x 1.1": {"depth_scale": 1.1}, "masks eroded by 2 pixels": {"eroded": 2}, "10 % of the objects missed": {"missed": 0.1},
          "all three": {"depth_scale": 1.1, "eroded": 2, "missed": 0.1}}


def main(n: int = 60, side: int = 64) -> dict:
    "The figures of every kind of error, with the teacher that invents nothing; and of the generative one for the exact answers."
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work) / "photos"
        save_photos(photos, n, side)
        runs = [("reprojection", name) for name in ERRORS] + [("svc", "exact")]
        return {f"{teacher}, {name}": audit(make_data(photos, Path(work) / f"{i}", side, teacher, **ERRORS[name])) for i, (teacher, name) in enumerate(runs)}


if __name__ == "__main__":
    import annotated_rooms  # by the name that the stage knows it by
    write_json(repo_root() / "data/annotate.json", rounded(annotated_rooms.main()))
    with tempfile.TemporaryDirectory() as work: figures = annotated_rooms.agreement(Path(work), 60, 64)
    write_json(repo_root() / "data/hallucinations.json", rounded(figures))
