"A student of the LLaVA family: its vision tower is found and frozen, it trains, and pixels are refused with a reason."
from dataclasses import replace

import numpy as np
import pytest
from toy_training import PLAIN, REINFORCE, TINY, colour_examples, curve, trainable, weights

from world2vlm.dataset.shards import write_shards
from world2vlm.students.grpo import train_grpo
from world2vlm.students.models import _CHAT_TEMPLATE, HFStudent, Prompt, _train_tokenizer, load_student, mini_student, open_student
from world2vlm.students.sft import train_sft
from world2vlm.students.training import Training, _vision_towers, training_rows


def llava():
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    words = _train_tokenizer(["Is it red?", "yes", "no"], 320)
    image, end, pad = words.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>", "<|endoftext|>"])
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    text = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                       eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=image))
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=dict(height=16, width=16))
    return model, LlavaProcessor(images, words, patch_size=4, vision_feature_select_strategy="default", chat_template=_CHAT_TEMPLATE,
                                 image_token="<|image_pad|>", num_additional_image_tokens=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    for part in llava(): part.save_pretrained(folder / "start")
    write_shards("examples", folder / "examples", lambda shard, reject: colour_examples(32))
    return folder


def test_tower_is_found_tower_kind():
    from transformers import AutoModelForImageTextToText, Idefics3Config, SmolVLMConfig
    assert _vision_towers(llava()[0]) == ["model.vision_tower"]
    assert _vision_towers(mini_student(["a"], TINY)[0]) == ["model.visual"]
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = dict(model_type="llama", num_key_value_heads=2, vocab_size=64, pad_token_id=0, **small)
    for kind in (Idefics3Config, SmolVLMConfig):
        config = kind(vision_config=dict(image_size=16, patch_size=4, **small), text_config=text)
        assert _vision_towers(AutoModelForImageTextToText.from_config(config)) == ["model.vision_model"]


@pytest.mark.parametrize("lora", [dict(lora_rank=0), dict(lora_rank=2, lora_alpha=4)], ids=["all", "lora"])
def test_frozen_tower_stays_and_the_rest_trains_tower_kind(home, tmp_path, lora):
    config = replace(PLAIN, freeze_vision=True, epochs=4, **lora)
    before, after = weights(home / "start"), weights(train_sft(config, home / "start", home / "examples", tmp_path / "sft"))
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert set(before) == set(after) and any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    path = curve(tmp_path / "sft")
    assert path[-1] < path[0]


def test_tower_trains_where_it_is_not_frozen_tower_kind():
    trained = lambda **settings: [name for name, p in trainable(llava()[0], Training(**settings)).named_parameters() if p.requires_grad]
    for settings in (dict(), dict(lora_rank=2, lora_alpha=4)):
        assert any("vision_tower" in name for name in trained(**settings))
        assert not any("vision_tower" in name for name in trained(freeze_vision=True, **settings))


def test_answers_and_grpo_tower_kind(home, tmp_path):
    picture = np.zeros((16, 16, 3), np.uint8)
    prompts = [Prompt([picture, "Is it red?"]), Prompt([picture, picture, "Is it?"])]
    assert len(open_student(home / "start").reply(prompts, 4)) == 2
    out = train_grpo(replace(REINFORCE, limit=8, freeze_vision=True), home / "start", home / "examples", tmp_path / "grpo")
    assert load_student(str(out))


def test_pixels_and_max_pixels_need_the_qwen_family_tower_kind(home, tmp_path):
    needs = "needs an image processor of the Qwen-VL family, this student has CLIPImageProcessor.*norm1000"
    model, processor = load_student(str(home / "start"))
    with pytest.raises(ValueError, match=f"pixels {needs}"): HFStudent(model, processor, "pixels")
    with pytest.raises(ValueError, match=f"pixels {needs}"): training_rows(home / "examples", replace(PLAIN, box_format="pixels"), processor, cache=str(tmp_path))
    with pytest.raises(ValueError, match=f"max_pixels {needs}"): load_student(str(home / "start"), max_pixels=64)
