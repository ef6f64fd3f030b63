"The wiring of dvc.yaml, and the whole pipeline at its smallest size in a fresh clone."
import json, os, re, shlex, shutil, signal, subprocess, sys, time
from functools import cache
from pathlib import Path

import pytest
import yaml

from smoke_tree import ROOT, copy_repository, run, stage_command, stop_stage

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
ARM = "bidirectional"
TEACHER = PARAMS["arms"][ARM]["teacher"]

@cache
def stages() -> dict:
    "The stages of dvc.yaml that run a notebook, with their templates filled in: name -> (command line of the notebook, deps, outs, params)."
    from dvc.repo import Repo
    with Repo(str(ROOT)) as repo: found = repo.index.stages
    return {s.addressing: dict(mkdir=s.cmd[0], words=shlex.split(s.cmd[1]), strip=s.cmd[2], deps={d.def_path for d in s.deps if d.def_path != "params.yaml"},
                               outs={o.def_path for o in s.outs}) for s in found if s.addressing != "inputs"}


def notebook(stage: str) -> str: return stages()[stage]["words"][-2]
def given(stage: str) -> dict: return dict(re.findall(r"-p (\S+) (\S+)", " ".join(stages()[stage]["words"])))


def cells(path: str) -> list: return json.loads((ROOT / path).read_text())["cells"]


STAGES = sorted(stages())


def test_modules_are_dependencies(tmp_path):
    "The lists of modules in dvc.yaml are what `make sync` writes from the imports of the notebooks."
    from world2vlm.core.stages import sync_dependencies
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "nbs").symlink_to(ROOT / "nbs")
    assert not sync_dependencies(tmp_path / "dvc.yaml"), "run `make sync`"


def test_a_stage_depends_on_the_code_that_makes_its_result():
    "What is opened by name counts; what only later stages use does not."
    listed = {name: {d for d in s["deps"] if d.startswith("world2vlm/")} for name, s in stages().items()}
    assert {"world2vlm/teachers/svc/teacher.py", "world2vlm/teachers/svc/unet.py"} <= listed["imagine@svc"]
    assert "world2vlm/teachers/svc/unet.py" not in listed["held_out"] and not any("/students/" in d for d in listed["imagine@svc"])
    assert {"world2vlm/students/sft.py"} <= listed[f"sft@{ARM}"] and "world2vlm/scenes/rendering.py" not in listed[f"sft@{ARM}"]
    assert all(d for d in listed.values())


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
    assert stages()[stage]["strip"] == f"python -m world2vlm.core.stages {words[-1]}"
    assert words[-1] in outs and stages()[stage]["mkdir"] == f"mkdir -p {os.path.dirname(words[-1])}"
    assert given(stage)["out"] in outs | {os.path.dirname(o) for o in outs}


def test_data_comes_from_a_stage_or_from_git():
    "No hidden input: each data dependency is the output of a stage, or committed."
    outs = set().union(*(s["outs"] for s in stages().values()))
    read = {d for s in stages().values() for d in s["deps"] if d.startswith("data/") and "/inputs/" not in d}
    tracked = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [d for d in sorted(read - outs) if not any(t.startswith(d) for t in tracked)] == []


def test_a_stage_depends_on_what_its_sections_name():
    "What a section of params.yaml names reaches DVC through the digests that the stage `inputs` writes."
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        stage = stage.get("do", stage)
        named = {f"data/${{profile}}/inputs/{p}.json" for p in stage.get("params", ()) if "." not in p and p != "arms"}
        assert named <= set(stage.get("deps", ())), name


@pytest.mark.parametrize("profile", PARAMS["profiles"])
def test_every_profile_names_every_section(profile):
    "DVC refuses a parameter that is not there, so a profile that changes nothing in a section says so."
    assert set(PARAMS["profiles"][profile]) == set(PARAMS) - {"profile", "profiles", "teachers", "arms"}


def test_box_formats_agree():
    "A student is asked in the box format that it was taught."
    from world2vlm.core.config import load_settings
    from world2vlm.evaluation.held_out import Evaluate
    from world2vlm.students.grpo import GRPO
    from world2vlm.students.sft import SFT
    for profile in PARAMS["profiles"]:
        for arm in PARAMS["arms"]:
            taught = {load_settings(cls, name, profile, arm, PARAMS).box_format for name, cls in (("sft", SFT), ("grpo", GRPO))}
            assert taught == {load_settings(Evaluate, "evaluate", profile, None, PARAMS).box_format}


def test_held_out_rooms_are_unseen():
    "Training, held-out questions, the benchmark, the label audit and the study of annotations take rooms of different numbers."
    from world2vlm.core.config import load_settings
    from world2vlm.dataset.synthesis import HeldOut, Scenes
    from world2vlm.evaluation.annotation_errors import AnnotationErrors
    from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark
    from world2vlm.evaluation.label_audit import LabelAudit
    for profile in PARAMS["profiles"]:
        audit = load_settings(LabelAudit, "label_audit", profile)
        rooms = [AnnotationErrors().scenes, load_settings(Scenes, "scenes", profile), load_settings(HeldOut, "held_out", profile).scenes,
                 load_settings(RoomsBenchmark, "rooms_benchmark", profile).scenes]
        spans = [range(s.first, s.first + s.n) for s in rooms] + [range(audit.scenes.first, audit.scenes.first + 5_000 * audit.parts)]
        assert not any(set(a) & set(b) for i, a in enumerate(spans) for b in spans[:i]), profile


# A killed stage, run again, ends with the bytes of a run that nobody disturbed.
STAGE = """
import sys
from world2vlm.core.actions import Ranges
from world2vlm.dataset.synthesis import *
near = Imagine(presets={"single": 2, "forward_turn": 1}, ranges=Ranges((0.2, 1.5, 0.1), (10, 60, 10)))
which, home, out = sys.argv[1:]
if which == "scenes": make_scenes(Scenes(n=24, per_shard=4), out)
if which == "imagine": make_rollouts(near, "reprojection", home + "/scenes", out)
if which == "supervise": make_questions(Supervise(), home + "/scenes", home + "/imagine", out)
"""


def start(which: str, home: Path, out: Path) -> subprocess.Popen:
    "One stage in a process of its own."
    return subprocess.Popen([sys.executable, "-c", STAGE, which, str(home), str(out)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def made(folder: Path) -> dict: return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "Outputs of three stages that ran to their end."
    home = tmp_path_factory.mktemp("undisturbed")
    for which in ("scenes", "imagine", "supervise"):
        process = start(which, home, home / which)
        assert process.wait() == 0, process.stderr.read().decode()
    return home


@pytest.mark.parametrize("which", ["scenes", *(pytest.param(stage, marks=pytest.mark.proof) for stage in ("imagine", "supervise"))])
def test_kill_and_resume(undisturbed, tmp_path, which):
    out, partial = tmp_path / which, tmp_path / f"{which}.partial"
    process = start(which, undisturbed, out)
    while process.poll() is None and len(list(partial.glob("data/*.parquet"))) < 2: time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in partial.glob("data/*.parquet")}
    assert not out.exists() and 2 <= len(done) < 6, "the kill came too late to tell anything"
    again = start(which, undisturbed, out)
    assert again.wait() == 0, again.stderr.read().decode()
    assert all((out / "data" / p.name).stat().st_mtime_ns == t for p, t in done.items()), "finished shards are not made again"
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
MAIN = [f"report@{ARM}", "label_audit"]


def changed(clone: Path) -> set:
    "Stages of the main arm that would run now, by their own changes."
    return {name.removeprefix("dvc.yaml:") for name in json.loads(run(clone, "dvc", "status", "--json", "--with-deps", *MAIN))} - {"inputs"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A fresh clone at the size `smoke`, after `dvc repro`."
    clone = copy_repository(tmp_path_factory.mktemp("clone") / "world2vlm")
    run(clone, "dvc", "repro", *MAIN)
    return clone


def figures(clone: Path, name: str, kind: str = "metrics") -> dict: return json.loads((clone / f"data/smoke/{kind}/{name}.json").read_text())


def test_smoke_makes_report_and_metrics(clone):
    page = (clone / f"data/smoke/report/{ARM}/index.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "Not part of this run" not in page
    expected = {"scenes", "annotate", f"imagine-{TEACHER}", f"supervise-{TEACHER}", "held_out", "label_audit", "rooms_benchmark", "real_turns",
                f"sft-{ARM}", f"grpo-{ARM}", "evaluate_base", f"evaluate-{ARM}", "transfer_base", f"transfer-{ARM}"}
    assert {p.stem for p in (clone / "data/smoke/metrics").glob("*.json")} == expected
    assert {p.stem for p in (clone / "data/smoke/costs").glob("*.json")} == expected | {f"report-{ARM}"}
    assert all(figures(clone, name, "costs")["seconds"] > 0 for name in expected)
    assert set(figures(clone, f"evaluate-{ARM}")) == {"majority", "random", "sft", "grpo", "blind"} and set(figures(clone, "evaluate_base")) == {"base"}
    assert {"base", "majority", "sft", "grpo", "blind", "questions"} <= set(figures(clone, ARM, "headline"))
    assert {"headline.png", "scores.png", "imagined.png", "errors.png"} <= {p.name for p in (clone / f"data/smoke/pictures/{ARM}").iterdir()}


def test_smoke_leaves_git_alone(clone):
    "All that a run writes is ignored, or is meant to be committed."
    run(clone, "git", "add", "-A")
    data = run(clone, "git", "ls-files", "data").split()
    kept = ("/metrics/", "/costs/", "/headline/", "/pictures/")
    figures = {f"data/{name}.json" for name in ("speed", "annotate", "annotator_costs", "annotation_errors", "hallucinations", "grpo_settings")}
    assert all(d.startswith(("data/base/", "data/teacher/", "data/panoramas/", "data/calibration/")) or d in figures or any(k in d for k in kept) for d in data)
    assert not any(d.startswith("data/smoke/") for d in data)


def test_smoke_data_sets_are_valid(clone):
    from world2vlm.dataset.shards import validate_dataset
    for kind, folder in (("scenes", "scenes"), ("scenes", "annotated"), ("rollouts", f"rollouts/{TEACHER}"), ("examples", f"examples/{TEACHER}"), ("examples", "held_out")):
        assert validate_dataset(kind, clone / "data/smoke" / folder) == []


def test_hashed_outputs_hold_no_times(clone):
    "What DVC hashes does not depend on how fast the machine was."
    timed = re.compile(r"seconds|runtime|(samples|steps)_per_second|step_time|start_time|duration")
    hashed = [p for s in stages() for o in stages()[s]["outs"] for p in [clone / o.replace("data/mini", "data/smoke")] if p.exists()]
    texts = [p for o in hashed for p in (sorted(o.rglob("*")) if o.is_dir() else [o]) if p.suffix in (".json", ".jsonl", ".tsv", ".ipynb", ".md")]
    assert len(texts) > 20
    assert [str(p.relative_to(clone)) for p in texts if timed.search(p.name) or timed.search(p.read_text())] == []


def test_metrics_and_plots_fit_a_screen(clone):
    shown = run(clone, "dvc", "metrics", "show")
    assert shown.count("\n") < 12 and max(map(len, shown.splitlines())) < 160 and ARM in shown
    target = clone / "plots"
    run(clone, "dvc", "plots", "show", "-o", str(target))
    assert "SFT loss" in (target / "index.html").read_text() and "GRPO reward" in (target / "index.html").read_text()
    shutil.rmtree(target)


@pytest.mark.proof
def test_smoke_comparison_asks_the_student_alone_and_with_a_world_model(clone):
    run(clone, "dvc", "repro", f"comparison@{ARM}")
    found = figures(clone, f"comparison-{ARM}")["results"]
    assert set(found) == {"rooms"} and {"base", "SFT", "SFT + GRPO", "blind", "view search 1, svc"} <= set(found["rooms"])
    page = (clone / f"data/smoke/comparison/{ARM}/index.html").read_text()
    assert 'id="paper"' in page and "72.67" in page and "data:image/png" in page


@pytest.mark.proof
@pytest.mark.parametrize("name,result", [("base", "probe.json"), ("teacher", "samples-2.png")])
def test_models_are_made_from_scratch(clone, name, result):
    "`make base` and `make teacher`, at smoke size: a checkpoint, its settings, and what it can do."
    out = f"data/smoke/{name}"
    run(clone, sys.executable, "-m", "papermill", "-k", "python3", "-p", "profile", "smoke", "-p", "out", out, f"nbs/pipeline/{name}.ipynb", f"data/smoke/notebooks/{name}.ipynb")
    assert json.loads((clone / out / "made.json").read_text())["command"] == f"make {name}" and (clone / out / result).exists()


def test_outputs_that_differ_between_runs_are_named():
    from repeats import differing
    runs = [{"digests": {"a": "1", "b": "2"}}, {"digests": {"a": "1", "b": "3"}}, {"digests": {"a": "1", "b": "2", "c": "4"}}]
    assert differing(runs) == differing(runs[::-1]) == ["b", "c"] and differing(runs[:1]) == []


def test_second_repro_does_nothing(clone):
    start = time.perf_counter()
    out = run(clone, "dvc", "repro", *MAIN)
    assert re.findall(r"Running stage '(\S+)'", out) == ["inputs"], "its digests are taken anew, and are as they were"
    assert time.perf_counter() - start < 60  # 2 s on an idle machine


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("kill -9 papermill", marks=pytest.mark.proof)])
def test_a_stopped_stage_leaves_no_process_and_is_made_again(clone, how):
    "One moment of one stage; test_kills.py has a hundred moments of all stages. A fast machine may end the stage before the signal: then stop it earlier."
    out, before, moment = clone / "data/smoke/scenes", made(clone / "data/smoke/scenes"), 1.5
    while (stopped := stop_stage(clone, "scenes", how, moment))["late"]: moment *= .6
    assert not stopped["left"] and (not out.exists() or made(out) == before), stopped
    run(clone, *stage_command("scenes"))
    assert made(out) == before and not out.with_name("scenes.partial").exists()


@pytest.mark.proof
def test_a_setting_reruns_what_it_concerns(clone):
    "A GRPO setting of one arm leaves its SFT alone; a setting of SFT reruns both; neither touches the data."
    path = clone / "params.yaml"
    text, line = path.read_text(), re.search(rf"  {ARM}: .*\n", (clone / "params.yaml").read_text())[0]
    after = {"evaluate", "transfer", "report"}
    for section, stages_of in (("grpo", {"grpo"} | after), ("sft", {"sft", "grpo"} | after)):
        path.write_text(text.replace(line, line.replace(f"{section}: {{seed: 0", f"{section}: {{seed: 7")))
        assert changed(clone) <= {f"{name}@{ARM}" for name in stages_of} and f"{section}@{ARM}" in changed(clone)
    path.write_text(text)
    assert changed(clone) == set()


@pytest.mark.parametrize("override,section,name,value", [
    ("imagine.ranges.move=[0.2,0.4,0.1]", "imagine", "ranges", (0.2, 0.4, 0.1)), (f"arms.{ARM}.grpo.seed=9", "grpo", "seed", 9)])
def test_experiments_change_settings(tmp_path, override, section, name, value):
    "`dvc exp run -S` writes the value into params.yaml, and the stage reads it."
    from dvc.utils.hydra import apply_overrides
    from world2vlm.core.config import load_params, load_settings
    from world2vlm.dataset.synthesis import Imagine
    from world2vlm.students.grpo import GRPO
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", [override])
    config = load_settings({"imagine": Imagine, "grpo": GRPO}[section], section, "mini", ARM if section == "grpo" else None, load_params(tmp_path / "params.yaml"))
    assert (config.ranges.move if name == "ranges" else getattr(config, name)) == value


def test_the_arm_names_the_teacher():
    "No second setting can contradict it: every stage of an arm gets the teacher of that arm."
    assert not {"teacher", "arm"} & set(PARAMS)
    for name in (s for s in STAGES if s.split("@")[0] in ("sft", "grpo", "evaluate", "report")):
        assert given(name)["teacher"] == PARAMS["arms"][name.split("@")[1]]["teacher"]


@pytest.mark.proof
def test_smoke_judges_the_shipped_teacher(clone):
    run(clone, "dvc", "repro", "teacher_quality")
    found = figures(clone, "teacher_quality")
    assert found["views"] == sum(row["n"] for row in found["by size"] if row["amount"] is None) > 0
    assert found["packing"]["released"]["views"] > 10 * found["packing"]["packed"]["views"]


@pytest.mark.proof
def test_a_picture_more_is_a_scene_more(clone):
    "Stage `scenes` runs again when a picture comes into the folder that params.yaml names."
    from PIL import Image
    path, photos = clone / "params.yaml", clone / "photos"
    text = path.read_text()
    path.write_text(text.replace("source: rooms ", "source: photos\n  folder: photos "))
    photos.mkdir()
    for number, ran in ((1, True), (2, True), (2, False)):
        Image.new("RGB", (80, 60), (number * 90, 0, 0)).save(photos / f"{number}.png")
        assert ("Running stage 'scenes'" in run(clone, "dvc", "repro", "scenes")) == ran
        assert figures(clone, "scenes")["scenes"] == number
    path.write_text(text)
    shutil.rmtree(photos)
    run(clone, "dvc", "repro", "scenes")
