"The wiring of dvc.yaml, and the whole pipeline at its smallest size in a fresh clone."
import ast, json, os, re, shlex, shutil, signal, subprocess, sys, time
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
TEACHER = PARAMS["teacher"]

# Modules that are imported on the way to others, but have no part in what a stage computes: they act in a later stage, or their whole effect
# is in the data that the stage reads (which is a dependency itself).
MAKERS = {"simulator", "scenes", "worldmodels", "transport"}
UNUSED = {
    "scenes": {"worldmodels", "transport", "tasks", "rewards"},
    "imagine": {"transport", "tasks", "rewards"},
    "sft": MAKERS | {"rewards"}, "grpo": MAKERS, "controls": MAKERS, "evaluate": MAKERS, "report": {"sft", "grpo"}, "ablation": MAKERS,
    "fidelity": {"dataset", "transport", "tasks", "rewards", "evaluation", "report"},
}
# Teachers that a stage opens by their name, which an import does not show.
OPENED = {"imagine": {"svc_teacher"}, "comparison": {"svc_teacher"}}


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


def reached(path: str, unused: set, opened: set) -> set:
    "Modules that a file imports or that are `opened` by name, and those that these import, and so on, except through `unused` ones."
    found, todo = set(), list((imports(path) | opened) - unused)
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
    kind = stage.split("@")[0]
    wanted = {notebook(stage)} | {f"world2vlm/{m}.py" for m in reached(notebook(stage), UNUSED.get(kind, set()), OPENED.get(kind, set()))}
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


def test_units_agree():
    "A student is asked in the unit that it was taught."
    from world2vlm.core.config import load_settings
    from world2vlm.evaluation.held_out import Evaluate
    from world2vlm.students.grpo import GRPO
    from world2vlm.students.sft import SFT
    for profile in PARAMS["profiles"]:
        for arm in PARAMS["arms"]:
            assert len({load_settings(cls, name, profile, arm).box_format for name, cls in (("sft", SFT), ("grpo", GRPO), ("evaluate", Evaluate))}) == 1


def test_rooms_of_the_exam_are_unseen():
    "Scenes, questions and label checks take rooms of different numbers."
    from world2vlm.core.config import load_settings
    from world2vlm.dataset.synthesis import HeldOut, Scenes
    from world2vlm.evaluation.label_audit import LabelAudit
    from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark
    for profile in PARAMS["profiles"]:
        own, train, exam, labels = load_settings(RoomsBenchmark, "transitions", profile).scenes, load_settings(Scenes, "scenes", profile), load_settings(HeldOut, "questions", profile).scenes, load_settings(LabelAudit, "labels", profile)
        spans = [range(train.first, train.first + train.n), range(exam.first, exam.first + exam.n),
                 range(own.first, own.first + own.n), range(labels.scenes.first, labels.scenes.first + 5_000 * labels.parts)]
        assert not any(set(a) & set(b) for i, a in enumerate(spans) for b in spans[:i]), profile


# A killed stage, run again, ends with the bytes of a run that nobody disturbed.
STAGE = """
import sys
from world2vlm.actions import Ranges
from world2vlm.generation import *
near = Imagine(presets={"single": 2, "forward_turn": 1}, ranges=Ranges((0.2, 1.5, 0.1), (10, 60, 10)))
which, home, out = sys.argv[1:]
if which == "scenes": make_scenes(Scenes(n=24, per_shard=4), out)
if which == "imagine": imagine(near, "reprojection", home + "/scenes", out)
if which == "supervise": supervise(Supervise(), home + "/scenes", home + "/imagine", out)
"""


def start(which: str, home: Path, out: Path) -> subprocess.Popen:
    "One stage in a process of its own."
    return subprocess.Popen([sys.executable, "-c", STAGE, which, str(home), str(out)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def made(folder: Path) -> dict: return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "Outputs of three stages that ran to their end."
    home = tmp_path_factory.mktemp("undisturbed")
    for which in ("scenes", "imagine", "supervise"):
        process = start(which, home, home / which)
        assert process.wait() == 0, process.stderr.read().decode()
    return home


@pytest.mark.parametrize("which", ["scenes", "imagine", "supervise"])
def test_kill_and_resume(undisturbed, tmp_path, which):
    out, partial = tmp_path / which, tmp_path / f"{which}.partial"
    process = start(which, undisturbed, out)
    while process.poll() is None and len(list(partial.glob("*.parquet"))) < 2: time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in partial.glob("*.parquet")}
    assert not out.exists() and 2 <= len(done) < 6, "the kill came too late to tell anything"
    again = start(which, undisturbed, out)
    assert again.wait() == 0, again.stderr.read().decode()
    assert all((out / p.name).stat().st_mtime_ns == t for p, t in done.items()), "finished shards are not made again"
    assert made(out) == made(undisturbed / which) and not partial.exists()


def test_other_code_or_settings_start_afresh(tmp_path):
    from world2vlm.core.stages import atomic_dir
    with pytest.raises(RuntimeError):
        with atomic_dir(tmp_path / "out", "one") as work:
            (work / "shard").write_text("old")
            raise RuntimeError
    with atomic_dir(tmp_path / "out", "two") as work: assert not (work / "shard").exists()


def test_several_processes_give_the_same_bytes(undisturbed, tmp_path):
    from world2vlm.dataset.synthesis import Scenes, make_scenes
    make_scenes(Scenes(n=24, per_shard=4, workers=2), tmp_path / "scenes")
    assert made(tmp_path / "scenes") == made(undisturbed / "scenes")


# The whole pipeline, as a stranger would run it.
MAIN = ["report", "labels"]


def run(clone: Path, *words: str) -> str:
    "A command in the clone, with its own library and this environment's tools."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def changed(clone: Path) -> set:
    "Stages of the main arm that would run now, by their own changes."
    return {name.removeprefix("dvc.yaml:") for name in json.loads(run(clone, "dvc", "status", "--json", "--with-deps", *MAIN))}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A fresh clone of what is here, tracked or about to be, at the size `smoke`, after `dvc repro`."
    clone = tmp_path_factory.mktemp("clone") / "world2vlm"
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "copy"]): run(clone, "git", *words)
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(re.sub(r"^profile: \w+", "profile: smoke", text, flags=re.M))
    run(clone, "dvc", "repro", *MAIN)
    return clone


def test_smoke_makes_report_and_metrics(clone):
    page = (clone / "data/smoke/report/index.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "Not part of this run" not in page
    expected = {"scenes", f"imagine-{TEACHER}", f"supervise-{TEACHER}", "questions", "labels", "sft-bidirectional", "grpo-bidirectional", "controls",
                "evaluate-bidirectional", "report"}
    found = {p.stem: json.loads(p.read_text()) for p in (clone / "data/smoke/metrics").glob("*.json")}
    assert found.keys() == expected and all(m["cost"]["seconds"] > 0 for m in found.values())
    assert {"base", "majority", "sft", "grpo", "blind"} == set(found["report"]["made"]["results"])


def test_smoke_leaves_git_alone(clone):
    "All that a run writes is ignored, or is meant to be committed."
    run(clone, "git", "add", "-A")
    data = run(clone, "git", "ls-files", "data").split()
    assert all(d.startswith(("data/base/", "data/teacher/")) or d == "data/speed.json" or "/metrics/" in d for d in data)


def test_smoke_data_sets_are_valid(clone):
    from world2vlm.dataset.shards import validate_dataset
    for kind, folder in (("scenes", "scenes"), ("rollouts", f"rollouts/{TEACHER}"), ("examples", f"examples/{TEACHER}"), ("examples", "questions")):
        assert validate_dataset(kind, clone / "data/smoke" / folder) == []


def test_smoke_comparison_asks_the_student_alone_and_coupled(clone):
    run(clone, "dvc", "repro", "comparison")
    found = json.loads((clone / "data/smoke/metrics/comparison.json").read_text())["made"]["results"]
    assert set(found) == {"transitions"} and {"base", "SFT", "SFT + GRPO", "blind", "coupled 1"} <= set(found["transitions"])
    page = (clone / "data/smoke/comparison/index.html").read_text()
    assert "paper: base" in page and "72.67" in page and "data:image/png" in page


@pytest.mark.parametrize("name,made", [("base", "probe.json"), ("teacher", "samples-2.png")])
def test_models_are_made_from_nothing(clone, name, made):
    "`make base` and `make teacher`, at smoke size: a checkpoint, its settings, and what it can do."
    out = f"data/smoke/{name}"
    run(clone, sys.executable, "-m", "papermill", "-k", "python3", "-p", "profile", "smoke", "-p", "out", out, f"nbs/pipeline/{name}.ipynb", f"data/smoke/notebooks/{name}.ipynb")
    assert json.loads((clone / out / "made.json").read_text())["command"] == f"make {name}" and (clone / out / made).exists()


def test_second_repro_does_nothing(clone):
    start = time.perf_counter()
    out = run(clone, "dvc", "repro", *MAIN)
    assert "Running stage" not in out and "up to date" in out
    assert time.perf_counter() - start < 60  # 2 s on an idle machine


def test_an_arm_reruns_alone(clone):
    "Changing a parameter of one arm concerns the stages of this arm, and no stage that makes data."
    before, path = changed(clone), clone / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"bidirectional: {{teacher: {TEACHER}}}", f"bidirectional: {{teacher: {TEACHER}, grpo: {{seed: 7}}}}"))
    assert changed(clone) - before == {"sft@bidirectional", "grpo@bidirectional", "evaluate@bidirectional"}
    path.write_text(text)
    assert changed(clone) == before == set()


def test_smoke_fidelity_judges_the_shipped_teacher(clone):
    run(clone, "dvc", "repro", "fidelity")
    found = json.loads((clone / "data/smoke/metrics/fidelity.json").read_text())["made"]
    assert found["views"] == sum(row["n"] for row in found["by size"] if row["amount"] is None) > 0
    assert found["packing"]["released"]["views"] > 10 * found["packing"]["packed"]["views"]
