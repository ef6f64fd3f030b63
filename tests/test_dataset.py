"Data sets: nothing is lost, the same seed gives the same bytes, and a killed or damaged run can be mended."
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from world2vlm.core.camera import Action
from world2vlm.core.actions import plan
from world2vlm.core.camera import intrinsics
from world2vlm.dataset.schema import _DATASET_KINDS, dataset_features, from_png, _row_scene, _scene_row, to_png
from world2vlm.dataset.shards import _dataset_card, _matching_rows, _dict_rows, close_dataset, _picture_bytes, read_dataset, _row_groups, _shard_name, shard_paths, split_of, validate_dataset, write_shard, write_shards
from world2vlm.dataset.export import read_release, to_messages, to_swift, to_trl
from world2vlm.core.records import Instance, RoomPose, Scene
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.tasks import TASKS
from world2vlm.core.records import transitions_of
from world2vlm.teachers.base import load_teacher

ROOT = Path(__file__).resolve().parent.parent


def imagined(scene):
    [rollout] = load_teacher("simulator").imagine(scene, [plan([Action("turn_left", 20.0)])], seed=0)
    return rollout


def asked(scene):
    [transition] = transitions_of(scene, imagined(scene))
    return [e for task in TASKS.values() for e in task.derive(transition, np.random.default_rng(0), split=split_of(scene.id))]


SCENES = list(room_scenes(4, seed=0))
ITEMS = {"scenes": SCENES, "rollouts": [imagined(s) for s in SCENES], "examples": [e for s in SCENES for e in asked(s)]}


def make(kind):
    "Half of the items in each of two shards; one input is left out."
    def items(index, reject):
        reject(f"bad-{index}.png", "damaged picture: cut")
        scenes = {s.id for s in SCENES[2 * index:2 * index + 2]}
        return [i for i in ITEMS[kind] if getattr(i, "scene_id", None) in scenes or i in SCENES[2 * index:2 * index + 2]]
    return items


def write(kind, folder, **options): return write_shards(kind, folder, make(kind), 2, progress=False, **options)
def contents(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def same(a, b):
    "Equal to the last bit, whatever the two hold."
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "__dataclass_fields__"): return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Nothing is lost.
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_round_trip(tmp_path, kind):
    stats = write(kind, tmp_path)
    assert same(list(read_dataset(kind, tmp_path)), ITEMS[kind]) and stats["rows"] == len(ITEMS[kind]) and stats["scenes"] == 4
    assert validate_dataset(kind, tmp_path) == []


bare = Scene("bare", SCENES[0].image, SCENES[0].K)
empty = Scene("empty", SCENES[0].image, SCENES[0].K, depth=np.zeros((64, 64), np.float32), instances=[])
odd = Scene("odd", np.zeros((3, 5, 3), np.uint8), intrinsics(5, 3, 60), np.ones((3, 5), np.float32),
            [Instance(70_000, "grün \"chair\"", np.ones((3, 5), bool))], room=RoomPose(2**32 - 1, np.eye(4)))


def test_optional_parts_and_mixed_sizes(tmp_path):
    write_shard("scenes", tmp_path, 0, 1, lambda index, reject: [bare, SCENES[1], empty, odd])
    assert same(list(read_dataset("scenes", tmp_path)), [bare, SCENES[1], empty, odd])


def test_a_rollout_without_ids(tmp_path):
    item = replace(ITEMS["rollouts"][0], ids=None, fidelity={})
    write_shard("rollouts", tmp_path, 0, 1, lambda index, reject: [item, ITEMS["rollouts"][1]])
    assert same(list(read_dataset("rollouts", tmp_path)), [item, ITEMS["rollouts"][1]])


def test_an_empty_shard(tmp_path):
    stats = write_shards("scenes", tmp_path, lambda index, reject: [], 2, progress=False)
    assert stats["rows"] == 0 and list(read_dataset("scenes", tmp_path)) == [] and validate_dataset("scenes", tmp_path) == []


floats = st.floats(0, 100, width=32, allow_subnormal=True)


@settings(max_examples=20, deadline=None)
@given(depth=st.lists(floats, min_size=6, max_size=6), seed=st.integers(0, 99))
def test_depth_and_masks_survive_to_the_bit(depth, seed):
    rng = np.random.default_rng(seed)
    scene = Scene("x", rng.integers(0, 256, (2, 3, 3), np.uint8), intrinsics(3, 2, 60), np.array(depth, np.float32).reshape(2, 3),
                  [Instance(1, "red chair", rng.random((2, 3)) > 0.5)], room=RoomPose(seed, np.eye(4)))
    table = pa.Table.from_pylist([_scene_row(scene)], dataset_features("scenes").arrow_schema)
    assert same(_row_scene(_dict_rows(table.to_batches()[0])[0]), scene)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), kind=st.sampled_from(["rgb", "grey", "mask", "ids"]), seed=st.integers(0, 99))
def test_png_round_trip(height, width, kind, seed):
    rng = np.random.default_rng(seed)
    array = {"rgb": lambda: rng.integers(0, 256, (height, width, 3), np.uint8), "grey": lambda: rng.integers(0, 256, (height, width), np.uint8),
             "mask": lambda: rng.random((height, width)) > 0.5, "ids": lambda: rng.integers(0, 65536, (height, width), np.uint16)}[kind]()
    assert same(from_png(to_png(array)), array) and same(from_png(to_png(array[::-1])), np.ascontiguousarray(array[::-1]))


# The same bytes.
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_byte_equal(tmp_path, kind):
    for name in "ab": write(kind, tmp_path / name, recipe={"seed": 0, "size": (64, 64)}, licence="Apache-2.0")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_run_is_not_made_again(tmp_path):
    "Also when the recipe holds tuples, which JSON turns into lists."
    write("scenes", tmp_path, recipe={"size": (64, 64)})
    before = contents(tmp_path)
    write_shards("scenes", tmp_path, lambda index, reject: 1 / 0, 2, recipe={"size": (64, 64)}, progress=False)
    assert contents(tmp_path) == before


def test_another_recipe_is_made_again(tmp_path):
    write("scenes", tmp_path, recipe={"seed": 0})
    stats = write_shards("scenes", tmp_path, lambda index, reject: [SCENES[index]], 2, recipe={"seed": 1}, progress=False)
    assert stats["rows"] == 2 and [s.id for s in read_dataset("scenes", tmp_path)] == [s.id for s in SCENES[:2]]


def test_another_number_of_shards_leaves_nothing_behind(tmp_path):
    write("scenes", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write_shards("scenes", tmp_path, lambda index, reject: SCENES, 1, progress=False)
    assert sorted(contents(tmp_path)) == ["README.md", "notes.txt", "rejects.jsonl", _shard_name("scenes", 0, 1), "stats.json"]


def three(index, reject, hang=False):
    "Three rooms a shard; where it `hang`s it says so in the middle of the second shard."
    reject(f"bad-{index}.png", "damaged picture: cut")
    for i, scene in enumerate(room_scenes(3, seed=1, start=3 * index)):
        if hang and (index, i) == (1, 2):
            print("now", flush=True)
            time.sleep(60)
        yield scene


def test_kill_and_resume(tmp_path):
    "SIGKILL in the middle of the second of three shards; the second run ends with the bytes of an undisturbed one."
    code = f"import sys; sys.path.insert(0, 'tests'); from test_dataset import *; write_shards('scenes', {str(tmp_path / 'killed')!r}, partial(three, hang=True), 3, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert sorted(contents(tmp_path / "killed")) == ["scenes-00000-of-00003.parquet", "scenes-00001-of-00003.tmp"]
    stamp = (tmp_path / "killed" / _shard_name("scenes", 0, 3)).stat().st_mtime_ns
    for name in ("killed", "whole"): write_shards("scenes", tmp_path / name, three, 3, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed" / _shard_name("scenes", 0, 3)).stat().st_mtime_ns == stamp
    lines = [json.loads(line) for line in (tmp_path / "killed/rejects.jsonl").read_text().splitlines()]
    assert lines == [{"input": f"bad-{i}.png", "stage": "scenes", "reason": "damaged picture: cut"} for i in range(3)]


def test_a_failing_item_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match="scenes hold Scene, got Rollout"):
        write_shard("scenes", tmp_path, 0, 1, lambda index, reject: [SCENES[0], ITEMS["rollouts"][0]])
    with pytest.raises(ValueError, match="no shards of scenes"): shard_paths("scenes", tmp_path)


def test_shards_can_be_made_in_any_order(tmp_path):
    for index in (1, 0): write_shard("scenes", tmp_path / "a", index, 2, make("scenes"))
    close_dataset("scenes", tmp_path / "a", 2)
    write("scenes", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# Shared pictures.
def test_pictures_are_stored_once_per_group(tmp_path):
    "Noise does not compress: 2 MB of different pictures are shown by twelve rows each, and stored once."
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (320, 320, 3), np.uint8) for _ in range(6)]
    one = ITEMS["examples"][0]
    rows = [replace(one, id=f"{s}/{i}", scene_id=f"s{s}", images=pictures[2 * s:2 * s + 2]) for s in range(3) for i in range(12)]
    path = write_shard("examples", tmp_path, 0, 1, lambda index, reject: rows)
    different = sum(len(to_png(p)) for p in pictures)
    shown, stored = _picture_bytes(path)
    assert shown == 12 * different and different < stored < 1.01 * different and path.stat().st_size < 1.03 * different
    assert same(list(read_dataset("examples", tmp_path)), rows)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 9), max_size=12), max_rows=st.integers(1, 12))
def test_groups_never_split_a_scene(counts, max_rows):
    rows = [{"scene_id": str(s), "n": n, "x": {"bytes": bytes([s])}} for s, count in enumerate(counts) for n in range(count)]
    groups = list(_row_groups(rows, max_rows=max_rows))
    assert sum(groups, []) == rows and all(groups)
    assert all(a[-1]["scene_id"] != b[0]["scene_id"] and len(a) >= max_rows for a, b in zip(groups, groups[1:]))


def test_heavy_groups_are_closed():
    rows = [{"id": str(i), "image": {"bytes": bytes([i]) * 100}, "depth": np.zeros(25)} for i in range(6)]
    assert [len(g) for g in _row_groups(rows, max_bytes=400)] == [2, 2, 2]


# Other people's tools.
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_datasets_opens_it(tmp_path, kind):
    from datasets import disable_progress_bars, load_dataset
    disable_progress_bars()
    write(kind, tmp_path / "set")
    files = [str(p) for p in shard_paths(kind, tmp_path / "set")]
    by_file = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "c"), split="train")
    by_folder = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "d"), split="train")
    assert len(by_file) == len(by_folder) == len(ITEMS[kind]) and by_file.features == by_folder.features == dataset_features(kind)
    for row, item in zip(by_folder, ITEMS[kind]):
        pictures = [row["image"]] if kind == "scenes" else row["images"]
        wanted = [item.image] if kind == "scenes" else item.images
        assert all(isinstance(p, Image.Image) and (np.array(p) == w).all() for p, w in zip(pictures, wanted, strict=True))
    if kind == "scenes": assert (np.array(row["instances"][0]["mask"]) == item.instances[0].mask).all() and np.shape(row["K"]) == (3, 3)
    if kind == "rollouts": assert (np.array(row["ids"][0]) == item.ids[0]).all() and np.array(row["poses"]).tobytes() == item.poses.tobytes()


def test_the_card_tells_every_column(tmp_path):
    for kind in _DATASET_KINDS:
        text = _dataset_card(write(kind, tmp_path / kind, licence="CC-BY-4.0", recipe={"seed": 3}), "CC-BY-4.0")
        assert all(f"| `{name}` |" in text for name in dataset_features(kind)) and "Licence: CC-BY-4.0" in text and "| `seed` | `3` |" in text
        assert (tmp_path / kind / "README.md").read_text() == text


# Damage.
def flip(path): data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 4; path.write_bytes(data)
def cut(path): path.write_bytes(path.read_bytes()[:-200])
def text(path): path.write_text("no parquet")
def hollow(path): path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, cut, text, hollow])
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_a_damaged_shard_is_named(tmp_path, kind, spoil):
    write(kind, tmp_path)
    before, path = contents(tmp_path), tmp_path / _shard_name(kind, 1, 2)
    spoil(path)
    with pytest.raises(ValueError) as error: list(read_dataset(kind, tmp_path))
    message = str(error.value)
    assert str(path) in message and "delete this file and run its stage again" in message and "\n" not in message
    assert any(str(path) in problem for problem in validate_dataset(kind, tmp_path))
    path.unlink()
    assert write(kind, tmp_path) and contents(tmp_path) == before


@pytest.mark.parametrize("spoil", [cut, text, hollow])
def test_a_shard_without_footer_is_made_again(tmp_path, spoil):
    write("scenes", tmp_path)
    before = contents(tmp_path)
    spoil(tmp_path / _shard_name("scenes", 1, 2))
    assert write("scenes", tmp_path) and contents(tmp_path) == before


def drop(name): return lambda folder: (folder / name).unlink()
def swap(folder):
    a, b = (folder / _shard_name("examples", i, 2) for i in (0, 1))
    b.write_bytes(a.read_bytes())
def stray(folder): write_shard("examples", folder, 0, 3, make("examples"))
def resplit(folder):
    rows = [replace(e, id=f"{e.id}/{s}", split=s) for e in ITEMS["examples"][:1] for s in ("train", "test")]
    write_shards("examples", folder, lambda index, reject: rows if index else [], 2, recipe={"x": 1}, progress=False)
def other(folder): write_shard("scenes", folder, 0, 1, make("scenes")).rename(folder / _shard_name("examples", 1, 2))


@pytest.mark.parametrize("spoil, message", [
    (drop("stats.json"), "stats.json is missing"), (drop("rejects.jsonl"), "rejects.jsonl is missing"), (drop("README.md"), "README.md is missing"),
    (drop(_shard_name("examples", 1, 2)), "missing examples-00001-of-00002"), (swap, "occurs 2 times"), (swap, "differs from what stats.json"),
    (stray, "of another run"), (resplit, "is in the splits test, train"), (other, "wrong columns"),
    (lambda folder: (folder / "stats.json").write_text("{}"), "unreadable")])
def test_validate_finds(tmp_path, spoil, message):
    write("examples", tmp_path)
    assert validate_dataset("examples", tmp_path) == []
    spoil(tmp_path)
    assert any(message in problem for problem in validate_dataset("examples", tmp_path)), validate_dataset("examples", tmp_path)


def test_a_missing_shard_stops_reading_before_the_first_row(tmp_path):
    write("examples", tmp_path)
    (tmp_path / _shard_name("examples", 1, 2)).unlink()
    with pytest.raises(ValueError, match="missing examples-00001-of-00002.parquet; run the stage 'supervise' again"): next(read_dataset("examples", tmp_path))


@pytest.mark.parametrize("column, value, message", [
    ("image", {"bytes": b"no picture", "path": None}, "cannot identify"), ("K", [[0.0] * 3] * 3, "wrong K"), ("depth", [1.0, 2.0], "reshape")])
def test_rows_of_a_wrong_inside_are_refused(tmp_path, column, value, message):
    "Columns are right, one cell is not."
    path = write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1])
    rows = pq.read_table(path).to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, dataset_features("scenes").arrow_schema), path)
    with pytest.raises(ValueError, match=f"{path.name}: damaged shard .*{message}"): list(read_dataset("scenes", tmp_path))


def test_a_shard_of_older_columns_is_made_again(tmp_path):
    path = write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1])
    before, old = path.read_bytes(), pq.read_table(path).drop_columns("licence")
    label = pq.read_metadata(path).metadata[b"world2vlm"]  # it still calls itself a shard of this recipe
    pq.write_table(old.replace_schema_metadata({"world2vlm": label}), path)
    assert write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1]).read_bytes() == before


def test_choosing_rows(tmp_path):
    write("examples", tmp_path)
    everything = ITEMS["examples"]
    for where in ({"task": "D1"}, {"task": ["A2", "D2"], "phrasing": "direct"}, {"split": "nowhere"}):
        allowed = {k: [v] if isinstance(v, str) else v for k, v in where.items()}
        assert [e.id for e in read_dataset("examples", tmp_path, **where)] == [e.id for e in everything if all(getattr(e, k) in v for k, v in allowed.items())]
    with pytest.raises(ValueError, match="no column 'tsk'"): list(read_dataset("examples", tmp_path, tsk="D1"))


# Splits.
@settings(max_examples=50, deadline=None)
@given(id=st.text(max_size=20), seed=st.integers(0, 5))
def test_split_is_one_of_the_names(id, seed):
    assert split_of(id, seed) in ("train", "val", "test") and split_of(id, seed) == split_of(id, seed)
    assert split_of(id, seed, {"a": 0.0, "b": 1.0, "c": 0.0}) == "b"


def test_split_shares_and_seeds():
    ids = [f"room-{i:06d}" for i in range(4000)]
    first = [split_of(i, 0, {"train": 0.5, "val": 0.3, "test": 0.2}) for i in ids]
    assert [round(first.count(name) / 4000, 1) for name in ("train", "val", "test")] == [0.5, 0.3, 0.2]
    assert sum(a != b for a, b in zip(first, (split_of(i, 1, {"train": 0.5, "val": 0.3, "test": 0.2}) for i in ids))) > 1000
    assert [split_of(f"room-{i:06d}") for i in range(6)] == ["train"] * 4 + ["test", "train"]
    for shares in ({"train": 0.5}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(ValueError, match="add up to 1"): split_of("x", shares=shares)


# Trainers.
def test_messages_hold_one_placeholder_per_picture():
    for e in ITEMS["examples"]:
        user, assistant = to_messages(e)
        kinds = [part["type"] for part in user["content"]]
        assert kinds == ["image"] * len(e.images) + ["text"] and user["content"][-1]["text"] == e.question
        assert assistant == {"role": "assistant", "content": [{"type": "text", "text": e.answer}]}


def test_pixels_follow_the_size_the_student_sees():
    box = next(e for e in ITEMS["examples"] if e.task == "D1" and e.phrasing == "direct")
    numbers = [int(n) for n in box.answer.strip("[]").split(",")]
    for size in (None, (128, 32)):
        answer = to_messages(box, "pixels", size)[1]["content"][0]["text"]
        width, height = size or (64, 64)
        assert json.loads(answer) == [round(n * s / 1000) for n, s in zip(numbers, (width, height) * 2)]
    with pytest.raises(ValueError, match="unit"): to_messages(box, "inches")


def test_trl_fills_the_placeholders():
    from datasets import Dataset
    from trl.data_utils import is_conversational, prepare_multimodal_messages
    rows = list(to_trl(ITEMS["examples"], columns=("id", "task", "answer")))
    table = Dataset.from_list(rows)
    for row, e in zip(table, ITEMS["examples"], strict=True):
        assert is_conversational(row) and (row["id"], row["task"], row["answer"]) == (e.id, e.task, e.answer)
        [filled] = prepare_multimodal_messages(row["prompt"], images=row["images"])
        assert [np.array(part["image"]).shape for part in filled["content"] if part["type"] == "image"] == [(64, 64, 3)] * len(e.images)
        assert prepare_multimodal_messages(row["completion"])[0]["content"][0]["text"] == e.answer


def test_swift_and_the_release_read_the_same_file(tmp_path):
    path = to_swift(iter(ITEMS["examples"]), tmp_path)
    first = path.read_bytes()
    records, different = list(read_release(path)), {i.tobytes() for e in ITEMS["examples"] for i in e.images}
    assert len(list((tmp_path / "images").iterdir())) == len(different)
    for line, record, e in zip(first.splitlines(), records, ITEMS["examples"], strict=True):
        raw = json.loads(line)
        assert raw["messages"][0]["content"].count("<image>") == len(raw["images"]) and [m["role"] for m in raw["messages"]] == ["user", "assistant"]
        assert (record.task_type, record.question, record.answer) == (e.task, e.question, e.answer)
        assert all((np.array(Image.open(p)) == i).all() for p, i in zip(record.images, e.images, strict=True))
    assert to_swift(ITEMS["examples"], tmp_path).read_bytes() == first


RECORD = {"messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "[1, 2, 3, 4]"}], "images": ["a.png"], "task_type": "D1"}


@pytest.mark.parametrize("change, message", [
    ({"images": ["../a.png"]}, "leaves the folder"), ({"images": ["/etc/hostname"]}, "leaves the folder"), ({"images": ["none.png"]}, "missing picture"),
    ({"images": []}, "marks and pictures differ"), ({"images": "a.png"}, "no record"), ({"images": [3]}, "path"), ({"task_type": 1}, "no record"),
    ({"messages": RECORD["messages"][:1]}, "no record"), ({"messages": RECORD["messages"][::-1]}, "no record"), ({"messages": "x"}, "no record")])
def test_bad_records_of_a_release_cost_one_line(tmp_path, change, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [json.dumps(r) for r in (RECORD, {**RECORD, **change}, RECORD)] + ["", "[]", "null", "{"]
    (tmp_path / "r.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    told = []
    good = list(read_release(tmp_path / "r.jsonl", reject=lambda *r: told.append(r)))
    assert len(good) == 2 and good[0].question == "Where?" and [name for name, _ in told] == [f"r.jsonl line {i}" for i in (2, 5, 6, 7, 8)]
    assert message in told[0][1]
    with pytest.raises(ValueError, match="r.jsonl line 2"): list(read_release(tmp_path / "r.jsonl"))
