"The wiring of dvc.yaml, and the whole pipeline at its smallest size in a fresh clone."
import ast, json, os, re, shlex, subprocess, sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())

# Modules that are imported on the way to others, but have no part in what a stage computes: they act in a later stage, or their whole effect
# is in the data that the stage reads (which is a dependency itself).
MAKERS = {"simulator", "scenes", "worldmodels", "transport"}
UNUSED = {
    "scenes": {"worldmodels", "transport", "tasks", "rewards"},
    "imagine": {"transport", "tasks", "rewards"},
    "sft": MAKERS | {"rewards"}, "grpo": MAKERS, "controls": MAKERS, "evaluate": MAKERS, "report": {"sft", "grpo"}, "ablation": MAKERS,
}


@cache
def stages() -> dict:
    "The stages of dvc.yaml with their templates filled in: name -> (command line of the notebook, deps, outs, params)."
    from dvc.repo import Repo
    with Repo(str(ROOT)) as repo: found = repo.index.stages
    return {s.addressing: dict(words=shlex.split(s.cmd[-1]), mkdir=s.cmd[0], deps={d.def_path for d in s.deps if d.def_path != "params.yaml"},
                               outs={o.def_path for o in s.outs}) for s in found}


def notebook(stage: str) -> str: return stages()[stage]["words"][-2]
def given(stage: str) -> dict: return dict(re.findall(r"-p (\S+) (\S+)", " ".join(stages()[stage]["words"])))


def cells(path: str) -> list: return json.loads((ROOT / path).read_text())["cells"]


def code(path: str) -> str:
    "The Python of a module or notebook, magics left out."
    if not path.endswith(".ipynb"): return (ROOT / path).read_text()
    lines = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


@cache
def imports(path: str) -> frozenset:
    "Modules of the library that a file imports, at its top or inside a function."
    found = set()
    for n in ast.walk(ast.parse(code(path))):
        if isinstance(n, ast.ImportFrom) and (n.level == 1 or n.module == "world2vlm") and n.module in (None, "world2vlm"): found |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom) and (n.level == 1 or (n.module or "").startswith("world2vlm.")): found.add(n.module.split(".")[-1])
        elif isinstance(n, ast.Import): found |= {a.name.split(".")[1] for a in n.names if a.name.startswith("world2vlm.")}
    return frozenset(found)


def reached(path: str, unused: set) -> set:
    "Modules that a file imports, and those that these import, and so on, except through `unused` ones."
    found, todo = set(), list(imports(path) - unused)
    while todo:
        module = todo.pop()
        if module in found: continue
        found.add(module)
        todo += imports(f"world2vlm/{module}.py") - unused
    return found


STAGES = sorted(stages())


@pytest.mark.parametrize("stage", STAGES)
def test_code_is_a_dependency(stage):
    "A stage depends on its notebook and on the modules that compute its result: no fewer, no more."
    wanted = {notebook(stage)} | {f"world2vlm/{m}.py" for m in reached(notebook(stage), UNUSED.get(stage.split("@")[0], set()))}
    listed = {d for d in stages()[stage]["deps"] if not d.startswith("data/")}
    assert listed == wanted, f"{stage}: missing {sorted(wanted - listed)}, superfluous {sorted(listed - wanted)}"


@pytest.mark.parametrize("path", sorted({notebook(s) for s in STAGES} | {f"nbs/pipeline/{p.name}" for p in (ROOT / "nbs/pipeline").glob("*.ipynb")}))
def test_one_parameters_cell_of_strings(path):
    "Papermill only warns when the tag is missing or a name is wrong, and then runs with the defaults."
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for line in "".join(tagged[0]["source"]).splitlines(): assert re.fullmatch(r'\w+ = "[^"]*"', line), line


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_known(stage):
    [tagged] = [c for c in cells(notebook(stage)) if "parameters" in c["metadata"].get("tags", [])]
    names = re.findall(r"^(\w+) = ", "".join(tagged["source"]), re.M)
    assert set(given(stage)) == set(names), "each parameter of a notebook is given, so that no default decides a run"


@pytest.mark.parametrize("stage", STAGES)
def test_command(stage):
    words, outs = stages()[stage]["words"], stages()[stage]["outs"]
    assert words[:5] == ["python", "-m", "papermill", "-k", "python3"]
    assert words[-1] in outs and stages()[stage]["mkdir"] == f"mkdir -p {os.path.dirname(words[-1])}"
    assert given(stage)["out"] in outs | {os.path.dirname(o) for o in outs}


def test_data_comes_from_a_stage_or_from_git():
    "No hidden input: each data dependency is the output of a stage, or committed."
    outs = set().union(*(s["outs"] for s in stages().values()))
    read = {d for s in stages().values() for d in s["deps"] if d.startswith("data/")}
    tracked = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [d for d in sorted(read - outs) if not any(t.startswith(d) for t in tracked)] == []


@pytest.mark.parametrize("profile", PARAMS["profiles"])
def test_every_profile_names_every_section(profile):
    "DVC refuses a parameter that is not there, so a profile that changes nothing in a section says so."
    assert set(PARAMS["profiles"][profile]) == set(PARAMS) - {"profile", "profiles", "teacher", "teachers", "arm", "arms"}
