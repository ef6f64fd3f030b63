"Each benchmark end to end on small files in its official layout, killed half-way and resumed; bad files are errors, never zeros or a smaller benchmark."
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from world2vlm.evaluation.benchmarks.vsibench import NUMERIC
from world2vlm.core.config import ConfigError, repo_root
from world2vlm.evaluation.benchmarks import base
from world2vlm.evaluation.benchmarks.base import BENCHMARKS, CONTROLS, Benchmark, Item, ask_benchmark, control_rows, open_benchmark, _shuffle_pictures
from world2vlm.students.models import HFStudent, Prompt, Reply, load_piece, open_student
from world2vlm.students.vllm import VLLMStudent
from world2vlm.students.media import _video_frames
from world2vlm.evaluation.benchmarks.sat import _published_order, _score_sat
from world2vlm.evaluation.statistics import paired_scores, score_with_interval
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark

KINDS = [*NUMERIC, "object_rel_distance", "object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard", "route_planning", "obj_appearance_order"]
OFFICIAL = {"sat": ("test", 8), "vsibench": ("test", 10), "mindcube": ("tinybench", 12), "viewspatial": ("test", 8), "mmsi": ("test", 6), "enact": ("test", 8), "camerabench": ("vqa", 3)}
SPLITS = OFFICIAL | {"rooms": ("test", None)}


def picture(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(path)


def film(path, frames=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 32))
    for k in range(frames): out.write(np.full((32, 48, 3), 15 * k, np.uint8))
    out.release()


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def png(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_viewspatial(home, rng):
    one = [dict(question_type="Camera perspective - Relative Direction", image_path=[f"ViewSpatial-Bench/val2017/{i}.jpg"]) for i in range(4)]
    many = [dict(question_type="Person perspective - Scene Simulation Relative Direction",
                 image_path=[f"ViewSpatial-Bench/scannetv2_val/scene{i % 2}/original_images/{k}.jpg" for k in range(3)]) for i in range(4)]
    records = [r | dict(question=f"Question {i}?", choices="A. left\nB. right\nC. front\nD. back", answer="ABCD"[i % 4] + ". " + ["left", "right", "front", "back"][i % 4]) for i, r in enumerate(one + many)]
    for r in records: [picture(home / path.removeprefix("ViewSpatial-Bench/"), rng) for path in r["image_path"]]
    (home / "ViewSpatial-Bench.json").write_text(json.dumps(records))


def write_mmsi(home, rng, bad=()):
    rows = [dict(id=i, images=[b"nothing" if i in bad else png(rng) for _ in range(2 + i % 2)], question_type="Motion (Cam.)" if i % 2 else "MSR", thought="",
                 question=f"Question {i}?\nOptions: A: left, B: right, C: up, D: down", answer="ABCD"[i % 4]) for i in range(6)]
    parquet.write_table(pa.Table.from_pylist(rows), home / "MMSI_Bench.parquet")


def scene(*states):
    "One frame of a scene graph: three objects, of which some are open."
    node = lambda name: dict(name=f"{name}_1", category=name, parent=None, states=["Open"] * (name in states), visibility={"external_sensor1": [900, 0, 0, 9, 9, 72, 72]})
    return dict(type="full", edges=[], nodes=[node(name) for name in ("fridge", "kettle", "drawer")])


def write_enact(home, rng):
    frames = {"10": scene(), "20": scene("fridge"), "30": scene("fridge", "kettle"), "40": scene("fridge")}
    rows = []
    for task in ("tea", "soup"):
        graphs = home / f"replayed_activities/{task}/scene_graph_0.json"
        graphs.parent.mkdir(parents=True, exist_ok=True)
        graphs.write_text(json.dumps(frames))
        for i, way in enumerate(["forward", "inverse"] * 2):
            images = [f"QA/images/{way}/{task}/{i}_{k}.png" for k in range(4)]
            for path in images: picture(home / path, rng)
            rows.append(dict(id=f"{task}_{i}", type=f"{way}_world_modeling_ordering_4_steps", task_name=task, key_frame_ids=[*frames], images=images, question=f"Order {task} {i}.", options=[], gt_answer=[2, 1, 3]))
    lines(home / "QA/enact_ordering.jsonl", rows)


def write_camerabench(home):
    pairs = [("motion_direction/pan", 0, 1), ("motion_direction/pan", 1, 2), ("has_motion/tilt", 2, 0)]
    for name in dict.fromkeys(name for name, *_ in pairs):
        lines(home / f"data/vqa_and_retrieval/{name}.jsonl", [dict(skill="motion", task="pan", pos_video=f"/data3/clips/film{a}.mp4", neg_video=f"/data3/clips/film{b}.mp4",
                                                                   pos_question="Does it move left?", neg_question="Does it move right?") for other, a, b in pairs if other == name])
    lines(home / "data/binary_classification/Pan_Left.jsonl", [dict(image=f"/data3/clips/film{k}.mp4", question="Does it pan left?", label="Yes" if k else "No", task="pan") for k in range(3)])
    for k in range(3): film(home / f"film{k}.mp4")


def write(home):
    "The public benchmarks in their layouts of today, a few questions each."
    rng = np.random.default_rng(0)
    sat = [dict(database_idx=i, question_type=kind, question=f"Question {i}?", answer_choices=["left", "right"], correct_answer="left",
                img_paths=[f"./data/test/image_{i}_{k}.png" for k in range(1 + kind.endswith("movement"))])
           for i, kind in enumerate(["goal_aim", "obj_movement", "ego_movement", "perspective", "action_conseq"] * 2) if i < 8]
    for r in sat: [picture(home / path, rng) for path in r["img_paths"]]
    (home / "data/test.json").write_text(json.dumps(sat))
    lines(home / "test.jsonl", [dict(id=i, dataset="scannet", scene_name=f"scene{i % 2}", question_type=kind, question=f"Question {i}?", ground_truth="3" if kind in NUMERIC else "B",
                                     options=None if kind in NUMERIC else ["A. sofa", "B. lamp", "C. door", "D. bed"]) for i, kind in enumerate(KINDS)])
    for k in range(2): film(home / f"scannet/scene{k}.mp4")
    cube = [dict(id=f"{kind}_group1_q{i}", question="What is behind me? A. Sofa B. Door C. Lamp D. Bed", images=[f"other_all_image/{kind}/{k}.png" for k in range(2)], gt_answer="C")
            for kind in ("among", "around", "rotation") for i in range(4)]
    for r in cube: [picture(home / "data" / path, rng) for path in r["images"]]
    lines(home / "data/raw/MindCube_tinybench.jsonl", cube)
    write_viewspatial(home, rng), write_mmsi(home, rng), write_enact(home, rng), write_camerabench(home)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = write(tmp_path_factory.mktemp("benchmarks"))
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=2, first=970_000, seed=3, per_shard=2), Imagine(presets={"single": 3}), Supervise(per_scene=1)), home / "rooms")
    return home


def load(home, name):
    split, n = SPLITS[name]
    return open_benchmark(name).load(str(home / "rooms" if name == "rooms" else home), split, n)


@pytest.fixture(scope="module")
def student(): return open_student(repo_root() / "data/base", box_format="pixels")


SCRIPT = """
import sys
from world2vlm.evaluation.benchmarks.base import ask_benchmark, open_benchmark
from world2vlm.students.models import open_student
name, home, split, out, base = sys.argv[1:]
student = open_student(base, box_format="pixels")
ask_benchmark(student, name, open_benchmark(name).load(home, split, None), out, batch_size=1, frames=4, max_new_tokens=4)
"""


def killed_run(name, source, out):
    "Another process answers into `out` and is killed after two answers."
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, name, str(source), SPLITS[name][0], str(out), str(repo_root() / "data/base")], stderr=subprocess.PIPE, text=True)
    while not out.exists() or out.read_text().count("\n") < 2:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL), process.wait()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_end_to_end_killed_and_resumed(home, student, tmp_path, name):
    "One is killed in fact; of the others stands what a kill leaves: two answers and half of a third."
    out, items, source = tmp_path / f"{name}.jsonl", load(home, name), home / "rooms" if name == "rooms" else home
    whole = ask_benchmark(student, name, items, tmp_path / "whole.jsonl", batch_size=1, frames=4, max_new_tokens=4)
    if name == "sat": killed_run(name, source, out)
    else:
        first, second, third, *_ = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
        out.write_text(first + second + third[:len(third) // 2])
    half = out.read_text().count("\n")
    again = ask_benchmark(student, name, items, out, batch_size=1, frames=4, max_new_tokens=4)
    assert half < len(items) == len(again) and [r["response"] for r in again] == [r["response"] for r in whole]
    tables = open_benchmark(name).score(again)
    assert all(0 <= value <= 1 for table in tables.values() for value in table.values()) and "overall" in next(iter(tables.values()))
    assert all("seconds" in row for row in whole) and "seconds" not in out.read_text()
    intervals = score_with_interval(again, open_benchmark(name).score, samples=20)
    assert all(rule["low"] <= rule["overall"] <= rule["high"] for rule in intervals.values())


def test_the_first_choice_is_always_right_as_shipped(home):
    items = load(home, "sat")
    tables = {which: _score_sat(control_rows("sat", items, which)) for which in CONTROLS}
    assert tables["first"]["as shipped"]["overall"] == 1 and tables["first"]["circular"]["overall"] == 0 and tables["most frequent"]["circular"]["overall"] == 1
    assert 0 < tables["random"]["published order"]["overall"] <= 1 and sum(_published_order(150)) == 82
    assert control_rows("sat", items, "random", 1) != control_rows("sat", items, "random") == control_rows("sat", items, "random", 0)
    with pytest.raises(ValueError, match="choose one of first, random, most frequent"): control_rows("sat", items, "last")


def test_a_number_is_guessed_by_the_median(home):
    items = load(home, "vsibench")
    numbers = {row["kind"]: row["response"] for row in control_rows("vsibench", items, "most frequent") if row["kind"] in NUMERIC}
    assert set(numbers.values()) == {"3.0"} and set(numbers) == set(NUMERIC)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_shuffled_pictures_are_of_other_places(home, name):
    items = load(home, name)
    shuffled = _shuffle_pictures(items)
    pictures = lambda item: [np.asarray(image).tobytes() for image in item.images] + [item.video]
    assert [(i.id, i.question, i.choices, i.gold) for i in items] == [(i.id, i.question, i.choices, i.gold) for i in shuffled]
    of_place = {}
    for item in items: of_place.setdefault(item.place, []).append(pictures(item))
    assert all(pictures(new) not in of_place[old.place] and len(new.images) == len(old.images) for old, new in zip(items, shuffled))
    with pytest.raises(ValueError, match="two scenes"): _shuffle_pictures([i for i in items if i.place == items[0].place])


def test_blind_asks_with_the_shuffled_pictures_and_keeps_its_own_file(home, student, tmp_path):
    items = load(home, "rooms")
    blind, alone = (ask_benchmark(student, "rooms", items, tmp_path / f"{b}.jsonl", max_new_tokens=8, blind=b) for b in (True, False))
    again = ask_benchmark(student, "rooms", _shuffle_pictures(items), max_new_tokens=8)
    assert [r["response"] for r in blind] == [r["response"] for r in again] and [r["id"] for r in blind] == [r["id"] for r in alone]
    with pytest.raises(ValueError, match="other settings"): ask_benchmark(student, "rooms", items, tmp_path / "True.jsonl", max_new_tokens=8)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_wrong_count_is_an_error(home, name):
    with pytest.raises(ValueError, match="are expected"): open_benchmark(name).load(str(home), SPLITS[name][0])
    assert len(open_benchmark(name).load(str(home), SPLITS[name][0], None)) >= SPLITS[name][1]


@pytest.mark.parametrize("name,lost", [("sat", "data/test/image_1_1.png"), ("vsibench", "scannet/scene1.mp4"), ("mindcube", "data/other_all_image/around/1.png"),
                                       ("viewspatial", "val2017/2.jpg"), ("enact", "QA/images/inverse/soup/1_3.png"), ("enact", "replayed_activities/soup/scene_graph_0.json"), ("camerabench", "film2.mp4")])
def test_a_missing_file_is_an_error(tmp_path, name, lost):
    home = write(tmp_path)
    (home / lost).unlink()
    with pytest.raises(ValueError, match=f"1 of .* files.*{Path(lost).name}"): load(home, name)


@pytest.mark.parametrize("name,bad,content", [("sat", "data/test/image_1_1.png", b"nothing"), ("sat", "data/test/image_1_1.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
                                             ("vsibench", "scannet/scene1.mp4", b"nothing"), ("mindcube", "data/other_all_image/among/1.png", b""),
                                             ("viewspatial", "scannetv2_val/scene1/original_images/2.jpg", b"nothing"), ("enact", "QA/images/forward/tea/0_1.png", b""), ("camerabench", "film0.mp4", b"nothing")])
def test_a_question_with_an_unreadable_file_is_a_logged_reject(tmp_path, student, name, bad, content):
    home = write(tmp_path)
    (home / bad).write_bytes(content)
    items, out = load(home, name), tmp_path / "student.jsonl"
    with pytest.warns(UserWarning, match=f"questions are left out.*{Path(bad).name}"):
        rows = ask_benchmark(student, name, items, out, batch_size=2, frames=4, max_new_tokens=2)
    rejects = [json.loads(line) for line in out.with_suffix(".rejects").read_text().splitlines()]
    assert {row["input"] for row in rejects} | {row["id"] for row in rows} == {item.id for item in items} and len(rejects) + len(rows) == len(items)
    assert rejects and rows and all(row["stage"] == "ask" and Path(bad).name in row["reason"] and "fetch" in row["reason"] for row in rejects)
    assert 0 <= open_benchmark(name).score(rows)[next(iter(open_benchmark(name).score(rows)))]["overall"] <= 1
    with pytest.warns(UserWarning, match="left out"): assert {r["id"] for r in ask_benchmark(student, name, items, out, batch_size=2, frames=4, max_new_tokens=2)} == {r["id"] for r in rows}
    write(tmp_path)  # the file is fetched again
    assert len(ask_benchmark(student, name, items, out, batch_size=2, frames=4, max_new_tokens=2)) == len(items)
    assert not out.with_suffix(".rejects").exists()


def test_a_video_shorter_than_its_header_is_a_logged_reject(home, student, monkeypatch):
    "The header promises 40 frames, or a billion, and 38 can be read."
    class Cut:
        def __init__(self, path): self.video, self.left, self.total = VIDEO(path), 12 if "scene0" in str(path) else 38, 12 if "scene0" in str(path) else total
        def get(self, what): return self.total
        def read(self):
            self.left -= 1
            return (self.left >= 0, np.zeros((32, 48, 3), np.uint8))
    VIDEO, total = cv2.VideoCapture, 40
    monkeypatch.setattr(cv2, "VideoCapture", Cut)
    for total in (40, 10**9):
        with pytest.raises(ValueError, match="scene1.mp4: .* of .* frames can be read"): _video_frames(home / "scannet/scene1.mp4")
    with pytest.warns(UserWarning, match="5 questions are left out"): rows = ask_benchmark(student, "vsibench", load(home, "vsibench"), batch_size=1, frames=32, max_new_tokens=1)
    assert len(rows) == 5


@pytest.mark.parametrize("blind", [False, True])
def test_each_video_is_decoded_once(tmp_path, student, monkeypatch, blind):
    "Questions are sorted by their video; the control needs that of the next place too, and at the end that of the first one again."
    lines(tmp_path / "test.jsonl", [dict(id=i, dataset="scannet", scene_name=f"scene{i % 7}", question_type="route_planning", question=f"Question {i}?", ground_truth="B", options=["A. sofa", "B. lamp"]) for i in range(42)])
    for k in range(7): film(tmp_path / f"scannet/scene{k}.mp4")
    opened = []
    class Counted:
        def __init__(self, path): opened.append(path); self.video = VIDEO(path)
        def __getattr__(self, name): return getattr(self.video, name)
    VIDEO = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Counted)
    class Silent:
        def key(self, settings): return "silent"
        def reply(self, prompts, max_new_tokens): return [Reply("B", 1) for _ in prompts]
    items = open_benchmark("vsibench").load(tmp_path, "test", None)
    rows = ask_benchmark(Silent(), "vsibench", items, tmp_path / "out.jsonl", batch_size=4, frames=4, blind=blind)
    assert len(rows) == 42 and len(set(opened)) == 7 and len(opened) == 7 + blind


def test_the_control_leaves_out_what_the_student_cannot_be_asked(tmp_path, student):
    home = write(tmp_path)
    (home / "scannet/scene1.mp4").write_bytes(b"nothing")
    items = load(home, "vsibench")
    with pytest.warns(UserWarning, match="left out"): alone = ask_benchmark(student, "vsibench", items, frames=4, max_new_tokens=1)
    with pytest.raises(ValueError, match="none of 10.*no pictures of another place"):  # the only other place cannot be read
        ask_benchmark(student, "vsibench", items, frames=4, max_new_tokens=1, blind=True)
    film(home / "scannet/scene2.mp4")
    records = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    lines(home / "test.jsonl", records + [records[0] | {"id": 10, "scene_name": "scene2"}])
    items = open_benchmark("vsibench").load(home, "test", 11)
    with pytest.warns(UserWarning, match="5 questions are left out"): blind = ask_benchmark(student, "vsibench", items, frames=4, max_new_tokens=1, blind=True)
    assert [row["id"] for row in blind] == [row["id"] for row in alone] + ["10"]


def test_a_picture_of_a_parquet_file_that_cannot_be_read_is_a_logged_reject(tmp_path, student):
    write_mmsi(tmp_path, np.random.default_rng(0), bad=(1, 4))
    items = load(tmp_path, "mmsi")
    with pytest.warns(UserWarning, match="2 questions are left out.*not a readable picture"): rows = ask_benchmark(student, "mmsi", items, max_new_tokens=1)
    assert [row["id"] for row in rows] == ["0", "2", "3", "5"]


def test_sat_of_the_hub_comes_from_its_parquet_file_alone(tmp_path, student):
    "Either version of the data set; a row without a picture is left out when it is asked."
    rng = np.random.default_rng(0)
    rows = [dict(question=f"Question {i}?", answers=["left", "right"], correct_answer="left", question_type="perspective") for i in range(3)]
    stored = {"bytes": lambda data: data, "record": lambda data: {"bytes": data, "path": None}}
    for (name, column), kind in zip([("SAT_test.parquet", "image_bytes"), ("SAT_test.parquet", "images"), ("data/test-00000-of-00001.parquet", "images")], ["bytes", "record", "record"]):
        home = tmp_path / f"{column}-{kind}-{len(name)}"
        (home / name).parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist([row | {column: [stored[kind](png(rng)) for _ in range(1 + i % 2)]} for i, row in enumerate(rows)]), home / name)
        items = open_benchmark("sat").load(home, "test", 3)
        assert [item.id for item in items] == [f"test-{i}#{k}" for i in range(3) for k in (0, 1)] and [len(item.images) for item in items] == [1, 1, 2, 2, 1, 1]
        assert Image.open(items[0].images[0]).size == (512, 512) and items == open_benchmark("sat").load(home, "test", 3)
    parquet.write_table(pa.Table.from_pylist([rows[0] | {"images": [{"bytes": png(rng), "path": None}]}, rows[1] | {"images": [{"bytes": b"nothing", "path": None}]}]), home / "again.parquet")
    other = tmp_path / "other"
    other.mkdir()
    (home / "again.parquet").rename(other / "SAT_test.parquet")
    with pytest.warns(UserWarning, match="2 questions are left out.*image_1_0.png"): rows = ask_benchmark(student, "sat", open_benchmark("sat").load(other, "test", 2), max_new_tokens=1)
    assert [row["id"] for row in rows] == ["test-0#0", "test-0#1"]
    parquet.write_table(pa.table({"images": pa.array([], pa.list_(pa.binary())), "question": pa.array([], pa.string()), "answers": pa.array([], pa.list_(pa.string())),
                                  "correct_answer": pa.array([], pa.string()), "question_type": pa.array([], pa.string())}), tmp_path / "SAT_test.parquet")
    with pytest.raises(ValueError, match="SAT_test.parquet: no rows; fetch it again"): open_benchmark("sat").load(tmp_path, "test", None)


def test_the_subsets_of_vsibench(tmp_path):
    "From their own files, or from the list of the questions that can be guessed; both give the same."
    home, vsi = write(tmp_path), open_benchmark("vsibench")
    with pytest.raises(ValueError, match="nothing tells which questions are debiased"): vsi.load(home, "debiased", None)
    (home / "pruned_ids.txt").write_text("0\n3\n7\n")
    pruned, debiased, whole = (vsi.load(home, split, None) for split in ("pruned", "test_debiased", "test"))
    assert [item.id for item in pruned] == ["0", "3", "7"] and len(debiased) == 7 and len(whole) == 10
    records = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    (home / "pruned_ids.txt").unlink(), (home / "test.jsonl").unlink()
    for split, items in (("pruned", pruned), ("debiased", debiased)):
        named = {item.id for item in items}
        parquet.write_table(pa.Table.from_pylist([record for record in records if str(record["id"]) in named]), home / f"test_{split}.parquet")
    assert [vsi.load(home, split, None) for split in ("pruned", "debiased")] == [pruned, debiased]
    assert {item.id for item in vsi.load(home, "test", None)} == {item.id for item in whole}
    with pytest.raises(ValueError, match="7 questions, 2362 or 2363 are expected"): vsi.load(home, "debiased")
    with pytest.raises(ValueError, match="choose one of test, debiased, pruned"): vsi.load(home, "easy")
    rows = [vsi.row(item, "3.0") for item in vsi.load(home, "test", None)]
    tables = vsi.score(rows)
    assert list(tables)[0] == "official" and tables["official, debiased"]["overall"] == vsi.score([row for row in rows if not row["pruned"]])["official"]["overall"]


def test_mindcube_lies_in_either_folder(tmp_path):
    home, cube = write(tmp_path / "whole"), open_benchmark("mindcube")
    assert [item.id for item in cube.load(home, "tinybench", 12)] == [item.id for item in cube.load(home / "data", "tinybench", 12)]


def test_enact_without_graphs_has_two_bounds(tmp_path):
    home, enact = write(tmp_path), open_benchmark("enact")
    answers = ["[3, 1, 2]", "[2, 1, 3]", "[1, 2, 3]", "I cannot tell.", "[2, 1, 3]", "[2, 1, 3]", "[2, 1]", "[9, 9, 9]"]
    score = lambda: enact.score([enact.row(item, answer) for item, answer in zip(load(home, "enact"), answers)])
    verified = score()
    assert list(verified)[0] == "official" and verified["official"]["overall"] == 4 / 7 and verified["skipped = wrong"]["overall"] == 1 / 2  # [3, 1, 2] shows the same pictures
    (home / "replayed_activities/tea/scene_graph_0.json").write_text("{")
    with pytest.raises(ValueError, match="no scene graphs.*fetch it again"): score()
    (home / "replayed_activities/tea/scene_graph_0.json").write_text(json.dumps({"10": scene()}))
    with pytest.raises(ValueError, match="no graph of frame 20"): score()
    import shutil
    shutil.rmtree(home / "replayed_activities")
    bounds = score()
    assert list(bounds) == ["exact, no verifier", "pairwise bound, no verifier"] and bounds["exact, no verifier"]["overall"] == 3 / 7
    assert bounds["pairwise bound, no verifier"]["overall"] <= verified["official, pairwise"]["overall"]
    records = [json.loads(line) for line in (home / "QA/enact_ordering.jsonl").read_text().splitlines()]
    lines(home / "QA/enact_ordering.jsonl", [records[0] | {"gt_answer": [2, 2, 3]}])
    with pytest.raises(ValueError, match="gt_answer .2, 2, 3. is no order of 4 frames"): enact.load(home, "test", 1)


def test_camerabench_is_scored_by_probabilities_where_there_are_any(home, student, tmp_path):
    camera = open_benchmark("camerabench")
    items = load(home, "camerabench")
    rows = ask_benchmark(student, "camerabench", items, tmp_path / "out.jsonl", batch_size=5, max_new_tokens=4)
    assert all(set(row["probabilities"]) == {"Yes", "No"} and 0 <= sum(row["probabilities"].values()) <= 1 for row in rows)
    tables = camera.score(rows)
    assert list(tables)[0] == "official" and "lmms-eval" in tables and set(tables["official"]) == {"motion direction", "has motion", "overall", "micro"}
    assert list(camera.score([{k: v for k, v in row.items() if k != "probabilities"} for row in rows]))[0] == "lmms-eval"
    assert camera.score(rows[1:])["official"].keys() <= tables["official"].keys() and len(camera.score.marks(rows[1:])["official"]) == 2  # half a pair is none
    right = [camera.row(item, item.gold, probabilities={"Yes": float(item.gold == "Yes"), "No": float(item.gold == "No")}) for item in items]
    assert {rule: table["overall"] for rule, table in camera.score(right).items()} == {rule: 1 for rule in camera.score(right)}
    yes = [row | dict(response="Yes", probabilities={"Yes": .9, "No": .1}) for row in right]
    assert camera.score(yes)["official"]["overall"] == 0 and camera.score(yes)["official, Acc"]["overall"] == .5
    motions = camera.load(home, "motion", 3)
    assert [item.kind for item in motions] == ["Pan Left"] * 3
    asked = ask_benchmark(student, "camerabench", motions, max_new_tokens=1)
    assert score_with_interval(asked, camera.score, samples=10)["official"]["n"] == 3


def test_probabilities_are_those_of_the_first_token(student):
    "They do not change what is written, and do not depend on the other prompts of a batch."
    import torch
    words = ("Yes", "No")
    prompts = [Prompt([np.full((56, 56, 3), 40 * i, np.uint8), f"Is it {colour}? Please only answer Yes or No."]) for i, colour in enumerate(["red", "dark and very far away", "grey"])]
    plain, with_words = student.reply(prompts, 6), student.reply(prompts, 6, words)
    assert [r.text for r in plain] == [r.text for r in with_words] and all(r.probabilities == () for r in plain)
    alone = [student.reply([prompt], 1, words)[0].probabilities for prompt in prompts]
    assert np.allclose(alone, [r.probabilities for r in with_words], atol=1e-4)
    text = student.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompts[0].pieces[1]}]}], tokenize=False, add_generation_prompt=True)
    inputs = student.processor(text=[text], images=[prompts[0].pieces[0]], return_tensors="pt")
    with torch.inference_mode(): chances = student.model(**inputs).logits[0, -1].float().softmax(-1)
    first = [student.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
    assert np.allclose(alone[0], chances[first].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_needs_no_picture_can_be_scored(home, name):
    "Controls and the prior of texts give one readable answer to each question, whatever the form of the answers."
    items, benchmark = load(home, name), open_benchmark(name)
    for rows in [*(control_rows(name, items, which) for which in CONTROLS), base._prior_rows(name, items)]:
        assert [row["id"] for row in rows] == [item.id for item in items]
        assert all(0 <= value <= 1 for table in benchmark.score(rows).values() for value in table.values())
    if name != "rooms": assert all(benchmark.has_answer(row) for row in control_rows(name, items, "most frequent"))


def test_nothing_readable_is_an_error(tmp_path, student):
    home = write(tmp_path)
    for k in range(2): (home / f"scannet/scene{k}.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of 10 questions can be asked"): ask_benchmark(student, "vsibench", load(home, "vsibench"), batch_size=1, frames=4, max_new_tokens=2)


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\u2029b\x0bc\x0cd\x1ce", "桌子在哪里", "half \ud83d"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_lines_of_questions_end_at_newlines_alone(tmp_path, text, bom):
    home = write(tmp_path)
    records = [json.loads(line) | {"question": text} for line in (home / "test.jsonl").read_text().splitlines()]
    lines = "".join(json.dumps(record, ensure_ascii="\ud83d" in text) + "\n" for record in records)
    (home / "test.jsonl").write_bytes(bom + lines.encode())
    items = load(home, "vsibench")
    assert [item.question for item in items] == [text] * 10
    class Silent:
        def key(self, settings): return "silent"
        def reply(self, prompts, max_new_tokens): return [Reply("B\u2028", 1) for _ in prompts]
    rows = ask_benchmark(Silent(), "vsibench", items, tmp_path / "out.jsonl", frames=4)
    again = ask_benchmark(Silent(), "vsibench", items, tmp_path / "out.jsonl", frames=4)
    assert [row["question"] for row in again] == [text] * 10 and [r["response"] for r in rows] == [r["response"] for r in again]


@pytest.mark.parametrize("n", [2, 4, 5, 8])
def test_a_random_control_has_as_many_options_as_the_question(home, n):
    options = tuple(f"{'ABCDEFGH'[k]}. thing {k}" for k in range(n))
    items = [Item(str(i), "route_planning", "?", options, "B", video="x.mp4") for i in range(200)]
    assert {row["response"] for row in control_rows("vsibench", items, "random")} == {*"ABCDEFGH"[:n]}


@pytest.mark.parametrize("name,file", [("sat", "data/test.json"), ("vsibench", "test.jsonl"), ("mindcube", "data/raw/MindCube_tinybench.jsonl"),
                                       ("viewspatial", "ViewSpatial-Bench.json"), ("enact", "QA/enact_ordering.jsonl")])
def test_another_schema_or_broken_text_is_an_error(tmp_path, name, file):
    home = write(tmp_path)
    text = (home / file).read_text()
    (home / file).write_text(text.replace('"question":', '"query":'))
    with pytest.raises(ValueError, match="no field question"): load(home, name)
    (home / file).write_text(text[:-20])
    with pytest.raises(ValueError, match="not readable"): load(home, name)
    (home / file).unlink()
    with pytest.raises(ValueError, match="no "): load(home, name)


def test_an_empty_answer_file_is_no_score():
    for name in BENCHMARKS:
        with pytest.raises(ValueError, match="no answered"): open_benchmark(name).score([])


def test_benchmarks_are_opened_by_name_or_import_path(monkeypatch, tmp_path):
    (tmp_path / "own_benchmark.py").write_text("from world2vlm.evaluation.benchmarks.sat import BENCHMARK\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_benchmark("own_benchmark:BENCHMARK") is open_benchmark("sat") is open_benchmark(open_benchmark("sat"))
    assert all(isinstance(open_benchmark(name), Benchmark) for name in BENCHMARKS)
    with pytest.raises(ConfigError, match="did you mean vsibench"): open_benchmark("vsi-bench")


def test_frames_are_even_and_reach_both_ends(tmp_path):
    film(tmp_path / "a.mp4", 13)
    assert len(_video_frames(tmp_path / "a.mp4")) == 12 and len(_video_frames(tmp_path / "a.mp4", 5)) == 4
    greys = _video_frames(tmp_path / "a.mp4", 4)[:, 0, 0, 0].astype(int)
    assert greys[0] < 8 and abs(greys[-1] - 180) < 8 and (np.diff(greys) > 0).all()


def test_two_students_are_compared_on_the_same_questions(home):
    items, cube = load(home, "mindcube"), open_benchmark("mindcube")
    right, wrong = [cube.row(i, i.gold) for i in items], [cube.row(i, "E") for i in items]
    paired = paired_scores(right, wrong, cube.score, 20)["official"]
    assert paired["difference"] == paired["low"] == paired["high"] == 1 and paired_scores(right, right, cube.score, 20)["official"]["high"] == 0
    with pytest.raises(ValueError, match="same questions once"): paired_scores(right, wrong[1:], cube.score)


def test_boxes_are_asked_and_read_in_the_units_of_the_student(home, student):
    "What a student of pixels answers comes back in thousandths."
    item = next(i for i in load(home, "rooms") if "thousandths" in i.question)
    prompt = Prompt([load_piece(piece) for piece in open_benchmark("rooms").prompt(item)])
    reply = student.reply([prompt], 8)[0]
    assert isinstance(reply.text, str) and reply.tokens > 8
    assert HFStudent(student.model, student.processor).key({}) != student.key({})


def test_vllm_is_asked_what_transformers_is(home, student, monkeypatch):
    "vLLM itself needs a GPU; here its interface stands before the same weights, so that prompts, pictures and units must agree."
    import torch
    from types import ModuleType, SimpleNamespace
    class LLM:
        def generate(self, requests, params, use_tqdm):
            for request in requests:
                inputs = student.processor(text=[request["prompt"]], images=[request["multi_modal_data"]["image"]], return_tensors="pt")
                with torch.inference_mode(): tokens = student.model.generate(**inputs, max_new_tokens=params.max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0)
                n = inputs["input_ids"].shape[1]
                yield SimpleNamespace(prompt_token_ids=tokens[0, :n], outputs=[SimpleNamespace(text=student.processor.decode(tokens[0, n:], skip_special_tokens=True), token_ids=tokens[0, n:])])
    module = ModuleType("vllm")
    module.SamplingParams = lambda temperature, max_tokens: SimpleNamespace(max_tokens=max_tokens)
    monkeypatch.setitem(sys.modules, "vllm", module)
    items = load(home, "rooms")[:6]
    fast, slow = (ask_benchmark(who, "rooms", items, batch_size=1) for who in (VLLMStudent(LLM(), student.processor, "base", "pixels"), student))
    assert [r["response"] for r in fast] == [r["response"] for r in slow] and [r["tokens"] for r in fast] == [r["tokens"] for r in slow]
