"Questions unlike those of the training: asked once, read back as tasks, the same bytes after a kill or from two processes; arms compared on the same questions."
import json
from dataclasses import replace

import numpy as np
import pytest

from world2vlm.core.runs import write_text
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import HeldOut, Imagine, make_held_out, Scenes, Supervise
from world2vlm.evaluation import transfer
from world2vlm.evaluation.answering import answer_row
from world2vlm.evaluation.benchmarks.base import open_benchmark
from world2vlm.evaluation.benchmarks.rooms import load_rooms, make_rooms_benchmark, RoomsBenchmark
from world2vlm.evaluation.held_out import Evaluate, motion_errors
from world2vlm.evaluation.statistics import score_runs
from world2vlm.evaluation.transfer import ask_transfer, read_transfer, turns_by_place
from world2vlm.report.ablation import _mean_run, _share_of_gain, ablation_page, ablation_results, contrast_table
from world2vlm.students.models import mini_student


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Few questions of both examinations, and a student that was trained on nothing."
    home = tmp_path_factory.mktemp("transfer")
    make_held_out(HeldOut(Scenes(n=4, first=970_000), Imagine(presets={"single": 3}), Supervise(per_scene=1)), home / "held_out")
    make_held_out(HeldOut(Scenes(n=4, first=970_000), Imagine(presets={"single": 3}), Supervise(tasks=("A2",), per_scene=1)), home / "turns")
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=4, first=970_000), Imagine(presets={"single": 4}), Supervise(tasks=())), home / "rooms")
    for part in mini_student([item.question for item in load_rooms(home / "rooms")]): part.save_pretrained(home / "student")
    return home


def test_the_benchmark_can_leave_the_eight_tasks_out(home):
    assert {item.kind for item in load_rooms(home / "rooms")} == {"camera", "consequence", "aim", "perspective"}


@pytest.mark.proof
def test_goes_on_after_a_kill_with_the_same_bytes(home, tmp_path, monkeypatch):
    def dies(*_, **__): raise KeyboardInterrupt
    students, config = dict.fromkeys(("base", "grpo"), home / "student"), Evaluate(batch_size=4, max_new_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "answer_examples", dies)
        with pytest.raises(KeyboardInterrupt): ask_transfer(config, students, home / "rooms", home / "turns", tmp_path / "killed")
    kept = tmp_path / "killed.partial/as_sat/base.jsonl"
    answered = kept.read_bytes()
    for out, workers in (("killed", 1), ("whole", 2)):
        ask_transfer(replace(config, workers=workers), students, home / "rooms", home / "turns", tmp_path / out)
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.jsonl")}
    assert files == {path.relative_to(tmp_path / "killed"): path.read_bytes() for path in (tmp_path / "killed").rglob("*.jsonl")}
    assert len(files) == 13 and (tmp_path / "killed/as_sat/base.jsonl").read_bytes() == answered
    runs = read_transfer(tmp_path / "whole")
    assert {exam: {*by_run} - {"base", "grpo", "blind", "random"} for exam, by_run in runs.items()} == \
        {"as SAT": set(), "as SAT, likelier choice": set(), "real turns": {"majority"}}
    assert all(row["response"] in row["choices"] for row in runs["as SAT, likelier choice"]["grpo"]), "a choice is never a text of one's own"
    assert set(score_runs(runs["as SAT"])["grpo"]["exactly right"]["tasks"]) == {"camera", "consequence", "aim", "perspective"}


def test_the_base_student_is_asked_once_for_all_arms(home, tmp_path):
    config = Evaluate(batch_size=4, max_new_tokens=2)
    ask_transfer(config, {"base": home / "student"}, home / "rooms", home / "turns", tmp_path / "base", controls=False)
    ask_transfer(config, {"grpo": home / "student"}, home / "rooms", home / "turns", tmp_path / "arm")
    assert {*read_transfer(tmp_path / "base", tmp_path / "arm")["as SAT"]} == {"base", "grpo", "blind", "random"}
    assert {path.stem for path in (tmp_path / "base").rglob("*.jsonl")} == {"base"}


@pytest.mark.parametrize("said,direction,metres", [("move left 0.4 meters", 1, 0.2), ("The camera moved left 0.5 meters.", 1, 0.3),
                                                   ("move right 0.2 meters", 0, None), ("move left 0.2 meters; turn left 10 degrees", 0, None), ("left", 0, None)])
def test_direction_and_amount(said, direction, metres):
    row = dict(task="A1", phrasing="direct", response=said, gold="move left 0.2 meters")
    found = motion_errors([row, row | dict(task="D1"), row | dict(phrasing="choice")])
    assert (found["n"], found["direction"], found["degrees"]) == (1, direction, None) and found["metres"] == (metres and pytest.approx(metres))
    assert motion_errors([])["direction"] is None


def test_places_are_told_apart():
    row = dict(task="A2", direction="inverse", phrasing="direct", gold="turn left 20 degrees", parsed="", score=dict(exact=0.0, overall=0.5))
    rows = [row | dict(scene_id=f"forest_2-{k}", response="turn left 30 degrees") for k in range(3)] + [row | dict(scene_id="hall-1", response="turn right 20 degrees")]
    found = turns_by_place(rows)
    assert {place: (r["n"], r["direction"]) for place, r in found.items()} == {"all places": (4, .75), "forest_2": (3, 1), "hall": (1, 0)}
    assert found["forest_2"]["degrees"] == 10 and turns_by_place([])["all places"] == motion_errors([]) | {"exactly right": {}}


def test_intervals_are_clustered_by_place():
    "Sixty claims at each place, all right at two and all wrong at the third: hardly anything is known of a fourth."
    row = dict(task="A4", direction="forward", phrasing="direct", gold="true", response="true", parsed=True)
    rows = [row | dict(scene_id=f"{place}-{k}", score=dict(exact=float(place != "city_2"), overall=1.0)) for place in ("forest", "interior", "city_2") for k in range(60)]
    found = {place: result["exactly right"]["A4"] for place, result in turns_by_place(rows).items()}
    assert (found["all places"]["scenes"], found["all places"]["n"], found["forest"]["scenes"]) == (3, 180, 60)
    assert found["all places"]["low"] < .2 and found["all places"]["high"] > .9 and found["forest"]["low"] > .9 and found["city_2"]["high"] < .1


@pytest.fixture(scope="module")
def answers(home):
    "Students that are right with known probabilities."
    questions, items, rooms = list(read_dataset("examples", home / "held_out")), load_rooms(home / "rooms"), open_benchmark("rooms")
    skills = {"bidirectional": .6, "bidirectional_1": .6, "oracle_teacher": .9, "forward_only": .1}
    for seed, (arm, skill) in enumerate(skills.items()):
        rng = np.random.default_rng(seed)
        for run, share in (("base", .1), ("sft", skill), ("grpo", skill)):
            pick = lambda examples: [answer_row(e, e.answer if rng.random() < share else "") for e in examples]
            as_sat = [rooms.row(item, item.gold if rng.random() < share else "") for item in items]
            parts = {f"answers/{'base' if run == 'base' else arm}": questions, f"transfer/{arm}/real_turns": [e for e in questions if e.task == "A2"]}
            for folder, rows in ({name: pick(examples) for name, examples in parts.items()} | dict.fromkeys((f"transfer/{arm}/{exam}" for exam in ("as_sat", "as_sat_chosen")), as_sat)).items():
                write_text(home / f"run/{folder}/{run}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return home / "run", list(skills)


def test_arms_are_compared_on_the_same_questions(answers):
    results = ablation_results(*answers)
    rows = {row[0]: row for row in contrast_table(results["comparisons"]).rows}
    assert "yes: eight tasks" in rows["Do questions in both directions help more than forward ones alone?"][-1]
    assert not any("quarter" in question for question in rows), "what was not trained is not compared"
    assert set(results["eight tasks"]) == {"base", *(f"{arm}/{run}" for arm in answers[1] for run in ("sft", "grpo"))}
    page = ablation_page(results, answers[1])
    assert "Share of the oracle" in page and "oracle teacher" in page and page == ablation_page(json.loads(json.dumps(results)), answers[1])


def test_several_seeds_are_one_run():
    row = lambda name, exact: dict(id=name, score=dict(exact=exact, overall=0.0))
    assert [r["score"]["exact"] for r in _mean_run([[row("a", 1.0), row("b", 0.0)], [row("b", 1.0), row("a", 1.0)]])] == [1, .5]


def test_the_share_of_a_gain_is_paired():
    rng = np.random.default_rng(0)
    rows = lambda share: [dict(id=str(i), task="A1", scene_id=str(i // 4), score=dict(exact=float(rng.random() < share))) for i in range(400)]
    base, ours, oracle = rows(.1), rows(.5), rows(.9)
    found = _share_of_gain(base, ours, oracle)
    assert .4 < found["low"] < .5 < found["high"] < .6 and _share_of_gain(base, oracle, oracle) == dict(share=1, low=1, high=1)
