"Which code a stage depends on, and that the lists in dvc.yaml say it."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from world2vlm.core import stages
from world2vlm.core.actions import Ranges
from world2vlm.core.stages import fingerprint, _module_closure, sync_dependencies

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = {  # a package of its own: path -> code
    "__init__.py": "def __getattr__(name): return {'draw': 'world2vlm.top.draw:draw'}[name]",
    "base/__init__.py": "",
    "base/leaf.py": "value = 1",
    "base/other.py": "value = 2",
    "base/shared.py": "from .leaf import value\nfrom ..base import other\nimport world2vlm.top.plug as plug\ndef one(): return value\ndef two(): return other.value\ndef three(): return plug",
    "base/registry.py": "KNOWN = {'plug': 'world2vlm.top.plug:Plug'}\ndef open_known(name): return KNOWN[name]\ndef unrelated(): pass",
    "base/patch.py": "from .shared import one as first\nfrom . import registry\nregistry.KNOWN['x'] = 1\ndef idle(): pass",
    "top/__init__.py": "",
    "top/plug.py": "class Plug:\n    def run(self):\n        from world2vlm.base.leaf import value\n        return value",
    "top/draw.py": "from world2vlm.base.shared import one\nclass Base: pass\nclass Picture(Base):\n    size = one()\ndef draw(): return Picture()",
    "top/again.py": "from .draw import draw",
}


@pytest.fixture
def library(tmp_path, monkeypatch):
    "The package `LIBRARY` in place of ours."
    for name, code in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.setattr(stages, "files", lambda package: tmp_path)
    stages._definitions.cache_clear()
    yield tmp_path
    stages._definitions.cache_clear()


@pytest.mark.parametrize("code, expected", [
    ("import numpy, os.path", ""),
    ("from world2vlm.base.leaf import value", "base.leaf"),
    ("from world2vlm.base import leaf", "base.leaf"),
    ("import world2vlm.base.leaf", "base.leaf"),
    ("def later():\n    from world2vlm.base.leaf import value", "base.leaf"),
    ("from world2vlm.base.shared import one", "base.leaf base.shared"),  # not what `two` and `three` use
    ("from world2vlm.base.shared import two", "base.other base.shared"),
    ("from world2vlm.base.shared import three", "base.leaf base.shared top.plug"),  # a module under a short name
    ("from world2vlm.base.shared import absent", "base.leaf base.other base.shared top.plug"),  # unknown: all of it
    ("from world2vlm.base.registry import unrelated", "base.registry"),
    ("from world2vlm.base.registry import open_known", "base.leaf base.registry top.plug"),  # opened by its name
    ("from world2vlm.base.patch import idle", "base.leaf base.patch base.registry top.plug"),  # statements that run in any case
    ("from world2vlm.top.again import draw", "base.leaf base.shared top.again top.draw"),  # handed on
    ("from world2vlm import draw", "__init__ base.leaf base.shared top.draw"),  # loaded at its first use
    ("student = 'world2vlm.top.plug:Plug'", "base.leaf top.plug"),
    ("%matplotlib inline\n!ls\nfrom world2vlm.base.leaf import value", "base.leaf"),
])
def test_closure(library, tmp_path, code, expected):
    import json
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": code}, {"cell_type": "markdown", "source": "from x"}]}))
    assert _module_closure(tmp_path / "n.ipynb") == [f"world2vlm.{m}" for m in expected.split()]


TRACED = """
import os, sys
from pathlib import Path
from world2vlm.core.actions import Ranges
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise, make_questions, make_rollouts, make_scenes
import world2vlm
root, home, files = Path(world2vlm.__file__).parent, Path(sys.argv[1]), set()
def run(make, *arguments):
    files.clear()
    sys.setprofile(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    make(*arguments)
    sys.setprofile(None)
    print(make.__name__, *sorted("world2vlm." + ".".join(Path(f).relative_to(root).with_suffix("").parts) for f in files if f.startswith(str(root))))
run(make_scenes, Scenes(n=2), home / "scenes")
run(make_rollouts, Imagine(presets={"single": 2}, ranges=Ranges((0.2, 1.5, 0.1), (10, 60, 10))), "reprojection", home / "scenes", home / "rollouts")
run(make_questions, Supervise(), home / "scenes", home / "rollouts", home / "examples")
"""


def test_closure_holds_all_code_that_a_stage_runs(tmp_path):
    "The modules whose functions run, as Python's profiler sees them, are among those that the imports name; few are not needed."
    run = subprocess.run([sys.executable, "-c", TRACED, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    for make, *modules in map(str.split, run.stdout.splitlines()):
        (tmp_path / "stage.py").write_text(f"from world2vlm.dataset.synthesis import {make}")
        closure = _module_closure(tmp_path / "stage.py")
        assert len(modules) >= 5 and set(modules) - set(closure) == set(), make
    assert make == "make_questions" and "world2vlm.teachers.simulator" not in closure  # the last stage reads views, and renders none


def test_sync_changes_only_module_lines(tmp_path):
    (tmp_path / "a.ipynb").write_text('{"cells": [{"cell_type": "code", "source": "from world2vlm.core.camera import yaw"}]}')
    text = ("# top\nstages:\n  a:\n    foreach: ${x}\n    do:\n      deps:\n        - data/x   # world2vlm/kept.py\n        - a.ipynb\n        # a note\n"
            "        - world2vlm/gone/away.py\n        - world2vlm.yaml\n      params: [a]\n  b:\n    deps:\n    - world2vlm/core/runs.py\n    outs:\n    - a.ipynb\n")
    (tmp_path / "dvc.yaml").write_text(text)
    assert sync_dependencies(tmp_path / "dvc.yaml")
    expected = text.replace("        - world2vlm/gone/away.py\n", "").replace("- a.ipynb\n        #", "- a.ipynb\n        - world2vlm/core/camera.py\n        #")
    assert (tmp_path / "dvc.yaml").read_text() == expected and not sync_dependencies(tmp_path / "dvc.yaml")


def test_fingerprint_covers_code_settings_and_inputs(tmp_path, monkeypatch):
    (tmp_path / "input").write_text("1")
    before = fingerprint(Ranges(), tmp_path / "input")
    assert before == fingerprint(Ranges(), tmp_path / "input") != fingerprint(Ranges((1, 2, 1)), tmp_path / "input")
    (tmp_path / "input").write_text("2")
    assert (changed := fingerprint(Ranges(), tmp_path / "input")) != before
    copy = tmp_path / "library"
    for module in ("camera", "actions", "runs", "config"):
        (copy / "core").mkdir(parents=True, exist_ok=True)
        (copy / f"core/{module}.py").write_text((ROOT / f"world2vlm/core/{module}.py").read_text())
    monkeypatch.setattr(stages, "files", lambda package: copy)

    def again():
        stages._definitions.cache_clear()
        return fingerprint(Ranges(), tmp_path / "input")
    assert again() == changed
    (copy / "core/runs.py").write_text("")  # not used by `Ranges`
    (copy / "core/camera.py").open("a").write("# a note\ndef unused(): pass\n")
    assert again() == changed
    camera = (copy / "core/camera.py").read_text()
    (copy / "core/camera.py").write_text(re.sub(r"(def yaw\([^)]*\).*\n)", r"\1    1 + 1\n", camera))
    assert again() != changed
    monkeypatch.undo()
    stages._definitions.cache_clear()
