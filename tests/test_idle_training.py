"Training that would teach nothing is refused before the first step, or told at its end."
from dataclasses import replace
from types import SimpleNamespace

import pytest
from toy_training import PLAIN, REINFORCE, home  # noqa: F401 (home is a fixture)

from world2vlm.core.config import ConfigError
from world2vlm.students import training
from world2vlm.students.grpo import train_grpo
from world2vlm.students.models import load_student
from world2vlm.students.sft import _fit_sft, _sft_arguments, train_sft
from world2vlm.students.training import Training, prepare_model, training_row


def checkpoints(out): return list(out.rglob("trainer_state.json")) + list(out.glob("model.safetensors"))


@pytest.mark.parametrize("max_length, share", [(5, "100%"), (None, r"\d+%")])
def test_answers_that_are_cut_off_idle_kind(home, tmp_path, max_length, share):
    "All of them, or the long ones; the remedy in the message works."
    import re

    from datasets import Dataset
    from toy_training import picture
    rows = [training_row(dict(question="Is it red?", answer="yes " * (1 + 9 * (i % 4 == 0)), images=[picture(True)])) for i in range(16)]
    data = Dataset.from_dict({"i": range(16)}).with_transform(lambda batch: {key: [rows[i][key] for i in batch["i"]] for key in rows[0]})
    def train(length):
        config = replace(PLAIN, max_length=length)
        return _fit_sft(*load_student(str(home / "start")), data, config, _sft_arguments(config, tmp_path / "sft"))
    if max_length is None:
        with pytest.raises(ValueError) as error: train(5)
        max_length = int(re.search(r"(\d+) to \d+ tokens", str(error.value))[1])  # the short ones fit
        share = "25%"
    with pytest.raises(ValueError, match=f"max_length: {max_length} tokens cut off the answers of {share}") as error: train(max_length)
    assert not checkpoints(tmp_path / "sft")
    assert (train(int(re.search(r"at least (\d+)", str(error.value))[1])) / "model.safetensors").exists()


def test_stage_with_cut_answers_idle_kind(home, tmp_path):
    with pytest.raises(ValueError, match="cut off the answers of 100%"):
        train_sft(replace(PLAIN, max_length=8), home / "start", home / "examples", tmp_path / "sft")


@pytest.mark.parametrize("train, config", [(train_sft, PLAIN), (train_grpo, REINFORCE)])
def test_lora_that_is_scaled_by_zero_idle_kind(home, tmp_path, train, config):
    with pytest.raises(ValueError, match="lora_alpha: 0 .*try 16"):
        train(replace(config, lora_rank=8, lora_alpha=0), home / "start", home / "examples", tmp_path / "out")
    assert not checkpoints(tmp_path / "out")


@pytest.mark.parametrize("settings", [dict(num_generations=1), dict(temperature=0.0)])
def test_groups_whose_rewards_cannot_differ_idle_kind(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))): replace(REINFORCE, **settings)


@pytest.mark.parametrize("settings", [dict(learning_rate=0.0), dict(epochs=0.0)])
def test_steps_of_length_zero_idle_kind(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))): replace(PLAIN, **settings)


def test_no_parameter_trains_idle_kind():
    import torch
    class Tower(torch.nn.Module):
        "A student that is nothing but a vision tower."
        def __init__(self):
            super().__init__()
            self.config, self.visual = SimpleNamespace(), torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="freeze_vision: no parameter"): prepare_model(Tower(), Training(freeze_vision=True))


def test_nothing_to_freeze_idle_kind():
    import torch
    class Text(torch.nn.Linear): config = SimpleNamespace()
    with pytest.raises(ValueError, match="freeze_vision: Text has no vision tower"): prepare_model(Text(2, 2), Training(freeze_vision=True))


def test_signs_at_the_end_idle_kind():
    signs = training._idle_signs
    assert signs([]) == [] and signs([dict(loss=0.0, grad_norm=0.0), dict(loss=1.0, grad_norm=2.0)]) == []
    assert signs([dict(loss=0.0, grad_norm=0.1)]) == []  # GRPO with beta 0: the gradient is what counts
    [zero] = signs([dict(loss=0.0, grad_norm=0.0), dict(loss=0.0), dict(train_loss=0.0)])
    assert "exactly 0" in zero
    assert signs([dict(loss=.1, frac_reward_zero_std=.9)]) == []
    [equal] = signs([dict(loss=.1, frac_reward_zero_std=.9), dict(loss=.1, frac_reward_zero_std=1.0)])
    assert "95% of the groups" in equal


def test_equal_rewards_are_told_idle_kind(home, tmp_path):
    "A temperature near zero gives the same answer four times."
    config = replace(REINFORCE, limit=8, temperature=1e-3)
    with pytest.warns(UserWarning, match="same reward"): train_grpo(config, home / "start", home / "examples", tmp_path / "grpo")
