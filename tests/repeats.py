"""The main arm from nothing, several times: `python tests/repeats.py [RUNS] [PROFILE]`. Are all outputs the same bytes, also those of dvc.lock, how long does a run take, and a second `dvc repro`?
Figures in tests/metrics/repeats.json; runs of the same code and settings are added up over calls, so that a killed call loses one run at most."""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import yaml

from smoke_tree import ROOT, copy_repository, home, run
from world2vlm.core.runs import write_json

MAIN = ("report@bidirectional", "label_audit")  # as `make repro`
FIGURES = ROOT / "tests/metrics/repeats.json"


def output_digests(tree: Path) -> dict[str, str]:
    "Path of each output that the lock of `tree` knows -> its digest."
    stages = yaml.safe_load((tree / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def one_run(profile: str) -> dict:
    "Minutes, CPU seconds, seconds of the second call, and the digest of each output."
    with tempfile.TemporaryDirectory() as folder:
        tree, minutes = copy_repository(Path(folder) / "world2vlm", profile), []
        for _ in range(2):
            start = time.monotonic()
            run(tree, "dvc", "repro", *MAIN)
            minutes.append((time.monotonic() - start) / 60)
        stages = yaml.safe_load((tree / "dvc.lock").read_text())["stages"]
        costs = [json.loads((tree / f"data/{profile}/costs/{name}.json").read_text()) for name in {name.replace("@", "-") for name in stages} - {"inputs"}]
        digests = output_digests(tree)
    return {"minutes": round(minutes[0], 1), "second call, seconds": round(60 * minutes[1], 1), "cpu seconds": round(sum(cost["cpu_seconds"] for cost in costs)),
            "cores": os.cpu_count(), "digests": digests}


def differing(runs: list[dict]) -> list[str]:
    "The outputs that are not the same in all runs."
    paths = {path for one in runs for path in one["digests"]}
    return sorted(path for path in paths if len({one["digests"].get(path) for one in runs}) > 1)


def measure(count: int = 3, profile: str = "mini") -> dict:
    "Run until there are `count` runs of what is here."
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    state = {"code and settings": home().name, "profile": profile}
    if found.get("state") != state: found = {"state": state, "runs": []}
    for _ in range(max(1, count - len(found["runs"]))):
        if len(found["runs"]) < count: found["runs"].append(one_run(profile))
        mine, locked = found["runs"][0]["digests"], output_digests(ROOT)  # the lock may be another by now
        unlike = sorted(path for path in mine.keys() & locked.keys() if mine[path] != locked[path])  # a lock knows one profile
        found |= {"outputs": len(mine), "different": differing(found["runs"]), "unlike the lock": unlike}
        write_json(FIGURES, found)
        print({name: value for name, value in found["runs"][-1].items() if name != "digests"}, f"different: {found['different']}, unlike the lock: {unlike}", flush=True)
    return found


if __name__ == "__main__": measure(*(kind(word) for kind, word in zip((int, str), sys.argv[1:])))
