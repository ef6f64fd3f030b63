"Every stage of the profile `smoke`, stopped at a random moment and run again: the bytes of a run that nobody stopped, and no process left."
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from smoke_tree import ROOT, copy_repository, home, run, stage_command, stop_stage

from world2vlm.core.runs import append_jsonl, read_jsonl, write_json

ARM, TRIALS = "bidirectional", 100
STAGES = ["scenes", "annotate", "imagine@svc", "imagine@simulator", "imagine@smoothed", "supervise@svc", "supervise@simulator", "supervise@smoothed",
          "held_out", "rooms_benchmark", "real_turns", "mix@mixed", "label_audit", f"sft@{ARM}", f"grpo@{ARM}", "evaluate_base", f"evaluate@{ARM}", "transfer_base", f"transfer@{ARM}",
          f"report@{ARM}", f"comparison@{ARM}", "ablation", "teacher_quality@svc", "base", "teacher"]
MADE_BY_FILE = {f"report@{ARM}", "ablation", "base", "teacher"}  # their notebooks add files to a folder one by one
DEAR = {f"comparison@{ARM}", "teacher_quality@svc", "base"}  # a minute each
OTHER_ARMS = sorted(yaml.safe_load((ROOT / "params.yaml").read_text())["arms"].keys() - {ARM})
METRICS = ROOT / "tests/metrics/kills.json"
pytestmark = pytest.mark.fuzz


@contextmanager
def alone(name: str):
    "One process at a time."
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def outputs(tree: Path, stage: str) -> list[str]:
    "What a stage makes, without the files of costs; the notebook of `base` and of `teacher` shows times."
    if stage in ("base", "teacher"): return [f"data/smoke/{stage}"]
    from dvc.repo import Repo
    with Repo(str(tree)) as repo: return [o.def_path for s in repo.index.stages if s.name == stage for o in s.outs]


def content(path: Path) -> bytes:
    "Of a file, without the cost that `made.json` of a shipped model names."
    if path.name != "made.json": return path.read_bytes()
    return json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "cost"}).encode()


def digests(tree: Path, stage: str) -> dict[str, str]:
    "Path -> digest of every file that a stage has made."
    found = [p for o in map(tree.joinpath, outputs(tree, stage)) for p in (sorted(o.rglob("*")) if o.is_dir() else [o]) if p.is_file()]
    return {str(p.relative_to(tree)): hashlib.sha256(content(p)).hexdigest() for p in found}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def leftovers(tree: Path) -> set[str]:
    "Unfinished folders, locks and temporary files."
    return {str(p.relative_to(tree)) for p in (tree / "data").rglob("*") if p.name.endswith((".partial", ".old", ".lock", ".tmp"))}


@pytest.fixture(scope="module")
def reference() -> dict:
    "Every stage once, undisturbed: stage -> seconds, digests."
    with alone("reference"):
        tree, note = home() / "reference", home() / "reference.json"
        if not note.exists():
            for other in home().parent.iterdir():  # of other states of the repository, and a reference that was not finished
                if other != home(): shutil.rmtree(other)
            if tree.exists(): shutil.rmtree(tree)
            run(copy_repository(tree), "dvc", "repro", "inputs")
            found = {}
            for stage in STAGES:
                if stage == "ablation":  # the folders of its other arms are those of the first
                    for folder in ("answers", "transfer"):
                        for arm in OTHER_ARMS: shutil.copytree(tree / "data/smoke" / folder / ARM, tree / "data/smoke" / folder / arm)
                whole = stop_stage(tree, stage, "", float("inf"))
                assert whole["late"], whole["log"]
                found[stage] = {"seconds": whole["seconds"], "digests": digests(tree, stage)}
            write_json(note, found)
        return json.loads(note.read_text())


@pytest.fixture(scope="module")
def tree(reference) -> Path:
    "A copy of the finished tree, of this worker alone."
    path = home() / f"tree-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    if path.exists(): shutil.rmtree(path)  # of a session that was stopped in the middle of a trial
    return Path(shutil.copytree(home() / "reference", path, symlinks=True))


@cache
def plan() -> list[tuple[str, str, float]]:
    "Stage, signal and moment of every trial: stages in turn, dear ones every fourth time; signals in turn; moments uniform in the stage."
    rng, found, turns = np.random.default_rng(7), [], Counter()
    for stage in (stage for turn in range(TRIALS) for stage in STAGES if turn % 4 == 0 or stage not in DEAR):
        turn, place = turns[stage], STAGES.index(stage)
        how = "Ctrl-C" if (turn + place) % 2 else ("kill -9 kernel", "kill -9 papermill")[(turn + place) // 2 % 2]
        found.append((stage, how, float(rng.uniform())))
        turns[stage] += 1
    return found[:TRIALS]


def half_made(tree: Path, stage: str, whole: dict[str, str]) -> list[str]:
    "Outputs that stand at their final place and are not those of the whole run; a notebook is written as it runs."
    found, wrong = digests(tree, stage), []
    for out in outputs(tree, stage):
        of = lambda files: {path: digest for path, digest in files.items() if path == out or path.startswith(f"{out}/")}
        if out.endswith(".ipynb") or not (tree / out).exists(): continue
        equal = of(found).items() <= of(whole).items() if stage in MADE_BY_FILE else of(found) == of(whole)
        if not equal: wrong.append(out)
    return wrong


def trial(tree: Path, number: int, seconds: float, whole: dict[str, str]) -> dict:
    "Stop a stage, look at what is left, run it again and compare. One that ended before the signal is stopped earlier."
    stage, how, moment = plan()[number]
    known, late = leftovers(tree), 0
    while True:
        for out in outputs(tree, stage): remove(tree / out)
        stopped = stop_stage(tree, stage, how, moment * seconds)
        if not stopped["late"]: break
        moment, late = .8 * moment, late + 1
    half = half_made(tree, stage, whole)
    run(tree, *stage_command(stage))
    found = digests(tree, stage)
    differing = sorted(path for path in found.keys() | whole.keys() if found.get(path) != whole.get(path))
    row = {"trial": number, "stage": stage, "how": how, "moment": round(moment, 3), "late": late, "left": stopped["left"], "gone after": stopped["gone after"], "half made": half,
           "differing": differing, "leftovers": sorted(leftovers(tree) - known), "log": stopped["log"]}
    if differing: keep_and_restore(tree, stage, number)
    return row


def keep_and_restore(tree: Path, stage: str, number: int) -> None:
    "Keep what differs for a look at it, and give the stages after this one the undisturbed result."
    for out in outputs(tree, stage):
        kept = home() / f"differing-{number}" / out
        kept.parent.mkdir(parents=True, exist_ok=True)
        if (tree / out).exists(): shutil.move(tree / out, kept)
        source = home() / "reference" / out
        shutil.copytree(source, tree / out) if source.is_dir() else shutil.copy(source, tree / out)


def figures(rows: list[dict]) -> dict:
    "What the trials have shown, stage by stage."
    def count(rows):
        signals = Counter(row["how"] for row in rows)
        return {"interruptions": len(rows), **signals, "resumed equal": sum(not row["differing"] for row in rows), "differing": sum(bool(row["differing"]) for row in rows),
                "half made": sum(bool(row["half made"]) for row in rows), "processes left": sum(len(row["left"]) for row in rows)}
    pairs = {row["pair"]: row["mixed"] for row in read_jsonl(home() / "pairs.jsonl")}  # of test_writers.py
    return {"all": count(rows), "pairs of runs into one folder": {"pairs": len(pairs), "mixed data sets": sum(pairs.values())},
            "stages": {stage: count([row for row in rows if row["stage"] == stage]) for stage in STAGES}}


@pytest.mark.parametrize("number", range(TRIALS))
def test_a_stopped_stage_run_again_gives_the_same_bytes(reference, tree, number):
    results, stage = home() / "trials.jsonl", plan()[number][0]
    row = next((row for row in read_jsonl(results) if row["trial"] == number), None)
    if row is None:
        row = trial(tree, number, reference[stage]["seconds"], reference[stage]["digests"])
        with alone("results"):
            rows = read_jsonl(append_jsonl(results, [row]))
            if len(rows) == TRIALS: write_json(METRICS, figures(rows))
    assert not (row["left"] or row["half made"] or row["differing"] or row["leftovers"]), row
