"The profile `paper`, line by line against the paper's recipe; what is not the recipe's is listed with its reason."
import pytest
from test_settings import SECTIONS

from world2vlm.core.config import load_params, load_settings

ARM = "bidirectional"

# (what the paper says, section, setting, value)
RECIPE = [
    ("metres 0.1-6 in steps of 0.1", "imagine", "ranges.move", (0.1, 6, 0.1)),
    ("degrees 10-100 in steps of 10", "imagine", "ranges.turn", (10, 100, 10)),
    ("at most 0.2 m a frame", "imagine", "move_step", 0.2),
    ("at most 5 degrees a frame", "imagine", "turn_step", 5),
    ("single actions and presets of two and three", "imagine", "presets", {"single": 6, "forward_turn": 1, "turn_forward": 1, "shift_forward_turn": 1}),
    ("real photos and simulated rooms", "scenes", "source", {"photos": 0.5, "rooms": 0.5}),
    ("detector confidence >= 0.3", "annotate", "confidence", 0.3),
    ("box area 1-60 % of the image", "annotate", "area", (0.01, 0.6)),
    ("1 % away from the border", "annotate", "border", 0.01),
    ("box area 1-60 % of the image", "supervise", "rules.area", (0.01, 0.6)),
    ("metres of a false claim are those of the motions", "supervise", "rules.move", (0.1, 6)),
    ("degrees of a false claim are those of the motions", "supervise", "rules.turn", (10, 100)),
    ("eight tasks", "supervise", "tasks", ("A1", "A2", "A3", "A4", "D1", "D2", "D3", "D4")),
    ("direct, multiple choice, short sentence", "supervise", "rules.phrasings", ("direct", "choice", "sentence")),
    ("boxes are 0-1000 integers", "sft", "box_format", "norm1000"),
    ("boxes are 0-1000 integers", "grpo", "box_format", "norm1000"),
    ("Qwen2.5-VL-7B", "student", "checkpoint", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ("100K SFT examples", "sft", "limit", 100_000),
    ("LoRA r 256", "sft", "lora_rank", 256),
    ("alpha 512", "sft", "lora_alpha", 512),
    ("vision tower frozen", "sft", "freeze_vision", True),
    ("lr 1e-5 cosine", "sft", "learning_rate", 1e-5),
    ("warm-up 5 %", "sft", "warmup_ratio", 0.05),
    ("1 epoch", "sft", "epochs", 1),
    ("weight decay 0.1", "sft", "weight_decay", 0.1),
    ("betas 0.9/0.95", "sft", "betas", (0.9, 0.95)),
    ("8 GPUs", "sft", "processes", 8),
    ("x 8", "sft", "batch_size", 8),
    ("x 2 accumulation", "sft", "gradient_accumulation_steps", 2),
    ("bf16", "sft", "bf16", True),
    ("max 8,192 tokens", "sft", "max_length", 8192),
    ("max_pixels 1,003,520", "sft", "max_pixels", 1_003_520),
    ("max_pixels 1,003,520", "grpo", "max_pixels", 1_003_520),
    ("each token weighs the same", "sft", "answers_alike", False),
    ("both directions", "sft", "directions", ("forward", "inverse")),
    ("GRPO: 4 GPUs", "grpo", "processes", 4),
    ("lr 1e-6", "grpo", "learning_rate", 1e-6),
    ("4 rollouts a question", "grpo", "num_generations", 4),
    ("temperature 1.0", "grpo", "temperature", 1.0),
    ("KL 0.01", "grpo", "beta", 0.01),
    ("answer 256 tokens", "grpo", "max_completion_length", 256),
    ("1 epoch", "grpo", "epochs", 1),
    ("full parameters", "grpo", "lora_rank", 0),
    ("full parameters", "grpo", "freeze_vision", False),
    ("1K GRPO examples", "grpo", "limit", 1000),
    ("125 per task", "grpo", "grpo_per_task", 125),
    ("the paper's reward", "grpo", "reward", "paper"),
    ("SVC at 576 pixels", "imagine", "options.svc.short_side", 576),
]
# Where the profile is not the recipe: setting -> (the paper's, ours, why). A line that is no longer true fails.
DIFFERENT = {
    "sft.launch": ("ZeRO-2", "ddp", "LoRA has 2.6 GB of state a GPU, so there is nothing to share out; the steps are the same"),
    "imagine.filters.svc.matches": (False, True, "the release ships placeholders as quality filters"),
    "grpo.launch": ("FSDP of EasyR1", "fsdp2", "the paper does not say; version 2 of the same"),
}
# What `paper` takes from the section of the default profile although it is not the default of the code: setting -> why.
INHERITED = {
    "scenes.seed": "a number", "imagine.seed": "a number", "supervise.seed": "a number",
    "imagine.options.svc.bf16": "half precision, as the release samples",
    "supervise.shares.train": "the held-out questions have scenes of their own",
}


@pytest.fixture(scope="module")
def paper():
    return {section: load_settings(cls, section, "paper", ARM) for section, cls in SECTIONS.items()}


def value(settings, path):
    for name in path.split("."): settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


@pytest.mark.parametrize("line, section, path, expected", RECIPE, ids=lambda part: str(part)[:40])
def test_line_of_the_recipe(paper, line, section, path, expected): assert value(paper[section], path) == expected


def test_cosine_and_adapters_on_all_linear_layers_of_the_language_model(paper, tmp_path):
    from torch import nn
    from world2vlm.students.models import mini_student
    from world2vlm.students.training import _lora_config, trainer_arguments
    model, _ = mini_student(["yes"])
    layers = {name for name, part in model.named_modules() if isinstance(part, nn.Linear) and ".layers." in name and "visual" not in name}
    assert set(_lora_config(model, paper["sft"]).target_modules) == layers
    for stage in ("sft", "grpo"): assert trainer_arguments(paper[stage], tmp_path)["lr_scheduler_type"] == "cosine"


@pytest.mark.parametrize("path", DIFFERENT)
def test_difference_has_a_reason_and_is_one(paper, path):
    theirs, ours, why = DIFFERENT[path]
    assert value(paper[path.split(".")[0]], path.split(".", 1)[1]) == ours != theirs and len(why) > 20


def test_steps_have_the_size_of_the_recipe(paper):
    "128 sequences a step of SFT; two questions, eight answers, a step of GRPO."
    sft, grpo = paper["sft"], paper["grpo"]
    assert sft.processes * sft.batch_size * sft.gradient_accumulation_steps == 8 * 8 * 2
    assert grpo.processes * grpo.batch_size * grpo.gradient_accumulation_steps == 2 * grpo.num_generations
    assert grpo.limit == grpo.grpo_per_task * len(paper["supervise"].tasks)


def test_questions_are_about_the_motions_of_the_training(paper):
    for section in ("held_out", "label_audit", "rooms_benchmark"):
        assert paper[section].imagine.ranges == paper["imagine"].ranges
        rules = paper[section].rules if section == "label_audit" else paper[section].supervise.rules
        assert (rules.move, rules.turn) == (paper["supervise"].rules.move, paper["supervise"].rules.turn)
    assert max(paper["teacher_quality"].turns) == paper["imagine"].ranges.turn[1]


def flat(settings: dict, path: str = "") -> dict:
    "Dotted name -> value; lists stay whole."
    parts = {}
    for name, part in settings.items(): parts |= flat(part, f"{path}{name}.") if isinstance(part, dict) and part else {f"{path}{name}": part}
    return parts


def default(cls: type, path: str):
    "The default of the code at a dotted name, None where it has none, as for a teacher's options."
    settings = cls()
    for name in path.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)
    return list(settings) if isinstance(settings, tuple) else settings


@pytest.mark.parametrize("section", ["scenes", "imagine", "supervise", "student", "sft", "grpo", "evaluate"])
def test_nothing_is_inherited_from_the_small_run_unnoticed(section):
    "A value of the default profile that is not the code's own default is stated again by `paper`, or listed above."
    params = load_params()
    own, stated = flat(params[section]), flat(params["profiles"]["paper"][section])
    inherited = {f"{section}.{path}" for path, part in own.items() if not any(path == p or p.startswith(path + ".") or path.startswith(p + ".") for p in stated)
                 and default(SECTIONS[section], path) != part}
    assert inherited == {path for path in INHERITED if path.startswith(section + ".")}
