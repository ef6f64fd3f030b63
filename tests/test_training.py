"What both stages of training share: which rows are read, in which order."
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import PLAIN, home, picture  # noqa: F401 (home is a fixture)

from world2vlm.students import training
from world2vlm.students.training import Training, training_row, training_rows


def test_steps_keep_their_examples_when_the_short_ones_come_first():
    order, lengths = training._reading_order(50, seed=3), np.random.default_rng(0).integers(5, 90, 50)
    tidy = training._sort_within_steps(order, lengths, 8)
    for start in range(0, 50, 8):
        assert sorted(tidy[start:start + 8]) == sorted(order[start:start + 8]) and (np.diff(lengths[tidy[start:start + 8]]) >= 0).all()


def test_processes_get_equal_work():
    "Batches go to the processes in turn; what each has to do in a step is about the same."
    order, lengths = training._reading_order(64, seed=3), np.random.default_rng(0).integers(5, 90, 64)
    tidy = training._sort_within_steps(order, lengths, 4, accumulation=4, processes=4)
    assert sorted(tidy) == sorted(order)
    widest = lengths[tidy].reshape(4, 4, 4).max(-1).sum(0)  # [rounds, processes, batch] -> one sum for each process
    assert widest.max() < 1.1 * widest.min()


def test_reading_order_is_a_permutation_for_each_epoch():
    order = training._reading_order(50, epochs=2.5, seed=3)
    assert len(order) == 125 and sorted(order[:50]) == sorted(order[50:100]) == list(range(50)) and len(set(order[100:])) == 25
    assert (order == training._reading_order(50, epochs=2.5, seed=3)).all()
    assert (order != training._reading_order(50, epochs=2.5, seed=4)).any()


def test_both_directions_or_one(home, tmp_path):
    with pytest.raises(ValueError, match="inverse.*directions"):
        training_rows(home / "examples", replace(PLAIN, directions=("inverse",)), cache=str(tmp_path))
    assert len(training_rows(home / "examples", replace(PLAIN, limit=10), cache=str(tmp_path))) == 10


def test_boxes_in_pixels_are_those_of_the_resized_picture(home):
    "The student sees 16 x 16 pixels; a box is written in these, whatever the size of the picture."
    from world2vlm.students.models import load_student, model_picture_size
    processor = load_student(str(home / "start"))[1]
    size = model_picture_size(processor, (64, 64))
    row = training_row(dict(question="Where?", answer="[500, 0, 1000, 1000]", images=[picture(True)]), "pixels", size)
    assert size == (16, 16) and row["completion"][0]["content"] == "[8, 0, 16, 16]"


def test_lora_is_for_the_language_model_where_the_vision_tower_is_frozen():
    from toy_training import TINY
    from world2vlm.students.models import mini_student
    trained = lambda **settings: {name for name, p in training.prepare_model(mini_student(["a"], TINY)[0], Training(**settings)).named_parameters() if p.requires_grad}
    assert any("visual" in name for name in trained()) and not any("visual" in name for name in trained(freeze_vision=True))
    lora = trained(freeze_vision=True, lora_rank=2, lora_alpha=4)
    assert lora and all("lora" in name and "visual" not in name for name in lora)


def test_torn_checkpoints_are_removed(tmp_path):
    for step, text in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"global_st'), (20, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text: (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert training._last_checkpoint(tmp_path).endswith("checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


def qwen(home):
    from trl.trainer.utils import add_fused_lm_head
    from world2vlm.students.models import load_student
    model, processor = load_student(str(home / "start"), dtype="float32")
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model.train(), processor


def answered(processor):
    "A batch with answers of unlike lengths; two of its pictures are the same."
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    lines = [training_row(dict(question="Is it red?", answer=text, images=[picture(red)])) for text, red in (("yes", True), ("no it is blue", False), ("yes red", True))]
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(lines)


@pytest.mark.parametrize("settings", [dict(), dict(remember_pictures=True), dict(skip_prompts=True), dict(remember_pictures=True, skip_prompts=True)])
def test_memory_and_skipped_prompts_change_neither_loss_nor_gradients(home, settings):
    "Against the plain model: all tokens scored, the tower run on every picture, twice so that the second pass remembers."
    config, results = Training(freeze_vision=True, **settings), []
    for fast in (False, True):
        model, processor = qwen(home)
        model = training.prepare_model(model, config if fast else Training(freeze_vision=True))
        if fast and config.skip_prompts: training._skip_prompts(model)
        with training._answers_only() if fast else nullcontext():
            for _ in range(2):
                model.zero_grad()
                outputs = model(**answered(processor), fused_lm_head=True)
                (-outputs.log_probs.sum()).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (plain, gradients), (fast, fast_gradients) = results
    assert plain.label_mask.sum() == fast.label_mask.sum() > 0 and (plain.is_top1 == fast.is_top1).all()
    torch.testing.assert_close(plain.log_probs, fast.log_probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.entropy, fast.entropy, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == fast_gradients.keys()
    for name, gradient in gradients.items(): torch.testing.assert_close(gradient, fast_gradients[name], rtol=1e-4, atol=1e-6)


def test_each_picture_passes_the_tower_once_and_answers_stay(home):
    model, processor = qwen(home)
    batch = {name: value for name, value in answered(processor).items() if name != "labels"}
    before, calls = model.eval().generate(**batch, max_new_tokens=4, do_sample=False), []
    model = training.prepare_model(model, Training(freeze_vision=True, remember_pictures=True))
    training._skip_prompts(model)
    model.model.visual.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    for _ in range(2): assert (model.generate(**batch, max_new_tokens=4, do_sample=False) == before).all()
    assert calls == [2 * 16]  # two distinct pictures of 16 patches


def test_pictures_are_remembered_of_a_frozen_tower_only(home):
    with pytest.raises(ValueError, match="remember_pictures: .* set freeze_vision"): training.prepare_model(qwen(home)[0], Training(remember_pictures=True))
    other = qwen(home)[0]
    other.config.model_type = "idefics3"
    with pytest.raises(ValueError, match="not for idefics3"): training.prepare_model(other, Training(freeze_vision=True, remember_pictures=True))
