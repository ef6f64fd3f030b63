"""The paper's run with toys in place of its models: `make rehearsal` (two cores, minutes). What it runs, test_profiles.py holds against the settings of
`gpu` and `paper`."""
import json
import os
import sys
import time
from collections import Counter

import pytest
import yaml

from smoke_tree import ROOT, copy_repository, run
from world2vlm.core.runs import rounded, write_json

ARM = "bidirectional"
STAGES = [f"report@{ARM}", f"comparison@{ARM}", "teacher_quality", "mix@real", "mix@mixed", "benchmarks"]  # and whatever they need
pytestmark = pytest.mark.rehearsal


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "A fresh clone at the size `rehearsal` after its run; tests/metrics/rehearsal.json says what each stage took."
    from test_profiles import exercised  # which imports this module
    tree = copy_repository(tmp_path_factory.mktemp("rehearsal") / "world2vlm", "rehearsal")
    run(tree, sys.executable, "tests/toys.py", "data/toys")
    start, sharding = time.monotonic(), f"{tree}{os.pathsep}{tree / 'tests/cpu_sharding'}"
    run(tree, "dvc", "repro", *STAGES, PYTHONPATH=sharding, PYTHONWARNINGS="ignore")
    costs = {path.stem: json.loads(path.read_text()) for path in (tree / "data/rehearsal/costs").glob("*.json")}
    keys = {profile: Counter(exercised(profile).values()) for profile in ("gpu", "paper")}
    figures = {"minutes": (time.monotonic() - start) / 60, "cores": os.cpu_count(), "peak_gb": max(cost["peak_gb"] for cost in costs.values()),
               "seconds": {name: cost["seconds"] for name, cost in costs.items()}, "keys": keys}
    write_json(ROOT / "tests/metrics/rehearsal.json", rounded(figures, 1))
    print("", *(f"{name:32}{seconds:8.1f} s" for name, seconds in sorted(figures["seconds"].items(), key=lambda item: -item[1])), sep="\n")
    print(f"rehearsal: {figures['minutes']:.1f} minutes, {figures['peak_gb']:.1f} GiB in the largest process")
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
