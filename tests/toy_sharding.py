"Trainings of two processes that share the student by FSDP2 on a CPU; cpu_sharding/ must be on PYTHONPATH."
import os
from contextlib import contextmanager
from dataclasses import replace

from toy_training import PLAIN, REINFORCE


@contextmanager
def plain():
    "Within the block nothing is sharded."
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    yield
    os.environ["ACCELERATE_USE_FSDP"] = "true"


SHARDED = dict(processes=2, launch="fsdp2")
SFT20 = replace(PLAIN, **SHARDED, batch_size=4, epochs=2.5, save_every=4)  # 20 steps
RUNS = {  # name -> (trainer, settings, start)
    "sft": ("sft", SFT20, "start"),
    "killed": ("sft", SFT20, "start"),
    "lora": ("sft", replace(SFT20, lora_rank=2, lora_alpha=4, freeze_vision=True, bf16=True, gradient_checkpointing=True), "half"),
    "all": ("sft", replace(SFT20, epochs=.5, freeze_vision=True, bf16=True), "half"),
    "grpo": ("grpo", replace(REINFORCE, **SHARDED, batch_size=8, limit=0, epochs=1.25, save_every=4), "sft"),  # 64 x 1.25 questions of 4 answers
    "lora_killed": ("sft", replace(SFT20, lora_rank=2, lora_alpha=4, freeze_vision=True, bf16=True, gradient_checkpointing=True), "half"),
    "grpo_killed": ("grpo", replace(REINFORCE, **SHARDED, batch_size=8, limit=0, epochs=1.25, save_every=4), "sft"),
    "grpo_lora": ("grpo", replace(REINFORCE, **SHARDED, batch_size=8, limit=16, lora_rank=2, lora_alpha=4, freeze_vision=True), "lora"),
}


def train_all(config, home: str, *names: str):
    "The `names` of RUNS one after the other, in this process and its neighbour; `name.ddp` is the same without shards."
    from transformers import Trainer
    from world2vlm.students.grpo import train_grpo
    from world2vlm.students.sft import train_sft
    import torch
    torch.set_num_threads(1)
    run, kinds = Trainer.train, []
    def noted(self, *args, **kwargs):
        kinds.append(str(self.accelerator.distributed_type).split(".")[-1])
        return run(self, *args, **kwargs)
    Trainer.train = noted
    for name in names:
        stage, settings, start = RUNS[name.removesuffix(".ddp")]
        train = {"sft": train_sft, "grpo": train_grpo}[stage]
        call = lambda: train(settings, f"{home}/{start}", f"{home}/examples", f"{home}/{name}")
        if name.endswith(".ddp"):
            with plain(): call()
        else: call()
        assert kinds[-1] == ("MULTI_CPU" if name.endswith(".ddp") else "FSDP"), kinds
