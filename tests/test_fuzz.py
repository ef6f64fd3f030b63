"""Odd and damaged inputs of every kind: each is read rightly, or refused by a documented error with its name and a remedy.
`make test` tries a thousand, always the same; `make fuzz` eighteen times as many, and writes tests/metrics/fuzz.json."""
import io
import json
import re
import shutil
import signal
import time
import warnings
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import strategies
from hypothesis import Phase, given, settings, strategies as st
from PIL import Image, ImageOps
from records_of_rooms import ITEMS, same
from test_settings import SECTIONS
from toy_training import TINY

from world2vlm.core.camera import check_K
from world2vlm.core.config import ConfigError, _annotations, load_params, load_settings
from world2vlm.core.records import Example, Instance
from world2vlm.core.runs import read_jsonl, write_json
from world2vlm.dataset.export import read_release
from world2vlm.dataset.schema import dataset_features, to_row
from world2vlm.dataset.shards import read_dataset, read_shard, validate_dataset, write_shards
from world2vlm.evaluation.answering import collect_answers
from world2vlm.evaluation.benchmarks.base import open_benchmark, read_records
from world2vlm.evaluation.benchmarks.hub import _unpack_zips
from world2vlm.evaluation.benchmarks.mindcube import _mindcube_letter
from world2vlm.evaluation.benchmarks.sat import sat_verdict, unpack_sat
from world2vlm.evaluation.benchmarks.vsibench import NUMERIC, VSI_RULES, _vsi_score
from world2vlm.evaluation.view_search import _read_scores
from world2vlm.scenes.photos import count_photos, photo_scenes
from world2vlm.students.models import load_student, mini_student
from world2vlm.tasks.answers import (BOX_ANSWER, MOTION_ANSWER, TRUE_FALSE, YES_NO, canonical_motion, convert_boxes,
                                     final_answer)
from world2vlm.tasks.rewards import paper_reward
from world2vlm.tasks.tasks import TASKS
from world2vlm.teachers.svc.teacher import SVC

KINDS = ("answers", "rules", "settings", "params", "pictures", "manifests", "maps", "cameras", "answer_files",
         "benchmark_files", "shards", "archives", "students", "teachers")
FIGURES = {kind: Counter() for kind in KINDS}
REFUSED, SLOWEST = defaultdict(Counter), Counter()
SECONDS = 5  # of the processor, longest time of one input; other work on the machine does not count
REMEDY = re.compile(r"\b(again|expected|correct it|choose|give|delete|known are|there are|has|add|keep|write|save|fetch"
                    r"|do not use|no valid YAML|take|run|another|pass)\b")
OUTCOMES = ("inputs", "accepted", "refused", "undocumented", "hangs", "wrong")


class Hang(BaseException):
    "An input took too long; no library catches it."


def stop(*_): raise Hang(f"no result within {SECONDS} s")


@contextmanager
def trial(kind: str, names: str = "", documented: tuple = (ValueError,)):
    "Count one input: the block accepts it, or raises a documented error whose message fits `names` and tells a remedy."
    outcome, began = "undocumented", time.process_time()
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
        outcome = "accepted"
    except documented as error:
        message = str(error)
        assert re.search(names, message) and REMEDY.search(message), f"no name or no remedy in {error!r}"
        outcome, REFUSED[kind][type(error).__name__] = "refused", REFUSED[kind][type(error).__name__] + 1
    except AssertionError:
        outcome = "wrong"
        raise
    except Hang:
        outcome = "hangs"
        raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        FIGURES[kind].update(["inputs", outcome])
        SLOWEST[kind] = max(SLOWEST[kind], time.process_time() - began)


def inputs(n: int) -> settings:
    "`n` inputs in `make test`, eighteen times as many in `make fuzz`."
    return settings(max_examples=n * settings.default.max_examples // 100)


@pytest.fixture(scope="module", autouse=True)
def record(request):
    "Write the figures of `make fuzz`."
    yield
    if settings.get_current_profile_name() != "fuzz": return
    kinds = {kind: {name: FIGURES[kind][name] for name in OUTCOMES} | {"refused_by": dict(REFUSED[kind]),
        "slowest_seconds": round(SLOWEST[kind], 2)} for kind in KINDS}
    totals = {name: sum(row[name] for row in kinds.values()) for name in OUTCOMES}
    write_json(Path(__file__).parent / "metrics/fuzz.json", {"seed": str(request.config.getoption("--hypothesis-seed")),
        "kinds": kinds, "total": totals, "long texts": {"characters": LENGTH, "readers": len(TEXT_READERS) + len(FILE_READERS),
        "shapes": len(HOSTILE), "slowest_seconds": round(SLOWEST["long texts"], 2)}})


@contextmanager
def place(**files: bytes):
    "A folder with `files`; its parent is empty otherwise."
    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        home = Path(folder) / "home"
        home.mkdir()
        for name, data in files.items(): (home / name).write_bytes(data)
        yield home


# Answers
TYPES = {"actions": MOTION_ANSWER, "box": BOX_ANSWER, "yes": YES_NO, "true": TRUE_FALSE}
TASK_OF = {"actions": "A3", "box": "D1", "yes": "D2", "true": "A4"}


def question(kind: str, truth, choices=None, answer: str = "") -> Example:
    task, answer_type = TASK_OF[kind], TYPES[kind]
    return Example("q", task, "inverse", [], "?", answer or answer_type.write(truth), answer_type.target(truth), "s",
                   "t", "test", "exact", "choice" if choices else "direct", choices)


@inputs(200)
@given(strategies.targets(), st.sampled_from(strategies.FORMS), strategies.REMARKS, strategies.targets())
def test_an_answer_in_any_wrapping_is_itself_or_unreadable(target, form, remark, other):
    "Reasoning and remarks around an answer never change it."
    kind, truth = target
    truth = canonical_motion(truth) if kind == "actions" else truth
    if kind == "actions" and not truth: return  # it cancels out
    noise = TYPES[other[0]].write(other[1])
    text = form.format(remark=remark, noise=noise, right=TYPES[kind].write(truth))
    with trial("answers"):
        asked = question(kind, truth)
        for answer in (TYPES[kind].read(text), TASKS[asked.task].parse(text, asked)): assert answer in (None,
            truth) and type(answer) in (type(None), type(truth))
        scores = TASKS[asked.task].score(text, asked)
        assert all(0 <= score <= 1 for score in scores.values()) and (scores["overall"] == 1 or answer is None)
        choices = dict(zip("ABCD", ["move left 1 meters", "turn left 20 degrees", "move left 2 meters",
                                    "turn right 20 degrees"]))
        letter = "ABCD"[len(text) % 4]
        picked = TASKS["A3"].parse(form.format(remark=remark, noise=noise, right=letter),
                                   question("actions", MOTION_ANSWER.read(choices[letter]), choices, letter))
        assert picked in (None, MOTION_ANSWER.read(choices[letter]))


@inputs(300)
@given(strategies.TEXTS, strategies.targets(), st.sampled_from(["0", "3", "205", "0.1", "1e3"]))
def test_any_text_has_a_score_in_range_by_every_rule(text, target, number):
    kind, truth = target
    truth = canonical_motion(truth) if kind == "actions" else truth
    with trial("rules"):
        assert _mindcube_letter(text) in {*"ABCDE", None} and sat_verdict(text, ["left", "right"], "left") in ("correct",
            "wrong", "out of control")
        for rule in VSI_RULES: assert 0 <= _vsi_score(text, NUMERIC[0], number, rule) <= 1 and _vsi_score(text,
            "route_planning", "B", rule) in (0, 1)
        for name in TASKS: assert all(-1 <= score <= 1 for score in paper_reward(name, TYPES[kind].write(truth),
            text).values())
        if truth != (): assert all(0 <= score <= 1 for score in TASKS[TASK_OF[kind]].score(text,
            question(kind, truth)).values())
        assert (scores := _read_scores(text, 2)) is None or len(scores) == 2
        assert convert_boxes(text, "norm1000", (64, 64)) == text and isinstance(convert_boxes(text, "pixels", (64, 48),
            True), str)
        for answer_type in TYPES.values():
            answer = answer_type.read(text)
            if answer is None: continue
            stored = json.loads(json.dumps(answer_type.pack(answer)))
            assert answer_type.read(answer_type.write(answer)) == answer == answer_type.unpack(stored)


# Settings
@cache
def params() -> dict: return load_params()


def fits(value, kind) -> bool:
    "Whether `value` lies in the range that an annotation declares."
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        compare = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a,
                   b: a <= b}
        bounds = [rule.split() for rule in args[1:] if isinstance(rule, str) and rule[0] in "<>"]
        names = [rule for rule in args[1:] if not isinstance(rule, str)]
        return fits(value, args[0]) and all(compare[sign](value, float(limit)) for sign,
                                            limit in bounds) and all(value in known or ":" in value for known in names)
    if origin in (Union, UnionType): return any(fits(value, arg) for arg in args)
    if origin is Literal: return value in args
    if origin is list: return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is tuple: return isinstance(value, tuple) and all(fits(item, arg) for item,
        arg in zip(value, args[:1] * len(value) if args[1:] == (...,) else args, strict=True))
    if origin is dict: return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k,
        v in value.items())
    if is_dataclass(kind): return isinstance(value, kind) and all(fits(getattr(value, name), part) for name,
        part in _annotations(kind).items())
    return True if kind not in (int, float, str, bool) else type(value) is kind


def plain(value):
    "Settings as they would stand in params.yaml."
    if is_dataclass(value): return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, dict): return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)): return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


@inputs(120)
@given(st.sampled_from(sorted(SECTIONS)), st.data())
def test_settings_are_in_range_or_refused(section, data):
    cls = SECTIONS[section]
    values = data.draw(strategies.changed(plain(load_settings(cls, section, "mini", "bidirectional", params()))))
    with trial("settings", rf"params\.yaml: {section}", (ConfigError,)):
        config = load_settings(cls, section, "mini", None, {**params(), section: values, "profiles": {"mini": {}}})
        assert fits(config, cls) and load_settings(cls, section, "", None, {section: plain(config)}) == config
        assert set(values or ()) <= {f.name for f in fields(cls)}


TEXT = """profile: mini
teachers: [svc, simulator]
arms:
  bidirectional: {teacher: svc, sft: {seed: 0}}
profiles:
  mini: {scenes: {n: 3}}
scenes:
  source: rooms  # or photos
  n: 2000
  size: &size [64, 64]
sft: {learning_rate: 1.0e-3, box_format: "pixels"}
evaluate: {size: *size}
"""


@inputs(60)
@given(strategies.yaml_files(TEXT))
def test_a_params_file_is_a_mapping_or_refused(data):
    with place(**{"params.yaml": data}) as home, trial("params", r"params\.yaml", (ConfigError,)):
        values = load_params(home / "params.yaml")
        assert isinstance(values, dict) and (data != TEXT.encode() or values["evaluate"]["size"] == [64, 64])


# Photos
def scenes_of(folder: Path) -> list:
    "Scenes of a folder; each entry is one of them or one reject, with a name and a reason that can be stored."
    rejected = []
    scenes = list(photo_scenes(folder, reject=lambda name, reason: rejected.append((name, reason))))
    assert len(scenes) + len(rejected) == count_photos(folder) and all(name and reason for name, reason in rejected)
    json.dumps([*rejected, *((s.id, s.source, s.licence) for s in scenes)], ensure_ascii=False).encode()
    for scene in scenes: check_K(scene.K, scene.size)
    return scenes


def file_of(array: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
GOOD = {"a.png": file_of(NOISE[0], "PNG"), "b.jpg": file_of(NOISE[1], "JPEG"), "bad.png": b"\x89PNG\r\n"}


@inputs(60)
@given(strategies.pictures(), st.data())
def test_a_picture_is_a_scene_or_one_reject(picture, data):
    name, whole, image = picture
    broken = data.draw(st.one_of(st.just(whole), strategies.damaged(whole)))
    with place(**{name: broken}) as home, trial("pictures"):
        scenes = scenes_of(home)
        assert len(scenes) <= 1 and (scenes or broken != whole)
        if scenes and (broken == whole or name == "a.png" and broken.startswith(whole[:8])):  # a PNG has checksums
            upright = ImageOps.exif_transpose(Image.open(home / name))
            assert scenes[0].size == upright.size
            if image.mode in ("RGB", "L", "1") and name != "a.jpeg" and name != "a.webp" and image.getexif().get(0x0112,
                1) == 1:
                with place(**{name: whole}) as other: assert (scenes_of(other)[0].image == scenes[0].image).all()


@inputs(60)
@given(strategies.manifests())
def test_an_entry_of_a_manifest_is_a_scene_or_one_reject(manifest):
    name, data, n = manifest
    with place(**GOOD, **{name: data}) as home, trial("manifests", r"manifest\.json"):
        np.save(home / "d.npy", np.ones((40, 60), np.float32))
        np.save(home / "i.npy", np.eye(40, 60, dtype=np.uint8) * 3)
        scenes = scenes_of(home)
        assert n in (None, count_photos(home)) and len({s.id for s in scenes}) == len(scenes)
        for scene in scenes: assert any((scene.image == image).all() for image in (NOISE[0],
            np.asarray(Image.open(home / "b.jpg"))))


@inputs(40)
@given(strategies.maps(), st.sampled_from([{}, {"depth_scale": 2}, {"depth_scale": 1e-300}, {"depth_scale": 10**400}]))
def test_a_map_is_read_or_one_reject(maps, scale):
    entry = {"file": "a.png", "depth": "d.npy", "ids": "i.npy", "labels": {"1": "red chair", "3": "box"}, **scale}
    with place(**GOOD, **maps, **{"manifest.json": json.dumps([entry]).encode()}) as home, trial("maps"):
        for scene in scenes_of(home):
            depth, ids = (np.load(home / name) for name in ("d.npy", "i.npy"))
            assert np.allclose(scene.depth, depth / scale.get("depth_scale", 1 if depth.dtype.kind == "f" else 1000))
            assert {i.id: i.mask.sum() for i in scene.instances} == {k: n for k in (1, 3) if (n := (ids == k).sum())}


@inputs(30)
@given(strategies.camera_files())
def test_a_camera_file_is_used_or_left_out(files):
    with place(**files, **{"a.png": GOOD["a.png"]}) as home, trial("cameras"):
        [scene] = scenes_of(home)
        assert scene.source in ("photo", *(f"photo; K from {name}" for name in files)) and isfinite(scene.K.sum())


# Answer files and files of benchmarks
QUESTIONS = [SimpleNamespace(id=f"q{i}", question=f"is it {i}?") for i in range(5)]
ROWS = [dict(id=q.id, question=q.question, response=f"text {q.id}\u2028", key="k",
             score={"overall": 0.5}) for q in QUESTIONS]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]


@inputs(60)
@given(strategies.line_files(LINES))
def test_an_answer_file_counts_each_question_once(data):
    with place(**{"a.jsonl": data}) as home, trial("answer_files", r"a\.jsonl"):
        asked, path = [], home / "a.jsonl"
        def respond(batch):
            asked.extend(q.id for q in batch)
            return [dict(response="new") for _ in batch]
        before = {row["id"] for row in read_jsonl(path, "id")}
        rows = collect_answers(respond, QUESTIONS, path, 1, "k", lambda q,
                               **row: dict(id=q.id, question=q.question, **row), lambda q: (0,))
        assert [row["id"] for row in rows] == [q.id for q in QUESTIONS] and all(isinstance(row["response"],
            str) for row in rows)
        assert {*asked} == {q.id for q in QUESTIONS} - before and len(asked) == len({*asked})
        stored = read_jsonl(path, "id")
        assert len({row["id"] for row in stored}) == len(stored) == 5
        assert [row["id"] for row in stored if row["response"] == "new"] == asked


RECORDS = {
    "sat": ("data/test.json", [dict(database_idx=i, question_type="goal_aim", question="?",
                                    answer_choices=["left", "right"], correct_answer="left",
                                    img_paths=["data/a.png"]) for i in range(3)]),
    "vsibench": ("test.jsonl", [dict(id=i, dataset="data", scene_name="v",
                                     question_type=NUMERIC[0] if i else "route_planning", question="?",
                                     ground_truth="3" if i else "B", options=["A. x"]) for i in range(3)]),
    "mindcube": ("data/raw/MindCube_tinybench.jsonl", [dict(id=f"among_{i}", question="?", images=["a.png"],
        gt_answer="A") for i in range(3)])}


@inputs(50)
@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_a_benchmark_file_is_loaded_and_scored_or_refused(name, data):
    file, records = RECORDS[name]
    records = data.draw(strategies.changed(records))
    text = json.dumps(records) if file.endswith("json") or not isinstance(records,
        list) else "\n".join(map(json.dumps, records))
    content = data.draw(st.one_of(st.just(text.encode()), strategies.damaged(text.encode())))
    with place() as home, trial("benchmark_files", re.escape(Path(file).stem)):
        (home / "data/raw").mkdir(parents=True)
        for picture in ("data/a.png", "data/v.mp4"): (home / picture).write_bytes(GOOD["a.png"])
        (home / file).write_bytes(content)
        benchmark = open_benchmark(name)
        items = benchmark.load(home, expected=None)
        pieces = [piece for item in items for piece in benchmark.prompt(item)]
        assert all(isinstance(p, str) or p.resolve().is_relative_to(home.resolve()) for p in pieces)
        for table in benchmark.score([benchmark.row(item,
            "left") for item in items]).values(): assert all(0 <= score <= 1 for score in table.values())


# Shards
SHARD = "{}-00000-of-00001.parquet"


@cache
def whole_shard(kind: str) -> tuple[bytes, dict]:
    "A shard and the other files of its data set."
    with place() as home:
        write_shards(kind, home, lambda index, reject: ITEMS[kind][:2])
        rest = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        return (home / "data" / SHARD.format(kind)).read_bytes(), rest


@inputs(40)
@given(st.sampled_from(sorted(ITEMS)), st.data())
def test_a_damaged_shard_has_the_same_rows_or_is_refused(kind, data):
    "Reading refuses it, and the check of the data set names it."
    whole, rest = whole_shard(kind)
    broken = data.draw(strategies.damaged(whole))
    with place(**rest) as home, trial("shards", "shard|home"):
        (home / "data").mkdir()
        (home / "data" / SHARD.format(kind)).write_bytes(broken)
        problems = validate_dataset(kind, home)
        assert (not problems) if broken == whole else any(SHARD.format(kind) in problem for problem in problems)
        assert same(list(read_dataset(kind, home)), ITEMS[kind][:2])


@inputs(20)
@given(st.sampled_from(sorted(ITEMS)), st.data())
def test_a_shard_with_odd_cells_is_refused(kind, data):
    "Cells that are empty or of another form, columns that are lost, renamed or of another type."
    rows = [to_row(kind, item) for item in ITEMS[kind][:2]]
    schema, column = dataset_features(kind).arrow_schema, data.draw(st.sampled_from(sorted(rows[0])))
    table = pa.Table.from_pylist(rows, schema)
    how, i = data.draw(st.sampled_from(["empty", "lose", "rename", "text", "odd"])), table.column_names.index(column)
    if how == "lose": table = table.drop_columns([column])
    elif how == "rename": table = table.rename_columns([f"{c}_" if c == column else c for c in table.column_names])
    elif how == "text": table = table.set_column(i, column, pa.array([b"\xff", b"\xff"]))
    elif how == "odd": table = pa.Table.from_pylist([{**rows[0],
        column: data.draw(st.sampled_from(ODD.get(str(schema.field(column).type).split("<")[0], [None])))}, rows[1]],
        schema)
    else: table = table.set_column(i, schema.field(column), pa.nulls(2, schema.field(column).type))
    with place() as home, trial("shards", "shard"):
        pq.write_table(table, path := home / SHARD.format(kind))
        for item, row in zip(read_shard(kind, path), rows, strict=True): assert same({**to_row(kind, item), column: 0},
            {**row, column: 0}) and valid(item)


ODD = {"string": ["", "{", "é" * 9, None], "int64": [-1, 2**62, None], "struct": [None], "list": [[], None],
       "fixed_size_list": [None]}


def valid(item) -> bool:
    "Whether the parts of a record that may not be empty are there."
    optional = {"depth", "instances", "room", "ids", "choices"}
    return all(getattr(item, f.name) is not None for f in fields(item) if f.name not in optional)


@inputs(10)
@given(st.lists(st.sampled_from(["scenes-00000-of-00001.parquet", "scenes-00001-of-00001.parquet",
                                 "scenes-x-of-y.parquet", "scenes-0-of-1.parquet",
                                 "scenes-00000-of-99999999999.parquet", "scenes--of-.parquet",
                                 "scenes-00000-of-00002.parquet", "scenes-1-of-2-of-3.parquet"]), max_size=3,
                unique=True))
def test_odd_names_of_shards_are_refused(names):
    with place() as home, trial("shards", "home"):
        (home / "data").mkdir()
        for name in names: (home / "data" / name).write_bytes(whole_shard("scenes")[0])
        assert isinstance(validate_dataset("scenes", home), list)
        assert len(list(read_dataset("scenes", home))) == 2


# Archives
LIMIT = 10 * 2**20


@inputs(40)
@given(strategies.archives())
def test_an_archive_stays_inside_its_folder(data):
    with place(**{"a.zip": data}) as home, trial("archives", r"a\.zip"):
        elsewhere = home.parent / "elsewhere"
        elsewhere.mkdir()
        (home / "link").symlink_to(elsewhere)
        try: assert _unpack_zips(home, LIMIT) and (home / "a.unpacked").is_file()
        finally:
            assert sorted(path.name for path in home.parent.iterdir()) == ["elsewhere",
                "home"] and not list(elsewhere.iterdir())
            assert (home / "a.zip").read_bytes() == data and not Path("/tmp/world2vlm_outside.png").exists()
            assert sum(p.stat().st_size for p in home.rglob("*") if p.is_file() and p.name != "a.zip") <= LIMIT


@inputs(20)
@given(st.data())
def test_pictures_of_sat_are_unpacked_or_refused(data):
    cells = st.lists(st.sampled_from([GOOD["a.png"], b"x", None, GOOD["b.jpg"][:200]]), max_size=2) | st.none()
    pictures = data.draw(st.lists(cells, min_size=1, max_size=3))
    table = pa.table({"image_bytes": pa.array(pictures, pa.list_(pa.binary())), "question": ["?"] * len(pictures)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    whole = sink.getvalue().to_pybytes()
    records = data.draw(strategies.changed([dict(database_idx=i, question="?",
                                                 img_paths=[f"data/{i}.png"]) for i in range(2)]))
    with place(**{"SAT_test.parquet": data.draw(st.one_of(st.just(whole),
        strategies.damaged(whole)))}) as home, trial("archives", r"SAT_test\.parquet|test\.json"):
        (home / "data").mkdir()
        (home / "data/test.json").write_text(json.dumps(records))
        try: assert unpack_sat(home / "SAT_test.parquet",
                               home) == len(list((home / "data").rglob("*.png"))) or isinstance(records, list)
        finally: assert [path.name for path in home.parent.iterdir()] == ["home"]


# Checkpoints
@pytest.fixture(scope="module")
def student(tmp_path_factory):
    "Folder and weights of a tiny student."
    folder = tmp_path_factory.mktemp("student") / "home"
    for part in mini_student(["a"], TINY): part.save_pretrained(folder)
    return folder, load_student(str(folder))[0].state_dict()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    "Folder and weights of a tiny generative teacher."
    from world2vlm.teachers.svc.pipeline import StableVirtualCameraPipeline
    from world2vlm.teachers.svc.scheduler import SVCScheduler
    from world2vlm.teachers.svc.unet import MultiViewUNet
    unet = MultiViewUNet(in_channels=23, out_channels=12, block_out_channels=(8, 8), attention_levels=(False, True),
                         joint_levels=(False, True), attention_head_dim=4,
                         cross_attention_dim=4, norm_num_groups=4, layers_per_block=1)
    folder = tmp_path_factory.mktemp("teacher") / "home"
    StableVirtualCameraPipeline(unet, SVCScheduler()).save_pretrained(folder)
    return folder, unet.state_dict()


def equal(weights: dict, others: dict) -> bool:
    "Whether two models have the same weights."
    same_values = lambda a, b: a.dtype == b.dtype and (a == b).all()
    return weights.keys() == others.keys() and all(same_values(weights[key], others[key]) for key in weights)


def with_damage(folder: Path, data) -> tuple[Path, bytes]:
    "Damage one file of a checkpoint: its weights, or one of its settings as text or as JSON."
    path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors"))))
    if path.suffix == ".safetensors": broken = data.draw(strategies.weight_files(path.read_bytes()))
    elif path.name == "tokenizer.json" or data.draw(st.booleans()):
        broken = data.draw(strategies.damaged(path.read_bytes()))
    else: broken = json.dumps(data.draw(strategies.changed(json.loads(path.read_bytes())))).encode()
    path.write_bytes(broken)
    return path, broken


def test_a_damaged_student_is_refused_or_the_same(student): check_checkpoint("students", *student,
    lambda folder: load_student(str(folder))[0], 10)
def test_a_damaged_teacher_is_refused_or_the_same(teacher): check_checkpoint("teachers", *teacher,
    lambda folder: SVC(str(folder)).pipeline.unet, 10)


def check_checkpoint(kind, folder, weights, load, n):
    @settings(inputs(n), phases=[Phase.generate])  # to shrink an input takes minutes
    @given(st.data())
    def check(data):
        with place() as home:
            shutil.copytree(folder, home, dirs_exist_ok=True)
            path, broken = with_damage(home, data)
            with trial(kind, "home", (ValueError, OSError)): assert equal(load(home).state_dict(),
                weights), f"{path.name}: {broken[:2000]}"
    check()


# Long texts
LENGTH = 10**6 if settings.get_current_profile_name() == "fuzz" else 10**5  # characters
HOSTILE = ["<think>", "</think>", "<answer>", "\\boxed{", "\\text{", "{", "}", "(", "[", "[[1, 2, 3, ", "[1, ", "1",
           "9.", "-", " ", "\n", "\t \n", "\u2028", "move ", "move left ", "turn left 1", "turn left 20 degrees; ",
           "; ", "yes ", "n't ",
           "A. ", "the answer is ", "twenty-", "one hundred and ", "°", "\u0130", "桌", "\ud800", "\0", "\"", "\\",
           "\\u", "{\"a\":", "#", "1 PINHOLE ", "a b\n", "chair (", "chair_2 ", "1e", "٣"]
CHOICES = dict(zip("ABCD", ["move left 1 meters", "turn left 20 degrees", "move left 2 meters",
                            "turn right 20 degrees"]))
LEFT = MOTION_ANSWER.read("move left 1 meters")
TEXT_READERS = {
    **{name: answer_type.read for name, answer_type in TYPES.items()},
                "choice": lambda text: TASKS["A3"].score(text, question("actions", LEFT, CHOICES, "A")),
                "final_answer": final_answer, "scores of views": lambda text: _read_scores(text, 2),
    "boxes": lambda text: convert_boxes(text, "pixels", (64, 64), True),
                "rewards": lambda text: [paper_reward(name, "move left 1 meters",
                    part) for name in TASKS for part in (text, text[:200])],
                "label": lambda text: Instance(1, "x" + text, MASK).category,
    "sat": lambda text: sat_verdict(text, ["left", "right"], "left"), "mindcube": _mindcube_letter,
                "vsibench": lambda text: [_vsi_score(text, kind, "3",
                    rule) for rule in VSI_RULES for kind in (NUMERIC[0], "route_planning")]}
MASK = np.ones((1, 1), bool)
FILE_READERS = {"answers.jsonl": lambda path: read_jsonl(path, "id"), "records.jsonl": lambda path: read_records(path,
    ("id",)), "records.json": lambda path: read_records(path, ("id",)),
                "release.jsonl": lambda path: list(read_release(path)),
                "manifest.jsonl": lambda path: count_photos(path.parent),
                "manifest.json": lambda path: count_photos(path.parent),
                **dict.fromkeys(("transforms.json", "cameras.txt", "images.txt"), lambda path: scenes_of(path.parent))}
CAMERAS = dict.fromkeys(("transforms.json", "cameras.txt", "images.txt"),
                        {"a.png": GOOD["a.png"], "cameras.txt": b"1 PINHOLE 60 40 50 51 30 20"})


@pytest.mark.parametrize("junk", HOSTILE, ids=ascii)
def test_a_long_text_is_read_within_a_second(junk):
    text = (junk * LENGTH)[:LENGTH] + "x"
    for name, read in TEXT_READERS.items():
        began = time.process_time()
        read(text)
        SLOWEST["long texts"] = max(SLOWEST["long texts"], seconds := time.process_time() - began)
        assert seconds < 1, name


@pytest.mark.parametrize("name", FILE_READERS)
def test_a_long_file_is_read_within_a_second(name):
    for number, junk in enumerate(HOSTILE):
        data = (junk * LENGTH)[:LENGTH].encode("utf-8", "surrogatepass")
        text = (data, b'{"id": "' + data + b'"}\n', b'{"id": ' + data + b"}\n")[number % 3]
        with place(**{**CAMERAS.get(name, {}), name: text}) as home:
            began = time.process_time()
            try: FILE_READERS[name](home / name)
            except ValueError as error: assert name in str(error), error
            SLOWEST["long texts"] = max(SLOWEST["long texts"], seconds := time.process_time() - began)
            assert seconds < 1, (name, junk)
