"""Settings that only a large run would exercise. Every key of the profiles `gpu` and `paper` has in a run that takes place here (smoke and mini on a
laptop, rehearsal with toys) the same value, or is a count or a model, which are small there."""
import re

import pytest
import yaml

from smoke_tree import ROOT
from test_paper import flat
from test_rehearsal import STAGES
from world2vlm.core.config import _merged

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
RUNS = ("smoke", "mini", "rehearsal")
COUNTS = re.compile(r"(^|\.)(n|per_shard|steps|check_every|log_every|snapshot_every|workers|processes|limit|parts|anchors|turns|moves|packing|questions|per_scene|transitions|batch_size|gradient_accumulation_steps|"
                    r"grpo_per_task|max_completion_length|max_new_tokens|curriculum|presets\.\w+|per_room)$")
MODELS = re.compile(r"(^|\.)(checkpoint|masks|folder|device|sources\.\w+)$")  # and the device they run on
GATE = re.compile(r"\.(filters\.svc|filter)\.(inliers|sharpness|agreement)$|^supervise\.hallucinations\.(confidence|min_iou)$")  # views of a toy are noise and pass no gate
# Keys that no run exercises for a reason that is no count and no model: key -> the reason.
KNOWN: dict[str, str] = {}


def of_run(profile: str) -> dict:
    "All settings of a profile, by dotted name."
    sections = PARAMS.keys() - {"profile", "profiles", "teachers", "arms"}
    return flat({name: _merged({name: PARAMS[name]}, {name: PARAMS["profiles"][profile].get(name)})[name] for name in sections})


def same(a, b) -> bool: return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)


def exercised(profile: str) -> dict[str, str]:
    "Each key that `profile` states -> how a run that takes place here exercises it: \"same value\", \"count, model or gate\", a reason, or \"\" for not at all."
    runs, how = [of_run(run) for run in RUNS], {}
    for key, value in flat({name: part for name, part in PARAMS["profiles"][profile].items() if part}).items():
        values = [run[key] for run in runs if key in run]
        small = values and (COUNTS.search(key) or MODELS.search(key) or GATE.search(key))
        how[key] = "same value" if any(same(value, other) for other in values) else "count, model or gate" if small else KNOWN.get(key, "")
    return how


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_every_key_of_a_large_run_is_exercised(profile):
    missing = [key for key, how in exercised(profile).items() if not how]
    assert missing == [], "no run exercises these: give `rehearsal` the value, or state the reason in KNOWN"


def test_rehearsal_is_paper_but_for_models_and_counts():
    paper, rehearsal = of_run("paper"), of_run("rehearsal")
    assert paper.keys() == rehearsal.keys()
    other = {key: (paper[key], rehearsal[key]) for key in paper if not same(paper[key], rehearsal[key])}
    assert {key for key in other if not (COUNTS.search(key) or MODELS.search(key) or GATE.search(key))} == set()
    numbers = {key: pair for key, pair in other.items() if COUNTS.search(key) and all(isinstance(n, int | float) for n in pair)}
    assert all(small < large or large == 0 for large, small in numbers.values()), "a count is smaller in the rehearsal"


def test_every_section_has_a_stage_that_the_rehearsal_runs():
    "A section that a stage of the rehearsal reads; `base` and `svc` have commands of their own, which run at the size `smoke`."
    from dvc.repo import Repo
    with Repo(str(ROOT)) as repo: stages = {stage.addressing: stage for stage in repo.index.stages}
    by_out = {out.def_path: stage for stage in stages.values() for out in stage.outs}
    todo, read, reached = list(STAGES), set(), set()
    while todo:
        name = todo.pop()
        if name in reached: continue
        reached.add(name)
        for dep in stages[name].deps:
            read |= {section.split(".")[0] for section in getattr(dep, "params", ()) or ()}
            todo += [stage.addressing for out, stage in by_out.items() if dep.def_path == out or str(dep.def_path).startswith(f"{out}/")]
    assert PARAMS.keys() - {"profile", "profiles", "teachers", "arms"} - read == {"base", "svc"}
