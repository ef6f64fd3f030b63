"A fresh copy of the repository at the size `smoke`, for the tests that run the pipeline, and a stage of it that is stopped."
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "WORLD2VLM_TEST_RUN"  # environment variable by which all processes of one run are found


@cache
def home() -> Path:
    "Where the tests of kills keep trees and results of this state of the repository: a new state starts afresh, the same one goes on."
    total = hashlib.sha256()
    for path in [ROOT / "dvc.yaml", ROOT / "params.yaml", *(p for f in ("world2vlm", "nbs/pipeline", "data/base", "data/teacher") for p in sorted((ROOT / f).rglob("*")))]:
        if path.is_file() and "__pycache__" not in path.parts and path.name != "_modidx.py": total.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return ROOT / ".cache/kills" / total.hexdigest()[:16]


def environment(tree: Path, **more: str) -> dict:
    "The tree's own library, and the tools of the environment of these tests."
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"} | more


def run(tree: Path, *words: str, **more: str) -> str:
    "A command in the tree; an error shows what it printed."
    done = subprocess.run(words, cwd=tree, env=environment(tree, **more), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def copy_repository(tree: Path, profile: str = "smoke") -> Path:
    "A fresh clone of what is here, tracked or about to be, at the size `profile`. Without dvc.lock: nothing has been run there, and DVC reads the file at each stage."
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "copy"]): run(tree, "git", *words)
    text = (tree / "params.yaml").read_text()
    (tree / "params.yaml").write_text(re.sub(r"^profile: \w+", f"profile: {profile}", text, flags=re.M))
    return tree


def stage_command(stage: str) -> list[str]:
    "As a user starts it; `base` and `teacher` are no stages of dvc.yaml but targets of the Makefile."
    if stage not in ("base", "teacher"): return ["dvc", "repro", "--single-item", "--force", "--no-run-cache", stage]
    return [sys.executable, *"-m papermill -k python3 --log-output --no-progress-bar -p profile smoke -p out".split(),
            f"data/smoke/{stage}", f"nbs/pipeline/{stage}.ipynb", f"data/smoke/notebooks/{stage}.ipynb"]


def processes_of(mark: str) -> dict[int, str]:
    "The processes that run with this mark: id -> command line. One that ended and waits for its parent does not run."
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE: found[process.pid] = " ".join(process.cmdline())
        except psutil.Error: pass
    return found


def stop_stage(tree: Path, stage: str, how: str, moment: float) -> dict:
    """Start a stage and stop it `moment` seconds after its notebook runner has begun. `how`: "Ctrl-C" reaches the processes of a terminal,
    "kill -9 kernel" and "kill -9 papermill" one process. "late" says that the stage came to its end all the same."""
    mark, log = uuid.uuid4().hex, tree / ".stopped.log"
    with log.open("w") as file:
        process = subprocess.Popen(stage_command(stage), cwd=tree, env=environment(tree, **{MARK: mark}), stdout=file, stderr=file, start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while process.poll() is None and not any("papermill" in line for line in processes_of(mark).values()): time.sleep(.3)
    began, end = time.monotonic(), time.monotonic() + moment
    while process.poll() is None and time.monotonic() < end: time.sleep(.01)
    if process.poll() is None and how == "Ctrl-C": os.killpg(process.pid, signal.SIGINT)
    elif process.poll() is None:
        lines = processes_of(mark)
        kernels = [pid for pid, line in lines.items() if "ipykernel" in line]
        runners = [pid for pid, line in lines.items() if " -m papermill " in line and "ipykernel" not in line and "bash" not in line.split()[0]]
        victims = (kernels or runners if how.endswith("kernel") else runners) or [pid for pid, line in lines.items() if "core.stages" in line]
        for victim in victims[:1]: os.kill(victim, signal.SIGKILL)
    code, ended = process.wait(timeout=600), time.monotonic()
    while (left := processes_of(mark)) and time.monotonic() < ended + 20: time.sleep(.1)  # one that is starting imports before it looks round
    return {"late": code == 0, "left": sorted(left.values()), "gone after": round(time.monotonic() - ended, 1), "seconds": ended - began,
            "log": log.read_text()[-2000:]}
