"""Settings of GRPO from one SFT student: `python tests/grpo_settings.py ARM [PROFILE]` trains each of VARIANTS and asks it, beside the SFT student, questions about rooms that no stage
uses, so that the held-out questions choose nothing. Figures in data/grpo_settings.json; a second call goes on where the first one ended."""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from world2vlm.core.config import load_params, load_settings, repo_root
from world2vlm.core.runs import rounded, write_json
from world2vlm.core.stages import atomic_dir, fingerprint
from world2vlm.dataset.synthesis import HeldOut, make_held_out
from world2vlm.evaluation.held_out import Evaluate, _run_student
from world2vlm.evaluation.statistics import _paired_difference, score_rows
from world2vlm.students.grpo import GRPO, train_grpo
from world2vlm.students.launch import launch_distributed
from world2vlm.students.training import read_training_log

ROOMS = 850_000  # the first room of the questions
VARIANTS = {  # name -> what differs from the section `grpo`
    "as set": {},
    "learning rate x 5": {"learning_rate": 1e-4},
    "four times the questions": {"learning_rate": 4e-5, "limit": 3200},
    "exact answers rewarded": {"learning_rate": 4e-5, "exact_weight": 0.9},
    "exact answers of the tasks that vary": {"learning_rate": 4e-5, "exact_weight": 0.9, "tasks": ("A1", "A3", "D1", "D4")},
}
WATCHED = {"reward": "reward", "kl": "kl", "entropy": "entropy", "equal groups": "frac_reward_zero_std"}


def measure(arm: str, profile: str = "mini") -> dict:
    "Train and ask every variant."
    os.chdir(repo_root())
    grpo, evaluate, held_out = (load_settings(cls, name, profile, arm) for cls, name in ((GRPO, "grpo"), (Evaluate, "evaluate"), (HeldOut, "held_out")))
    home, start = Path(f"data/{profile}/grpo_settings/{arm}"), f"data/{profile}/sft/{arm}"
    examples, questions = f"data/{profile}/examples/{load_params()['arms'][arm]['teacher']}", str(home / "questions")
    if not Path(questions).is_dir(): make_held_out(replace(held_out, scenes=replace(held_out.scenes, first=ROOMS)), questions)
    def ask(checkpoint, name): return _run_student(evaluate, checkpoint, questions, {name: False}, home)[name]
    def by_task(rows): return {task: cell["score"] for task, cell in score_rows(rows)["exactly right"]["tasks"].items()}
    reference, found = ask(start, "SFT"), {}
    for name, other in VARIANTS.items():
        config, out = replace(grpo, **other), home / name.replace(" ", "_")
        if not out.is_dir():  # `atomic_dir` brings it here when it is whole
            with atomic_dir(out, fingerprint(config, start, examples, stage=train_grpo)) as work: launch_distributed(train_grpo, config, start, examples, str(work))
        log, rows = [line for line in read_training_log(out) if "reward" in line], ask(str(out), name)
        ends = {title: [sum(line.get(key, 0) for line in part) / len(part) for part in (log[:5], log[-5:])] for title, key in WATCHED.items()}
        over = {key: value for key, value in _paired_difference(rows, reference).items() if key != "tasks"}
        found[name] = {"settings": {key: str(value) for key, value in other.items()}, "steps": log[-1]["step"], "tasks": by_task(rows), "over SFT": over, "first and last steps": ends}
        print(name, json.dumps(rounded(found[name])), flush=True)
        write_json("data/grpo_settings.json", rounded({"arm": arm, "profile": profile, "first room": ROOMS, "SFT": by_task(reference), "variants": found}))
    return found


if __name__ == "__main__": measure(*sys.argv[1:])
