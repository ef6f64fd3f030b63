"""The paper's run with toys in place of its models: `make rehearsal` (two cores, minutes). What it runs, test_profiles.py holds against the settings of
`gpu` and `paper`."""
import json
import os
import re
import sys
import time
from collections import Counter

import pytest
import yaml

from smoke_tree import ROOT, copy_repository, run
from world2vlm.core.runs import rounded, write_json

ARM = "bidirectional"
STAGES = [f"report@{ARM}", f"comparison@{ARM}", "teacher_quality", "mix@mixed", "benchmarks"]  # and whatever they need
pytestmark = pytest.mark.rehearsal


def ask_one_arm(path):
    "Let the stage `benchmarks` of a dvc.yaml ask the students of `ARM` alone: the other arms run the same code."
    text = path.read_text()
    block = text[text.index("\n  benchmarks:\n"):text.index("\nplots:\n")]
    one = re.sub(r'-p arms "[^"]+"', f'-p arms "{ARM}"', re.sub(rf"    - data/\$\{{profile\}}/(sft|grpo)/(?!{ARM}\n)\w+\n", "", block))
    path.write_text(text.replace(block, one))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "A fresh clone at the size `rehearsal` after its run; tests/metrics/rehearsal.json says what each stage took."
    from test_profiles import exercised  # which imports this module
    tree = copy_repository(tmp_path_factory.mktemp("rehearsal") / "world2vlm", "rehearsal")
    ask_one_arm(tree / "dvc.yaml")
    run(tree, sys.executable, "tests/toys.py", "data/toys")
    start, sharding = time.monotonic(), f"{tree}{os.pathsep}{tree / 'tests/cpu_sharding'}"
    run(tree, "dvc", "repro", *STAGES, PYTHONPATH=sharding, PYTHONWARNINGS="ignore,error:launch:UserWarning")  # an error where nothing is sharded
    costs = {path.stem: json.loads(path.read_text()) for path in (tree / "data/rehearsal/costs").glob("*.json")}
    keys = {profile: {"by": Counter(how.values()), "of": how} for profile in ("gpu", "paper") for how in [exercised(profile)]}
    figures = {"minutes": (time.monotonic() - start) / 60, "cores": os.cpu_count(), "peak_gb": max(cost["peak_gb"] for cost in costs.values()),
               "seconds": {name: cost["seconds"] for name, cost in costs.items()}, "keys": keys}
    write_json(ROOT / "tests/metrics/rehearsal.json", rounded(figures, 1))
    print("", *(f"{name:32}{seconds:8.1f} s" for name, seconds in sorted(figures["seconds"].items(), key=lambda item: -item[1])), sep="\n")
    print(f"rehearsal: {figures['minutes']:.1f} minutes, {figures['peak_gb']:.1f} GiB in the largest process")
    return tree


def test_the_report_is_there(tree):
    assert (tree / f"data/rehearsal/report/{ARM}/index.html").exists() and (tree / f"data/rehearsal/comparison/{ARM}/index.html").exists()
    benchmarks = json.loads((tree / "data/rehearsal/metrics/benchmarks.json").read_text())
    assert {"SAT-Real", "SAT-Syn", "VSI-Bench", "MindCube", "ViewSpatial", "MMSI", "ENACT", "CameraBench"} <= set(benchmarks["results"])
    assert list((tree / f"data/rehearsal/sft/{ARM}/snapshots").glob("step-*")), "students of the way"


def test_both_stages_train_and_keep_the_type_of_the_weights(tree):
    "LoRA in plain parallel, then all parameters sharded: bfloat16 as the start."
    for stage in ("sft", "grpo"):
        out = tree / f"data/rehearsal/{stage}/{ARM}"
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert [line for line in (json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()) if "loss" in line]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"]["rehearsal"]
    assert params["grpo"]["launch"] == "fsdp2" and params["sft"]["lora_rank"] == 256
