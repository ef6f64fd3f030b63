"""Scores with honest intervals, controls, and answer files that survive a kill."""
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world2vlm.core.actions import Ranges, plan, sample_actions
from world2vlm.evaluation.answering import answer_examples, answer_row, _batches, collect_answers, read_answers, _write_metrics
from world2vlm.core.runs import rounded
from world2vlm.evaluation.held_out import _shuffle_images, _most_frequent_answer, _answer_by_majority, _other_scene_indices
from world2vlm.evaluation.statistics import _fold_by_scene, score_runs, _design_effect, _percentile_interval, paired_difference, _bootstrap_means, score_rows, wilson_interval
from world2vlm.students.models import model_digest, generate_answers, model_picture_size
from world2vlm.scenes.room import room_scenes
from world2vlm.students.models import mini_student
from world2vlm.tasks.tasks import TASKS
from world2vlm.core.records import transitions_of
from world2vlm.teachers.base import load_teacher as load_teacher


def make_examples(n_rooms: int, seed: int) -> list:
    rng, teacher, out = np.random.default_rng(seed), load_teacher("simulator"), []
    for scene in room_scenes(n_rooms, seed=seed, size=(64, 64), fov_deg=90.0):
        ways = [plan(sample_actions(rng, preset, Ranges((0.2, 1.5, 0.1), (10, 60, 10)))) for preset in ("single", "single", "forward_turn")]
        for rollout in teacher.imagine(scene, ways, seed=seed):
            for transition in transitions_of(scene, rollout):
                for task in TASKS.values():
                    out.extend(task.derive(transition, rng))
    return out


@pytest.fixture(scope="module")
def train() -> list:
    return make_examples(6, seed=1)


@pytest.fixture(scope="module")
def held_out() -> list:
    return make_examples(4, seed=1000)


@pytest.fixture(scope="module")
def student(train):
    import torch
    torch.set_num_threads(1)  # a student this small is no faster on more
    model, processor = mini_student([text for example in train for text in (example.question, example.answer)], seed=0)
    torch.manual_seed(0)
    with torch.no_grad():  # fresh weights only repeat one token; noise makes this student talk
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model, processor


def made_up(n_scenes: int, per_scene: int, seed: int, task: str = "D2", spread: float = 0.3) -> list[dict]:
    rng, out = np.random.default_rng(seed), []
    for s in range(n_scenes):
        ease = np.clip(0.6 + spread * rng.standard_normal(), 0, 1)
        out += [dict(id=f"{task}-{s}-{q}", task=task, direction="forward", phrasing="direct", scene_id=f"s{s}", parsed=True, seconds=0.0,
                     score=dict(overall=float(rng.random() < ease))) for q in range(per_scene)]
    return out


# --- intervals

@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_inside(n, share):
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1 and low < high


def test_wilson_known_values():
    assert np.allclose(wilson_interval(0.5, 100), (0.40383, 0.59617), atol=1e-5)
    assert np.allclose(wilson_interval(0.0, 10), (0.0, 0.27753), atol=1e-5)


def test_intervals_cover_the_truth_although_questions_of_a_scene_resemble_each_other():
    truth = np.mean([row["score"]["overall"] for row in made_up(20000, 1, 99)])
    hits = Counter()
    for seed in range(150):
        rows = made_up(40, 5, seed)
        cell = score_rows(rows, samples=300)["tasks"]["D2"]  # all scores 0 or 1: Wilson on the effective n
        low, high = _percentile_interval(_bootstrap_means(_fold_by_scene(rows), 300)[:, 0], 40)
        naive = wilson_interval(cell["score"], cell["n"])
        hits.update(wilson=int(cell["low"] <= truth <= cell["high"]), bootstrap=int(low <= truth <= high), naive=int(naive[0] <= truth <= naive[1]))
    assert min(hits["wilson"], hits["bootstrap"]) >= 136 > 128 > hits["naive"], hits


def test_design_effect_limits():
    assert _design_effect(np.array([1.0, 1, 1]), np.ones(3)) == 1.0
    same = _design_effect(np.array([4.0, 0, 4, 0] * 10), np.full(40, 4.0))  # four copies of one answer
    assert 3.9 < same < 4.2


def test_score_weighs_tasks_alike_and_names_everything(held_out):
    rows = _answer_by_majority(held_out, held_out)
    found = score_rows(rows)
    assert found["n"] == len(held_out) and found["scenes"] == len({e.scene_id for e in held_out})
    assert np.isclose(found["mean"]["score"], np.mean([cell["score"] for cell in found["tasks"].values()]))
    for task, cell in found["tasks"].items():
        mine = [row["score"]["overall"] for row in rows if row["task"] == task]
        assert cell["n"] == len(mine) and np.isclose(cell["score"], np.mean(mine))
        assert cell["low"] <= cell["score"] <= cell["high"] if cell["scenes"] > 1 else np.isnan(cell["low"])
        assert set(cell["phrasings"]) <= {"direct", "choice", "sentence"} and 0 <= cell["answered"] <= 1
    assert json.dumps(found) == json.dumps(score_rows(list(rows)))
    assert sum(cell["n"] for cell in found["directions"].values()) == len(held_out)
    with pytest.raises(ValueError, match="empty"):
        score_rows([])


def test_one_scene_gives_no_interval():
    found = score_rows(made_up(1, 5, 0))
    assert np.isnan([found["mean"]["low"], found["tasks"]["D2"]["high"]]).all()


# --- paired differences

def test_paired_is_narrow_antisymmetric_and_exact():
    a = made_up(60, 4, 0)
    b = [dict(row, score=dict(overall=row["score"]["overall"] * 0.9)) for row in a]
    gain = paired_difference(a, b)
    assert np.isclose(gain["difference"], score_rows(a)["mean"]["score"] - score_rows(b)["mean"]["score"])
    assert gain["low"] > 0 and np.isclose(paired_difference(b, a)["difference"], -gain["difference"])
    assert gain["high"] - gain["low"] < 0.3 * (score_rows(a)["mean"]["high"] - score_rows(a)["mean"]["low"])
    shuffled = [b[i] for i in np.random.default_rng(0).permutation(len(b))]
    assert paired_difference(a, shuffled) == gain


@pytest.mark.parametrize("spoil", [lambda rows: rows[1:], lambda rows: rows + rows[:1], lambda rows: [dict(rows[0], id="other")] + rows[1:]])
def test_paired_refuses_other_questions(spoil):
    rows = made_up(5, 2, 0)
    with pytest.raises(ValueError, match="same questions once"):
        paired_difference(rows, spoil(rows))


def test_compare_keeps_missing_runs_empty():
    rows = made_up(10, 2, 0)
    found = score_runs(dict(base=rows, sft=rows, grpo=None))
    assert found["grpo"] is None and "over" not in found["base"]
    assert found["sft"]["over"]["difference"] == 0 and found["sft"]["over"]["reference"] == "base"
    assert "over" not in score_runs(dict(base=None, sft=rows))["sft"]


# --- controls

def test_gold_answers_score_one_and_nonsense_scores_little(held_out):
    for example in held_out:
        assert answer_row(example, example.answer)["score"]["overall"] == 1.0, (example.id, example.answer)
        assert answer_row(example, "")["score"]["overall"] <= 0.2
    json.dumps([answer_row(example, example.answer) for example in held_out])


def test_majority_sees_training_answers_only(train, held_out):
    rows = _answer_by_majority(train, held_out)
    spoiled = [replace(example, answer="turn left 10 degrees") for example in held_out]
    assert [row["response"] for row in _answer_by_majority(train, spoiled)] == [row["response"] for row in rows]
    groups = Counter((row["task"], row["phrasing"]) for row in rows)
    assert len({(row["task"], row["phrasing"], row["response"]) for row in rows}) == len(groups)  # one constant each
    assert score_rows(rows)["mean"]["score"] < 0.75
    assert all(row["response"] == "" and row["parsed"] is None for row in _answer_by_majority([], held_out))


def test_commonest_is_the_most_frequent(train):
    yes_no = [example for example in train if example.task == "D2" and example.phrasing == "direct"]
    if not yes_no:
        pytest.fail("the training examples hold no direct D2 question")
    answers = Counter(example.answer for example in yes_no)
    assert answers[_most_frequent_answer(yes_no)] == max(answers.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), st.integers(0, 5))
def test_strangers_come_from_other_scenes(scenes, seed):
    if len(set(scenes)) < 2:
        with pytest.raises(ValueError, match="at least two scenes"):
            _other_scene_indices(scenes, np.random.default_rng(seed))
        return
    drawn = _other_scene_indices(scenes, np.random.default_rng(seed))
    assert all(scenes[j] != scene for scene, j in zip(scenes, drawn))
    if 2 * max(Counter(scenes).values()) <= len(scenes):
        assert sorted(drawn) == list(range(len(scenes)))  # nobody's pictures are lost


def test_blind_changes_pictures_and_nothing_else(held_out):
    hidden = _shuffle_images(held_out, seed=3)
    owner = {id(image): example.scene_id for example in held_out for image in example.images}
    for example, other in zip(held_out, hidden):
        assert replace(other, images=example.images) == example
        assert len(other.images) == len(example.images) and all(owner[id(image)] != example.scene_id for image in other.images)
    again = _shuffle_images(held_out, seed=3)
    assert all(a.images is b.images for a, b in zip(hidden, again))
    rare = [example for example in held_out if example.task != "A2"] + [example for example in held_out if example.task == "A2"][:1]
    assert all(owner[id(other.images[0])] != example.scene_id for example, other in zip(rare, _shuffle_images(rare)))  # a task of one scene borrows
    with pytest.raises(ValueError, match="at least two scenes"):
        _shuffle_images([example for example in held_out if example.scene_id == held_out[0].scene_id])


# --- answers of a real student

def untimed(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_batches_cover_all_once_in_a_fixed_order(held_out):
    cut = _batches(held_out, 7)
    assert sorted(e.id for batch in cut for e in batch) == sorted(e.id for e in held_out)
    assert [[e.id for e in batch] for batch in _batches(held_out[::-1], 7)] == [[e.id for e in batch] for batch in cut]
    with pytest.raises(ValueError, match="more than once"):
        _batches(held_out + held_out[:1], 4)


def test_padding_does_not_change_an_answer(student, held_out):
    some = sorted(held_out, key=lambda e: len(e.question))[:: max(1, len(held_out) // 4)]
    together = generate_answers(*student, some, max_new_tokens=6)
    assert together == [generate_answers(*student, [example], max_new_tokens=6)[0] for example in some]
    assert len(set(together)) > 2


def test_answers_survive_a_torn_file(student, held_out, tmp_path):
    some, path = held_out[:12], tmp_path / "answers.jsonl"
    rows = answer_examples(*student, some, batch_size=6, max_new_tokens=4, path=path, progress=False)
    lines = path.read_text().splitlines(keepends=True)
    for kept in (3, 6, 11):  # inside a batch, between batches, in the last line
        path.write_text("".join(lines[:kept]) + lines[kept][:25])
        assert untimed(answer_examples(*student, some, batch_size=6, max_new_tokens=4, path=path, progress=False)) == untimed(rows)
        assert untimed(read_answers(path)) == untimed([json.loads(line) for line in lines])
    assert [row["id"] for row in rows] == [example.id for example in some]


def test_answers_of_another_student_or_question_are_refused(student, held_out, tmp_path):
    path = tmp_path / "answers.jsonl"
    answer_examples(*student, held_out[:4], max_new_tokens=3, path=path, progress=False)
    with pytest.raises(ValueError, match="another student or other settings"):
        answer_examples(*student, held_out[:4], max_new_tokens=4, path=path, progress=False)
    with pytest.raises(ValueError, match="not asked"):
        answer_examples(*student, held_out[1:5], max_new_tokens=3, path=path, progress=False)
    other = mini_student([example.question for example in held_out], seed=1)
    assert model_digest(other[0], {}) != model_digest(student[0], {}) == model_digest(student[0], {})
    path.write_text("broken\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1: not JSON"):
        answer_examples(*student, held_out[:4], max_new_tokens=3, path=path, progress=False)


def test_sampled_answers_repeat_with_their_seed(student, held_out):
    draw = lambda seed: [row["raw"] for row in answer_examples(*student, held_out[:4], seed=seed, temperature=1.0, max_new_tokens=6, progress=False)]
    assert draw(0) == draw(0) != draw(1)


def test_boxes_come_back_from_pixels(student, held_out, monkeypatch):
    boxed = [example for example in held_out if example.task == "D1" and example.phrasing == "direct"][:3]
    assert boxed
    in_pixels = lambda example: [round(side * 64) for side in example.target["box"]]
    monkeypatch.setattr("world2vlm.evaluation.generate", lambda model, processor, batch, box_format, **more: [str(in_pixels(example)) for example in batch])
    for row in answer_examples(*student, boxed, box_format="pixels", progress=False):
        assert row["raw"] != row["response"] and row["score"]["overall"] > 0.7
    assert model_picture_size(student[1], np.zeros((64, 64, 3), np.uint8)) == (64, 64)


def say_gold(path, pause: float = 0.0) -> None:
    def respond(batch, number):
        time.sleep(pause)
        return [dict(response=example.answer, batch=number) for example in batch]
    collect_answers(respond, make_examples(2, seed=7), path, batch_size=2, key="k", progress=False)


def test_kill_and_rerun_gives_the_same_file(tmp_path):
    path, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_evaluation import say_gold; say_gold({str(path)!r}, 0.1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (path.exists() and path.stat().st_size > 2000):
        assert child.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed = len(read_answers(path))
    say_gold(path)
    say_gold(whole)
    assert 0 < killed < len(read_answers(whole))
    assert untimed(read_answers(path)) == untimed(read_answers(whole))


# --- metrics file

def test_metrics_are_sorted_rounded_and_repeat(tmp_path, held_out):
    metrics = score_runs(dict(base=_answer_by_majority(held_out, held_out), sft=None))
    first, second = (_write_metrics(tmp_path / name, metrics).read_text() for name in ("a.json", "b.json"))
    assert first == second and "NaN" not in first
    stored = json.loads(first)
    assert list(stored) == sorted(stored) and stored["sft"] is None
    assert stored["base"]["mean"]["score"] == round(metrics["base"]["mean"]["score"], 4)
    assert rounded(float("nan")) is None and rounded(np.int64(3)) == 3 and rounded(-1e-9) == 0.0


def test_any_answerer_can_be_collected(held_out):
    rows = collect_answers(lambda batch, number: [dict(response=example.answer, model="oracle") for example in batch], held_out, progress=False)
    assert {row["score"]["overall"] for row in rows} == {1.0} and {row["model"] for row in rows} == {"oracle"}
