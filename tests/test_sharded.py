"FSDP2 in two processes: the same training as plain data parallelism, resumed after a kill, saved whole and in the type of the start."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from toy_sharding import RUNS, train_all
from toy_training import TINY, colour_examples, curve, kill_at, weights

from world2vlm.dataset.shards import write_shards
from world2vlm.students.launch import _Launch, launch_distributed
from world2vlm.students.models import load_student, mini_student

TWO = _Launch(processes=2, launch="fsdp2")
pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "All runs of `toy_sharding`: three are killed first, and go on among the others."
    folder = tmp_path_factory.mktemp("sharded")
    model, processor = mini_student(["Is it red?", "yes", "no"], TINY)
    for name in ("start", "half"):
        (model.bfloat16() if name == "half" else model).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    write_shards("examples", folder / "examples", lambda shard, reject: colour_examples(64))
    before, tests = os.environ.get("PYTHONPATH", ""), Path(__file__).parent
    os.environ["PYTHONPATH"] = f"{tests}:{tests / 'cpu_sharding'}:{before}"
    try:
        for name in ("killed", "lora_killed"): kill_at(4, train_all, TWO, str(folder), name, out=folder / name, last=False)
        launch_distributed(train_all, TWO, str(folder), *(name for name in RUNS if name != "grpo_killed"), "sft.ddp", "grpo.ddp")
        kill_at(4, train_all, TWO, str(folder), "grpo_killed", out=folder / "grpo_killed", last=False)
        launch_distributed(train_all, TWO, str(folder), "grpo_killed")
    finally: os.environ["PYTHONPATH"] = before
    return folder


def dtypes(checkpoint):
    found = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file: found |= {str(file.get_slice(name).get_dtype()) for name in file.keys()}
    return found


@pytest.mark.parametrize("stage, key, steps", [("sft", "loss", 20), ("sft", "grad_norm", 20), ("grpo", "reward", 20), ("grpo", "loss", 20), ("grpo", "kl", 20)])
def test_the_path_is_that_of_plain_data_parallelism(home, stage, key, steps):
    sharded, plain = curve(home / stage, key), curve(home / f"{stage}.ddp", key)
    assert len(sharded) == len(plain) == steps
    np.testing.assert_allclose(sharded, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("whole, killed", [("sft", "killed"), ("lora", "lora_killed"), ("grpo", "grpo_killed")])
def test_killed_and_resumed_is_undisturbed(home, whole, killed):
    a, b = weights(home / whole), weights(home / killed)
    assert set(a) == set(b) and all((a[name] == b[name]).all() for name in a) and curve(home / whole) == curve(home / killed)


@pytest.mark.parametrize("name", RUNS)
def test_the_checkpoint_is_a_whole_student_in_the_type_of_its_start(home, name):
    start, half = RUNS[name][2], "lora" in name or name == "all"
    assert dtypes(home / name) == dtypes(home / start) == {"BF16" if half else "F32"}
    assert json.loads((home / name / "config.json").read_text())["dtype"] == ("bfloat16" if half else "float32")
    before, after = weights(home / start), weights(home / name)
    assert set(before) == set(after) and load_student(str(home / name))[0].dtype == before["lm_head.weight"].dtype
    changed = {key for key in before if not (before[key] == after[key]).all()}
    assert changed and ("lora" not in name or not any("visual" in key or "norm" in key for key in changed))
    assert not (home / name / "checkpoints").exists()
