"One of our students inside lmms-eval gives the answers and the scores that it gives here; our answers as VLMEvalKit stores them."
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from world2vlm.core.config import repo_root
from world2vlm.dataset.schema import to_png
from world2vlm.evaluation.benchmarks.base import ask_benchmark, open_benchmark
from world2vlm.evaluation.harness import _write_predictions
from world2vlm.students.models import open_student

needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
KINDS = ["Positional Relationship (Cam.-Cam.)", "Motion (Cam.)", "MSR"]


def write_mmsi(folder: Path, n=5, seed=0):
    "Questions in the columns of MMSI-Bench, each about two pictures."
    rng, folder = np.random.default_rng(seed), folder / "RunsenXu/MMSI-Bench"
    folder.mkdir(parents=True)
    picture = lambda: to_png(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))
    options = "Options: A: to the left, B: to the right, C: ahead, D: behind"
    rows = [dict(id=i, images=[picture(), picture()], question_type=KINDS[i % 3], question=f"Where is lamp {i}?\n{options}",
                 answer="ABCD"[i % 4], thought="") for i in range(n)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "MMSI_Bench.parquet")
    files = "- config_name: default\n  data_files:\n  - split: test\n    path: MMSI_Bench.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")  # as on the hub
    return folder


def entry_points(folder: Path) -> Path:
    "What `pip install` writes of the entry points in pyproject.toml."
    import tomllib
    groups = tomllib.loads((repo_root() / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "world2vlm_of_the_test-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: world2vlm-of-the-test\nVersion: 0\n")
    lines = (f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items()) for group, names in groups.items())
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@needs_lmms_eval
def test_lmms_eval_gives_our_answers_and_our_scores(tmp_path):
    "The command of the notebook, on lmms-eval's own task, whose data set is found in the folder where it runs."
    write_mmsi(tmp_path)
    checkpoint = str(repo_root() / "data/base")
    paths = [str(repo_root()), str(entry_points(tmp_path)), *sys.path]
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths)), HF_DATASETS_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-m", "lmms_eval", "--model", "world2vlm", "--model_args", f"checkpoint={checkpoint},box_format=pixels", "--batch_size", "1",
               "--tasks", "mmsi_bench", "--gen_kwargs", "max_new_tokens=8", "--log_samples", "--output_path", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and (tmp_path / "out").is_dir(), run.stdout[-3000:] + run.stderr[-3000:]  # an error is no failure there
    [samples], [results] = ([*(tmp_path / "out").rglob(f"*{name}")] for name in ("samples_mmsi_bench.jsonl", "results.json"))
    theirs = {str(row["doc_id"]): row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
    benchmark = open_benchmark("mmsi")
    items = [item for item in benchmark.load(str(tmp_path / "RunsenXu/MMSI-Bench"), "test", None) if item.id.endswith("#0") or "#" not in item.id]
    student = open_student(checkpoint, box_format="pixels", attention="sdpa")
    rows = ask_benchmark(student, benchmark, items, batch_size=1, max_new_tokens=8)
    assert {row["id"].partition("#")[0]: row["response"] for row in rows} == theirs
    score = json.loads(results.read_text())["results"]["mmsi_bench"]
    assert benchmark.score(rows)["lmms-eval"]["overall"] == pytest.approx(next(value for name, value in score.items() if name.startswith("average")))


@needs_lmms_eval
def test_one_answer_has_one_score_in_both():
    "By lmms-eval's own function, and by our rule of that name."
    from lmms_eval.tasks.mmsi_bench.utils import msr_process_results
    row, doc = dict(id="0", kind="MSR", choices=[], gold="B"), dict(id=0, question_type="MSR", answer="B")
    for text in ("B", "b", "`B`", "``A``", "{B} or A", "The answer is B", "B because", "B\nThe sofa", "a dog", "", "C or B", "option b."):
        ours = open_benchmark("mmsi").score([row | dict(response=text)])["lmms-eval"]["overall"]
        assert ours == msr_process_results(doc, [text])["average"]["score"], text


def test_predictions_as_vlmevalkit_stores_them(tmp_path):
    row = lambda name, **fields: dict(id=name, kind="Motion (Cam.)", question="Where?\nOptions: A: x", choices=["A. left", "B: right"], gold="B", response="B") | fields
    rows = [row("7#0", response="`B`\tor\nA"), row("7#1"), row("among_group1_q2", choices=[], response='"B"')]
    path = _write_predictions(rows, tmp_path / "base_MMSIBench_wo_circular.tsv")
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    assert [*table.columns] == ["index", "question", "A", "B", "answer", "category", "question_type", "prediction"]
    assert table.prediction.tolist() == ["`B`\tor\nA", '"B"'] and table["index"].tolist() == [7, 1] and table.A.tolist() == ["left", ""]
    with pytest.raises(ValueError, match="no answers"): _write_predictions([], path)
