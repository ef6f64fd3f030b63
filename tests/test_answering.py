"Answers of a student: scored row by row, in fixed batches, in files that survive a kill."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from world2vlm.core.actions import Ranges, plan, sample_actions
from world2vlm.core.records import transitions_of
from world2vlm.core.runs import read_jsonl
from world2vlm.evaluation.held_out import read_runs
from world2vlm.evaluation.answering import _batches, answer_examples, answer_row, collect_answers
from world2vlm.scenes.room import room_scenes
from world2vlm.students.models import example_prompt, HFStudent, mini_student, Reply
from world2vlm.tasks.tasks import TASKS, open_task
from world2vlm.teachers.base import load_teacher


def make_examples(n_rooms: int, seed: int) -> list:
    "Exact examples of all tasks."
    rng, teacher, out = np.random.default_rng(seed), load_teacher("simulator"), []
    ranges = Ranges((0.2, 1.5, 0.1), (10, 60, 10))
    for scene in room_scenes(n_rooms, seed=seed, size=(64, 64), fov_deg=90.0):
        paths = [plan(sample_actions(rng, preset, ranges)) for preset in ("single", "single", "forward_turn")]
        for rollout in teacher.imagine(scene, paths, seed=seed):
            for transition in transitions_of(scene, rollout):
                for task in TASKS.values():
                    out.extend(task.derive(transition, rng))
    return out


@pytest.fixture(scope="module")
def held_out() -> list:
    return make_examples(4, seed=1000)


@pytest.fixture(scope="module")
def student(held_out):
    import torch
    torch.set_num_threads(1)  # a student this small is no faster on more
    model, processor = mini_student([text for example in held_out for text in (example.question, example.answer)], seed=0)
    torch.manual_seed(0)
    with torch.no_grad():  # fresh weights only repeat one token; noise gives different answers
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return HFStudent(model, processor)


def without_time(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_gold_answers_score_one_and_nonsense_scores_little(held_out):
    for example in held_out:
        assert answer_row(example, example.answer)["score"]["overall"] == 1.0, (example.id, example.answer)
        assert answer_row(example, "")["score"]["overall"] <= 0.2
        assert answer_row(example, example.answer)["score"]["exact"] == 1.0 and answer_row(example, "")["score"]["exact"] == 0.0


def test_a_wrong_letter_earns_nothing_in_evaluation_and_a_part_in_rewards(held_out):
    letters = [(example, letter) for example in held_out for letter in set(example.choices or ()) - {example.answer}]
    assert letters
    for example, letter in letters:
        score = answer_row(example, letter)["score"]
        assert score == dict.fromkeys(score, 0.0) | dict(format=1.0)
    assert any(open_task(example.task).score(letter, example)["overall"] > 0 for example, letter in letters)
    rows = [answer_row(example, example.answer) for example in held_out]
    assert json.loads(json.dumps(rows)) == rows  # plain types only


def test_batches_cover_all_once_in_a_fixed_order(held_out):
    cut = _batches(held_out, 7)
    assert sorted(e.id for batch in cut for e in batch) == sorted(e.id for e in held_out)
    assert [[e.id for e in batch] for batch in _batches(held_out[::-1], 7)] == [[e.id for e in batch] for batch in cut]
    with pytest.raises(ValueError, match="more than once"):
        _batches(held_out + held_out[:1], 4)


def test_padding_does_not_change_an_answer(student, held_out):
    sample = sorted(held_out, key=lambda e: len(e.question))[:: max(1, len(held_out) // 4)]
    prompts = [example_prompt(example) for example in sample]
    texts = [reply.text for reply in student.reply(prompts, 6)]
    assert texts == [student.reply([prompt], 6)[0].text for prompt in prompts]
    assert len(set(texts)) > 2


def test_answers_survive_a_torn_file(student, held_out, tmp_path):
    sample, path = held_out[:12], tmp_path / "answers.jsonl"
    rows = answer_examples(student, sample, path, batch_size=6, max_new_tokens=4)
    lines = path.read_text().splitlines(keepends=True)
    for whole in (3, 6, 11):  # inside a batch, between batches, in the last line
        path.write_text("".join(lines[:whole]) + lines[whole][:25])
        assert without_time(answer_examples(student, sample, path, batch_size=6, max_new_tokens=4)) == without_time(rows)
        assert path.read_text() == "".join(lines)
    assert [row["id"] for row in rows] == [example.id for example in sample]


def test_times_are_returned_and_not_written(student, held_out, tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = answer_examples(student, held_out[:4], path, max_new_tokens=2)
    assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in rows)
    assert sorted(read_jsonl(path), key=lambda row: row["id"]) == sorted(without_time(rows), key=lambda row: row["id"])


def test_answers_of_another_student_or_question_are_refused(student, held_out, tmp_path):
    path = tmp_path / "answers.jsonl"
    answer_examples(student, held_out[:4], path, max_new_tokens=3)
    with pytest.raises(ValueError, match="another student or other settings"):
        answer_examples(student, held_out[:4], path, max_new_tokens=4)
    with pytest.raises(ValueError, match="does not ask"):
        answer_examples(student, held_out[1:5], path, max_new_tokens=3)
    other = HFStudent(*mini_student([example.question for example in held_out], seed=1))
    assert other.key({}) != student.key({}) == HFStudent(student.model, student.processor).key({})
    assert HFStudent(student.model, student.processor, "pixels").key({}) != student.key({})
    path.write_text("broken\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1: not JSON"):
        answer_examples(student, held_out[:4], path, max_new_tokens=3)


class Oracle:
    "A student of a user: anything that replies to prompts and has a key."
    def __init__(self, examples): self.answers, self.prompts = {e.question: e.answer for e in examples}, []
    def key(self, settings): return "oracle" + json.dumps(settings)

    def reply(self, prompts, max_new_tokens):
        self.prompts += prompts
        return [Reply(self.answers[prompt.pieces[-1]], max_new_tokens) for prompt in prompts]


def test_any_student_can_be_asked(held_out):
    examples = list({example.question: example for example in held_out}.values())  # a question may repeat in another room
    oracle = Oracle(examples)
    rows = answer_examples(oracle, examples, batch_size=5, max_new_tokens=9)
    assert {row["score"]["overall"] for row in rows} == {1.0} and {row["tokens"] for row in rows} == {9}
    images = {example.question: example.images for example in examples}
    for prompt in oracle.prompts:  # the pictures, then the question
        assert all(a is b for a, b in zip(prompt.pieces, images[prompt.pieces[-1]], strict=False)) and prompt.system == ""
        assert len(prompt.pieces) == len(images[prompt.pieces[-1]]) + 1


def test_any_function_can_be_collected(held_out):
    rows = collect_answers(lambda batch: [dict(response=example.answer, model="gold") for example in batch], held_out)
    assert {row["score"]["overall"] for row in rows} == {1.0} and {row["model"] for row in rows} == {"gold"}
    with pytest.raises(ValueError):  # an answer is missing
        collect_answers(lambda batch: [dict(response="")] * (len(batch) - 1), held_out)


def write_gold(path, pause: float = 0.0) -> None:
    def respond(batch):
        time.sleep(pause)
        return [dict(response=example.answer) for example in batch]
    collect_answers(respond, make_examples(2, seed=7), path, batch_size=2, key="k")


def test_kill_and_rerun_gives_the_same_file(tmp_path):
    path, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    tests = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {tests!r}); from test_answering import write_gold; write_gold({str(path)!r}, 0.1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (path.exists() and path.stat().st_size > 2000):
        assert child.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed = len(read_jsonl(path))
    write_gold(path)
    write_gold(whole)
    assert 0 < killed < len(read_jsonl(whole))
    assert path.read_bytes() == whole.read_bytes()


def test_an_answer_file_counts_each_id_once(held_out, tmp_path):
    path, answers = tmp_path / "gold.jsonl", lambda batch: [dict(response=example.answer) for example in batch]
    rows = collect_answers(answers, held_out[:6], path, key="k")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    path.write_text(text + lines[2] + lines[0], encoding="utf-8")
    assert read_runs(tmp_path) == {"gold": [json.loads(line) for line in lines]}
    assert len(collect_answers(lambda batch: 1 / 0, held_out[:6], path, key="k")) == len(rows) == 6
    path.write_text(text + lines[2].replace('"response": "', '"response": "not '), encoding="utf-8")
    with pytest.raises(ValueError, match="gold.jsonl, line 7: .* also in line 3, with another content"): read_runs(tmp_path)


@pytest.mark.parametrize("line", [b"3", b"null", b"[]", b'"text"', b"{}", b'{"id": 7, "key": "k", "question": "?"}', b'{"id": ["a"], "key": "k", "question": "?"}', b'{"id": "\xff"}', b"\xff\xfe{\x00}\x00", b"{", b"[" * 100_000, b'{"id": "a"}'])
def test_a_line_that_is_no_row_is_an_error_with_file_and_line(held_out, tmp_path, line):
    path, answers = tmp_path / "gold.jsonl", lambda batch: [dict(response=example.answer) for example in batch]
    collect_answers(answers, held_out[:2], path, key="k")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match="gold.jsonl, line 3: .*delete the file and run again"): collect_answers(answers, held_out[:2], path, key="k")
    with pytest.raises(ValueError, match="gold.jsonl, line 3: "): read_runs(tmp_path)


@pytest.mark.parametrize("response", ["a\u2028b", "a\u0085b", "a\rb\x0bc\x1cd", "桌子", "half \ud83d", "\ufeff"])
def test_any_text_survives_an_answer_file(held_out, tmp_path, response):
    path = tmp_path / "gold.jsonl"
    rows = collect_answers(lambda batch: [dict(response=response) for _ in batch], held_out[:3], path, key="k")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    assert collect_answers(lambda batch: 1 / 0, held_out[:3], path, key="k") == without_time(rows) and {row["response"] for row in rows} == {response}
    assert sorted(row["id"] for row in read_runs(tmp_path)["gold"]) == sorted(row["id"] for row in rows)
