"A student of a few thousand weights and examples that it can learn, for the tests of training."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from world2vlm.core.records import Example
from world2vlm.dataset.shards import write_shards
from world2vlm.students.grpo import GRPO
from world2vlm.students.models import MiniConfig, load_student, mini_student
from world2vlm.students.sft import SFT
from world2vlm.students.training import read_training_log

TINY = MiniConfig(image_size=16, patch_size=4, hidden_size=32, head_size=16, vision_layers=1, text_layers=1, vocabulary=320)
SMALL = dict(gradient_accumulation_steps=1, bf16=False, gradient_checkpointing=False, attention="eager", log_every=1, save_every=2)
PLAIN = SFT(lora_rank=0, freeze_vision=False, batch_size=8, learning_rate=1e-2, **SMALL)
REINFORCE = GRPO(num_generations=4, batch_size=16, learning_rate=1e-3, max_completion_length=4, limit=24, **SMALL)


def picture(red: bool) -> Image.Image: return Image.new("RGB", (16, 16), (220, 30, 30) if red else (30, 30, 220))


def colour_examples(n, seed=0):
    "Pictures of one colour and questions about it."
    rng, examples = np.random.default_rng(seed), []
    for i in range(n):
        yes = bool(rng.random() < .5)
        target = {"actions": None, "box": None, "yes": yes}
        examples.append(Example(f"e{i}", "D2", "forward", [np.array(picture(yes))], "Is it red?", "yes" if yes else "no", target,
                                f"s{i}", "simulator", "train", "exact", "direct", None))
    return examples


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a new student in start/ and a data set in examples/."
    folder = tmp_path_factory.mktemp("training")
    for part in mini_student(["Is it red?", "yes", "no"], TINY): part.save_pretrained(folder / "start")
    write_shards("examples", folder / "examples", lambda shard, reject: colour_examples(64))
    return folder


@pytest.fixture
def one_thread():
    "The number of threads decides the order of sums, and so the last bits of the weights."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve(checkpoint, key="loss"): return [line[key] for line in read_training_log(checkpoint) if key in line]


def logs(checkpoint):
    "The log and the curves, byte by byte."
    return {str(p.relative_to(checkpoint)): p.read_bytes() for p in [Path(checkpoint) / "log.jsonl", *Path(checkpoint).rglob("*.tsv")]}


def weights(checkpoint): return load_student(str(checkpoint))[0].state_dict()


def trainable(model, config):
    "`model` as its trainer gets it: with LoRA where `config` wants that."
    from peft import get_peft_model
    from world2vlm.students.training import _lora_config, prepare_model
    prepared, lora = prepare_model(model, config), _lora_config(model, config)
    return get_peft_model(prepared, lora) if lora else prepared


def kill_at(step, train, *arguments, out, last=True):
    "Call `train` of a module, with `out` as `last` argument, in a process of its own and kill -9 it as soon as checkpoint `step` is in `out`."
    code = ("import pickle, sys; from world2vlm.students.launch import launch_distributed; "
            "train, arguments = pickle.load(open(sys.argv[1], 'rb')); launch_distributed(train, *arguments)")
    import pickle
    call = Path(out).with_suffix(".call")
    call.write_bytes(pickle.dumps((train, (*arguments, *[str(out)] * last))))
    process = subprocess.Popen([sys.executable, "-c", code, str(call)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                               stderr=subprocess.PIPE, text=True)
    state = Path(out) / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
    while not state.exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (Path(out) / "model.safetensors").exists()
