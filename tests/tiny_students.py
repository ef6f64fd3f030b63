"Six families of vision-language models with a few thousand random weights: the classes of transformers, at toy size."
from toy_training import TINY
from world2vlm.students.models import _CHAT_TEMPLATE, _train_tokenizer, mini_student

IMAGE, START, END, VIDEO = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
SIDE, PATCH = 16, 4  # of a picture and of a patch, pixels
TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=PATCH)
SQUARE = dict(height=SIDE, width=SIDE)


def words(**names):
    "A tokenizer of 320 tokens that knows its special ones by these `names`."
    from transformers import PreTrainedTokenizerFast
    tokenizer = _train_tokenizer(["Is it red?", "yes", "no"], 320)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   model_max_length=1024, extra_special_tokens=names)


def text(tokenizer, **settings):
    return dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                max_position_embeddings=1024, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id) | settings


def chat(picture): return _CHAT_TEMPLATE.replace(f"{START}{IMAGE}{END}", picture)


def qwen3_vl():
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
    tokenizer = words(image_token=IMAGE, video_token=VIDEO, vision_start_token=START, vision_end_token=END)
    ids = dict(zip(("image", "video", "vision_start", "vision_end"), tokenizer.convert_tokens_to_ids([IMAGE, VIDEO, START, END])))
    vision = dict(depth=1, hidden_size=16, intermediate_size=32, num_heads=2, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=1,
                  out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0])
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2], mrope_interleaved=True)
    config = Qwen3VLConfig(vision_config=vision, text_config=text(tokenizer, head_dim=16, rope_parameters=rope),
                           **{f"{name}_token_id": i for name, i in ids.items()})
    sizes = dict(size=dict(shortest_edge=SIDE**2, longest_edge=SIDE**2), patch_size=PATCH, merge_size=2, temporal_patch_size=1)
    return Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor(Qwen2VLImageProcessor(**sizes), tokenizer, Qwen3VLVideoProcessor(**sizes), chat_template=_CHAT_TEMPLATE)


def internvl3():
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor, InternVLVideoProcessor
    tokenizer = words(start_image_token=START, end_image_token=END, context_image_token=IMAGE, video_token=VIDEO)
    vision = TOWER | dict(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH])
    config = InternVLConfig(vision_config=vision, text_config=dict(model_type="qwen2", **text(tokenizer)), image_seq_length=4,
                            image_token_id=tokenizer.context_image_token_id, tie_word_embeddings=False)
    images = GotOcr2ImageProcessor(size=SQUARE, max_patches=1)
    return InternVLForConditionalGeneration(config), InternVLProcessor(images, tokenizer, InternVLVideoProcessor(size=SQUARE), image_seq_length=4, chat_template=chat(IMAGE))


def llava_onevision():
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    tokenizer = words(image_token=IMAGE, video_token=VIDEO)
    vision = dict(model_type="siglip_vision_model", vision_use_head=False, **TOWER)
    config = LlavaOnevisionConfig(vision_config=vision, text_config=dict(model_type="qwen2", **text(tokenizer)), image_grid_pinpoints=[[SIDE, SIDE]],
                                  image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id)
    images = LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=[[SIDE, SIDE]])
    processor = LlavaOnevisionProcessor(images, tokenizer, LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=(SIDE // PATCH)**2,
                                        vision_feature_select_strategy="full", chat_template=chat(IMAGE), image_token=IMAGE, video_token=VIDEO)
    return LlavaOnevisionForConditionalGeneration(config), processor


def gemma3():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor
    tokenizer = words(image_token=IMAGE, boi_token=START, eoi_token=END)
    config = Gemma3Config(text_config=text(tokenizer, head_dim=16, sliding_window=64), vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **TOWER),
                          mm_tokens_per_image=4, boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id, image_token_index=tokenizer.image_token_id)
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), tokenizer, chat_template=chat(START), image_seq_length=4)


def smolvlm2():
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor
    tokenizer, edge = words(image_token=IMAGE), dict(longest_edge=SIDE)
    config = SmolVLMConfig(vision_config=TOWER, text_config=dict(model_type="llama", **text(tokenizer)), scale_factor=2, image_token_id=tokenizer.image_token_id,
                           pad_token_id=tokenizer.pad_token_id)
    images = SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(size=edge, max_image_size=edge), image_seq_len=4, chat_template=chat(IMAGE))
    return SmolVLMForConditionalGeneration(config), processor


FAMILIES = {"qwen2_5_vl": lambda: mini_student(["Is it red?", "yes", "no"], TINY), "qwen3_vl": qwen3_vl, "internvl3": internvl3,
            "llava_onevision": llava_onevision, "gemma3": gemma3, "smolvlm2": smolvlm2}


def tiny_student(family):
    "(model, processor) of one of FAMILIES, the same in every run."
    import torch
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model.eval(), processor
