"The comparison: what was not run stays empty, runs keep their order, costs are listed, files hold no times, a killed run goes on."
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from world2vlm.core.config import ConfigError, repo_root
from world2vlm.core.runs import read_jsonl
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark
from world2vlm.evaluation.view_search import ViewSearch
from world2vlm.report import comparison
from world2vlm.report.comparison import (
    COLUMNS, Comparison, _ask_column, _columns, _load_items, _seconds_per_question, _comparison_page, make_comparison, summarise_runs)
from world2vlm.report.comparison_tables import _order_runs, _PAPER, _result_cell, benchmark_table, comparison_table, cost_figure, paper_table

BASE = str(repo_root() / "data/base")
SEARCH = "view search 1, reprojection"
ORDER = ["base", SEARCH, "SFT", "blind", "control: first", "control: most frequent", "control: random", "control: text prior"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "rooms"
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=2, first=970_000, seed=3, per_shard=2), Imagine(presets={"single": 3}), Supervise(per_scene=1)), out)
    return Comparison(sources={"rooms": str(out)}, depths=(1,), worldmodels=("reprojection",), view_search=ViewSearch(score_tokens=4), box_format="pixels", batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def rows(config, folder): return _ask_column("rooms", config, {"base": BASE, "SFT": BASE}, folder)


@pytest.fixture(scope="module")
def results(rows): return {"rooms": summarise_runs("rooms", rows, "SFT")}


def test_what_was_not_run_stays_empty(config, results):
    assert [column for column in COLUMNS if not _load_items(column, config)[0]] == ["SAT-Real", "SAT-Syn", "VSI-Bench", "MindCube"]
    heads, lines = paper_table(results)
    start = next(i for i, line in enumerate(lines) if line == ["This run"])
    paper, ours = {line[0]: line[1:] for line in lines[1:start]}, lines[start + 1:]
    assert heads == ["student", *COLUMNS] and list(paper) == list(_PAPER) and [line[0] for line in ours] == ORDER
    assert all(len(line) == len(heads) and line[1:5] == [""] * 4 and line[5] for line in ours) and _result_cell(None) == ""
    assert [float(value) for value in paper["SFT + GRPO, SVC"][:4]] == [72.67, 59.20, 41.55, 34.86] and {line[4] for line in paper.values()} == {""}


def test_a_part_of_a_benchmark_is_drawn_once_and_counted(config, tmp_path):
    (whole, total), part = _load_items("rooms", config), replace(config, limit=8, depths=())
    drawn = [item.id for item in _load_items("rooms", part)[0]]
    assert len(drawn) == 8 < len(whole) == total and drawn == [item.id for item in whole if item.id in drawn] == [item.id for item in _load_items("rooms", part)[0]]
    rows = _ask_column("rooms", part, {"base": BASE}, tmp_path)
    assert {row["id"] for row in rows["base"]} == {*drawn} and rows["base"][0]["questions"] == total
    table = benchmark_table({"rooms": summarise_runs("rooms", rows)})
    count = table.heads.index("questions")
    assert [row[count] for row in table.rows if row[0] == "rooms"] == [f"8 of {total}"] and {row[count] for row in table.rows if row[0] != "rooms"} == {""}


def test_a_part_holds_all_questions_of_a_pair_and_its_tables_are_json(tmp_path, monkeypatch):
    "CameraBench asks four questions about a pair and scores them together; with few pairs a skill may have no score."
    from test_benchmarks import write
    (tmp_path / "own_pairs.py").write_text("from dataclasses import replace\nfrom world2vlm.evaluation.benchmarks.camerabench import BENCHMARK\n"
                                           "OWN = replace(BENCHMARK, load=lambda source, split: BENCHMARK.load(source, split, None))\n")
    monkeypatch.syspath_prepend(tmp_path)
    pairs = Comparison(sources={"own_pairs:OWN": str(write(tmp_path / "home"))}, depths=(), limit=2, box_format="pixels")
    drawn, total = _load_items("own_pairs:OWN", pairs)
    assert total == 3 and len(drawn) == 8 and {*Counter(item.id.partition("#")[0] for item in drawn).values()} == {4}
    results, _ = make_comparison(pairs, {"base": BASE}, tmp_path / "out")
    def refused(name): raise ValueError(name)
    assert json.loads((tmp_path / "out/results.json").read_text(), parse_constant=refused).keys() == results.keys()
    assert [row[2] for row in benchmark_table(results).rows if row[0] == "own_pairs:OWN"] == ["2 of 3"]


def test_runs_come_in_one_order_whatever_the_file_had(results):
    summaries = results["rooms"]
    for other in (summaries, json.loads(json.dumps(summaries, sort_keys=True)), dict(reversed(summaries.items()))):
        assert list(_order_runs(other)) == [row[0] for row in comparison_table(other, "all kinds").rows] == ORDER


def test_every_cell_names_interval_number_and_rule(results, rows):
    assert _result_cell(results["rooms"]["base"]).endswith(f"n {len(rows['base'])}, all kinds")
    assert results["rooms"]["SFT"]["over"]["all kinds"]["difference"] == 0 and results["rooms"]["base"]["over"] is None
    final = {run: summary["final over"] for run, summary in results["rooms"].items()}
    assert final["SFT"] is None and final["base"]["all kinds"]["difference"] == 0 and final[SEARCH]["as SAT"]["low"] <= final[SEARCH]["as SAT"]["high"]


def test_each_rule_has_its_own_scores(results):
    column = lambda rule: [row[1] for row in comparison_table(results["rooms"], rule).rows]
    assert len({tuple(column(rule)) for rule in ("all kinds", "eight tasks", "as SAT")}) == 3
    assert comparison_table(results["rooms"], "as SAT").heads[:5] == ["student", "as SAT", "95 % interval", "over base", "final student over it"]


def test_a_run_that_a_rule_leaves_out_has_empty_cells(results):
    "ENACT's official rule leaves out what it cannot parse, maybe all answers of a run."
    summaries = json.loads(json.dumps(results["rooms"]))
    del summaries["SFT"]["rules"]["as SAT"]
    [row] = [row for row in comparison_table(summaries, "as SAT").rows if row[0] == "SFT"]
    assert row[1:3] == ["", ""] and len(cost_figure(summaries, "as SAT").axes[0].lines) == len(cost_figure(summaries, "all kinds").axes[0].lines) - 2


def test_the_account_of_the_search(results):
    alone, search = (results["rooms"][run]["account"] for run in ("base", SEARCH))
    assert alone["calls"] == 1 and alone["views"] == 0 and search["calls"] == 2 and search["rollouts"] <= 3
    assert search["tokens"] > alone["tokens"] and search["guessed"] == 1 and results["rooms"]["control: first"]["account"] is None


def test_times_are_in_memory_only(rows, results, folder):
    seconds = _seconds_per_question(rows)
    assert sorted(seconds) == ["SFT", "base", "blind", SEARCH] and min(seconds.values()) > 0
    assert not any("seconds" in row for path in folder.glob("*.jsonl") for row in read_jsonl(path)) and "seconds" not in json.dumps(results)
    table = comparison_table(results["rooms"], "all kinds", seconds)
    place = table.heads.index("seconds")
    assert [row[place] for row in table.rows] == [f"{seconds[run]:.3f}" if run in seconds else "" for run in ORDER]
    assert "seconds" not in comparison_table(results["rooms"], "all kinds").heads and all(len(row) == len(table.heads) for row in table.rows)


def test_the_figure_has_tokens_or_seconds(results, rows):
    by_tokens, by_time = (cost_figure(results["rooms"], "all kinds", seconds).axes[0] for seconds in (None, _seconds_per_question(rows)))
    assert by_tokens.get_xlabel() == "tokens for one question" and by_time.get_xlabel() == "seconds for one question"
    dots = [line.get_xdata()[0] for line in by_tokens.lines if line.get_marker() == "o"]
    assert dots == [results["rooms"][run]["account"]["tokens"] for run in ORDER[:4]]


def test_parallel_parts_hand_their_seconds_back(config, rows, tmp_path):
    parts = comparison._ask_searching("rooms", replace(config, workers=2), BASE, tmp_path)[SEARCH]
    answers = lambda rows: {row["id"]: (row["response"], row["evidence"]) for row in rows}
    assert answers(parts) == answers(rows[SEARCH]) and all(row["seconds"] > 0 for row in parts)


def test_parts_of_a_student_alone_are_the_whole(config, tmp_path):
    "The same answers, and the same strangers' pictures for the blind control."
    ask = lambda part, parts: comparison._alone_part(part, parts, "rooms", replace(config, batch_size=4), {"base": BASE}, tmp_path / str(parts))
    answers = lambda rows: {row["id"]: row["response"] for row in rows}
    whole, parts = ask(0, 1), [ask(part, 2) for part in range(2)]
    for run in ("base", "blind"):
        assert all(part[run] for part in parts) and len(whole[run]) == sum(len(part[run]) for part in parts)
        assert answers(whole[run]) == answers(sum((part[run] for part in parts), []))


@pytest.mark.proof
def test_goes_on_after_a_kill_with_the_same_files(config, tmp_path, monkeypatch):
    def dies(*_, **__): raise KeyboardInterrupt
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_ask_searching", dies)
        with pytest.raises(KeyboardInterrupt): make_comparison(config, {"base": BASE}, out)
    kept = tmp_path / "out.partial/rooms/base.jsonl"
    lines = kept.read_text()
    results, seconds = make_comparison(config, {"base": BASE}, out)
    assert (out / "rooms/base.jsonl").read_text() == lines and not kept.exists() and list(seconds["rooms"]) == [SEARCH]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results)) and SEARCH in results["rooms"]
    make_comparison(config, {"base": BASE}, tmp_path / "again")  # at another time, with the same bytes
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    [page] = [file for file in files if file.parent.name.startswith("calls of") and file.name == "index.html"]
    assert f'href="{quote(str(page))}"' in (out / "index.html").read_text() and (out / page).read_text().count("<details>") == config.view_search.keep
    assert Path("index.html") in files and all((out / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_a_page_holds_all(results, tmp_path):
    text = _comparison_page(results, tmp_path)
    assert text.count("data:image/png") >= 1 and "Paper, seven billion parameters" in text and "<h2>rooms</h2>" in text
    assert "seconds" not in text.split("</style>")[1] and all(f'>{run.replace("+", "&#43;")}</th>' in text or f">{run}</th>" in text for run in ORDER)


def test_the_tracked_figures_print():
    data = repo_root() / "data/mini"
    summaries = json.loads((data / "metrics/comparison-bidirectional.json").read_text())["results"]["rooms"]
    seconds = json.loads((data / "costs/comparison-bidirectional.json").read_text())["per_question"]["rooms"]
    table = comparison_table(summaries, "as SAT", seconds)
    assert table.rows[0][0] == "base" and all(row[0].startswith("view search") for row in table.rows[1:3]) and table.rows[-1][0].startswith("control: ")
    assert table.markdown().startswith("| student | as SAT |")


def test_a_benchmark_of_a_users_own_gets_a_column(config, tmp_path, monkeypatch):
    (tmp_path / "own_rooms.py").write_text("from world2vlm.evaluation.benchmarks.rooms import BENCHMARK as OWN\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = Comparison(sources={"own_rooms:OWN": config.sources["rooms"]})
    assert list(_columns(own)) == [*COLUMNS, "own_rooms:OWN"]
    assert [item.id for item in _load_items("own_rooms:OWN", own)[0]] == [item.id for item in _load_items("rooms", config)[0]]


def test_an_unknown_benchmark_is_an_error():
    with pytest.raises(ConfigError, match="Comparison.sources.vsi: expected one of sat, vsibench"): Comparison(sources={"vsi": "somewhere"})
    with pytest.raises(ValueError, match="no such file"): _load_items("SAT-Real", Comparison(sources={"sat": "nowhere"}))
