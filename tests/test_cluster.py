"""Parts on many devices: each process opens its teacher once, has its own GPU, and writes the bytes of a single one."""
import json
import os
import threading
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest

from world2vlm.core import runs
from world2vlm.core.cluster import _ray_map
from world2vlm.core.runs import append_jsonl, parallel_map, read_jsonl
from world2vlm.dataset.annotation import make_annotations
from world2vlm.dataset.shards import read_dataset, validate_dataset
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise, make_questions, make_rollouts, make_scenes
from world2vlm.scenes.annotate import Annotate
from world2vlm.teachers.reprojection import Reprojection

SCENES = Scenes(n=6, per_shard=1, size=(32, 32), seed=4)
IMAGINE = Imagine(presets={"single": 2}, seed=4)


@dataclass(frozen=True)
class LoggedTeacher:
    "Writes down when it is opened."
    log: str
    seconds: float = 0.0
    name = "logged"
    exact = False

    @cached_property
    def model(self):
        append_jsonl(self.log, [{"process": str(os.getpid()), "time": time.time()}])
        return Reprojection()

    def imagine(self, scene, trajectories, seed=0, reject=None):
        time.sleep(self.seconds)
        return self.model.imagine(scene, trajectories, seed, reject)


def bytes_of(folder): return {path.name: path.read_bytes() for path in sorted((Path(folder) / "data").iterdir())}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    make_scenes(SCENES, folder / "scenes")
    make_rollouts(IMAGINE, LoggedTeacher(str(folder / "log")), folder / "scenes", folder / "rollouts")
    return folder


def gpu_of(index, seconds=.3):
    time.sleep(seconds)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(runs, "_visible_gpus", lambda: ["3", "MIG-5"])
    pairs = set(parallel_map(gpu_of, 12, workers=16, device="cuda"))
    assert len(pairs) == len({process for process, _ in pairs}) == 2  # at most one process for each GPU
    assert {gpu for _, gpu in pairs} == {"3", "MIG-5"}


def test_visible_gpus_are_named_as_their_variable_names_them(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert runs._visible_gpus() == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert runs._visible_gpus() == ["0", "1"]


def test_a_teacher_is_opened_once_in_each_process(scenes, tmp_path):
    teacher = LoggedTeacher(str(tmp_path / "log"))
    make_rollouts(Imagine(presets={"single": 2}, seed=4, workers=2), teacher, scenes / "scenes", tmp_path / "rollouts")
    openings = [row["process"] for row in read_jsonl(tmp_path / "log")]
    assert len(openings) == len(set(openings)) <= 2
    assert bytes_of(tmp_path / "rollouts") == bytes_of(scenes / "rollouts")
    assert len(read_jsonl(scenes / "log")) == 1


def test_other_workers_keep_the_finished_shards(scenes, tmp_path):
    out, teacher = tmp_path / "rollouts", LoggedTeacher(str(tmp_path / "log"))
    class Killed(Exception): pass
    def killed(scene, *arguments):
        if scene.id.endswith("3"): raise Killed
        return Reprojection().imagine(scene, *arguments)
    broken = type("Broken", (), dict(name="logged", exact=False, imagine=staticmethod(killed)))
    with pytest.raises(Killed): make_rollouts(IMAGINE, broken, scenes / "scenes", out)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rollouts.partial" / "data").iterdir()}
    assert finished
    make_rollouts(Imagine(presets={"single": 2}, seed=4, workers=2, executor="processes"), teacher, scenes / "scenes", out)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}.items()
    assert bytes_of(out) == bytes_of(scenes / "rollouts")


def test_windows_halve_when_memory_is_short(caplog):
    import torch
    from world2vlm.teachers.svc import teacher as svc
    scene, poses, sizes = next(read_scene()), np.tile(np.eye(4), (5, 1, 1)), []
    def sample(teacher, scene, poses, seed):
        sizes.append(len(poses))
        if len(poses) > 2: raise torch.OutOfMemoryError("CUDA out of memory")
        return np.full((len(poses), 4, 4, 3), seed % 256, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svc, "_sample_window", sample)
        halved = svc.views_at(svc.SVC(), scene, poses)
        assert sizes == [5, 3, 2, 2, 1]  # five together, three of five, then windows of two
        assert "out of memory with 5 views in a window, tried again with 3" in caplog.text
        assert (halved == svc.views_at(svc.SVC(max_views=2), scene, poses)).all()
        patch.setattr(svc, "_sample_window", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
        with pytest.raises(torch.OutOfMemoryError): svc.views_at(svc.SVC(), scene, poses)


def read_scene():
    from world2vlm.scenes.room import room_scenes
    return room_scenes(1, seed=1, size=(32, 32))


def test_an_open_teacher_is_sent_as_its_settings():
    import pickle
    from world2vlm.teachers.svc.teacher import SVC
    teacher = SVC(max_views=3)
    teacher.__dict__["pipeline"] = lambda: "gigabytes"  # no pickle can hold it
    assert pickle.loads(pickle.dumps(teacher)) == teacher


def test_an_object_store_holds_the_same_bytes(scenes, tmp_path):
    store = f"file://{tmp_path}/store"
    make_scenes(SCENES, f"{store}/scenes")
    make_annotations(Annotate(), f"{store}/scenes", f"{store}/annotated")
    assert bytes_of(tmp_path / "store" / "annotated") == bytes_of(tmp_path / "store" / "scenes")
    stats = make_rollouts(Imagine(presets={"single": 2}, seed=4, workers=2), LoggedTeacher(str(tmp_path / "log")),
                          f"{store}/annotated", f"{store}/rollouts")
    assert bytes_of(tmp_path / "store" / "rollouts") == bytes_of(scenes / "rollouts")
    assert stats["motion_sizes"] == json.loads((scenes / "rollouts/stats.json").read_text())["motion_sizes"]
    figures = [make_questions(Supervise(seed=4), f"{store}/scenes", f"{store}/rollouts", folder)["views"] for folder in (f"{store}/examples", tmp_path / "examples")]
    assert figures[0] == figures[1] and figures[0]["rooms"]["used"]
    assert bytes_of(tmp_path / "store" / "examples") == bytes_of(tmp_path / "examples") and not (tmp_path / "store/examples/figures").exists()
    assert validate_dataset("examples", f"{store}/examples") == []
    assert not list(tmp_path.rglob("fingerprint"))


def test_an_unfinished_result_in_a_store_is_not_mixed():
    import fsspec
    import upath
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(KeyError), runs.atomic_file("memory://bucket/x/a.txt") as file:
        file.write(b"half")
        raise KeyError
    assert not upath.UPath("memory://bucket/x/a.txt").exists()
    make_scenes(SCENES, "memory://bucket/scenes")
    make_annotations(Annotate(), "memory://bucket/scenes", "memory://bucket/annotated")
    assert next(read_dataset("scenes", "memory://bucket/annotated")).id == next(read_dataset("scenes", "memory://bucket/scenes")).id
    first = [scene.id for scene in read_dataset("scenes", "memory://bucket/scenes")]
    runs.write_text("memory://bucket/scenes/fingerprint", "of another run")
    with pytest.raises(RuntimeError, match="unfinished result of other settings"): make_scenes(SCENES, "memory://bucket/scenes")
    upath.UPath("memory://bucket/scenes/fingerprint").unlink()
    make_scenes(Scenes(n=2, per_shard=1, size=(32, 32), seed=5), "memory://bucket/scenes")
    assert [scene.id for scene in read_dataset("scenes", "memory://bucket/scenes")] != first
    assert len(list(upath.UPath("memory://bucket/scenes/data").iterdir())) == 2


@pytest.fixture
def ray_env(monkeypatch):
    "Workers of Ray import what they run by its name: here a teacher of this module."
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return monkeypatch


def test_ray_makes_the_same_bytes_and_opens_a_teacher_in_each_actor(scenes, tmp_path, ray_env):
    teacher = LoggedTeacher(str(tmp_path / "log"), .2)
    config = Imagine(presets={"single": 2}, seed=4, workers=2, executor="ray")
    make_rollouts(config, teacher, scenes / "scenes", tmp_path / "rollouts")
    assert bytes_of(tmp_path / "rollouts") == bytes_of(scenes / "rollouts")
    openings = [row["process"] for row in read_jsonl(tmp_path / "log")]
    assert len(openings) == len(set(openings)) == 2


def own_gpu(index):
    time.sleep(1)  # both actors take part
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_an_actor_owns_one_gpu(ray_env):
    import ray
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False)  # Ray believes it
    try: assert set(_ray_map(own_gpu, 4, 2, gpu=True)) == {"0", "1"}
    finally: ray.shutdown()


def fails_at(index, bad):
    if index == bad: raise ValueError(f"part {index} is no good")
    return index


def test_an_error_of_a_part_ends_the_run(ray_env):
    with pytest.raises(ValueError, match="part 2 is no good"):
        parallel_map(partial(fails_at, bad=2), 4, 2, executor="ray")


def test_a_lost_machine_leaves_no_gap(scenes, tmp_path, ray_env):
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    second = cluster.add_node(num_cpus=1)
    ray_env.setenv("RAY_ADDRESS", cluster.address)
    teacher, killed = LoggedTeacher(str(tmp_path / "log"), 1.0), []
    def kill():
        deadline = time.time() + 120
        while time.time() < deadline:  # both machines have begun, and something is done
            if (tmp_path / "log").exists() and len(read_jsonl(tmp_path / "log")) == 2 and [*tmp_path.rglob("*.parquet")]: break
            time.sleep(.05)
        cluster.remove_node(second, allow_graceful=False)
        killed.append(time.time())
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        config = Imagine(presets={"single": 2}, seed=4, workers=2, executor="ray")
        make_rollouts(config, teacher, scenes / "scenes", tmp_path / "rollouts")
        ended = time.time()
        thread.join()
        assert killed[0] < ended, "the machine was lost before the end"
        assert bytes_of(tmp_path / "rollouts") == bytes_of(scenes / "rollouts")
        assert validate_dataset("rollouts", tmp_path / "rollouts") == []
    finally: cluster.shutdown()
