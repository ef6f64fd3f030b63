"Each benchmark end to end on small files in its official layout, killed half-way and resumed; bad files are errors, never zeros or a smaller benchmark."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from world2vlm import students
from world2vlm.evaluation.benchmarks.vsibench import NUMERIC
from world2vlm.evaluation.benchmarks.base import BENCHMARKS, open_benchmark, ask_benchmark, control_rows, benchmark_row
from world2vlm.students.models import HFStudent, VLLMStudent, _frames_of
from world2vlm.evaluation.benchmarks.sat import _published_order, score_sat
from world2vlm.evaluation.statistics import paired_scores, score_with_interval
from world2vlm.core.config import repo_root
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark

KINDS = [*NUMERIC, "object_rel_distance", "object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard", "route_planning", "obj_appearance_order"]
OFFICIAL = {"sat": ("test", 8), "vsibench": ("test", 10), "mindcube": ("tinybench", 12)}
SPLITS = OFFICIAL | {"transitions": ("test", None)}


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


def write(home):
    "All three, a few questions each."
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
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = write(tmp_path_factory.mktemp("benchmarks"))
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=2, first=970_000, seed=3, per_shard=2), Imagine(presets={"single": 3}), Supervise(per_scene=1)), home / "transitions")
    return home


def load(home, name):
    split, n = SPLITS[name]
    return open_benchmark(name).load(str(home / "transitions" if name == "transitions" else home), split, n)


@pytest.fixture(scope="module")
def student(): return HFStudent(*students.load(str(repo_root() / "data/base")), "pixels")


SCRIPT = """
import sys
from world2vlm import students
from world2vlm.benchmarks import BENCHMARKS, open_benchmark, Local, ask
name, home, split, out, base = sys.argv[1:]
ask(Local(*students.load(base), "pixels"), name, open_benchmark(name).load(home, split, None), out, batch_size=1, frames=4, max_new_tokens=4)
"""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_end_to_end_killed_and_resumed(home, student, tmp_path, name):
    out, items, source = tmp_path / f"{name}.jsonl", load(home, name), home / "transitions" if name == "transitions" else home
    whole = ask_benchmark(student, name, items, tmp_path / "whole.jsonl", batch_size=1, frames=4, max_new_tokens=4)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, name, str(source), SPLITS[name][0], str(out), str(repo_root() / "data/base")], stderr=subprocess.PIPE, text=True)
    while not out.exists() or out.read_text().count("\n") < 2:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL), process.wait()
    half = out.read_text().count("\n")
    again = ask_benchmark(student, name, items, out, batch_size=1, frames=4, max_new_tokens=4)
    assert half < len(items) == len(again) and [r["response"] for r in again] == [r["response"] for r in whole]
    tables = open_benchmark(name).score(again)
    assert all(0 <= value <= 1 for table in tables.values() for value in table.values()) and "overall" in next(iter(tables.values()))
    told = score_with_interval(again, open_benchmark(name).score, samples=20)
    assert all(rule["low"] <= rule["overall"] <= rule["high"] for rule in told.values())


def test_the_first_choice_is_always_right_as_shipped(home):
    items = load(home, "sat")
    told = {which: score_sat(control_rows(items, which)) for which in ("first", "commonest", "random")}
    assert told["first"]["as shipped"]["overall"] == 1 and told["first"]["circular"]["overall"] == 0 and told["commonest"]["circular"]["overall"] == 1
    assert 0 < told["random"]["published order"]["overall"] <= 1 and sum(_published_order(150)) == 82


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_wrong_count_is_an_error(home, name):
    with pytest.raises(ValueError, match="are expected"): open_benchmark(name).load(str(home), SPLITS[name][0])
    assert len(open_benchmark(name).load(str(home), SPLITS[name][0], None)) >= SPLITS[name][1]


@pytest.mark.parametrize("name,lost", [("sat", "data/test/image_1_1.png"), ("vsibench", "scannet/scene1.mp4"), ("mindcube", "data/other_all_image/around/1.png")])
def test_a_missing_file_is_an_error(tmp_path, name, lost):
    home = write(tmp_path)
    (home / lost).unlink()
    with pytest.raises(ValueError, match=f"1 of .* files.*{Path(lost).name}"): load(home, name)


@pytest.mark.parametrize("name,bad", [("sat", "data/test/image_1_1.png"), ("vsibench", "scannet/scene1.mp4")])
def test_an_unreadable_file_stops_with_its_name(tmp_path, student, name, bad):
    home = write(tmp_path)
    (home / bad).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=Path(bad).name): ask_benchmark(student, name, load(home, name), batch_size=1, frames=4, max_new_tokens=2)


@pytest.mark.parametrize("name,file", [("sat", "data/test.json"), ("vsibench", "test.jsonl"), ("mindcube", "data/raw/MindCube_tinybench.jsonl")])
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
    for benchmark in BENCHMARKS.values():
        with pytest.raises(ValueError, match="no answered"): benchmark.score([])


def test_frames_are_even_and_reach_both_ends(tmp_path):
    film(tmp_path / "a.mp4", 13)
    assert len(_frames_of(tmp_path / "a.mp4")) == 12 and len(_frames_of(tmp_path / "a.mp4", 5)) == 4
    some = _frames_of(tmp_path / "a.mp4", 4)[:, 0, 0, 0].astype(int)
    assert some[0] < 8 and abs(some[-1] - 180) < 8 and (np.diff(some) > 0).all()


def test_two_students_are_compared_on_the_same_questions(home):
    items = load(home, "mindcube")
    right, wrong = [benchmark_row(i, i.gold) for i in items], [benchmark_row(i, "E") for i in items]
    told = paired_scores(right, wrong, open_benchmark("mindcube").score, 20)["official"]
    assert told["difference"] == told["low"] == told["high"] == 1 and paired_scores(right, right, open_benchmark("mindcube").score, 20)["official"]["high"] == 0
    with pytest.raises(ValueError, match="same questions once"): paired_scores(right, wrong[1:], open_benchmark("mindcube").score)


def test_boxes_are_asked_and_read_in_the_units_of_the_student(home, student):
    "What a student of pixels says comes back in thousandths."
    item = next(i for i in load(home, "transitions") if "thousandths" in i.question)
    prompt = open_benchmark("transitions").prompt(item)
    told = student([prompt], [""], 8)[0]
    assert isinstance(told.text, str) and told.tokens > 8
    assert HFStudent(student.model, student.processor).key({}) != student.key({})


def test_vllm_is_asked_what_transformers_is(home, student, monkeypatch):
    "vLLM itself needs a GPU; here its interface stands before the same weights, so that prompts, pictures and units must agree."
    import torch
    from types import ModuleType, SimpleNamespace
    class LLM:
        def generate(self, asked, params, use_tqdm):
            for one in asked:
                inputs = student.processor(text=[one["prompt"]], images=[one["multi_modal_data"]["image"]], return_tensors="pt")
                with torch.inference_mode(): tokens = student.model.generate(**inputs, max_new_tokens=params.max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0)
                n = inputs["input_ids"].shape[1]
                yield SimpleNamespace(prompt_token_ids=tokens[0, :n], outputs=[SimpleNamespace(text=student.processor.decode(tokens[0, n:], skip_special_tokens=True), token_ids=tokens[0, n:])])
    module = ModuleType("vllm")
    module.SamplingParams = lambda temperature, max_tokens: SimpleNamespace(max_tokens=max_tokens)
    monkeypatch.setitem(sys.modules, "vllm", module)
    items = load(home, "transitions")[:6]
    fast, slow = ask_benchmark(VLLMStudent(LLM(), student.processor, "base", "pixels"), "transitions", items, batch_size=1), ask_benchmark(student, "transitions", items, batch_size=1)
    assert [r["response"] for r in fast] == [r["response"] for r in slow] and [r["tokens"] for r in fast] == [r["tokens"] for r in slow]
