"Reinforcement: what the reward is made of, that it rises, what a kill leaves."
import json
from dataclasses import replace

import numpy as np
import pytest
from toy_training import PLAIN, REINFORCE, colour_examples, curve, home, kill_at, logs, one_thread, weights  # noqa: F401 (fixtures among them)

from world2vlm.students import grpo
from world2vlm.students.grpo import GRPO, train_grpo
from world2vlm.students.sft import train_sft


def test_reward_is_the_score_of_the_task():
    question = colour_examples(1)[0]
    line = json.dumps({name: value for name, value in vars(question).items() if name != "images"})
    answers = question.answer, "yes" if question.answer == "no" else "no", "hm"
    chats = [[dict(role="assistant", content=text)] for text in answers]
    score = lambda part: grpo._reward_function(part)(chats, [line] * 3, [(16, 16)] * 3, ["norm1000"] * 3)
    assert score("overall") == [1, 0, 0] and score("format") == [1, 1, 0] and score("iou") == [None] * 3
    assert [grpo._reward_function(part).__name__ for part in grpo._REWARD_PARTS["tasks"]] == list(grpo._REWARD_PARTS["tasks"])


@pytest.mark.parametrize("phrasing, choices, texts", [
    ("direct", None, ("yes", "no", "y" * 201)), ("choice", {"A": "no", "B": "yes"}, ("B", "A", "B" * 201)),
    ("sentence", None, ("Yes, it is red.", "No, it is not.", "Yes. " * 50))])
def test_reward_of_the_paper(phrasing, choices, texts):
    "Every phrasing can earn it, which the release's own reward does not allow; long texts cost one."
    question = replace(colour_examples(1)[0], answer="yes", target={"actions": None, "box": None, "yes": True}, phrasing=phrasing, choices=choices)
    line = json.dumps({name: value for name, value in vars(question).items() if name != "images"})
    chats = [[dict(role="assistant", content=text)] for text in texts]
    score = lambda part: grpo._reward_function(part, "paper")(chats, [line] * 3, [(16, 16)] * 3, ["norm1000"] * 3)
    assert score("overall") == [pytest.approx(1), pytest.approx(.2), -1] and score("accuracy") == [1, 0, None]
    assert grpo._reward_weights(GRPO(reward="paper", format_weight=.5)) == [1] + [0] * (len(grpo._REWARD_PARTS["paper"]) - 1)


def test_weights_of_the_reward_add_up_to_one():
    weights = lambda **given: dict(zip(grpo._REWARD_PARTS["tasks"], grpo._reward_weights(GRPO(**given))))
    assert weights(exact_weight=.5)["exact"] == .5 and all(sum(weights(exact_weight=w).values()) == pytest.approx(1) for w in (0, .5, .9))
    with pytest.raises(ValueError, match="exact_weight.*lower"): weights(format_weight=.6, exact_weight=.6)


def test_boxes_in_pixels_are_rewarded_in_the_pixels_of_the_student():
    question = replace(colour_examples(1)[0], task="D1", answer="[500, 0, 1000, 500]", target={"actions": None, "box": [.5, 0., 1., .5], "yes": None})
    line = json.dumps({name: value for name, value in vars(question).items() if name != "images"})
    reward = lambda text, size: grpo._reward_function("iou")([[dict(role="assistant", content=text)]], [line], [size], ["pixels"])[0]
    assert reward("[8, 0, 16, 8]", (16, 16)) == 1 and reward("[32, 0, 64, 32]", (64, 64)) == 1 and reward("[8, 0, 16, 8]", (64, 64)) < .1


def test_reinforcement_raises_the_reward(home, tmp_path):
    first = train_sft(replace(PLAIN, epochs=3, learning_rate=2e-2), home / "start", home / "examples", tmp_path / "sft")
    path = curve(train_grpo(replace(REINFORCE, limit=64, epochs=3, beta=0.0), first, home / "examples", tmp_path / "grpo"), "reward")
    assert np.mean(path[-5:]) > np.mean(path[:5])


@pytest.mark.parametrize("config", [REINFORCE, pytest.param(replace(REINFORCE, freeze_vision=True, remember_pictures=True, skip_prompts=True), marks=pytest.mark.proof)], ids=["plain", "fast"])
def test_killed_and_resumed_is_undisturbed(home, tmp_path, one_thread, config):
    "kill -9 in the middle, run again: the same weights, rewards and curves as a run that nobody disturbed."
    arguments = config, str(home / "start"), str(home / "examples")
    whole = train_grpo(*arguments, str(tmp_path / "whole"))
    kill_at(2, train_grpo, *arguments, out=tmp_path / "killed")
    again = train_grpo(*arguments, str(tmp_path / "killed"))
    a, b = weights(whole), weights(again)
    assert all((a[name] == b[name]).all() for name in a) and curve(whole, "reward") == curve(again, "reward")
    assert logs(whole) == logs(again) and len(logs(whole)) > 5


@pytest.mark.parametrize("settings, expected", [
    (dict(), dict(use_vllm=False)),
    (dict(vllm="colocate", vllm_memory=.4), dict(use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=.4, vllm_enable_sleep_mode=True)),
    (dict(vllm="server", vllm_server="http://node7:8000"), dict(use_vllm=True, vllm_mode="server", vllm_server_base_url="http://node7:8000"))])
def test_what_samples(tmp_path, settings, expected):
    arguments = grpo._grpo_arguments(replace(REINFORCE, **settings), tmp_path)
    assert {name: getattr(arguments, name) for name in expected} == expected


def test_questions_of_grpo_are_none_of_sft(tmp_path):
    "So many of each task, the same for every seed, and no other."
    from datasets import Dataset
    from world2vlm.students.training import _selected_rows
    rows = dict(id=[f"e{i}" for i in range(60)], task=["A1", "A2", "D2"] * 20, split=["train"] * 60, question=["q"] * 60, answer=["a"] * 60,
                direction=["inverse", "inverse", "forward"] * 20)
    read = lambda for_grpo, seed=0, **settings: set(_selected_rows(Dataset.from_dict(rows), GRPO(grpo_per_task=5, seed=seed, **settings), for_grpo=for_grpo).tolist())
    own, others = read(True), read(False, limit=0)
    assert own == read(True, seed=3) and not own & others and own | others == set(range(60))
    assert [sum(i % 3 == k for i in own) for k in range(3)] == [5, 5, 5] and read(True, tasks=("A2",)) == {i for i in own if i % 3 == 1}
    with pytest.raises(ValueError, match="grpo_per_task: 20 questions of A1 .* there are 20 in all"):
        _selected_rows(Dataset.from_dict(rows), GRPO(grpo_per_task=20), for_grpo=True)
