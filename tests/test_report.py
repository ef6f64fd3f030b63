"""The report: figures are pure, the page stands alone, what is missing is said and never invented."""
import base64
import html.parser
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from world2vlm.core.camera import Action
from world2vlm.core.plotting import _png_bytes
from world2vlm.evaluation.statistics import score_runs
from world2vlm.report.figures import (
    AnsweredQuestion, _OwnedBox, ViewPair, _top_counts, answers_figure, balance_figure, headline_figure, imagined_figure, mean_figure, question_figure, run_names, task_figure)
from world2vlm.report.curves import _smooth_series, curve_figure, read_curves
from world2vlm.report.page import Section, render_page, write_page
from world2vlm.report.results import (
    RUNS, ArmReport, _scene_tables, arm_page, headline, headline_metrics, save_pictures)
from world2vlm.report.tables import Table, format_duration, format_interval, format_points, motion_table, score_table, task_table

GROUPS = {"Controls": {"majority": "majority"}, "Students": {"base": "base", "grpo": "SFT & <GRPO>"}, "Arms": {"forward_only": "forward only"}}


def rows(skill: float, seed: int, tasks=("A1", "D2"), n: int = 40) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [dict(id=f"{t}{i}", task=t, direction="inverse" if t < "B" else "forward", phrasing="direct", scene_id=f"s{i // 2}", parsed="x", seconds=0.1,
                 score=dict(overall=float(np.clip(skill + 0.1 * rng.standard_normal(), 0, 1)), exact=float(rng.random() < skill))) for t in tasks for i in range(n)]


@pytest.fixture(scope="module")
def results() -> dict:
    return score_runs(dict(majority=rows(0.3, 0), base=rows(0.4, 1), grpo=rows(0.7, 2), forward_only=None), samples=200)


@pytest.fixture(scope="module")
def full(results) -> ArmReport:
    rng = np.random.default_rng(0)
    view = lambda: rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    asked = AnsweredQuestion("D1", 'Where will the "red chair" be? <0-1000>\nSay [x1, y1, x2, y2].', [view()], "[1, 2, 3, 4]",
                             {"base": ("<b>?</b>", 0.0), "grpo": ("[1, 2, 3, 4]", 1.0)},
                             [_OwnedBox(0, (0.1, 0.1, 0.5, 0.5), "question"), _OwnedBox(0, (0.2, 0.2, 0.6, 0.6), "grpo")],
                             {"truth": [Action("turn_left", 30), Action("forward", 0.5)]})
    steps = np.arange(1, 30)
    log = {"loss": np.stack([steps, 1 / steps], 1), "reward": np.stack([steps, steps / 30], 1)}
    checks = [dict(task="D1", evidence="warped", n=10, measure="mean IoU", value=0.9, errors={"hidden": 2})]
    scenes = {"counts": {"K_evidence": {"exif": 1300, "estimated": 2}, "depth_evidence": {"estimated": 1302}}, "reasons": {"small": 7}, "weights": {"some/depth": "mit"}}
    motions = {"grpo": dict(n=9, direction=.9, low=.8, high=.95, metres=.04, degrees=None)}
    shares = {"D2": dict(n=40, scenes=3, score=.7, low=.5, high=.8)}
    usage = {"motion_sizes": [dict(kind="turn", up_to=20, refused=0, imagined=9, kept=1.0, not_testable=0.0)],
             "views": {"plain pictures": dict(imagined=40, used=38, share=.95)},
             "agreement": {"tasks": {"D1": dict(n=60, confirmed=.9)}, "motion_sizes": [dict(kind="sequence", up_to=0, n=60, confirmed=.9)]}}
    return ArmReport("smoke", "one & only", results, pairs=[ViewPair(view(), view(), view(), "move forward 0.5 meters")] * 2, questions=[asked],
                     errors=[asked], motions=motions, as_sat={"as SAT": results}, real_turns={"grpo": {"all places": motions["grpo"] | {"exactly right": shares}}}, usage=usage,
                     balance={"D2": {"yes": 3, "no": 4}}, curves={"sft": log, "grpo": log}, checks=checks, scenes=scenes)


@pytest.fixture(scope="module")
def page(full) -> str:
    return arm_page(full)


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
    assert all(image.startswith("data:image/png;base64,") for image in checker.images) and len(checker.images) >= 12
    assert all(link.startswith("#") and f'id="{link[1:]}"' in page for link in checker.links)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"https?:|url\(|@import|<script|<link", bare)
    for image in checker.images: Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).verify()


def test_text_is_escaped(page):
    assert "&lt;b&gt;?&lt;/b&gt;" in page and "<b>?</b>" not in page and "one &amp; only" in page
    shown = render_page("<x>", [Section("a", "A & B", "lead", [Table(["<h>"], [["<i>group"], ["row"]])])], headline="SFT & <GRPO>")
    assert not re.search(r"<x>|<h>|<i>|<GRPO>|A & B", shown) and "SFT &amp; &lt;GRPO&gt;" in shown


def test_motions_at_a_place(full, page):
    table = motion_table({"unseen rooms": full.motions, "forest": {}}, {"base": "base", "grpo": "after"})
    assert table.rows == [["unseen rooms", "after", "9", "90.0", "80.0 to 95.0", "0.04", ""]] and "real: all places" in page


def test_evidence_of_the_scenes(full, page):
    tables = _scene_tables(full.scenes)
    assert [table.rows for table in tables] == [[["exif", "1,300", "0"], ["estimated", "2", "1,302"]], [["small", "7"]], [["some/depth", "mit"]]]
    assert "1,302" in page and "some/depth" in page


def test_the_page_counts_what_was_left_out(page):
    for text in ("turn, up to 20 degrees", "not testable, %", "plain pictures", "confirmed, %", "several actions", "70.0 (50.0 to 80.0)"): assert text in page


def test_same_content_same_bytes(full, page): assert arm_page(full) == page


def test_what_was_not_run_stays_empty(results):
    empty = ArmReport("smoke", "main", {})
    assert arm_page(empty).count("Not part of this run.") == 9
    assert "not been evaluated" in headline(empty) and headline_metrics(empty) == {"questions": 0}
    assert "forward only" not in score_table(results, GROUPS).markdown()


def test_names_shared_by_two_groups_are_distinguished(results):
    groups = {"SFT": {"base": "both"}, "SFT + GRPO": {"grpo": "both"}}
    assert list(run_names(groups, results).values()) == ["both (SFT)", "both (SFT + GRPO)"]


def test_headline_never_claims_what_intervals_deny(results, full):
    base, majority = RUNS["Students"]["base"], RUNS["Controls"]["majority"]
    assert f"lies above those of \u201cbase\u201d, \u201c{majority}\u201d" in headline(full) or f"\u201c{majority}\u201d, \u201c{base}\u201d" in headline(full)
    tied = headline(replace(full, results=results | {"base": results["grpo"]}))
    assert f"not clearly above \u201c{base}\u201d" in tied and f"above those of \u201c{majority}\u201d" in tied
    assert "above those" not in headline(replace(full, results=results | {"grpo": results["majority"]}))


def test_one_scene_has_no_interval_and_still_a_page(full):
    single = [dict(row, scene_id="only") for row in rows(0.5, 0)]
    results = score_runs(dict(base=single, grpo=single), samples=50)
    stored = json.loads(json.dumps(results).replace("NaN", "null"))
    for found in (results, stored):
        shown = re.sub(r"base64,[A-Za-z0-9+/=]*", "", arm_page(replace(full, results=found)))
        assert "nan" not in shown and "not clearly above" in shown


def test_figures_are_pure(full, results):
    import matplotlib
    before = dict(matplotlib.rcParams)
    log, asked = full.curves["sft"], full.questions[0]
    for draw, args in ((imagined_figure, (full.pairs,)), (question_figure, (asked, {"grpo": "#d55e00"})), (balance_figure, (full.balance,)),
                       (task_figure, (results, GROUPS)), (mean_figure, (results, GROUPS)), (curve_figure, ({"sft": log}, {"loss": ["loss"], "none": ["x"]})),
                       (answers_figure, ([asked], {"base": "before", "grpo": "after"})), (headline_figure, (full.pairs[0], asked, {"base": "before", "grpo": "after"}))):
        light = _png_bytes(draw(*args))
        assert light == _png_bytes(draw(*args)) != _png_bytes(draw(*args, dark=True))
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt
    assert not plt.get_fignums()


def test_headline_picture_is_wide(tmp_path, full):
    assert {"answers", "errors", "headline", "imagined", "means", "scores", "curve-sft", "curve-grpo"} == set(save_pictures(full, tmp_path))
    assert Image.open(tmp_path / "headline.png").size[0] >= 1200
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save_pictures(full, tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_write_is_atomic(tmp_path, monkeypatch):
    path = write_page(tmp_path / "a" / "report.html", "old")
    monkeypatch.setattr("os.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError): write_page(path, "new")
    assert path.read_text() == "old"


def test_logs(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 10, "loss": 2.5, "what": "x"}\n{"step": 20, "loss": 1.5}\n{"step": 30, "lo')
    deep = tmp_path / "live" / "plots" / "metrics" / "train"
    deep.mkdir(parents=True)
    (deep / "loss.tsv").write_text("step\tloss\n0\t2e-1\n1\tnan\n2\t0.")
    assert read_curves(tmp_path / "log.jsonl")["loss"].tolist() == [[10, 2.5], [20, 1.5]]
    np.testing.assert_equal(read_curves(tmp_path / "live")["train/loss"], [[0, 0.2], [1, np.nan], [2, 0.0]])
    (tmp_path / "bad.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="bad.jsonl: a row has no field 'step'"): read_curves(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("seconds, text", [(0.84, "0.8 s"), (41.3, "41 s"), (200, "3 min 20 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text): assert format_duration(seconds) == text


def test_points_and_tables(results):
    assert format_points(0.5) == "50.0" and format_points(0.051, sign=True) == "+5.1" and format_points(-0.1) == "\u221210.0"
    assert format_points(None) == format_points(float("nan")) == format_interval(dict(low=None, high=float("nan"))) == ""
    assert all(len(row) == len(task_table(results, GROUPS).heads) for row in task_table(results, GROUPS).rows)
    assert Table(["a", "b"], [["x|y", "1"]]).markdown().splitlines()[-1] == "| x/y | 1 |"
    assert _top_counts({str(i): i for i in range(30)}, limit=5) == {"26": 26, "27": 27, "28": 28, "29": 29, "26 others": sum(range(26))}
    assert np.allclose(_smooth_series(np.full(7, 3.0)), 3)
