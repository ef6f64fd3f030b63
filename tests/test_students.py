"Six families of students pass the whole way: SFT with LoRA, GRPO, evaluation. Their towers are found and stay as they are."
from dataclasses import replace

import numpy as np
import pytest
from tiny_students import FAMILIES, SIDE, tiny_student
from toy_training import PLAIN, REINFORCE, colour_examples, curve, trainable, weights

from world2vlm.dataset.shards import write_shards
from world2vlm.evaluation.held_out import Evaluate, evaluate_base
from world2vlm.students.grpo import train_grpo
from world2vlm.students.models import HFStudent, load_student, Prompt
from world2vlm.students.sft import train_sft
from world2vlm.students.training import Training, _vision_towers, training_rows

TOWERS = dict(qwen2_5_vl="model.visual", qwen3_vl="model.visual", internvl3="model.vision_tower", llava_onevision="model.vision_tower",
              gemma3="model.vision_tower", smolvlm2="model.vision_model")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    "Questions about one picture and about two, mixed."
    folder = tmp_path_factory.mktemp("students") / "examples"
    one_or_two = [replace(example, images=example.images * (1 + number % 2)) for number, example in enumerate(colour_examples(32))]
    write_shards("examples", folder, lambda shard, reject: one_or_two)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_from_sft_to_evaluation(examples, tmp_path, family):
    for part in tiny_student(family): part.save_pretrained(tmp_path / "start")
    lora = replace(PLAIN, freeze_vision=True, lora_rank=2, lora_alpha=4, limit=24)
    train_sft(lora, tmp_path / "start", examples, tmp_path / "sft")
    train_grpo(replace(REINFORCE, limit=8, freeze_vision=True), tmp_path / "sft", examples, tmp_path / "grpo")
    before, first, second = (weights(tmp_path / name) for name in ("start", "sft", "grpo"))
    assert set(before) == set(first) == set(second)
    tower = {name for name in before if name.startswith(TOWERS[family] + ".")}
    assert tower and all((before[name] == after[name]).all() for after in (first, second) for name in tower)
    for old, new in ((before, first), (first, second)): assert any((old[name] != new[name]).any() for name in before)
    assert np.isfinite(curve(tmp_path / "sft")).all() and np.isfinite(curve(tmp_path / "grpo", "reward")).all()
    rows = evaluate_base(Evaluate(batch_size=8, max_new_tokens=4, attention="eager", dtype="bfloat16"), tmp_path / "grpo", examples, tmp_path / "answers")["base"]
    assert len(rows) == 32 and all(isinstance(row["response"], str) for row in rows)
    views = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 2
    assert len(HFStudent(*load_student(str(tmp_path / "grpo"))).reply([Prompt([*views[1:], "Is it red?"]), Prompt([*views, "Is it?"])], 4)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_and_lora(family):
    "LoRA is on the linear layers of the language model alone where the tower is frozen, and in both where it trains."
    model = tiny_student(family)[0]
    assert _vision_towers(model) == [TOWERS[family]]
    of = lambda frozen: [name for name, p in trainable(tiny_student(family)[0], Training(lora_rank=2, lora_alpha=4, freeze_vision=frozen)).named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].split(".")[-1] for name in of(True)} == set("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    assert not any(TOWERS[family] in name for name in of(True)) and any(TOWERS[family] in name for name in of(False))


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_where_the_size_is_known(examples, tmp_path, family):
    "Only processors that resize to an area which is known beforehand take boxes in pixels, and `max_pixels`, which is that area."
    for part in tiny_student(family): part.save_pretrained(tmp_path / "start")
    model, processor = load_student(str(tmp_path / "start"))
    pixels = lambda: training_rows(examples, replace(PLAIN, box_format="pixels"), processor, cache=str(tmp_path))
    if family.startswith("qwen"):
        assert len(pixels()) == 32 and HFStudent(model, processor, "pixels")
        assert load_student(str(tmp_path / "start"), max_pixels=64)[1].image_processor.size["longest_edge"] == 64
    else:
        with pytest.raises(ValueError, match="box_format: pixels needs an image processor of the Qwen-VL family.*norm1000"): pixels()
        with pytest.raises(ValueError, match="max_pixels needs an image processor of the Qwen-VL family"): load_student(str(tmp_path / "start"), max_pixels=64)
