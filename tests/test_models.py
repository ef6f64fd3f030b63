"Students: one interface over transformers and vLLM, prompts as in training, boxes in the student's own format."
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from toy_training import TINY, colour_examples

from world2vlm.core.config import ConfigError, repo_root
from world2vlm.dataset.export import to_messages
from world2vlm.students import media, models
from world2vlm.students.models import HFStudent, Prompt, Reply
from world2vlm.students.models import example_prompt, load_student, mini_student, model_picture_size, open_student
from world2vlm.students.vllm import VLLMStudent


@pytest.fixture(scope="module")
def student(): return open_student(repo_root() / "data/base", box_format="pixels")


@pytest.fixture(scope="module")
def prompts():
    "Questions of unlike length about one picture and about two, with boxes."
    rng = np.random.default_rng(0)
    image = lambda: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return [Prompt([image(), "What is at [250, 250, 750, 750]?"]), Prompt([image(), "List the objects."]),
            Prompt([image(), image(), "Which objects are in both pictures?"])]


def test_prompt_of_an_example_is_what_training_reads():
    example = colour_examples(1)[0]
    assert models._chat_messages(example_prompt(example)) == to_messages(example)[:1]


def test_padding_does_not_change_an_answer(student, prompts):
    assert [student.reply([prompt], 24)[0] for prompt in prompts] == student.reply(prompts, 24)


def test_boxes_are_read_and_written_in_the_format_of_the_student(student, monkeypatch):
    "The student reads pixels of the picture as it sees it, and its answer comes back in norm1000."
    prompt = Prompt([np.zeros((128, 128, 3), np.uint8), "What is at [500, 0, 1000, 250]?"])
    size = model_picture_size(student.processor, (128, 128))
    in_pixels = models._for_student(prompt, "pixels", student.processor).pieces[1]
    assert size == (64, 64) and "[32, 0, 64, 16]" in in_pixels
    monkeypatch.setattr(student.processor, "batch_decode", lambda tokens, **options: ["[32, 0, 64, 16]"] * len(tokens))
    assert student.reply([prompt], 2)[0].text == "[500, 0, 1000, 250]"
    assert HFStudent(student.model, student.processor).reply([prompt], 2)[0].text == "[32, 0, 64, 16]"


def test_the_likelier_text_is_chosen(student, prompts):
    "Summed over its tokens and the end, one question at a time without any padding: the same figures as in a batch of unlike lengths."
    import torch
    choices = [("red chair", "blue table"), ("chair [0, 0, 500, 500]", "nothing", "a"), ("yes", "no")]
    tokenizer, replies = student.processor.tokenizer, student.choose(prompts, choices)
    for prompt, own, reply in zip(prompts, choices, replies):
        inputs, logs = models._batch_inputs(student.processor, [models._for_student(prompt, "pixels", student.processor)]), []
        for text in own:
            in_pixels = text.replace("500, 500", "32, 32")
            answer = torch.tensor([[*tokenizer.encode(in_pixels, add_special_tokens=False), tokenizer.eos_token_id]])
            longer = lambda value: torch.full_like(answer, value)
            more = {"input_ids": answer, "attention_mask": longer(1), "mm_token_type_ids": longer(0)}
            joined = {name: torch.cat([part, more[name]], 1) if name in more else part for name, part in inputs.items()}
            with torch.inference_mode(): logits = student.model(**joined).logits[:, -answer.shape[1] - 1:-1]
            logs.append(float(logits.log_softmax(-1).gather(-1, answer[..., None]).sum()))
        np.testing.assert_allclose(reply.probabilities, np.exp(logs) / np.exp(logs).sum(), atol=1e-4)
        assert reply.text == own[int(np.argmax(logs))] and reply.tokens > len(own) * inputs["input_ids"].shape[1]


@pytest.mark.parametrize("size", [(64, 64), (200, 96), (33, 70), (1008, 560), (17, 16)])
def test_picture_size_is_that_of_the_processor(student, size):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    processor = student.processor.image_processor
    grid = processor(images=[image], return_tensors="np")["image_grid_thw"][0]
    assert model_picture_size(student.processor, size) == (grid[2] * processor.patch_size, grid[1] * processor.patch_size)


def test_vllm_answers_as_transformers_does(student, prompts, monkeypatch):
    "vLLM itself needs a GPU; here its interface stands before the same weights, so that prompts, pictures and boxes must agree."
    import torch
    class LLM:
        def generate(self, requests, sampling, use_tqdm):
            for request in requests:
                inputs = student.processor(text=[request["prompt"]], images=[request["multi_modal_data"]["image"]], return_tensors="pt")
                with torch.inference_mode():
                    tokens = student.model.generate(**inputs, max_new_tokens=sampling.max_tokens, **models._GREEDY)[0]
                prompt, answer = tokens.split([inputs["input_ids"].shape[1], len(tokens) - inputs["input_ids"].shape[1]])
                text = student.processor.decode(answer, skip_special_tokens=True)
                yield SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(text=text, token_ids=answer)])
    module = ModuleType("vllm")
    module.SamplingParams = lambda temperature, max_tokens: SimpleNamespace(max_tokens=max_tokens)
    monkeypatch.setitem(sys.modules, "vllm", module)
    assert VLLMStudent(LLM(), student.processor, "base", "pixels").reply(prompts, 24) == [student.reply([p], 24)[0] for p in prompts]


def test_key_changes_with_weights_format_and_settings():
    model, processor = mini_student(["a"], TINY)
    other = mini_student(["a"], TINY, seed=1)[0]
    key = lambda model, box_format="norm1000", **settings: HFStudent(model, processor, box_format).key(settings)
    assert key(model) == key(mini_student(["a"], TINY)[0])
    assert len({key(model), key(other), key(model, "pixels"), key(model, max_new_tokens=8)}) == 4
    assert VLLMStudent(None, processor, "a").key({}) != VLLMStudent(None, processor, "b").key({})


class Constant:
    "A student of a user's own."
    def __init__(self, checkpoint, **options): self.checkpoint, self.options = checkpoint, options
    def reply(self, prompts, max_new_tokens): return [Reply("left", 1) for _ in prompts]
    def key(self, settings): return "constant"


def test_engine_is_a_name_or_a_class_of_ones_own(prompts):
    student = open_student("anything", f"{__name__}:Constant", box_format="pixels")
    assert (student.checkpoint, student.options) == ("anything", {"box_format": "pixels"}) and student.reply(prompts, 8)[0].text == "left"
    with pytest.raises(ConfigError, match="did you mean vllm"): open_student("data/base", "vlm")


def test_largest_picture_is_a_setting(tmp_path):
    for part in mini_student(["a"], TINY): part.save_pretrained(tmp_path)
    processor = load_student(str(tmp_path), max_pixels=64)[1]
    assert model_picture_size(processor, (64, 64)) == (8, 8) and model_picture_size(load_student(str(tmp_path))[1], (64, 64)) == (16, 16)


def test_frames_are_even_and_reach_both_ends(tmp_path):
    import cv2
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 8, (64, 48))
    for number in range(13): writer.write(np.full((48, 64, 3), 15 * number, np.uint8))
    writer.release()
    assert len(media._video_frames(tmp_path / "a.mp4")) == 12 and len(media._video_frames(tmp_path / "a.mp4", 5)) == 4
    frames = media._video_frames(tmp_path / "a.mp4", 4)[:, 0, 0, 0].astype(int)
    assert frames[0] < 8 and abs(frames[-1] - 180) < 8 and (np.diff(frames) > 0).all()
