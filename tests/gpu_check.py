"""What one GPU does with this code at full size: python tests/gpu_check.py --wheels build/wheels --out gpu_check.json

Every part runs in a process of its own, so that one that fails or takes too long leaves the others their figures. Nothing is downloaded:
weights are random, packages that the machine lacks come from the folder of wheels (`make gpu-wheels`). `--toy` runs the same on a processor."""
import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"svc_parity": 60, "svc_speed": 170, "sft": 130, "grpo": 130, "pipeline": 150}  # name -> seconds at most
PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}  # teraflops in bfloat16, dense


def install(wheels: Path, site: Path) -> list[str]:
    "Install the wheels of packages that are not there. Returns their names."
    if not wheels.is_dir(): return []
    known = {re.sub("[-_.]+", "-", d.metadata["Name"]).lower() for d in importlib.metadata.distributions() if d.metadata["Name"]}
    missing = [p for p in sorted(wheels.glob("*.whl")) if re.sub("[-_.]+", "-", p.name.split("-")[0]).lower() not in known]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
    if missing: subprocess.run([*command, *map(str, missing)], check=True)
    return [path.name for path in missing]


def device_of(toy: bool) -> str: return "cpu" if toy else "cuda"


def peak_gb() -> float:
    import torch
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def peak_teraflops() -> float:
    import torch
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for key, peak in PEAKS.items() if key in name), 0.0)


def timed(call, repeats: int) -> float:
    "Milliseconds of one call, after one that warms up."
    import torch
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    call(), wait()
    start = time.perf_counter()
    for _ in range(repeats): call()
    wait()
    return (time.perf_counter() - start) / repeats * 1000


SMALL = dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1, attention_head_dim=16, cross_attention_dim=24)


def unet_inputs(unet, views: int, side: int, device: str) -> tuple:
    "Random inputs of one half-window."
    import torch
    c = unet.config
    rand = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device, unet.dtype)
    return (rand(views, c.in_channels, side, side), torch.full((views,), 500, device=device),
            rand(views, 1, c.cross_attention_dim), rand(views, c.ray_channels, side, side), views)


def svc_parity(toy: bool) -> dict:
    "The denoiser on this device against the same weights on the processor, and against released tensors where they are at hand."
    import torch
    from world2vlm.teachers.svc.unet import MultiViewUNet
    torch.manual_seed(0)
    unet, device, result = MultiViewUNet(**SMALL).eval(), device_of(toy), {}
    inputs = unet_inputs(unet, 5, 16, "cpu")
    with torch.no_grad():
        truth = unet(*inputs)
        here = [x.to(device) if hasattr(x, "to") else x for x in inputs]
        for name, flag in (("float32", False), ("bfloat16", True)):
            with torch.autocast(device, torch.bfloat16, enabled=flag): output = unet.to(device)(*here)
            result[f"{name} relative error"] = float((output.float().cpu() - truth).abs().max() / truth.abs().max())
    assert result["float32 relative error"] < 1e-3 and result["bfloat16 relative error"] < .1, result
    if path := os.environ.get("SVC_REFERENCE"):
        sys.path.insert(0, str(ROOT / "tests"))
        from svc_parity import errors
        result["released code"] = errors(path)
    return result


def svc_speed(toy: bool) -> dict:
    "One evaluation of the released denoiser: 21 views of 576 x 576 pixels, random weights in bfloat16."
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from world2vlm.teachers.svc.unet import MultiViewUNet
    device, side, views = device_of(toy), 16 if toy else 72, 3 if toy else 21
    with torch.device(device): unet = MultiViewUNet(**SMALL if toy else {}).to(torch.bfloat16).eval()
    inputs, result = unet_inputs(unet, views, side, device), {"views": views, "pixels": 8 * side}
    with torch.no_grad(), FlopCounterMode(display=False) as counter: unet(*inputs)
    result["teraflop"] = counter.get_total_flops() / 1e12
    def measure(name, network):
        with torch.no_grad(): result[f"{name} ms"] = timed(lambda: network(*inputs), 1 if toy else 5)
        if peak := peak_teraflops(): result[f"{name} share of peak"] = result["teraflop"] / result[f"{name} ms"] * 1000 / peak
    measure("eager", unet)
    result["peak GB"] = peak_gb()
    print(json.dumps(result), flush=True)  # kept where compiling takes too long
    if not toy: measure("compiled", torch.compile(unet))
    return result


def student(toy: bool) -> tuple:
    "A Qwen2.5-VL with random weights, of 7 billion parameters unless `toy`, and its processor."
    import torch
    from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    from world2vlm.students.memory import _PAPER_STUDENT, _student_settings
    from world2vlm.students.models import _CHAT_TEMPLATE, _mini_model_config, _SPECIAL_TOKENS, _train_tokenizer, MiniConfig
    tokenizer = _train_tokenizer(["Which single turn leads from the first view to the second?", "turn left 30 degrees"], 320)
    settings = _student_settings(_PAPER_STUDENT)
    if toy: settings = _mini_model_config(tokenizer, MiniConfig(image_size=56, patch_size=14, hidden_size=32, head_size=16, vision_layers=1, text_layers=2))
    ids = dict(zip(_SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(_SPECIAL_TOKENS))))
    settings.image_token_id, settings.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    settings.vision_start_token_id, settings.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    settings.text_config.eos_token_id, settings.text_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    sizes = dict(size={"shortest_edge": 784, "longest_edge": 1003520}, patch_size=14, merge_size=2,
                 temporal_patch_size=settings.vision_config.temporal_patch_size)
    processor = Qwen2_5_VLProcessor(image_processor=Qwen2VLImageProcessor(**sizes), tokenizer=tokenizer,
                                    video_processor=Qwen2VLVideoProcessor(**sizes), chat_template=_CHAT_TEMPLATE)
    tokenizer.model_max_length = 100_000
    with torch.device(device_of(toy)): model = AutoModelForImageTextToText.from_config(settings, dtype=torch.bfloat16)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model, processor, tokenizer


def rows(n: int, toy: bool, completion: bool) -> list[dict]:
    "Examples of two pictures, as the trainers read them."
    import numpy as np
    from PIL import Image
    rng, (width, height) = np.random.default_rng(0), (56, 56) if toy else (1008, 560)
    picture = lambda: Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
    question = "Which single turn leads from the first view to the second? " * (1 if toy else 6)
    row = lambda: dict(prompt=[dict(role="user", content=question)], images=[picture(), picture()],
                       **({"completion": [dict(role="assistant", content="turn left 30 degrees")]} if completion else {}))
    return [row() for _ in range(n)]


def steps_of(trainer) -> list[float]:
    "Seconds of each step of a trainer."
    import torch
    from transformers import TrainerCallback
    class Clock(TrainerCallback):
        times = []
        def on_step_begin(self, *_, **__): self.start = time.perf_counter()
        def on_step_end(self, *_, **__):
            if torch.cuda.is_available(): torch.cuda.synchronize()
            self.times.append(time.perf_counter() - self.start)
    trainer.add_callback(Clock)
    trainer.train()
    return Clock.times


def trainer_parts(toy: bool, config, folder: str) -> tuple:
    "Model, processor and arguments as the stages make them."
    from peft import get_peft_model
    from world2vlm.students.training import _lora_config, prepare_model, trainer_arguments
    model, processor, tokenizer = student(toy)
    model = prepare_model(model, config)
    model = get_peft_model(model, _lora_config(model, config))
    arguments = trainer_arguments(config, folder, 2 if toy else 4) | dict(save_strategy="no", logging_steps=1)
    return model, processor, tokenizer, arguments


def sft(toy: bool) -> dict:
    "Steps of LoRA fine-tuning with the settings of `paper`; two batches of eight are a step there, one here."
    import torch
    from trl import SFTConfig, SFTTrainer
    from world2vlm.students.sft import SFT
    config = SFT(freeze_vision=True, lora_rank=8 if toy else 256, lora_alpha=16 if toy else 512, batch_size=2 if toy else 8, gradient_accumulation_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor, _, arguments = trainer_parts(toy, config, folder)
        from datasets import Dataset
        data = Dataset.from_list(rows(4 * config.batch_size, toy, True))
        trainer = SFTTrainer(model=model, args=SFTConfig(max_length=8192, dataset_kwargs=dict(skip_prepare_dataset=True), **arguments),
                             train_dataset=data, processing_class=processor)
        batch = trainer.data_collator([data[i] for i in range(config.batch_size)])
        seconds = steps_of(trainer)
    tokens = int(batch["attention_mask"].sum())
    result = {"seconds of a step": min(seconds[1:]), "first step": seconds[0], "tokens": tokens, "peak GB": peak_gb()}
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    result["teraflop"] = tokens * frozen * 6 / 1e12
    if peak := peak_teraflops(): result["share of peak"] = result["teraflop"] / result["seconds of a step"] / peak
    return result


def length_reward(completions, **_): return [len(chat[0]["content"]) / 100 for chat in completions]


def grpo(toy: bool) -> dict:
    "Steps of GRPO with LoRA: two questions with four answers each."
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from world2vlm.students.grpo import GRPO
    config = GRPO(lora_rank=8 if toy else 64, lora_alpha=16 if toy else 128, freeze_vision=True, batch_size=8, gradient_accumulation_steps=1)
    length = 8 if toy else 256
    with tempfile.TemporaryDirectory() as folder:
        model, processor, tokenizer, arguments = trainer_parts(toy, config, folder)
        tokenizer.padding_side = "left"
        trainer = GRPOTrainer(model=model, reward_funcs=length_reward, processing_class=processor, train_dataset=Dataset.from_list(rows(8, toy, False)),
                              args=GRPOConfig(num_generations=4, max_completion_length=length, loss_type="grpo", **arguments))
        seconds = steps_of(trainer)
    return {"seconds of a step": min(seconds[1:]), "first step": seconds[0], "tokens of an answer": length, "answers": 8,
            "tokens per second": 8 * length / min(seconds[1:]), "peak GB": peak_gb()}


def pipeline(toy: bool) -> dict:
    "The stages one after the other with the shipped small models: scenes, imagine, supervise, SFT, GRPO, evaluate."
    from world2vlm.core.runs import track_cost
    from world2vlm.dataset.synthesis import Imagine, make_held_out, make_questions, make_rollouts, make_scenes, HeldOut, Scenes, Supervise
    from world2vlm.evaluation.held_out import evaluate_arm, Evaluate
    from world2vlm.students import grpo as grpo_stage, sft as sft_stage
    from world2vlm.students.grpo import GRPO, train_grpo
    from world2vlm.students.sft import SFT, train_sft
    if importlib.util.find_spec("dvclive") is None:  # draws curves only, and brings all of DVC
        from transformers import TrainerCallback
        for stage in (sft_stage, grpo_stage): stage.live_callback = lambda out: TrainerCallback()
    device, result, many = device_of(toy), {}, 4 if toy else 24
    small = dict(box_format="pixels", lora_rank=0, gradient_accumulation_steps=1, attention="eager" if toy else "sdpa", gradient_checkpointing=False, save_every=1000, log_every=1)
    with tempfile.TemporaryDirectory() as folder:
        home, scenes = Path(folder), Scenes(n=many, per_shard=many)
        imagine = Imagine(presets={"single": 2}, options={"svc": {"device": device, "bf16": True, "num_inference_steps": 2} if toy else {"device": device, "bf16": True}})
        exam = HeldOut(scenes=Scenes(n=4, first=900_000, per_shard=4), imagine=Imagine(presets={"single": 2}))
        stages = {
            "scenes": lambda: make_scenes(scenes, home / "scenes"),
            "imagine": lambda: make_rollouts(imagine, "svc", home / "scenes", home / "rollouts"),
            "supervise": lambda: make_questions(Supervise(shares={"train": 1.0}), home / "scenes", home / "rollouts", home / "examples"),
            "held_out": lambda: make_held_out(exam, home / "held_out"),
            "sft": lambda: train_sft(SFT(limit=8 if toy else 64, batch_size=4, **small), "data/base", home / "examples", home / "sft"),
            "grpo": lambda: train_grpo(GRPO(limit=2 if toy else 16, batch_size=8, num_generations=4, max_completion_length=8 if toy else 48, **small),
                                       home / "sft", home / "examples", home / "grpo"),
            "evaluate": lambda: evaluate_arm(Evaluate(box_format="pixels", batch_size=16, max_new_tokens=8 if toy else 48), {"grpo": home / "grpo"},
                                             home / "held_out", home / "examples", home / "answers")}
        for name, stage in stages.items():
            with track_cost() as cost: stage()
            result[name] = cost
            print(json.dumps(result), flush=True)
    return result


def run_part(name: str, toy: bool, seconds: float, site: Path) -> dict:
    "One part in a process of its own: its figures, or the last lines of what it printed."
    words = [sys.executable, "-W", "ignore", __file__, "--part", name, *["--toy"] * toy]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", ""), str(site)]),
                                "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
        output, error = done.stdout, done.stderr[-1500:] if done.returncode else ""
    except subprocess.TimeoutExpired as stopped:
        output, error = (stopped.stdout or b"").decode(), f"stopped after {seconds:.0f} s"
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result = json.loads(lines[-1]) if lines else {}
    return result | {"seconds": round(time.perf_counter() - start, 1)} | ({"error": error} if error else {})


def rates_of(parts: dict) -> dict:
    "What `make plan` takes instead of stated rates."
    shares = [parts.get("svc_speed", {}).get(f"{name} share of peak", 0) for name in ("eager", "compiled")]
    rates = {"teraflops": peak_teraflops(), "teacher_share": max(shares), "training_share": parts.get("sft", {}).get("share of peak", 0),
             "tokens_per_second": parts.get("grpo", {}).get("tokens per second", 0) if torch_device() != "cpu" else 0}
    return {name: value for name, value in rates.items() if value}


def torch_device() -> str:
    import torch
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/metrics/gpu_check.json")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/wheels", help="packages that this machine lacks")
    parser.add_argument("--seconds", type=float, default=520, help="for all parts together")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--toy", action="store_true", help="small sizes, on a processor")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part: return print(json.dumps(globals()[options.part](options.toy)), flush=True)
    deadline, site, parts = time.monotonic() + options.seconds, Path(tempfile.mkdtemp()), {}
    installed = install(options.wheels, site)
    for name in options.parts:
        left = deadline - time.monotonic()
        if left < 15: parts[name] = {"error": "no time left"}
        else: parts[name] = run_part(name, options.toy, left if options.toy else min(PARTS[name], left), site)
        versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
        report = {"device": torch_device(), "python": platform.python_version(), **versions, "installed": installed, "toy": options.toy,
                  "parts": parts, "rates": rates_of(parts)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        print(name, json.dumps(parts[name]), flush=True)
    sys.exit(any("error" in part for part in parts.values()))


if __name__ == "__main__": main()
