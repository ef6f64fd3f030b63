"What is given away: every figure from a metric file, no guessed licence, loading examples that run without the repository, nothing sent without a login."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import load_dataset
from records_of_rooms import ITEMS
from smoke_tree import copy_repository, run
from transformers import AutoModelForImageTextToText

from world2vlm.core.config import repo_root
from world2vlm.dataset.shards import write_shards
from world2vlm.report import release
from world2vlm.report.release import _build_part, _build_release, _build_wheel, _dataset_part, _held_out_table, _push_release, _read_metrics, _student_part, _weights_licence

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "world2vlm": raise ImportError("the example must run without the repository")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    return out, _build_release(out=out)


def example_of(folder) -> str:
    "The code of the card's loading example."
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[:1]
    return code


def header_of(folder) -> dict:
    import yaml
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_fresh_clone_gives_what_is_in_it(built):
    out, parts = built
    assert {path.name for path in out.iterdir()} >= {"student-base", "teacher"}
    assert all("make repro" in place or place.startswith(str(out)) for place in parts.values())
    for name in ("student-base", "teacher"):
        files = {path.name for path in (out / name).rglob("*")}
        assert {"README.md", "LICENSE-of-the-code", "example-0.png"} <= files and not files & {"checkpoints", "live"}
        assert header_of(out / name)["license"] == "apache-2.0"


def test_the_command_gives_the_same_in_a_clone(built, tmp_path):
    tree = copy_repository(tmp_path / "clone", "mini")
    run(tree, sys.executable, "-m", "world2vlm.report.release", "--profile", "mini")
    for name in ("student-base", "teacher"):
        made = {path.name: path.read_bytes() for path in (tree / "data/release" / name).glob("*.*")}
        assert made == {path.name: path.read_bytes() for path in (built[0] / name).glob("*.*")} and len(made) > 5


def test_the_example_of_a_student_runs_without_the_repository(built):
    folder = built[0] / "student-base"
    run = subprocess.run([sys.executable, "-c", BLOCKED + example_of(folder)], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip(), run.stderr[-2000:]
    AutoModelForImageTextToText.from_pretrained(folder)


def test_the_example_of_the_teacher_needs_the_package_alone(built, tmp_path):
    folder, package = built[0] / "teacher", repo_root() / "world2vlm"
    shutil.copytree(package, tmp_path / "world2vlm", ignore=shutil.ignore_patterns("__pycache__"))  # as from a wheel
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + example_of(folder)
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0 and (folder / "imagined.png").is_file(), run.stderr[-2000:]


def test_the_teacher_travels_as_a_wheel(built, tmp_path):
    "Library and wheel beside each other, with no checkout around."
    out = tmp_path / "release"
    shutil.copytree(built[0] / "teacher", out / "teacher")
    run(tmp_path, sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", str(_build_wheel(out)))
    shutil.copytree(repo_root() / "world2vlm", tmp_path / "site/world2vlm", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from world2vlm import load_teacher; pipe = load_teacher('svc').pipeline; from world2vlm.teachers.svc.teacher import _shipped_checkpoint; print(_shipped_checkpoint())"
    assert run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(tmp_path / "site")).strip().endswith("site/world2vlm_svc")
    with pytest.raises(ValueError, match="make release"): _build_wheel(tmp_path)


def test_figures_are_those_of_the_metric_files(built):
    text, metrics = (built[0] / "student-base/README.md").read_text(), _read_metrics("mini", "evaluate-bidirectional")
    assert f"| {100 * metrics['grpo']['exactly right']['mean']['score']:.1f} |" in text and f"{metrics['grpo']['exactly right']['mean']['n']:,}" in text
    assert _held_out_table("no profile", "none").rows == []


def test_no_licence_is_guessed(monkeypatch):
    assert _weights_licence("somebody/a-model")[0] == "other" and "before you publish" in _weights_licence("somebody/a-model")[1]
    monkeypatch.setattr(release, "load_settings", lambda *a: type("Student", (), dict(checkpoint="somebody/a-model")))
    card = _student_part("sft", "paper", "bidirectional").card
    assert "license: other" in card and "base_model: somebody/a-model" in card


def test_a_data_set_opens_and_names_the_licences_of_its_sources(tmp_path):
    write_shards("examples", tmp_path / "data", lambda shard, reject: ITEMS["examples"])
    folder = _build_part(_dataset_part("examples-svc", tmp_path / "data", "mini"), tmp_path / "out")
    header, text = header_of(folder), (folder / "README.md").read_text()
    assert header["license"] == "apache-2.0" and header["configs"][0]["data_files"] == "data/*.parquet" and "room (" in text
    assert load_dataset("parquet", data_files=str(folder / "data/*.parquet"), split="train", cache_dir=str(tmp_path)).num_rows == len(ITEMS["examples"])
    assert json.loads((folder / "stats.json").read_text())["rows"] == len(ITEMS["examples"])


def card_of(tmp_path, teachers: tuple, profile: str) -> str:
    "The card of a data set with one view of each teacher."
    folder = tmp_path / "-".join(teachers)
    write_shards("examples", folder, lambda shard, reject: [replace(ITEMS["examples"][0], teacher=teacher) for teacher in teachers])
    return _dataset_part("examples", folder, profile).card


def test_views_stand_under_the_terms_of_the_weights_that_imagined_them(tmp_path):
    own, released, exact = (card_of(tmp_path / profile / teacher, (teacher,), profile) for teacher, profile in (("svc", "mini"), ("svc", "paper"), ("simulator", "paper")))
    assert "imagined by `data/teacher`, which is under apache-2.0" in own and "license: other" in released and "`data/svc`" in released
    assert "imagined by" not in exact
    assert "`data/svc`" in card_of(tmp_path, ("panorama", "svc"), "paper"), "a mixture too"


def test_real_turns_stand_under_the_licence_of_the_panoramas(tmp_path, monkeypatch):
    real, mixed = (card_of(tmp_path, teachers, "mini") for teachers in (("panorama",), ("panorama", "svc")))
    assert "license: cc0-1.0" in real and "Poly Haven" in real and "room (" not in real
    assert "license: other" in mixed and "Poly Haven" in mixed and "room (" in mixed
    metrics = {"scenes": {"counts": {"source": {"photo": 2}, "licence": {"CC-BY-4.0": 2}}}, "annotate": {"weights": {"a depth network": "cc-by-nc-4.0"}}}
    monkeypatch.setattr(release, "_read_metrics", lambda profile, name: metrics.get(name, {}))
    assert "Annotated by a depth network (cc-by-nc-4.0)." in card_of(tmp_path / "photos", ("simulator",), "mini")


def test_nothing_is_sent_without_a_login(built, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"): _push_release("me", built[0])
    with pytest.raises(ValueError, match="make release"): _push_release("me", tmp_path)


def test_every_folder_is_uploaded_as_what_it_is(built, monkeypatch):
    sent = []
    class Hub:
        def create_repo(self, name, repo_type, private, exist_ok): return sent.append((name, repo_type, private)) or type("Url", (), dict(repo_id=name))
        def upload_folder(self, repo_id, repo_type, folder_path, delete_patterns): sent.append((repo_id, folder_path.name))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    names = _push_release("me", built[0])
    assert ("me/world2vlm-student-base", "model", True) in sent and ("me/world2vlm-teacher", "teacher") in sent and len(sent) == 2 * len(names)
