"Real turns: signs, moves refused, unseen places, the same bytes again and after a kill, the mixed data set, damaged panoramas."
import os, shutil, signal, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from world2vlm.core.actions import plan
from world2vlm.core.camera import Action, intrinsics
from world2vlm.core.config import load_settings, repo_root
from world2vlm.core.records import iou, transitions_of
from world2vlm.dataset import real_turns
from world2vlm.dataset.real_turns import make_real_turns, mix_examples, RealTurns
from world2vlm.dataset.schema import from_row, to_row
from world2vlm.dataset.shards import read_dataset, shard_paths, validate_dataset
from world2vlm.dataset.synthesis import HeldOut, make_held_out, make_scenes, Scenes, Supervise
from world2vlm.evaluation.held_out import _majority_rows, _random_rows, _training_groups
from world2vlm.scenes.panoramas import crop_panorama, panorama_scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.students.training import _selected_rows, Training
from world2vlm.tasks.cases import object_id
from world2vlm.tasks.rules import Rules
from world2vlm.tasks.tasks import TASKS
from world2vlm.tasks.visibility import visibility_of
from world2vlm.teachers.base import load_teacher

ROOT = repo_root()
FOLDER = str(ROOT / "data/panoramas")
CONFIG = RealTurns(("hall", "lab", "studio"), ("interior", "forest"), FOLDER, (32, 32), anchors=4, turns=3, questions=24, object_questions=10)
TURNS_20 = [plan([Action(kind, 20)]) for kind in ("turn_right", "turn_left")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A simulated data set, and the three data sets of real turns."
    home = tmp_path_factory.mktemp("real_turns")
    make_held_out(HeldOut(Scenes(n=4, size=(32, 32), per_shard=2), supervise=Supervise(per_scene=2)), home / "svc")
    shutil.copytree(home / "svc", home / "examples/svc")
    make_real_turns(CONFIG, home / "examples/panorama", home / "questions")
    make_scenes(Scenes(n=4, size=(32, 32), per_shard=2), home / "scenes")
    for origin, name in (("any", "mixed"), ("real", "real"), ("simulated", "simulated")):
        mix_examples([home / "examples/svc", home / "examples/panorama"], home / "examples" / name, 1, origin, home / "scenes")
    return home


def content(folder: Path) -> dict: return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
def middle(mask: np.ndarray) -> float: return np.flatnonzero(mask.any(0)).mean()


# The teacher.
def test_a_turn_to_the_right_moves_content_to_the_left(tmp_path):
    "A bright column 20 degrees to the right of the anchor's heading comes into the middle, as in the simulator."
    place = np.zeros((360, 720, 3), np.uint8)
    place[:, (heading := 300) * 2 + 38 - 360:][:, :4] = 255  # 2 columns per degree, heading 0 in column 360: 20 degrees right of heading 300
    Image.fromarray(place).save(tmp_path / "bright.png")
    K = intrinsics(64, 64, 90)
    [scene] = panorama_scenes(("bright",), 1, 0, folder=tmp_path)
    scene = replace(scene, image=crop_panorama(place, heading, K, (64, 64)), source=f"panorama bright, heading {heading} degrees")
    right, left = (r.images[0][..., 0] > 60 for r in load_teacher("panorama", folder=str(tmp_path)).imagine(scene, TURNS_20))
    before = middle(scene.image[..., 0] > 60)
    assert abs(middle(right) - 31.5) < 1 and abs(before - (31.5 + 32 * np.tan(np.radians(20)))) < 1
    assert abs(middle(left) - (31.5 + 32 * np.tan(np.radians(40)))) < 1


@pytest.mark.parametrize("kind", ["turn_right", "turn_left"])
def test_signs_are_those_of_the_simulator(kind):
    "In a room the same turn shifts objects to the same side."
    shifts, turn = [], plan([Action(kind, 10)])
    for scene in room_scenes(3, 21):
        [rollout] = load_teacher("simulator").imagine(scene, [turn])
        inside = [i for i in scene.instances if not (i.mask | (rollout.ids[0] == i.id))[:, [0, -1]].any() and (rollout.ids[0] == i.id).sum() > 30]
        shifts += [middle(rollout.ids[0] == i.id) - middle(i.mask) for i in inside]
    [anchor] = panorama_scenes(("interior",), 1, 1, folder=FOLDER)
    [rollout] = load_teacher("panorama", folder=FOLDER).imagine(anchor, [turn])
    warped = load_teacher("reprojection").imagine(replace(anchor, depth=np.ones((64, 64), np.float32)), [turn])[0].images[0].astype(float)
    mirrored = load_teacher("reprojection").imagine(replace(anchor, depth=np.ones((64, 64), np.float32)), [plan([Action(kind, 10).opposite])])[0].images[0].astype(float)
    error = lambda view: np.abs(view - rollout.images[0])[:, 16:48].mean()
    assert np.sign(np.median(shifts)) == (-1 if kind == "turn_right" else 1) and error(warped) < error(mirrored) / 2


def test_turns_add_up_and_moves_are_refused():
    [scene] = panorama_scenes(("hall",), 1, 5, folder=FOLDER)
    reasons, walks = {}, [plan([Action("turn_left", 30), Action(kind, .5)]) for kind in ("forward", "backward", "left", "right")]
    around = [plan([Action("turn_right", 360)]), plan([Action("turn_right", 50), Action("turn_left", 20)]), plan([Action("turn_right", 30)])]
    rollouts = load_teacher("panorama", folder=FOLDER).imagine(scene, around + walks, 7, reasons.__setitem__)
    assert len(rollouts) == 3 and rollouts[0].seed == 7 and rollouts[0].fidelity == {"unseen": 0.0} and rollouts[0].ids is None
    assert (rollouts[0].images[0] == scene.image).all() and (rollouts[1].images[1] == rollouts[2].images[0]).all()
    assert len(reasons) == 4 and all("but a panorama knows turns only" in r and "(action 2)" in r for r in reasons.values())


def test_a_scene_of_another_origin_is_refused():
    reasons, [room] = {}, room_scenes(1, 3)
    assert load_teacher("panorama", folder=FOLDER).imagine(room, TURNS_20, reject=reasons.__setitem__) == []
    assert set(reasons.values()) == {f"no panorama: scene {room.id} is no crop of one, use another teacher"}


def test_a_scene_survives_its_row():
    "What the teacher needs comes back from a shard."
    teacher = load_teacher("panorama", folder=FOLDER)
    for scene in panorama_scenes(("forest_2", "city_2"), 3, 2, (48, 32), 70, FOLDER):
        again = from_row("scenes", to_row("scenes", scene))
        assert (again.source, again.licence, again.id) == (scene.source, "CC0-1.0", scene.id) and scene.size == (48, 32)
        assert (teacher.imagine(again, TURNS_20)[0].images == teacher.imagine(scene, TURNS_20)[0].images).all()


def test_nothing_is_asked_about_objects_without_outlines():
    "All eight tasks on a real turn at a place without outlines: only the two about the motion have a question."
    [scene] = panorama_scenes(("hall",), 1, 5, folder=FOLDER)
    [rollout, _] = load_teacher("panorama", folder=FOLDER).imagine(scene, TURNS_20)
    found = [e.task for t in transitions_of(scene, rollout) for task in TASKS.values() for e in task.derive(t, np.random.default_rng(0))]
    assert found == ["A2", "A4"]


# The data sets.
def test_every_data_set_is_valid(home):
    for name in ("examples/panorama", "examples/mixed", "questions"): assert validate_dataset("examples", home / name) == []


def test_unseen_places_are_not_trained_on(home):
    places = lambda folder: {e.scene_id.rpartition("-")[0] for e in read_dataset("examples", folder)}
    assert places(home / "examples/panorama") == set(CONFIG.places) and places(home / "questions") == set(CONFIG.unseen)
    assert not places(home / "examples/mixed") & set(CONFIG.unseen)
    assert {e.split for e in read_dataset("examples", home / "examples/panorama")} == {"train"}
    with pytest.raises(ValueError, match="hall is in `places` too"): replace(CONFIG, unseen=("hall",))


@pytest.mark.parametrize("profile", yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"])
def test_unseen_places_of_the_pipeline(profile):
    "Of every profile: neither these trainings nor the pretraining of the base student show them."
    from world2vlm.scenes.panoramas import TRAINING_PLACES
    config = load_settings(RealTurns, "real_turns", profile)
    assert not set(config.unseen) & {*config.places, *TRAINING_PLACES} and len(config.unseen) == 3
    assert profile in ("smoke", "rehearsal") or len(config.unseen) * config.questions == 360


def test_questions_are_balanced(home):
    questions = list(read_dataset("examples", home / "questions", task="A2"))
    assert len(questions) == len({e.scene_id for e in questions}) == 48 and {e.split for e in questions} == {"test"}
    cells = Counter((e.scene_id.rpartition("-")[0], e.phrasing, *e.target["actions"][0].values()) for e in questions)
    assert len(cells) == 2 * 2 * 12 and set(cells.values()) == {1} and all(not e.choices for e in questions)


def test_claims_about_turns_are_balanced(home):
    "As many true as false at each place and in each wording; the turns of the false ones are others."
    claims = list(read_dataset("examples", home / "questions", task="A4"))
    cells = Counter((e.scene_id.rpartition("-")[0], e.phrasing, e.target["yes"]) for e in claims)
    assert len(cells) == 2 * 2 * 2 and {e.split for e in claims} == {"test"} and not any(e.choices for e in claims)
    assert all(n == cells[place, phrasing, not yes] >= 2 for (place, phrasing, yes), n in cells.items())
    turn = {e.scene_id: e.target["actions"][0] for e in read_dataset("examples", home / "questions", task="A2")}
    for e in claims: assert (f"turn {turn[e.scene_id]['kind'][5:]} {turn[e.scene_id]['amount']:g} degrees" in e.question) == e.target["yes"]


def test_objects_of_unseen_places_are_asked_about(home):
    "At most ten questions of a task at a place, about outlined objects, without letters; a setting leaves them out."
    stats, asked = Counter(), [e for e in read_dataset("examples", home / "questions") if e.task[0] == "D"]
    for e in asked: stats[e.scene_id.rpartition("-")[0], e.task] += 1
    assert {(place, task) for place in CONFIG.unseen for task in ("D1", "D2", "D3")} | {("interior", "D4")} <= set(stats) and max(stats.values()) == 10
    assert {e.evidence for e in asked} == {"exact"} and not any(e.choices for e in asked) and {e.split for e in asked} == {"test"}
    assert 0 < sum(e.target["yes"] for e in asked if e.task == "D2") < sum(e.task == "D2" for e in asked)
    without = replace(CONFIG, object_questions=0)
    assert {e.task for e in real_turns._question_shard(0, lambda *_: None, without)} == {"A2", "A4"}


def test_outlines_turn_with_the_picture():
    "The box of an object after a turn, from its outline, is the one that the homography gives, and the labels are right."
    overlaps, config = [], replace(CONFIG, size=(96, 96))
    for place in CONFIG.unseen:
        for scene, rollouts in real_turns._place_rollouts(config, place, 8, 2, lambda *_: None):
            for transition in (t for rollout in rollouts for t in transitions_of(scene, rollout)):
                warped = replace(transition, rollout=replace(transition.rollout, ids=None), cache={})
                examples = TASKS["D1"].derive(transition, np.random.default_rng(0), Rules(area=(.03, .6)))
                overlaps += [iou(e.target["box"], visibility_of(warped, object_id(e)).box) for e in examples]
    assert len(overlaps) > 15 and np.mean(overlaps) > .93 and min(overlaps) > .7, sorted(overlaps)


def test_training_turns_are_balanced(home):
    turns = Counter(tuple(e.target["actions"][0].values()) for e in read_dataset("examples", home / "examples/panorama", task="A2"))
    assert len(turns) == 12 and set(turns.values()) == {3}


def test_mixed_is_the_union(home):
    rows = lambda name: [to_row("examples", e) for e in read_dataset("examples", home / "examples" / name)]
    assert rows("mixed") == rows("svc") + rows("panorama")


def test_origins_part_the_mixture(home):
    "The arms of real, of simulated and of mixed scenes."
    rows = lambda name: [e.id for e in read_dataset("examples", home / "examples" / name)]
    assert rows("real") == rows("panorama") and rows("simulated") == rows("svc") and validate_dataset("examples", home / "examples/real") == []
    with pytest.raises(ValueError, match="no simulated example in panorama; set scenes.source"):
        mix_examples([home / "examples/panorama"], home / "none", 1, "simulated", home / "scenes")
    assert not (home / "none").exists()


def test_training_reads_the_mixture_shuffled(home):
    "The shards stand one source after the other; the reading order has both in every part."
    from datasets import Dataset
    data = Dataset.from_parquet([str(p) for p in shard_paths("examples", home / "examples/mixed")], cache_dir=str(home / "cache"))
    data = data.map(lambda row: {"split": "train"})  # the toy's simulated examples are held-out ones
    real = np.array([t == "panorama" for t in data["teacher"][:]])[_selected_rows(data, Training(), (4, 1, 1))]
    assert all(abs(part.mean() - real.mean()) < .25 for part in np.array_split(real, 3))


def test_two_runs_give_the_same_bytes(home, tmp_path):
    make_real_turns(CONFIG, tmp_path / "examples/panorama", tmp_path / "questions")
    mix_examples([home / "examples/svc", tmp_path / "examples/panorama"], tmp_path / "examples/mixed", workers=2)
    for name in ("questions", "examples/panorama", "examples/mixed"): assert content(tmp_path / name) == content(home / name)


def test_another_seed_gives_other_headings():
    sources = [{s.source for s in panorama_scenes(CONFIG.places, 4, seed, CONFIG.size, folder=FOLDER)} for seed in (0, 1)]
    assert len(sources[0]) == len(sources[1]) == 12 and len(sources[0] & sources[1]) <= 1


STAGE = """
import sys, time
sys.path.insert(0, "tests")
from test_real_turns import CONFIG, make_real_turns
from world2vlm.dataset import real_turns
derive = real_turns.derive_examples
def slow(*args, **options):
    time.sleep(30 if args[2] == "lab" else 0)
    return derive(*args, **options)
real_turns.derive_examples = slow
make_real_turns(CONFIG, *sys.argv[1:])
"""


def test_kill_and_resume(home, tmp_path):
    "SIGKILL in the second of three places: the first one is not made again, and the bytes are those of an undisturbed run."
    arguments, partial = (tmp_path / "panorama", tmp_path / "questions"), tmp_path / "panorama.partial/data"
    process = subprocess.Popen([sys.executable, "-c", STAGE, *map(str, arguments)], cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while process.poll() is None and not any(partial.glob("*.parquet")): time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [done] = partial.glob("*.parquet")
    stamp = done.stat().st_mtime_ns
    make_real_turns(CONFIG, *arguments)
    assert (tmp_path / "panorama/data" / done.name).stat().st_mtime_ns == stamp
    assert content(tmp_path / "panorama") == content(home / "examples/panorama") and content(tmp_path / "questions") == content(home / "questions")
    assert {p.name for p in tmp_path.iterdir()} == {"panorama", "questions"}


@pytest.mark.parametrize("place, damage", [("hall", "missing"), ("hall", "cut"), ("hall", "text"), ("hall", "narrow"), ("forest", "missing")])
def test_a_damaged_panorama_is_one_clear_error(home, tmp_path, place, damage):
    path = tmp_path / "places" / f"{place}.png"
    shutil.copytree(FOLDER, path.parent)
    if damage == "missing": path.unlink()
    elif damage == "cut": path.write_bytes(path.read_bytes()[:5000])
    elif damage == "text": path.write_text("no picture")
    else: Image.new("RGB", (64, 64)).save(path)
    remedy = "twice as wide as high" if damage == "narrow" else "fetch it again"
    with pytest.raises(ValueError, match=remedy) as error:
        make_real_turns(replace(CONFIG, folder=str(path.parent)), tmp_path / "panorama", tmp_path / "questions")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "questions").exists()


def test_controls_answer_what_they_were_trained_on(home):
    "An arm of real turns has no examples of six tasks: its control answers nothing there, and that is a wrong answer."
    questions, groups = list(read_dataset("examples", home / "svc")), _training_groups(read_dataset("examples", home / "examples/panorama"))
    for rows in (_majority_rows(groups, questions), _random_rows(groups, questions)):
        silent = [row for row, e in zip(rows, questions) if (e.task, e.phrasing) not in groups and not e.choices]
        assert len(rows) == len(questions) and silent and all(row["response"] == "" and row["score"]["overall"] == 0 for row in silent)
