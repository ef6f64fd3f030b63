"Random numbers, whole files, logs and several processes."
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.runs import append_jsonl, count_cores, log_stage, parallel_map, read_jsonl, rng_for, seed_for, track_cost, write_json, write_text

settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")


@dataclass(frozen=True)
class Careful:
    mode: str = "lora"


def test_random_numbers_are_those_of_the_data_sets():
    "Shards on disk hold what these seeds gave; other bits would make other data."
    assert rng_for(0, "room-000001").integers(100, size=3).tolist() == [91, 46, 59]
    assert seed_for(7, 3, 0) == 3466196061
    assert rng_for(5).integers(10**9) == np.random.default_rng(5).integers(10**9)


@given(st.lists(st.integers(0, 2**64) | st.text(max_size=5), min_size=1, max_size=3), st.lists(st.integers(0, 2**64) | st.text(max_size=5), min_size=1, max_size=3))
def test_other_parts_give_other_numbers(a, b):
    assert seed_for(*a) == seed_for(*a) and 0 <= seed_for(*a) < 2**32
    if a == b: assert rng_for(*a).bytes(16) == rng_for(*b).bytes(16)
    elif all(isinstance(p, str) or p > 0 for p in a + b): assert rng_for(*a).bytes(16) != rng_for(*b).bytes(16)


def test_text_is_written_whole(tmp_path):
    path = write_text(tmp_path / "new/page.html", "é\n")
    assert path.read_bytes() == "é\n".encode() and [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert write_text(path, "b").read_text() == "b"


def test_json_is_sorted_whole_and_ends_in_a_newline(tmp_path):
    path = write_json(tmp_path / "new/metrics.json", dict(b=np.float32(0.5), a=np.arange(2), c=Careful()))
    assert path.read_bytes() == write_json(tmp_path / "again.json", dict(c=Careful(), a=[0, 1], b=0.5)).read_bytes()
    assert path.read_text().endswith("}\n") and list(json.loads(path.read_text())) == ["a", "b", "c"]
    with pytest.raises(ValueError): write_json(path, dict(loss=float("nan")))
    assert json.loads(path.read_text())["b"] == 0.5 and [p.name for p in path.parent.iterdir()] == ["metrics.json"]


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.fixed_dictionaries({"id": text, "answer": text | st.integers()}), min_size=1, max_size=5), st.data())
def test_a_file_cut_anywhere_resumes_to_the_same_bytes(tmp_path_factory, rows, data):
    "A killed writer leaves a torn last line; the next one appends what is missing after the whole lines."
    path = tmp_path_factory.mktemp("log") / "answers.jsonl"
    whole = append_jsonl(path, rows).read_bytes()
    path.write_bytes(whole[:data.draw(st.integers(0, len(whole)))])
    append_jsonl(path, rows[len(read_jsonl(path)):])
    assert path.read_bytes() == whole and read_jsonl(path) == rows


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "answers.jsonl"
    code = ("import sys, itertools; from world2vlm.core.runs import append_jsonl\n"
            "for i in itertools.count(): append_jsonl(sys.argv[1], [{'id': i}]); print(i, flush=True)")
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(20): writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    ids = [row["id"] for row in read_jsonl(path)]
    assert ids == list(range(len(ids))) and len(ids) >= 20


def test_several_processes_give_the_same_results():
    assert parallel_map(partial(pow, 3), 5, workers=2) == parallel_map(partial(pow, 3), 5) == [1, 3, 9, 27, 81]
    assert parallel_map(partial(pow, 3), 0, workers=2) == []


def test_cost_and_figures_of_a_stage(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with track_cost() as cost: sum(range(10**5))
    log_stage("sft-main", "smoke", {"loss": 0.5}, cost)
    assert json.loads((tmp_path / "data/smoke/metrics/sft-main.json").read_text()) == {"loss": 0.5}
    saved = json.loads((tmp_path / "data/smoke/costs/sft-main.json").read_text())
    assert 0 <= saved["cpu_seconds"] < 100 and saved["seconds"] >= 0 and saved["cores"] == count_cores() >= 1 and 0.01 < saved["peak_gb"] < 1000


def test_memory_of_other_processes_on_gpus_counts(monkeypatch):
    "Stands in for NVIDIA's library, which needs a driver."
    import sys
    from types import SimpleNamespace
    used = iter([3, 5, 4, *[1] * 1000])
    library = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda number: number,
                              nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=next(used) * 2**30))
    monkeypatch.setitem(sys.modules, "pynvml", library)
    from world2vlm.core.runs import _watched_gpus
    with _watched_gpus(.01) as peak:
        while not peak or peak[0] < 5: time.sleep(.01)
    assert peak == [5]
    monkeypatch.setattr(library, "nvmlInit", lambda: 1 / 0)
    with _watched_gpus(.01) as peak: pass
    assert peak == []
