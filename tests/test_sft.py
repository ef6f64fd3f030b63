"Supervised fine-tuning: invariants of the loss, what is learned, what a kill leaves."
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from toy_training import PLAIN, curve, home, kill_at, logs, one_thread, picture, weights  # noqa: F401 (fixtures among them)

from world2vlm.students.launch import launch_distributed
from world2vlm.students.models import load_student
from world2vlm.students.sft import _fit_sft, _sft_arguments, train_sft
from world2vlm.students.training import training_row

LORA = dict(lora_rank=2, lora_alpha=4, freeze_vision=True)


def in_memory(rows):
    from datasets import Dataset
    numbers = Dataset.from_dict({"i": list(range(len(rows)))})
    return numbers.with_transform(lambda batch: {key: [rows[i][key] for i in batch["i"]] for key in rows[0]})


@pytest.mark.parametrize("alike", [False, True], ids=["tokens alike", "answers alike"])
def test_eight_times_one_is_one_times_eight(home, tmp_path, alike):
    "The same examples in one batch of 8, or in 8 batches of 1, give the same loss path (answers have unlike lengths)."
    answers = ["yes", "no it is blue", "yes red", "no"] * 12
    rows = [training_row(dict(question="Is it red?", answer=answer, images=[picture(i % 2 == 0)])) for i, answer in enumerate(answers)]
    paths = {}
    for batch, accumulation in ((8, 1), (1, 8)):
        model, processor = load_student(str(home / "start"))
        config = replace(PLAIN, batch_size=batch, gradient_accumulation_steps=accumulation, answers_alike=alike)
        paths[batch] = curve(_fit_sft(model, processor, in_memory(rows), config, _sft_arguments(config, tmp_path / f"invariant{batch}")))
    assert len(paths[8]) == 6
    np.testing.assert_allclose(paths[8], paths[1], rtol=2e-3)


def test_loss_of_answers_and_of_tokens(home, tmp_path):
    "At the first step the loss is the mean over tokens, or the mean over answers of the mean over their tokens."
    import torch
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    rows = [training_row(dict(question="Is it red?", answer=answer, images=[picture(True)])) for answer in ("yes", "no it is blue it is blue")]
    model, processor = load_student(str(home / "start"))
    batch = dict(DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(deepcopy(rows)))
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad(): logits = model.eval()(**batch).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    counts = (labels >= 0).sum(1)
    right = {False: losses.sum() / counts.sum(), True: (losses.sum(1) / counts).mean()}
    for alike, expected in right.items():
        model, processor = load_student(str(home / "start"))
        config = replace(PLAIN, batch_size=2, gradient_accumulation_steps=1, answers_alike=alike)
        first = curve(_fit_sft(model, processor, in_memory(rows), config, _sft_arguments(config, tmp_path / str(alike))))[0]
        np.testing.assert_allclose(first, float(expected), rtol=2e-3)
    assert abs(right[False] - right[True]) > 1e-3


@pytest.mark.proof
def test_two_processes_are_two_accumulated_batches(home):
    "Two processes share a step as two forward passes of one process do."
    paths = {}
    for n in (1, 2):
        config = replace(PLAIN, batch_size=4, gradient_accumulation_steps=2 // n, processes=n)
        launch_distributed(train_sft, config, home / "start", home / "examples", home / f"together{n}")
        paths[n] = curve(home / f"together{n}")
    assert len(paths[1]) == 8
    np.testing.assert_allclose(paths[1], paths[2], rtol=2e-3)


def test_learns_and_the_loss_falls(home):
    config = replace(PLAIN, epochs=10, learning_rate=2e-2, weight_decay=0.0)
    path = curve(train_sft(config, home / "start", home / "examples", home / "learns"))
    assert path[-1] < .2 * path[0]


def test_only_the_answer_is_learned(home):
    "The loss sees the tokens of the answer and none of the question."
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    processor = load_student(str(home / "start"))[1]
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    labels = collate([training_row(dict(question="Is it red?", answer="yes", images=[picture(True)]))])["labels"][0]
    assert processor.decode(labels[labels >= 0]).strip() == "yes<|im_end|>"


def test_frozen_vision_and_lora(home):
    config = replace(PLAIN, **LORA)
    before, after = weights(home / "start"), weights(train_sft(config, home / "start", home / "examples", home / "lora"))
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert set(before) == set(after) and changed and not any("visual" in name for name in changed)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["all weights", "lora"])
def test_to_watch_a_training_changes_nothing(home, tmp_path, lora):
    "Students of the way, curves for TensorBoard: the weights are those of a run without them, and each student opens."
    plain, watching = replace(PLAIN, validation=.25, **lora), dict(snapshot_every=2, tensorboard=True)
    quiet, watched = (train_sft(config, home / "start", home / "examples", tmp_path / name)
                      for name, config in (("quiet", plain), ("watched", replace(plain, **watching))))
    a, b = weights(quiet), weights(watched)
    assert all((a[name] == b[name]).all() for name in a) and curve(quiet) == curve(watched)
    assert curve(quiet, "eval_loss") and curve(quiet, "eval_mean_token_accuracy")
    steps = [weights(path) for path in sorted((watched / "snapshots").iterdir())]
    assert len(steps) == 3 and set(steps[0]) == set(a) and any((steps[0][name] != a[name]).any() for name in a)
    assert all((steps[-1][name] == a[name]).all() for name in a), "the last step is the result"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(watched / "tensorboard")).Reload()
    assert [round(e.value, 3) for e in events.Scalars("train/loss")] == pytest.approx([round(v, 3) for v in curve(quiet)], abs=2e-3)


def test_the_loss_of_unseen_scenes_is_that_of_answers_too(home, tmp_path):
    "`answers_alike` measures scenes that are set aside as it trains: here each answer is one token and the end."
    losses = [curve(train_sft(replace(PLAIN, validation=.25, answers_alike=alike), home / "start", home / "examples", tmp_path / str(alike)), "eval_loss")
              for alike in (False, True)]
    np.testing.assert_allclose(*losses, rtol=2e-3)


FAST = dict(freeze_vision=True, remember_pictures=True, skip_prompts=True, bf16=True)


def test_fast_training_is_the_same_training(home):
    "Memory and skipped prompts leave the loss path as it was."
    plain, fast = (curve(train_sft(replace(PLAIN, **settings, bf16=False), home / "start", home / "examples", home / name))
                   for name, settings in (("frozen", dict(freeze_vision=True)), ("fast", dict(freeze_vision=True, remember_pictures=True, skip_prompts=True))))
    np.testing.assert_allclose(plain, fast, rtol=1e-3)


@pytest.mark.parametrize("config", [PLAIN, *(pytest.param(replace(PLAIN, **other), marks=pytest.mark.proof) for other in (
    dict(batch_size=4, processes=2), dict(batch_size=4, processes=2, **FAST), LORA, LORA | dict(batch_size=4, processes=2)))],
                         ids=["one process", "two processes", "two fast processes", "lora", "lora in two processes"])
def test_killed_and_resumed_is_undisturbed(home, tmp_path, one_thread, config):
    "kill -9 in the middle, run again: the same weights, log and curves as a run that nobody disturbed."
    arguments = config, str(home / "start"), str(home / "examples")
    whole, again = tmp_path / "whole", tmp_path / "killed"
    launch_distributed(train_sft, *arguments, str(whole))
    kill_at(2, train_sft, *arguments, out=again)
    launch_distributed(train_sft, *arguments, str(again))
    a, b = weights(whole), weights(again)
    assert all((a[name] == b[name]).all() for name in a) and curve(whole) == curve(again)
    assert logs(whole) == logs(again) and len(logs(whole)) > 5
