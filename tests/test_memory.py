"What a plan says of the memory, held against torch's own account of a real step."
import numpy as np
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from world2vlm.core.config import load_settings
from world2vlm.dataset.synthesis import Scenes
from world2vlm.report import plan
from world2vlm.report.plan import _training_flops, _verdict, _Machine, _plan_run, _plan_table
from world2vlm.students.grpo import GRPO
from world2vlm.students.memory import _Batch, _count_parameters, _empty_student, _PAPER_STUDENT, _step_memory, _student_settings
from world2vlm.students.models import _batch_inputs, MiniConfig, mini_student, Prompt
from world2vlm.students.sft import SFT

ANSWER = 24


@pytest.fixture(scope="module")
def toy():
    config = MiniConfig(hidden_size=64, head_size=16, text_layers=4, vision_layers=1, vocabulary=320)
    model, processor = mini_student(["Which single turn leads from the first view to the second?"], config)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return model, _batch_inputs(processor, [Prompt([picture, "Which single turn leads from the first view to the second? " * 12])] * 8)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_plan_is_within_a_tenth_of_a_real_step(toy, recompute):
    model, inputs = toy
    model.train().set_attn_implementation("sdpa")
    getattr(model, f"gradient_checkpointing_{'enable' if recompute else 'disable'}")(*[dict(use_reentrant=False)] * recompute)
    optimizer, tracker = torch.optim.AdamW(model.parameters()), MemTracker()
    def step():
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, -ANSWER:]).float().flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
    with torch.autocast("cpu", torch.bfloat16): step()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # as after the first of several forward passes
    tracker.track_external(model, optimizer)
    with tracker, torch.autocast("cpu", torch.bfloat16): step()
    measured = sum(peak["Total"] for peak in tracker.get_tracker_snapshot("peak").values())
    sequences, tokens = inputs["input_ids"].shape
    training = GRPO(freeze_vision=False, gradient_checkpointing=recompute)
    planned = _step_memory(model.config, training, _Batch(sequences, tokens - ANSWER, ANSWER, len(inputs["pixel_values"])))
    assert abs(sum(planned.values()) / measured - 1) < .1, (planned, measured)


def test_only_adapters_have_gradients_and_moments(toy):
    model, _ = toy
    lora = SFT(lora_rank=4, lora_alpha=8, freeze_vision=True)
    counts, whole = _count_parameters(_empty_student(model.config, lora)), model.num_parameters()
    assert counts["frozen"] == whole and 0 < counts["trained"] < whole
    parts = _step_memory(model.config, lora, _Batch(1, 32, 8))
    assert parts["gradients"] == 4 * counts["trained"] == parts["moments"] / 2


def test_paper_is_planned_and_too_small_gpus_are_named():
    stages = {stage.name: stage for stage in _plan_run("paper")}
    assert list(stages) == ["imagine", "sft", "grpo", "evaluate"]
    assert {name: _verdict(stages[name], _Machine()) for name in stages} == dict.fromkeys(stages, "fits")
    assert abs(stages["sft"].parts["moments"] / 8 - 646e6) < 1e6  # parameters of LoRA with rank 256
    small = _Machine(memory_gb=24)
    assert _verdict(stages["grpo"], small).startswith("too large; change grpo.batch_size")
    assert "too large" in _plan_table(list(stages.values()), small).markdown()
    hours = stages["imagine"].hours * stages["imagine"].gpus
    assert 5 < hours < 60  # 3,334 scenes with a window of 10 to 30 s each


def test_photos_at_hand_are_counted(monkeypatch, tmp_path):
    "Half of the scenes of `paper` are photos: four of them and four rooms."
    count = lambda: plan._scene_count(load_settings(Scenes, "scenes", "paper"), load_settings(SFT, "sft", "paper", "bidirectional"))
    assert count() == 3334
    (tmp_path / "data/photos").mkdir(parents=True)
    for i in range(4): (tmp_path / f"data/photos/{i}.jpg").touch()
    monkeypatch.setattr(plan, "repo_root", lambda: tmp_path)
    assert count() == 8


def test_shared_states_fit_where_copies_do_not():
    "GRPO on all parameters of the paper's student, on four GPUs of 80 GB."
    settings, batch = _student_settings(_PAPER_STUDENT), _Batch(2, 1600, 256, 2 * 5760)
    def parts(launch):
        training = GRPO(processes=4, launch=launch, freeze_vision=False)
        return _step_memory(settings, training, batch, generated=2)
    fsdp2, zero3, ddp = parts("fsdp2"), parts("zero3"), parts("ddp")
    assert sum(fsdp2.values()) < 74e9 and sum(ddp.values()) > 180e9
    before_the_step = sum(fsdp2[name] for name in ("gathered reference", "gathered layers", "activations", "vision"))
    assert abs(before_the_step - 2 * 16.6e9) < .1e9 and "gathered reference" not in zero3 | ddp


def test_flops_follow_the_settings():
    assert _training_flops(SFT(lora_rank=8, gradient_checkpointing=False)) == 4
    assert _training_flops(GRPO(lora_rank=0, gradient_checkpointing=True)) == 8
