"The library imports fast, and without the tools of its notebooks and the large libraries that only some functions need."
import subprocess, sys
from pathlib import Path

import pytest

import world2vlm

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "world2vlm").rglob("*.py") if p.stem != "_modidx")
MODULES = [".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in FILES]
NETWORKS = {  # their classes inherit from torch, diffusers and transformers
    "world2vlm.students.dense_heads", *(f"world2vlm.teachers.svc.{name}" for name in ("unet", "scheduler", "pipeline", "dense"))}
TOOLS = {"nbdev", "fastcore", "execnb", "dvc", "papermill", "IPython", "jupytext", "pytest", "hypothesis"}
TORCH_TOOLS = {"IPython", "pytest", "hypothesis"}  # torch itself looks for these
LARGE = {"torch", "transformers", "diffusers", "datasets", "trl", "peft", "accelerate", "vllm", "matplotlib", "seaborn", "pandas"}
PROBE = """
import sys, time

class Block:
    "Hides packages."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}: raise ImportError(f"{{name}} is imported with {module}")

sys.meta_path.insert(0, Block())
start = time.process_time()
import {module}
print(time.process_time() - start)
"""


def seconds(module: str, hidden: set) -> float:
    "Processor time that a fresh interpreter takes to import `module` where the packages `hidden` are not installed."
    code = PROBE.format(hidden=hidden, module=module)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return float(process.stdout)


def fastest(module: str, limit: float, hidden: set) -> float:
    "The best of at most three imports of `module`, as the machine may be busy; one that is below `limit` will do."
    times = []
    while len(times) < 3 and not (times and min(times) < limit): times.append(seconds(module, hidden))
    return min(times)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in NETWORKS])
def test_module_imports_fast_and_alone(module): assert fastest(module, 1.0, TOOLS | LARGE) < 1.0


def test_networks_import_without_tools(): seconds(", ".join(sorted(NETWORKS)), TOOLS - TORCH_TOOLS)


def test_package_imports_at_once():
    assert fastest("world2vlm", 0.1, TOOLS | LARGE | {"numpy"}) < 0.1


def test_a_hidden_package_is_noticed():
    with pytest.raises(AssertionError, match="numpy is imported with world2vlm.core.camera"): seconds("world2vlm.core.camera", {"numpy"})


def test_public_names_are_loaded_at_their_first_use():
    assert 10 <= len(world2vlm.__all__) <= 16 and set(world2vlm.__all__) <= set(dir(world2vlm))
    for name in world2vlm.__all__: assert getattr(world2vlm, name).__class__.__name__ != "module"
    assert world2vlm.Scene.__module__ == "world2vlm.core.records"
    with pytest.raises(AttributeError, match="no attribute 'scene'; it offers Scene"): world2vlm.scene


def test_version_is_that_of_the_settings():
    "nbdev_export writes the version into world2vlm/__init__.py and leaves the rest of the file alone."
    assert f"version = {world2vlm.__version__}\n" in (ROOT / "settings.ini").read_text()
