"One writer for each folder, no process that outlives a kill, and nothing lost on a full or read-only disk."
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from smoke_tree import home

from world2vlm.core.runs import append_jsonl, atomic_file, lock_folder, parallel_map, read_jsonl, write_text
from world2vlm.core.stages import atomic_dir, fingerprint, recipe_of
from world2vlm.dataset.shards import read_dataset, validate_dataset, write_shards
from world2vlm.dataset.synthesis import HeldOut, Imagine, Scenes, make_scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.students.grpo import GRPO

ROOT = Path(__file__).resolve().parent.parent
SCENES = list(room_scenes(4, seed=0))
# The commands of one process: a stage; a data set without a stage; a shard that takes long; a folder that is kept.
CODE = """
import sys, time
from pathlib import Path
from world2vlm.core.runs import lock_folder, parallel_map
from world2vlm.core.stages import atomic_dir
from world2vlm.dataset.shards import write_shards
from world2vlm.dataset.synthesis import Scenes, make_scenes
from world2vlm.scenes.room import room_scenes
from functools import partial
def rooms(index, reject, seed): return room_scenes(1, seed=seed, start=index)
def endless(index, folder):
    while True:
        Path(folder, f"{index}").write_text(str(time.time()))
        time.sleep(.01)
def stage(out, seed): make_scenes(Scenes(n=3, per_shard=1, size=(16, 16), seed=int(seed)), out)
def dataset(out, seed): write_shards("scenes", out, partial(rooms, seed=int(seed)), 3, {"seed": int(seed)})
def workers(out):
    with atomic_dir(out, "mark") as work: parallel_map(partial(endless, folder=work), 2, 2)
def keep(out):
    with lock_folder(out):
        print("locked", flush=True)
        time.sleep(60)
"""


def script(folder: Path) -> Path:
    (folder / "writer.py").write_text(CODE + "if __name__ == '__main__': globals()[sys.argv[1]](*sys.argv[2:])\n")
    return folder / "writer.py"


def start(path: Path, *arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(path), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def last_line(text: str) -> str: return text.strip().splitlines()[-1]


def recipes(folder: Path) -> set: return {pq.read_metadata(path).metadata[b"world2vlm"] for path in folder.glob("data/*.parquet")}


@pytest.mark.parametrize("pair", [*range(0, 20, 7), *(pytest.param(i, marks=pytest.mark.fuzz) for i in range(20) if i % 7)])
def test_two_runs_never_mix_in_one_folder(tmp_path, pair):
    "Both start together or up to 1.4 s apart, with other settings; whichever is refused says who writes."
    path, out, what = script(tmp_path), tmp_path / "scenes", ("stage", "dataset")[pair % 2]
    first = start(path, what, out, 1)
    time.sleep(1.4 * (pair // 2) / 9)
    second = start(path, what, out, 2)
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    codes = [first.returncode, second.returncode]
    append_jsonl(home() / "pairs.jsonl", [{"pair": pair, "mixed": int(len(recipes(out)) != 1)}])  # test_kills.py counts them
    assert 0 in codes and len(recipes(out)) == 1 and validate_dataset("scenes", out) == []
    assert len({scene.id for scene in read_dataset("scenes", out)}) == 3
    for process, code, error in zip((first, second), codes, errors):
        if code: assert "is writing here; wait until it ends" in last_line(error) and str(out) in last_line(error)
    if codes == [0, 0]: assert "another recipe" in errors[0] + errors[1] or "replaces the old one" in errors[0] + errors[1]
    assert not list(tmp_path.glob(".*.lock"))


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path):
    holder = start(script(tmp_path), "keep", tmp_path / "out")
    assert holder.stdout.readline() == "locked\n"
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"{tmp_path}/out: process {holder.pid} on .* is writing here"):
        with lock_folder(tmp_path / "out"): pass
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(RuntimeError), lock_folder(tmp_path / "link"): pass  # the same folder by another name
    with lock_folder(tmp_path / "other"): pass
    assert time.monotonic() - began < 2
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".out.lock").exists()
    with lock_folder(tmp_path / "out"): pass
    assert not (tmp_path / ".out.lock").exists()


@pytest.mark.parametrize("content", ["", "x", "1 elsewhere", "999999999 host", "\0" * 50])
def test_an_old_lock_file_refuses_nobody(tmp_path, content):
    (tmp_path / ".out.lock").write_text(content)
    with lock_folder(tmp_path / "out"): pass


def test_workers_end_with_a_killed_parent(tmp_path):
    process, work = start(script(tmp_path), "workers", tmp_path / "out"), tmp_path / "out.partial"
    while not all((work / name).exists() for name in "01"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(.02)
    group = [int(p.name) for p in Path("/proc").glob("[0-9]*") if str(process.pid) == parent_of(p)] if Path("/proc/self").exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_running, group)) and time.monotonic() < deadline: time.sleep(.1)
    time.sleep(1)
    stamps = [(work / name).read_text() for name in "01"]
    time.sleep(.3)
    assert stamps == [(work / name).read_text() for name in "01"], "a worker goes on writing"
    assert not [pid for pid in group if is_running(pid)]
    with lock_folder(tmp_path / "out"): pass


def test_a_training_process_ends_though_its_parent_was_gone_before():
    "One that is still importing when its parent is killed."
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"import time\nfrom world2vlm.students.launch import _run_with_parent\n_run_with_parent({gone.pid}, time.sleep, 100)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=90).returncode == 1


def is_running(pid: int) -> bool:
    "Whether a process runs; one that ended and waits to be counted by its parent does not."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def parent_of(process: Path) -> str:
    try: return process.joinpath("stat").read_text().rpartition(")")[2].split()[1]
    except OSError: return ""


def test_shards_of_another_recipe_are_not_adopted(tmp_path, caplog):
    one = lambda index, reject: [SCENES[index]]
    write_shards("scenes", tmp_path, one, 3, {"seed": 1, "size": 64})
    caplog.clear()
    write_shards("scenes", tmp_path, lambda index, reject: [SCENES[index + 1]], 3, {"seed": 2, "size": 64})
    assert [s.id for s in read_dataset("scenes", tmp_path)] == [s.id for s in SCENES[1:]] and len(recipes(tmp_path)) == 1
    assert caplog.text.count("another recipe (seed) and is written again") == 3  # nothing goes without a line that names it
    write_shards("scenes", tmp_path, one, 2, {"seed": 2, "size": 64})
    assert [s.id for s in read_dataset("scenes", tmp_path)] == [s.id for s in SCENES[:2]] and len(recipes(tmp_path)) == 1
    assert "removed what other runs left: " in caplog.text and all(f"scenes-0000{i}-of-00003.parquet" in caplog.text for i in range(3))


def test_a_stranger_that_appears_during_the_run_is_refused(tmp_path):
    def items(index, reject):
        if index == 1: os.replace(tmp_path / "b/data/scenes-00000-of-00002.parquet", tmp_path / "a/data/scenes-00000-of-00002.parquet")
        return [SCENES[index]]
    write_shards("scenes", tmp_path / "b", lambda index, reject: [SCENES[2 + index]], 2, {"seed": 2})
    with pytest.raises(ValueError, match=r"a/data/scenes-00000-of-00002.parquet is of another recipe \(seed\); delete this file and run"):
        write_shards("scenes", tmp_path / "a", items, 2, {"seed": 1})
    assert not (tmp_path / "a/stats.json").exists()


@pytest.mark.parametrize("config, other", [
    (Scenes(n=4), Scenes(n=4, workers=7)),
    (HeldOut(), HeldOut(scenes=Scenes(first=900_000, workers=3), imagine=Imagine(workers=2), workers=4)),
    (GRPO(), GRPO(save_every=7, log_every=3, workers=2, nodes=2, node_command="mpirun")),
])
def test_settings_without_effect_keep_finished_work(config, other):
    assert fingerprint(config) == fingerprint(other) and recipe_of(config) == recipe_of(other)


def test_settings_with_effect_start_afresh():
    assert len({fingerprint(config) for config in (Scenes(), Scenes(n=3), Scenes(per_shard=7), HeldOut(scenes=Scenes(first=3)), HeldOut())}) == 5
    assert fingerprint(GRPO()) != fingerprint(replace(GRPO(), learning_rate=1e-3))


def test_more_workers_resume_what_one_began(tmp_path, monkeypatch):
    from world2vlm.dataset import synthesis
    config, whole = Scenes(n=4, per_shard=1, size=(16, 16)), synthesis.shard_scenes

    def stops(index, reject, config):
        if index == 3: raise KeyboardInterrupt
        return whole(index, reject, config)
    monkeypatch.setattr(synthesis, "shard_scenes", stops)
    with pytest.raises(KeyboardInterrupt): make_scenes(config, tmp_path / "out")
    monkeypatch.undo()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial/data").glob("*.parquet")}
    make_scenes(replace(config, workers=2), tmp_path / "out")
    assert len(done) == 3 and all((tmp_path / "out/data" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())


def test_what_is_removed_is_named(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / "out", "one"): raise KeyboardInterrupt
    with atomic_dir(tmp_path / "out", "two") as work: (work / "a").touch()
    assert f"{tmp_path}/out.partial: removed, an unfinished result of other settings, inputs or code" in caplog.text
    caplog.clear()
    with atomic_dir(tmp_path / "out", "two") as work: (work / "b").touch()
    assert f"{tmp_path}/out: the new result replaces the old one" in caplog.text and [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_what_a_kill_left_is_not_part_of_the_result(tmp_path):
    "A temporary file of a killed writer in the unfinished folder; the old result, if the kill came while the new one took its place."
    for name in (".a.json.123.tmp", "deep/.b.tsv.4.tmp"):
        with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / "out", "one") as work:
            write_text(work / name, "half")
            raise KeyboardInterrupt
    write_text(tmp_path / "out.old/a.json", "old")
    with atomic_dir(tmp_path / "out", "one") as work: write_text(work / "a.json", "new")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == ["out/a.json"]


# A file may grow to so many bytes and no further, as on a full disk.
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from world2vlm.core.runs import append_jsonl, write_json
from world2vlm.core.stages import atomic_dir
from world2vlm.dataset.shards import write_shards
from world2vlm.scenes.room import room_scenes
out = sys.argv[1]
def items(index, reject):
    if index == 2 and sys.argv[2:] == ["full"]: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    return room_scenes(2, seed=1, start=2 * index)
with atomic_dir(out, "mark") as work: write_shards("scenes", work, items, 3)
"""


def test_a_full_disk_loses_nothing_finished(tmp_path):
    run = lambda *arguments: subprocess.run([sys.executable, "-c", FULL, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    full, work = run(tmp_path / "out", "full"), tmp_path / "out.partial"
    assert full.returncode == 1 and "cannot write" in last_line(full.stderr) and "run again" in last_line(full.stderr)
    assert "scenes-00002-of-00003.parquet" in last_line(full.stderr)
    done = {path.name: path.stat().st_mtime_ns for path in (work / "data").iterdir()}
    assert sorted(done) == ["scenes-00000-of-00003.parquet", "scenes-00001-of-00003.parquet"]  # no half of the third takes space
    assert run(tmp_path / "out").returncode == 0 and run(tmp_path / "whole").returncode == 0
    assert all((tmp_path / "out/data" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())
    files = lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_full_disk_keeps_the_answers_and_the_old_file(tmp_path):
    code = ("import resource, signal, sys; from world2vlm.core.runs import append_jsonl, write_text\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
            "try: write_text(sys.argv[2], 'x' * 500)\nexcept OSError as error: print(error)\n"
            "for i in range(100): append_jsonl(sys.argv[1], [{'id': i}])")
    write_text(tmp_path / "page.html", "old")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl"), str(tmp_path / "page.html")], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1 and "cannot write" in last_line(run.stderr) and f"{tmp_path}/a.jsonl" in last_line(run.stderr)
    assert f"{tmp_path}/page.html" in run.stdout and (tmp_path / "page.html").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "page.html"]
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert rows == [{"id": i} for i in range(len(rows))] and len(rows) >= 9
    append_jsonl(tmp_path / "a.jsonl", [{"id": len(rows)}])
    assert len(read_jsonl(tmp_path / "a.jsonl")) == len(rows) + 1


@pytest.fixture
def read_only(tmp_path):
    "A folder that takes no new files, also from root."
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK): folder = Path("/sys") if os.statvfs("/sys").f_flag & os.ST_RDONLY else Path("/proc")
    yield folder
    (tmp_path / "read-only").chmod(0o700)


@pytest.mark.parametrize("write", [
    lambda folder: make_scenes(Scenes(n=1, size=(16, 16)), folder / "out"),
    lambda folder: write_shards("scenes", folder / "out", lambda index, reject: SCENES[:1]),
    lambda folder: write_text(folder / "a.txt", "x"),
    lambda folder: append_jsonl(folder / "a.jsonl", [{}]),
], ids=["stage", "shards", "text", "lines"])
def test_a_read_only_folder_is_one_plain_error(read_only, write):
    with pytest.raises(OSError, match=rf"cannot write \(.*\); finished files are kept; make the disk writable .*: '{read_only}/"): write(read_only)


def test_a_failed_stage_ends_with_one_plain_line(tmp_path):
    "After the traceback, whether the error comes from the stage or from one of its workers."
    import json
    code = ("from functools import partial\nfrom world2vlm.core.stages import atomic_dir\nfrom world2vlm.core.runs import parallel_map, write_text\n"
            f"with atomic_dir('{tmp_path}/out', 'mark'): parallel_map(partial(write_text, text='x'), 2, 2)")
    broken = [f"from world2vlm.core.runs import write_text\nwrite_text('{tmp_path}/file/a.txt', 'x')", code.replace("partial(write_text, text='x')", f"partial(write_text, '{tmp_path}/file/b.txt')")]
    (tmp_path / "file").touch()
    for number, source in enumerate(broken):
        cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
        (tmp_path / "stage.ipynb").write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
        run = subprocess.run([sys.executable, "-m", "papermill", "-k", "python3", "--log-output", "--no-progress-bar", "stage.ipynb", "done.ipynb"], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 1 and "Error: " in last_line(run.stderr), run.stderr
        assert "cannot write" in last_line(run.stderr) and "run again" in last_line(run.stderr) and f"{tmp_path}/file/{'ab'[number]}.txt" in last_line(run.stderr)


def test_an_error_of_an_input_is_not_one_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: 'missing.png'"):
        write_shards("scenes", tmp_path / "a", lambda index, reject: open("missing.png"))
    with pytest.raises(ConnectionError, match="refused$"), atomic_file(tmp_path / "b"): raise ConnectionRefusedError(111, "refused")


def test_a_warning_in_a_worker_is_printed(tmp_path, capfd):
    parallel_map(warn, 2, workers=2)
    assert capfd.readouterr().err.count("part 1 is odd") == 1


def warn(part): logging.warning("part %s is %s", part, ["even", "odd"][part])


def test_a_worker_whose_parent_is_gone_before_it_begins_ends():
    "Importing takes seconds, in which the parent can be killed."
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = f"import time; from world2vlm.core.runs import _end_with; _end_with({gone.pid}); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50).returncode == 1
