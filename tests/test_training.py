"Training: invariants of the loss path, what a kill leaves, what the reward is made of."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from world2vlm import dataset, grpo, pretraining, sft, students
from world2vlm.students.launch import launch_distributed
from world2vlm.core.records import Example

TINY = students.MiniConfig(image_size=16, patch_size=4, hidden_size=32, head_size=16, vision_layers=1, text_layers=1, vocabulary=320)
PLAIN = sft.SFT(lora_rank=0, freeze_vision=False, batch_size=8, accumulation=1, learning_rate=1e-2, bf16=False, checkpointing=False,
                attention="eager", log_every=1, save_every=2)


def colour_examples(n, seed=0):
    "Pictures of one colour and questions about it: real examples that a tiny student can learn."
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        yes = bool(rng.random() < .5)
        image = np.full((16, 16, 3), (220, 30, 30) if yes else (30, 30, 220), np.uint8)
        out.append(Example(f"e{i}", "D2", "forward", [image], "Is it red?", "yes" if yes else "no", {"actions": None, "box": None, "yes": yes},
                           f"s{i}", "simulator", "train", "exact", "direct", None))
    return out


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    model, processor = students.mini(["Is it red?", "yes", "no"], TINY)
    model.save_pretrained(folder / "start"), processor.save_pretrained(folder / "start")
    dataset.write_shards("examples", folder / "examples", lambda shard, reject: colour_examples(64))
    return folder


def losses(checkpoint):
    return [line["loss"] for line in sft.read_log(checkpoint) if "loss" in line]


def test_eight_times_one_is_one_times_eight(home):
    "The same examples in one batch of 8, or in 8 batches of 1, give the same loss path (answers have unlike lengths)."
    data = [sft.row(dict(question="Is it red?", answer=a, images=[_picture(i)])) for i, a in enumerate(["yes", "no it is blue", "yes red", "no"] * 4)]
    paths = {}
    for batch, accumulation in ((8, 1), (1, 8)):
        model, processor = students.load(str(home / "start"))
        config = replace(PLAIN, batch_size=batch, accumulation=accumulation)
        paths[batch] = losses(sft.fit(model, processor, _dataset(data * 3), config, str(home / f"invariant{batch}")))
    assert len(paths[8]) == 6
    np.testing.assert_allclose(paths[8], paths[1], rtol=2e-3)


def test_two_processes_are_two_accumulated_batches(home):
    "Two processes share a step as two forward passes of one process do."
    paths = {}
    for processes in (1, 2):
        config = replace(PLAIN, batch_size=4, accumulation=2 // processes, processes=processes)
        paths[processes] = losses(launch_distributed(sft.train, config, str(home / "start"), str(home / "examples"), str(home / f"together{processes}"), processes=processes))
    assert len(paths[1]) == 8
    np.testing.assert_allclose(paths[1], paths[2], rtol=2e-3)


def test_steps_keep_their_examples_when_the_short_ones_come_first():
    order, lengths = sft.reading_order(50, seed=3), np.random.default_rng(0).integers(5, 90, 50)
    tidy = sft.short_first(order, lengths, 8)
    for start in range(0, 50, 8):
        assert sorted(tidy[start:start + 8]) == sorted(order[start:start + 8]) and (np.diff(lengths[tidy[start:start + 8]]) >= 0).all()


def test_processes_get_like_work():
    "Batches go to the processes in turn; what each has to do in a step is about the same."
    order, lengths = sft.reading_order(64, seed=3), np.random.default_rng(0).integers(5, 90, 64)
    tidy = sft.short_first(order, lengths, 4, accumulation=4, processes=4)
    assert sorted(tidy) == sorted(order)
    widest = lengths[tidy].reshape(4, 4, 4).max(-1).sum(0)  # [rounds, processes, batch] -> one sum for each process
    assert widest.max() < 1.1 * widest.min()


def _picture(i):
    from PIL import Image
    return Image.new("RGB", (16, 16), (220, 30, 30) if i % 2 == 0 else (30, 30, 220))


def _dataset(lines):
    from datasets import Dataset
    numbers = Dataset.from_dict({"i": list(range(len(lines)))})
    return numbers.with_transform(lambda batch: {key: [lines[i][key] for i in batch["i"]] for key in lines[0]})


def test_learns_and_the_loss_falls(home):
    out = sft.train(replace(PLAIN, epochs=10, learning_rate=2e-2, weight_decay=0.0), str(home / "start"), str(home / "examples"), str(home / "learns"))
    path = losses(out)
    assert path[-1] < .2 * path[0]


def test_only_the_answer_is_learned(home):
    "The loss sees the tokens of the answer and none of the question."
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    processor = students.load(str(home / "start"))[1]
    batch = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)([sft.row(dict(question="Is it red?", answer="yes", images=[_picture(0)]))])
    assert processor.decode(batch["labels"][0][batch["labels"][0] >= 0]).strip() == "yes<|im_end|>"


def test_frozen_vision_and_lora(home):
    config = replace(PLAIN, lora_rank=2, lora_alpha=4, freeze_vision=True)
    out = sft.train(config, str(home / "start"), str(home / "examples"), str(home / "lora"))
    before, after = students.load(str(home / "start"))[0].state_dict(), students.load(str(out))[0].state_dict()
    moved = {name for name in before if not (before[name] == after[name]).all()}
    assert set(before) == set(after) and moved and not any("visual" in name for name in moved)


def test_both_directions_or_one(home):
    with pytest.raises(ValueError, match="inverse.*directions"):
        sft.rows(str(home / "examples"), replace(PLAIN, directions=("inverse",)), cache=str(home / "none"))
    assert len(sft.rows(str(home / "examples"), replace(PLAIN, limit=10), cache=str(home / "some"))) == 10


def test_reading_order_is_a_permutation_for_each_epoch():
    order = sft.reading_order(50, epochs=2.5, seed=3)
    assert len(order) == 125 and sorted(order[:50]) == sorted(order[50:100]) == list(range(50)) and len(set(order[100:])) == 25
    assert (order == sft.reading_order(50, epochs=2.5, seed=3)).all() and (order != sft.reading_order(50, epochs=2.5, seed=4)).any()


SCRIPT = """
import json, sys
from world2vlm import grpo, sft
from world2vlm.stages import together
stage, student, examples, out, settings = sys.argv[1:]
module, kind = {"sft": (sft, sft.SFT), "grpo": (grpo, grpo.GRPO)}[stage]
settings = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(settings).items()}
together(module.train, kind(**settings), student, examples, out, processes=settings["processes"])
"""


def killed(stage, home, out, config, at):
    "Train in a process of its own and kill -9 it as soon as checkpoint `at` is there."
    command = [sys.executable, "-c", SCRIPT, stage, str(home / "start"), str(home / "examples"), str(out), json.dumps(vars(config))]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    state = Path(out) / "checkpoints" / f"checkpoint-{at}" / "trainer_state.json"
    while not state.exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def one_thread():
    "The number of threads decides the order of sums, and so the last bits of the weights."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


REINFORCE = grpo.GRPO(group=4, batch_size=16, accumulation=1, learning_rate=1e-3, max_answer=4, limit=24, bf16=False, checkpointing=False,
                      attention="eager", save_every=2, kl=.01)


@pytest.mark.parametrize("stage,config", [("sft", PLAIN), ("sft", replace(PLAIN, batch_size=4, processes=2)), ("grpo", REINFORCE)])
def test_killed_and_resumed_is_undisturbed(home, tmp_path, one_thread, stage, config):
    "kill -9 in the middle, run again: the same weights and the same log as a run that nobody disturbed."
    train = partial(launch_distributed, {"sft": sft.train, "grpo": grpo.train}[stage], processes=config.processes)
    whole = train(config, str(home / "start"), str(home / "examples"), str(tmp_path / "whole"))
    killed(stage, home, tmp_path / "killed", config, at=2)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = train(config, str(home / "start"), str(home / "examples"), str(tmp_path / "killed"))
    a, b = (students.load(str(path))[0].state_dict() for path in (whole, again))
    assert all((a[name] == b[name]).all() for name in a)
    key = "loss" if stage == "sft" else "reward"
    path = lambda name: [line[key] for line in sft.read_log(name) if key in line]
    assert path(whole) == path(again)


def test_reward_is_the_score_of_the_task():
    asked = colour_examples(1)[0]
    line = json.dumps({k: v for k, v in vars(asked).items() if k != "images"})
    say = [[dict(role="assistant", content=text)] for text in (asked.answer, "yes" if asked.answer == "no" else "no", "hm")]
    score = lambda part: grpo.reward(part)(say, [line] * 3, [(16, 16)] * 3, ["norm1000"] * 3)
    assert score("overall") == [1, 0, 0] and score("format") == [1, 1, 0] and score("iou") == [None] * 3
    assert [grpo.reward(part).__name__ for part in grpo.PARTS] == list(grpo.PARTS)


def test_reinforcement_raises_the_reward(home, tmp_path):
    taught = sft.train(replace(PLAIN, epochs=5, learning_rate=2e-2), str(home / "start"), str(home / "examples"), str(tmp_path / "taught"))
    out = grpo.train(replace(REINFORCE, limit=64, epochs=3, kl=0.0), str(taught), str(home / "examples"), str(tmp_path / "better"))
    path = [line["reward"] for line in sft.read_log(out) if "reward" in line]
    assert np.mean(path[-5:]) > np.mean(path[:5])


@pytest.mark.parametrize("course", pretraining.Base().courses)
def test_pretraining_teaches_no_motion(course):
    "No question of the base says how the camera moved: motion words occur in echoes alone, which carry no information."
    from itertools import islice
    for line in islice(pretraining.stream(3, near=course.near, two_views=course.two_views, shifts=course.shifts, drills=course.drills), 300):
        if not line["question"].startswith("Repeat: "):
            assert not any(word in line["question"] + line["answer"] for word in ("turn", "forward", "backward", "degrees"))


def test_pretraining_stream_is_reproducible():
    from itertools import islice
    a, b = (list(islice(pretraining.stream(5, near=.5, drills=.5), 60)) for _ in range(2))
    assert all(x["question"] == y["question"] and x["answer"] == y["answer"] for x, y in zip(a, b))
    assert all((np.array(p) == np.array(q)).all() for x, y in zip(a, b) for p, q in zip(x["images"], y["images"]))


def test_drills_are_true():
    "What a drill says of two boxes is what the boxes say; the letter of a choice is that of the true option."
    Thing, rng = pretraining.Thing, np.random.default_rng(0)
    first = [Thing(1, "red box", (.1, .5, .3, .7), 2), Thing(2, "blue ball", (.3, .5, .4, .6), 3)]
    second = [Thing(1, "red box", (.4, .5, .6, .7), 2), Thing(2, "blue ball", (.6, .5, .7, .6), 3)]  # all shift right by .3, that is 5 of 16 columns
    seen = set()
    for question, answer in filter(None, (pretraining.slide(first, second, rng) for _ in range(200))):
        options = dict(line.split(". ", 1) for line in question.splitlines()[1:-1])
        if question.startswith("Claim"): assert answer == ("true" if "right 5" in question else "false"); seen.add("claim")
        elif options: assert options[answer] == "right 5"; seen.add("choice")
        else: assert "right 5" in answer; seen.add("said")
    assert seen == {"claim", "choice", "said"}
    for question, answer in filter(None, (pretraining.same(first, second, rng) for _ in range(50))):
        if question.endswith("Answer yes or no."): assert answer == ("yes" if ("[100, 500, 300, 700]" in question) == ("[400, 500, 600, 700]" in question) else "no")
    for question, answer in (pretraining.suppose(first, rng) for _ in range(100)):
        if "box [x1" in question and "left" in question and "red box" in question: assert answer.startswith("[0, ") or int(answer[1:].split(",")[0]) < 100


def test_probe_sees_the_difference():
    "A student that copies the right answer of the quiz scores one, and every kind is asked."
    asked = pretraining.quiz(8)
    assert {e.task for e in asked} == {kind.__name__ for kind in pretraining.KINDS} and all(pretraining.mark(e.answer, e.answer) == 1 for e in asked)
    assert all(len(e.images) == pretraining.KINDS[getattr(pretraining, e.task)] for e in asked)
