"The comparison: nothing is filled in, runs keep their order, costs are shown, a killed run goes on."
import json

import pytest

from world2vlm.report.comparison import COLUMNS, _PAPER, Comparison, _ask_column, paper_table, _result_cell, make_comparison, comparison_table, _order_runs, _load_items, comparison_page, summarise_runs
from world2vlm.core.config import repo_root
from world2vlm.evaluation.view_search import ViewSearch
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark

BASE = str(repo_root() / "data/base")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "transitions"
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=2, first=970_000, seed=3, per_shard=2), Imagine(presets={"single": 3}), Supervise(per_scene=1)), out)
    return Comparison(sources={"transitions": str(out)}, depths=(1,), view_search=ViewSearch(score_tokens=4), box_format="pixels", batch_size=8)


@pytest.fixture(scope="module")
def rows(config, tmp_path_factory): return _ask_column("transitions", config, {"base": BASE, "SFT": BASE}, "reprojection", tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def results(rows): return {"transitions": summarise_runs("transitions", rows)}


def test_what_was_not_run_stays_empty(config, results):
    assert [column for column in COLUMNS if not _load_items(column, config)] == ["SAT-Real", "SAT-Syn", "VSI-Bench", "MindCube"]
    table = paper_table(results)
    ours = [row for row in table if not row[0].startswith("paper: ")]
    assert len(table) - len(ours) == len(_PAPER) and all(row[1:5] == [""] * 4 and row[5] for row in ours) and _result_cell(None) == ""
    assert [float(v) for v in next(row for row in table if row[0] == "paper: SFT + GRPO, SVC")[1:5]] == [72.67, 59.20, 41.55, 34.86]


def test_runs_come_in_one_order_whatever_the_file_had(results):
    wanted = ["base", "view search 1", "SFT", "blind", "control: commonest", "control: first", "control: random"]
    found = results["transitions"]
    assert list(_order_runs(found)) == list(_order_runs(json.loads(json.dumps(found, sort_keys=True)))) == list(_order_runs(dict(reversed(found.items())))) == wanted
    assert comparison_table(found).splitlines()[0].startswith("| student | score | 95 % interval | over base |")


def test_every_cell_names_interval_number_and_rule(results, rows):
    assert _result_cell(results["transitions"]["base"]).endswith(f"n {len(rows['base'])}, all kinds")
    assert results["transitions"]["SFT"]["over"]["all kinds"]["difference"] == 0 and results["transitions"]["base"]["over"] is None


def test_the_account_of_the_search(results):
    alone, searched = (results["transitions"][run]["account"] for run in ("base", "view search 1"))
    assert alone["calls"] == 1 and alone["views"] == 0 and searched["calls"] == 2 and searched["rollouts"] <= 3 and searched["tokens"] > alone["tokens"] and searched["guessed"] == 1


def test_compare_goes_on_after_a_kill(config, tmp_path, monkeypatch):
    from world2vlm import comparison
    def dies(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "spread", dies)
        with pytest.raises(KeyboardInterrupt): make_comparison(config, {"base": BASE}, "reprojection", tmp_path / "out")
    kept = tmp_path / "out.partial/transitions/base.jsonl"
    lines = kept.read_text()
    again = make_comparison(config, {"base": BASE}, "reprojection", tmp_path / "out")
    assert (tmp_path / "out/transitions/base.jsonl").read_text() == lines and not kept.exists() and "view search 1" in again["transitions"]


def test_a_page_holds_all(results):
    text = comparison_page(results)
    assert text.count("data:image/png") >= 1 and "paper: base" in text and "<h2>transitions</h2>" in text


def test_an_unknown_benchmark_is_an_error():
    with pytest.raises(ValueError, match="unknown benchmark vsi; known are sat"): Comparison(sources={"vsi": "somewhere"})
    with pytest.raises(ValueError, match="no such file"): _load_items("SAT-Real", Comparison(sources={"sat": "nowhere"}))
