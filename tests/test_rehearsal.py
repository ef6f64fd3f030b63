"""The paper's run with toys in place of its models: `make rehearsal` (two cores, minutes). What it runs, test_profiles.py holds against the settings of
`gpu` and `paper`."""
import json
import os
import sys
import time

import pytest
import yaml

from smoke_tree import ROOT, copy_repository, run

ARM = "bidirectional"
STAGES = [f"report@{ARM}", f"comparison@{ARM}", "teacher_quality", "mix@real", "mix@mixed", "benchmarks"]  # and whatever they need
pytestmark = pytest.mark.rehearsal


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "A fresh clone at the size `rehearsal` after its run; data/rehearsal/costs says what each stage took."
    tree = copy_repository(tmp_path_factory.mktemp("rehearsal") / "world2vlm", "rehearsal")
    run(tree, sys.executable, "tests/toys.py", "data/toys")
    start, sharding = time.monotonic(), f"{tree}{os.pathsep}{tree / 'tests/cpu_sharding'}"
    run(tree, "dvc", "repro", *STAGES, PYTHONPATH=sharding, PYTHONWARNINGS="ignore")
    costs = {path.stem: json.loads(path.read_text()) for path in (tree / "data/rehearsal/costs").glob("*.json")}
    print(f"\nrehearsal: {(time.monotonic() - start) / 60:.1f} minutes, {max(cost['peak_gb'] for cost in costs.values()):.1f} GiB in the largest process")
    for name, cost in sorted(costs.items(), key=lambda item: -item[1]["seconds"]): print(f"{name:32}{cost['seconds']:8.1f} s{cost['peak_gb']:8.2f} GiB")
    return tree


def test_the_report_is_there(tree):
    assert (tree / f"data/rehearsal/report/{ARM}/index.html").exists() and (tree / f"data/rehearsal/comparison/{ARM}/index.html").exists()


def test_both_stages_train_and_keep_the_type_of_the_weights(tree):
    "LoRA in plain parallel, then all parameters sharded: bfloat16 as the start."
    for stage in ("sft", "grpo"):
        out = tree / f"data/rehearsal/{stage}/{ARM}"
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert [line for line in (json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()) if "loss" in line]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"]["rehearsal"]
    assert params["grpo"]["launch"] == "fsdp2" and params["sft"]["lora_rank"] == 256
