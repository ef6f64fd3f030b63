"""The report: figures are pure, the page stands alone, what is missing is said and never invented."""
import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from world2vlm.core.camera import Action
from world2vlm.evaluation.statistics import score_runs
from world2vlm.report.figures import AskedQuestion, _DrawnBox, ViewPair, balance_figure, curve_figure, imagined_figure, mean_figure, number_or_nan, format_points, question_figure, read_curves, _smooth_series, task_figure, _top_counts
from world2vlm.report.page import ReportInputs, headline, render_report, write_report
from world2vlm.report.tables import _format_duration, result_table, format_interval
from world2vlm.core.plotting import _png_bytes

GROUPS = {"Controls": {"majority": "majority"}, "Students": {"base": "base", "grpo": "SFT & <GRPO>"}, "Arms": {"forward_only": "forward only"}}


def rows(skill: float, seed: int, tasks=("A1", "D2"), n: int = 40) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [dict(id=f"{t}{i}", task=t, direction="inverse" if t < "B" else "forward", phrasing="direct", scene_id=f"s{i // 2}", parsed="x", seconds=0.1,
                 score=dict(overall=float(np.clip(skill + 0.1 * rng.standard_normal(), 0, 1)))) for t in tasks for i in range(n)]


@pytest.fixture(scope="module")
def results() -> dict:
    return score_runs(dict(majority=rows(0.3, 0), base=rows(0.4, 1), grpo=rows(0.7, 2), forward_only=None), samples=200)


@pytest.fixture(scope="module")
def full(results) -> ReportInputs:
    rng = np.random.default_rng(0)
    view = lambda: rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    asked = AskedQuestion("D1", 'Where will the "red chair" be? <0-1000>\nSay [x1, y1, x2, y2].', [view()], "[1, 2, 3, 4]", {"base": ("<b>?</b>", 0.0), "grpo": ("[1, 2, 3, 4]", 1.0)},
                  [_DrawnBox(0, (0.1, 0.1, 0.5, 0.5), "question"), _DrawnBox(0, (0.2, 0.2, 0.6, 0.6), "grpo")], {"truth": [Action("turn_left", 30), Action("forward", 0.5)]})
    steps = np.arange(1, 30)
    log = {"loss": np.stack([steps, 1 / steps], 1), "reward": np.stack([steps, steps / 30], 1)}
    return ReportInputs(profile="smoke", groups=GROUPS, results=results, pairs=[ViewPair(view(), view(), view(), "move forward 0.5 meters")] * 2, questions=[asked],
                  balance={"D2": {"yes": 3, "no": 4}}, sft_logs={"grpo": log}, grpo_logs={"grpo": log},
                  labels=[dict(task="D1", evidence="transport", n=10, measure="IoU", value=0.9, errors={"hidden": 2})],
                  costs=[dict(stage="sft", seconds=75.0, peak_gb=1.5, counts={"steps": 1200})], notes={"cost": "one & only"})


@pytest.fixture(scope="module")
def page(full) -> str:
    return render_report(full)


class Checker(html.parser.HTMLParser):
    "Every opened tag is closed in order, and every picture has a description."
    void = {"meta", "img", "source", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.void:
            self.open.append(tag)
        if tag == "img":
            assert attrs["alt"] and int(attrs["width"]) and int(attrs["height"])
        for name in ("src", "srcset"):
            if name in attrs:
                self.images.append(attrs[name])
        if "href" in attrs:
            self.links.append(attrs["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_stands_alone(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert all(image.startswith("data:image/png;base64,") for image in checker.images) and len(checker.images) >= 14
    assert all(link.startswith("#") and f'id="{link[1:]}"' in page for link in checker.links)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"https?:|url\(|@import|<script|<link", bare)
    for image in checker.images:
        Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).verify()


def test_text_is_escaped(page):
    assert "SFT &amp; &lt;GRPO&gt;" in page and "<GRPO>" not in page
    assert "&lt;b&gt;?&lt;/b&gt;" in page and "one &amp; only" in page


def test_same_inputs_same_bytes(full, page):
    assert render_report(full) == page


def test_what_was_not_run_stays_empty(full, results):
    assert "forward only" in result_table(results, GROUPS) and result_table(results, GROUPS).count("not run") == 1
    assert render_report(ReportInputs()).count("Not part of this run.") == 7
    assert "not been evaluated" in headline(ReportInputs(groups=GROUPS, results={"base": results["base"]}))
    assert render_report(ReportInputs(sft_logs={"sft": {}})).count("Not part of this run.") == 7


def test_names_shared_by_two_groups_are_told_apart(results):
    groups = {"SFT": {"base": "both"}, "SFT + GRPO": {"grpo": "both"}}
    assert "\u201cboth (SFT)\u201d" in headline(ReportInputs(groups=groups, results=results)) and "both (SFT + GRPO) scores" in headline(ReportInputs(groups=groups, results=results))


def test_headline_never_claims_what_intervals_deny(results):
    assert "lies above those of \u201cbase\u201d, \u201cmajority\u201d" in headline(ReportInputs(groups=GROUPS, results=results))
    tied = headline(ReportInputs(groups=GROUPS, results=results | {"base": results["grpo"]}))
    assert "not clearly above \u201cbase\u201d" in tied and "above those of \u201cmajority\u201d" in tied
    worse = headline(ReportInputs(groups=GROUPS, results=results | {"grpo": results["majority"]}))
    assert "above those" not in worse


def test_one_scene_has_no_interval_and_still_a_page():
    single = [dict(row, scene_id="only") for row in rows(0.5, 0)]
    results = score_runs(dict(base=single, grpo=single), samples=50)
    stored = json.loads(json.dumps(results).replace("NaN", "null"))
    for one in (results, stored):
        page = render_report(ReportInputs(groups=GROUPS, results=one))
        assert "no interval" in page and "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)


def test_figures_are_pure(full, results):
    import matplotlib
    before = dict(matplotlib.rcParams)
    for draw, args in ((imagined_figure, (full.pairs,)), (question_figure, (full.questions[0], {"grpo": "#d55e00"})), (balance_figure, (full.balance,)),
                       (task_figure, (results, GROUPS)), (mean_figure, (results, GROUPS)), (curve_figure, (full.sft_logs, {"loss": ["loss"], "none": ["x"]}))):
        light = _png_bytes(draw(*args))
        assert light == _png_bytes(draw(*args)) != _png_bytes(draw(*args, dark=True))
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt
    assert not plt.get_fignums()


def test_write_is_atomic(tmp_path, full, monkeypatch):
    path = write_report(tmp_path / "a" / "report.html", ReportInputs())
    old = path.read_text()
    monkeypatch.setattr("world2vlm.report.report", lambda inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, full)
    assert path.read_text() == old and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_logs_of_all_kinds(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 10, "loss": 2.5, "what": "x"}\n{"step": 20, "loss": 1.5}\n{"step": 30, "lo')
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "reward": 0.1}, {"step": 2, "eval_loss": 3}]}))
    deep = tmp_path / "live" / "plots" / "metrics" / "train"
    deep.mkdir(parents=True)
    (deep / "loss.tsv").write_text("step\tloss\n0\t2e-1\n1\tnan\n2\t0.")
    assert read_curves(tmp_path / "log.jsonl")["loss"].tolist() == [[10, 2.5], [20, 1.5]]
    assert set(read_curves(tmp_path / "trainer_state.json")) == {"reward", "eval_loss"}
    np.testing.assert_equal(read_curves(tmp_path / "live")["train/loss"], [[0, 0.2], [1, np.nan], [2, 0.0]])
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(ValueError, match="x.yaml: a log is"):
        read_curves(tmp_path / "x.yaml")
    (tmp_path / "bad.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="bad.jsonl: a row has no field 'step'"):
        read_curves(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("seconds, text", [(0.04, "0.0 s"), (59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (90000, "25 h 0 min")])
def test_duration(seconds, text):
    assert _format_duration(seconds) == text


def test_small_helpers():
    assert format_points(0.5) == "50.0" and format_points(0.051, sign=True) == "+5.1" and format_points(-0.1) == "\u221210.0"
    assert "no interval" in format_interval(dict(low=None, high=float("nan"))) and np.isnan(number_or_nan(None))
    assert _top_counts({str(i): i for i in range(30)}, most=5) == {"26": 26, "27": 27, "28": 28, "29": 29, "26 others": sum(range(26))}
    assert np.allclose(_smooth_series(np.full(7, 3.0)), 3)
