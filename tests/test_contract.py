"Every adapter keeps the contract of teachers: the small ones as they are, the large ones with random weights of the real classes."
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from toy_teachers import svc_input, toy_cosmos, toy_sana, toy_svc, toy_worldplay
from world2vlm.core.actions import plan
from world2vlm.core.config import repo_root
from world2vlm.scenes.panoramas import panorama_scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers import cosmos3, sana_wm, worldplay
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.contract import _CHECKS, _camera, TeacherContract

FEW = ("turn right 14.4 degrees", "turn left 7.2 degrees; move forward 0.1 meters", "move left 0.1 meters")  # a large model needs seconds for each
ADAPTERS = ("simulator", "reprojection", "smoothed", "panorama", "svc", "sana_wm", "cosmos3", "worldplay")


def rooms(*shapes): return tuple(next(room_scenes(1, seed=4, start=i, size=size)) for i, size in enumerate(shapes))


def contract_of(name: str, folder: Path) -> TeacherContract:
    few = dict(motions=FEW, scenes=rooms((96, 64), (64, 96)))
    if name in ("simulator", "reprojection", "smoothed"): return TeacherContract(partial(load_teacher, name), sampled=False)
    if name == "panorama":
        panoramas = str(repo_root() / "data/panoramas")
        scenes = tuple(s for size in ((112, 64), (64, 112)) for s in panorama_scenes(("interior",), 1, seed=3, size=size, folder=panoramas))
        return TeacherContract(partial(load_teacher, name, folder=panoramas), scenes=scenes, sampled=False)
    random = dict(pictures=False, **few)
    if name == "svc": return TeacherContract(toy_svc(folder), received=svc_input, joint=True, **random)
    if name == "sana_wm": return TeacherContract(toy_sana(folder), received=sana_wm._network_input, **random)
    if name == "cosmos3": return TeacherContract(toy_cosmos(folder), received=cosmos3._network_input, **random)
    turning = dict(motions=(FEW[0], "turn left 20 degrees", "turn left 7.2 degrees; move left 0.1 meters"))  # a move alone would not show in its pictures
    return TeacherContract(toy_worldplay(folder), received=worldplay._network_input, **few | turning)


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    opened = {}
    def get(name):
        if name not in opened: opened[name] = contract_of(name, tmp_path_factory.mktemp(name))
        return opened[name]
    return get


SLOW = [(name, check) for name in ("sana_wm", "cosmos3") for check in ("kill", "cameras")]
CASES = [pytest.param(name, check, marks=[pytest.mark.proof] * ((name, check) in SLOW), id=f"{name}-{check}") for name in ADAPTERS for check in _CHECKS]


@pytest.mark.parametrize("name, check", CASES)
def test_adapter_keeps_the_contract(contracts, name, check):
    assert _CHECKS[check](contracts(name)) == ""


def test_what_the_small_generative_teacher_shows_has_the_right_signs():
    "With its real weights."
    contract = TeacherContract(partial(load_teacher, "svc"), scenes=rooms((64, 64), (64, 64)), joint=True,
                               motions=("turn right 30 degrees", "turn left 30 degrees", "move right 0.3 meters", "move forward 0.3 meters"))
    assert _CHECKS["signs"](contract) == "" and any(rollouts for rollouts, _ in contract.reference)


def test_precision_is_that_of_the_settings(contracts):
    contract = contracts("cosmos3")
    half = replace(contract, open=partial(contract.open, bf16=True), tolerance=0.02)  # the network receives cameras in bfloat16 too
    teacher, case = half.open(), (half.anchors[0], half.trajectories[0])
    assert _camera(half, teacher, *case) == "" and "bfloat16" in half.received(teacher, *case)["dtype"]
    teacher.__dict__["pipeline"] = contract.open().pipeline  # weights of another precision than its setting: the check notices
    assert "float32, not in bfloat16" in _camera(half, teacher, *case)


def test_precision_of_sana_is_that_of_its_documentation(contracts):
    "Opened only: the library's rays need float32 on a CPU."
    pipeline = contracts("sana_wm").open(bf16=True).pipeline
    assert (str(pipeline.transformer.dtype), str(pipeline.vae.dtype)) == ("torch.bfloat16", "torch.float32")


# The checks notice what they forbid.

class Lying:
    "Wraps the simulator and spoils a part of the contract."
    name, exact = "lying", True
    def __init__(self, lie): self.lie, self.calls, self.simulator = lie, 0, load_teacher("simulator")

    def imagine(self, scene, trajectories, seed=0, reject=None):
        self.calls += 1
        if self.lie == "mirrors turns":
            flipped = [plan([a.opposite if a.is_turn else a for a in t.actions]) for t in trajectories]
        elif self.lie == "mirrors moves": flipped = [plan([a if a.is_turn else a.opposite for a in t.actions]) for t in trajectories]
        else: flipped = trajectories
        back = {f.actions: t for f, t in zip(flipped, trajectories)}
        rollouts = self.simulator.imagine(scene, flipped, seed, reject if self.lie != "hides rejections" else None)
        rollouts = [replace(r, teacher="lying", actions=(t := back[r.actions]).actions, poses=t.poses, keyframes=t.keyframes) for r in rollouts]
        return [self.spoil(r) for r in (rollouts[::-1] if self.lie == "reverses" else rollouts)]

    def spoil(self, r):
        if self.lie == "drops keyframes": return replace(r, images=r.images[-1:], ids=r.ids[-1:])
        if self.lie == "forgets the seed": return replace(r, seed=0)
        if self.lie == "other poses": return replace(r, poses=r.poses @ np.diag([1, 1, 1.01, 1]))
        if self.lie == "floats": return replace(r, images=r.images / 255)
        if self.lie == "no ids": return replace(r, ids=None)
        if self.lie == "remembers": return replace(r, images=r.images + np.uint8(self.calls))
        if self.lie == "knows the scene before":
            before, self.last = getattr(self, "last", r.scene_id), r.scene_id
            return replace(r, images=r.images + np.uint8(before != r.scene_id))
        if self.lie == "differs between processes": return replace(r, images=r.images + np.uint8(os.getpid() % 251))
        if self.lie == "nan": return replace(r, fidelity={"unseen": float("nan")})
        return r


LIES = {"mirrors turns": "signs", "mirrors moves": "signs", "hides rejections": "empty", "reverses": "order", "drops keyframes": "record",
        "forgets the seed": "record", "other poses": "record", "floats": "record", "no ids": "record", "remembers": "seed", "nan": "record",
        "knows the scene before": "state", "differs between processes": "kill"}


@pytest.mark.parametrize("lie, check", LIES.items())
def test_checks_notice(lie, check):
    contract = TeacherContract(partial(Lying, lie), sampled=False)
    assert _CHECKS[check](contract) != "" and _CHECKS[check](replace(contract, open=partial(Lying, ""))) == ""


def test_sampling_is_what_the_contract_says(contracts):
    exact, toy = contracts("simulator"), contracts("cosmos3")
    assert "another seed" in _CHECKS["seed"](replace(exact, sampled=True)) and "sampled" in _CHECKS["seed"](replace(toy, sampled=False))


def shifted(teacher, scene, trajectory):
    from world2vlm.core.records import keyframe_poses
    poses = keyframe_poses(trajectory)
    poses[:, 0, 3] += 2e-5
    return {"poses": poses}


@pytest.mark.parametrize("received, message", [(shifted, "poses .* off by 2e-05"), (lambda *_: {"device": "cuda:0"}, "")])
def test_cameras_are_compared_at_the_tolerance(received, message):
    import re
    contract = TeacherContract(partial(load_teacher, "simulator"), sampled=False, received=received)
    assert re.search(message, _CHECKS["cameras"](contract)) and _CHECKS["cameras"](replace(contract, tolerance=1e-4)) == ""


# Killed in the stage, and resumed.

STAGE = """
import sys, json
from world2vlm.dataset.synthesis import Imagine, make_rollouts
options, scenes, out = json.loads(sys.argv[1]), *sys.argv[2:]
[name] = options
make_rollouts(Imagine(presets={"single": 2}, ranges={"move": [0.1, 0.2, 0.1], "turn": [5, 10, 5]}, seed=3, options=options), name, scenes, out)
"""


def stage(options, *folders):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_root())}
    return subprocess.Popen([sys.executable, "-c", STAGE, json.dumps(options), *map(str, folders)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.proof
@pytest.mark.parametrize("name, toy", [("cosmos3", toy_cosmos), ("worldplay", toy_worldplay)])
def test_a_killed_stage_ends_with_the_same_bytes(tmp_path, name, toy):
    "The model's own process ends with the stage that started it."
    from world2vlm.dataset.synthesis import make_scenes, Scenes
    (tmp_path / "model").mkdir()
    options = {name: toy(tmp_path / "model").keywords | ({"folder": str(tmp_path / "jobs")} if name == "worldplay" else {})}
    make_scenes(Scenes(n=4, per_shard=1, size=(64, 64)), tmp_path / "scenes")
    process = stage(options, tmp_path / "scenes", tmp_path / "killed")
    while not list(tmp_path.glob("killed.partial/data/*.parquet")):
        assert process.poll() is None, process.communicate()[0][-2000:]
        time.sleep(.005)
    process.send_signal(signal.SIGKILL), process.communicate()
    for folder in ("killed", "whole"):
        process = stage(options, tmp_path / "scenes", tmp_path / folder)
        assert (output := process.communicate()[0]) is not None and process.returncode == 0, output[-2000:]
    shards = lambda folder: {p.name: p.read_bytes() for p in sorted((tmp_path / folder / "data").glob("*.parquet"))}
    assert shards("killed") == shards("whole") and len(shards("whole")) == 4
    if name == "worldplay":
        jobs = [p for p in (tmp_path / "jobs").iterdir() if p.is_dir()]
        assert jobs and all((p / "views.npy").is_file() or not (p / "job.json").exists() for p in jobs)
        deadline = time.monotonic() + 20
        while any(str(tmp_path) in command for command in commands()) and time.monotonic() < deadline: time.sleep(.1)
        assert not any("turning_model" in command and str(tmp_path) in command for command in commands())


def commands() -> list:
    "The command lines and PYTHONPATHs of all processes."
    import psutil
    found = []
    for process in psutil.process_iter():
        try: found.append(" ".join(process.cmdline()) + process.environ().get("PYTHONPATH", ""))
        except psutil.Error: pass
    return found
