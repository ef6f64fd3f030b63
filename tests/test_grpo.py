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
    assert [grpo._reward_function(part).__name__ for part in grpo._REWARD_PARTS] == list(grpo._REWARD_PARTS)


def test_weights_of_the_reward_add_up_to_one():
    weights = lambda **given: dict(zip(grpo._REWARD_PARTS, grpo._reward_weights(GRPO(**given))))
    assert weights(exact_weight=.5)["exact"] == .5 and all(sum(weights(exact_weight=w).values()) == pytest.approx(1) for w in (0, .5, .9))
    with pytest.raises(ValueError, match="exact_weight.*lower"): weights(format_weight=.6, exact_weight=.6)


def test_boxes_in_pixels_are_rewarded_in_the_pixels_of_the_student():
    question = replace(colour_examples(1)[0], task="D1", answer="[500, 0, 1000, 500]", target={"actions": None, "box": [.5, 0., 1., .5], "yes": None})
    line = json.dumps({name: value for name, value in vars(question).items() if name != "images"})
    reward = lambda text, size: grpo._reward_function("iou")([[dict(role="assistant", content=text)]], [line], [size], ["pixels"])[0]
    assert reward("[8, 0, 16, 8]", (16, 16)) == 1 and reward("[32, 0, 64, 32]", (64, 64)) == 1 and reward("[8, 0, 16, 8]", (64, 64)) < .1


def test_reinforcement_raises_the_reward(home, tmp_path):
    first = train_sft(replace(PLAIN, epochs=5, learning_rate=2e-2), home / "start", home / "examples", tmp_path / "sft")
    path = curve(train_grpo(replace(REINFORCE, limit=64, epochs=3, beta=0.0), first, home / "examples", tmp_path / "grpo"), "reward")
    assert np.mean(path[-5:]) > np.mean(path[:5])


@pytest.mark.parametrize("config", [REINFORCE, replace(REINFORCE, freeze_vision=True, remember_pictures=True, skip_prompts=True)], ids=["plain", "fast"])
def test_killed_and_resumed_is_undisturbed(home, tmp_path, one_thread, config):
    "kill -9 in the middle, run again: the same weights, rewards and curves as a run that nobody disturbed."
    arguments = config, str(home / "start"), str(home / "examples")
    whole = train_grpo(*arguments, str(tmp_path / "whole"))
    kill_at(2, train_grpo, *arguments, out=tmp_path / "killed")
    again = train_grpo(*arguments, str(tmp_path / "killed"))
    a, b = weights(whole), weights(again)
    assert all((a[name] == b[name]).all() for name in a) and curve(whole, "reward") == curve(again, "reward")
    assert logs(whole) == logs(again) and len(logs(whole)) > 5
