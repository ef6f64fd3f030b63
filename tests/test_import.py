"The library imports fast, and without the tools of its notebooks."
import subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["world2vlm"] + [f"world2vlm.{p.stem}" for p in sorted((ROOT / "world2vlm").glob("[!_]*.py"))]
NETWORKS = {"world2vlm.svc_unet", "world2vlm.svc_scheduler", "world2vlm.svc_pipeline"}  # classes of torch and diffusers, whose own import takes longer
TOOLS = ("nbdev", "fastcore", "execnb", "dvc", "papermill", "IPython", "jupytext", "pytest", "hypothesis")
PROBE = """
import sys, time

class Block:
    "Hides the notebook tools."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tools!r}: raise ImportError(f"{{name}} is not for the library")

sys.meta_path.insert(0, Block())
start = time.process_time()
import {module}
print(time.process_time() - start)
"""


def seconds(module: str) -> float:
    "Processor time a fresh interpreter takes to import `module`."
    tools = [t for t in TOOLS if module not in NETWORKS or t not in ("hypothesis", "pytest", "IPython")]  # torch itself asks for some of these
    code = PROBE.format(tools=tools, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("module", MODULES)
def test_import(module):
    found = [seconds(module) for _ in range(1 if module in NETWORKS else 3)]
    assert module in NETWORKS or min(found) < 1.0
