"Shards: nothing is lost, the same seed gives the same bytes, a killed or damaged run can be repaired, and other libraries open the files."
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
from records_of_rooms import ITEMS, SCENES, same

from world2vlm.core.camera import intrinsics
from world2vlm.core.records import Instance, RoomPose, Scene
from world2vlm.dataset.schema import _DATASET_KINDS, dataset_card, dataset_features, to_png
from world2vlm.dataset.shards import (_picture_bytes, _row_groups, _shard_name, _close_dataset, read_dataset, shard_paths,
                                      validate_dataset, _write_shard, write_shards)
from world2vlm.scenes.room import room_scenes

ROOT = Path(__file__).resolve().parent.parent


def make(kind):
    "Half of the items in each of two shards; one input is left out."
    def items(index, reject):
        reject(f"bad-{index}.png", "damaged picture: cut")
        scenes = {s.id for s in SCENES[2 * index:2 * index + 2]}
        return [i for i in ITEMS[kind] if getattr(i, "scene_id", None) in scenes or i in SCENES[2 * index:2 * index + 2]]
    return items


def write(kind, folder, **options): return write_shards(kind, folder, make(kind), 2, **options)
def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
def shard(folder, kind, index=1, n_shards=2): return Path(folder) / "data" / _shard_name(kind, index, n_shards)


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
    _write_shard("scenes", tmp_path, 0, 1, lambda index, reject: [bare, SCENES[1], empty, odd])
    assert same(list(read_dataset("scenes", tmp_path)), [bare, SCENES[1], empty, odd])


def test_a_rollout_without_ids(tmp_path):
    item = replace(ITEMS["rollouts"][0], ids=None, fidelity={})
    _write_shard("rollouts", tmp_path, 0, 1, lambda index, reject: [item, ITEMS["rollouts"][1]])
    assert same(list(read_dataset("rollouts", tmp_path)), [item, ITEMS["rollouts"][1]])


def test_an_empty_shard(tmp_path):
    stats = write_shards("scenes", tmp_path, lambda index, reject: [], 2)
    assert stats["rows"] == 0 and list(read_dataset("scenes", tmp_path)) == [] and validate_dataset("scenes", tmp_path) == []


# The same bytes.
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_byte_equal(tmp_path, kind):
    for name in "ab": write(kind, tmp_path / name, recipe={"seed": 0, "size": (64, 64)}, licence="Apache-2.0")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_complete_run_is_not_written_again(tmp_path):
    "Also when the recipe holds tuples, which JSON turns into lists."
    write("scenes", tmp_path, recipe={"size": (64, 64)})
    before = contents(tmp_path)
    write_shards("scenes", tmp_path, lambda index, reject: 1 / 0, 2, recipe={"size": (64, 64)})
    assert contents(tmp_path) == before


def test_another_recipe_is_written_again(tmp_path):
    write("scenes", tmp_path, recipe={"seed": 0})
    stats = write_shards("scenes", tmp_path, lambda index, reject: [SCENES[index]], 2, recipe={"seed": 1})
    assert stats["rows"] == 2 and [s.id for s in read_dataset("scenes", tmp_path)] == [s.id for s in SCENES[:2]]


def test_another_number_of_shards_leaves_nothing_behind(tmp_path):
    write("scenes", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write_shards("scenes", tmp_path, lambda index, reject: SCENES, 1)
    assert sorted(contents(tmp_path)) == ["README.md", "data/" + _shard_name("scenes", 0, 1), "notes.txt", "rejects.jsonl", "stats.json"]


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
    code = f"import sys; sys.path.insert(0, 'tests'); from test_shards import *; write_shards('scenes', {str(tmp_path / 'killed')!r}, partial(three, hang=True), 3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert sorted(contents(tmp_path / "killed")) == [f"data/.scenes-00001-of-00003.parquet.{process.pid}.tmp", "data/scenes-00000-of-00003.parquet"]
    (tmp_path / "killed/.stats.json.123.tmp").write_text("left by a kill")
    stamp = shard(tmp_path / "killed", "scenes", 0, 3).stat().st_mtime_ns
    for name in ("killed", "whole"): write_shards("scenes", tmp_path / name, three, 3)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert shard(tmp_path / "killed", "scenes", 0, 3).stat().st_mtime_ns == stamp
    lines = [json.loads(line) for line in (tmp_path / "killed/rejects.jsonl").read_text().splitlines()]
    assert lines == [{"input": f"bad-{i}.png", "stage": "scenes", "reason": "damaged picture: cut"} for i in range(3)]


def test_a_failing_item_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match="scenes hold Scene, got Rollout"):
        _write_shard("scenes", tmp_path, 0, 1, lambda index, reject: [SCENES[0], ITEMS["rollouts"][0]])
    with pytest.raises(ValueError, match="no shards of scenes"): shard_paths("scenes", tmp_path)


def test_shards_can_be_written_in_any_order(tmp_path):
    for index in (1, 0): _write_shard("scenes", tmp_path / "a", index, 2, make("scenes"))
    _close_dataset("scenes", tmp_path / "a", 2)
    write("scenes", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# Shared pictures.
def test_pictures_are_stored_once_per_group(tmp_path):
    "Noise does not compress: 2 MB of distinct pictures belong to twelve rows each, and are stored once."
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (320, 320, 3), np.uint8) for _ in range(6)]
    example = ITEMS["examples"][0]
    rows = [replace(example, id=f"{s}/{i}", scene_id=f"s{s}", images=pictures[2 * s:2 * s + 2]) for s in range(3) for i in range(12)]
    path = _write_shard("examples", tmp_path, 0, 1, lambda index, reject: rows)
    different = sum(len(to_png(p)) for p in pictures)
    raw, stored = _picture_bytes(path)
    assert raw == 12 * different and different < stored < 1.01 * different and path.stat().st_size < 1.03 * different
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


# Other libraries.
def pictures(row, kind): return [row["image"]] if kind == "scenes" else row["images"]


def pandas_rows(data):
    import pandas
    return pandas.read_parquet(data).to_dict("records")


def pyarrow_rows(data): return pq.read_table(data).to_pylist()


def polars_rows(data):
    import polars
    return polars.read_parquet(data / "*.parquet").to_dicts()


def duckdb_rows(data):
    import duckdb
    return duckdb.sql(f"select * from '{data}/*.parquet'").to_arrow_table().to_pylist()


@pytest.mark.parametrize("kind", _DATASET_KINDS)
@pytest.mark.parametrize("rows_of", [pandas_rows, pyarrow_rows, polars_rows, duckdb_rows])
def test_a_table_library_opens_data(tmp_path, kind, rows_of):
    write(kind, tmp_path)
    rows = rows_of(tmp_path / "data")
    assert len(rows) == len(ITEMS[kind]) and [list(row) for row in rows] == [list(dataset_features(kind))] * len(rows)
    for row, item in zip(rows, ITEMS[kind]):
        assert [picture["bytes"] for picture in pictures(row, kind)] == [to_png(image) for image in ([item.image] if kind == "scenes" else item.images)]
        if kind == "scenes": assert np.array_equal(np.array(row["depth"], np.float32), item.depth.ravel()) and row["id"] == item.id
        else: assert row["scene_id"] == item.scene_id


@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_datasets_opens_data(tmp_path, kind):
    "By a list of files, by the folder data/, and by the whole folder with the configuration in its card."
    from datasets import disable_progress_bars, load_dataset
    disable_progress_bars()
    write(kind, tmp_path / "set")
    load = partial(load_dataset, cache_dir=str(tmp_path / "cache"), split="train")
    tables = [load("parquet", data_files=[str(p) for p in shard_paths(kind, tmp_path / "set")]), load("parquet", data_dir=str(tmp_path / "set/data")),
              load(str(tmp_path / "set"))]
    for table in tables: assert len(table) == len(ITEMS[kind]) and table.features == dataset_features(kind)
    for row, item in zip(tables[2], ITEMS[kind]):
        images = [item.image] if kind == "scenes" else item.images
        assert all(isinstance(p, Image.Image) and (np.array(p) == image).all() for p, image in zip(pictures(row, kind), images, strict=True))
    if kind == "scenes": assert (np.array(row["instances"][0]["mask"]) == item.instances[0].mask).all() and np.shape(row["K"]) == (3, 3)
    if kind == "rollouts": assert (np.array(row["ids"][0]) == item.ids[0]).all() and np.array(row["poses"]).tobytes() == item.poses.tobytes()


def test_the_card_is_that_of_stats_json(tmp_path):
    stats = write("examples", tmp_path, licence="CC-BY-4.0", recipe={"seed": 3})
    assert (tmp_path / "README.md").read_text() == dataset_card(stats, "CC-BY-4.0") and json.loads((tmp_path / "stats.json").read_text()) == stats
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "data", "rejects.jsonl", "stats.json"]


def test_shards_beside_the_card_are_not_a_data_set(tmp_path):
    write("scenes", tmp_path)
    for path in shard_paths("scenes", tmp_path): path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="no shards of scenes in data/; run the stage 'scenes' first"): next(read_dataset("scenes", tmp_path))


# Damage.
def flip(path): data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 4; path.write_bytes(data)
def cut(path): path.write_bytes(path.read_bytes()[:-200])
def text(path): path.write_text("no parquet")
def hollow(path): path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, cut, text, hollow])
@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_a_damaged_shard_is_named(tmp_path, kind, spoil):
    write(kind, tmp_path)
    before, path = contents(tmp_path), shard(tmp_path, kind)
    spoil(path)
    with pytest.raises(ValueError) as error: list(read_dataset(kind, tmp_path))
    message = str(error.value)
    assert str(path) in message and "delete this file and run its stage again" in message and "\n" not in message
    assert any(str(path) in problem for problem in validate_dataset(kind, tmp_path))
    path.unlink()
    assert write(kind, tmp_path) and contents(tmp_path) == before


@pytest.mark.parametrize("spoil", [cut, text, hollow])
def test_a_shard_without_footer_is_written_again(tmp_path, spoil):
    write("scenes", tmp_path)
    before = contents(tmp_path)
    spoil(shard(tmp_path, "scenes"))
    assert write("scenes", tmp_path) and contents(tmp_path) == before


def drop(name): return lambda folder: (folder / name).unlink()
def swap(folder):
    a, b = (shard(folder, "examples", i) for i in (0, 1))
    b.write_bytes(a.read_bytes())
def stray(folder): _write_shard("examples", folder, 0, 3, make("examples"))
def resplit(folder):
    rows = [replace(e, id=f"{e.id}/{s}", split=s) for e in ITEMS["examples"][:1] for s in ("train", "test")]
    write_shards("examples", folder, lambda index, reject: rows if index else [], 2, recipe={"x": 1})
def other(folder): _write_shard("scenes", folder, 0, 1, make("scenes")).rename(shard(folder, "examples"))
def unlisted(spoil): return lambda folder: (spoil(folder), (folder / "stats.json").write_text('{"shards": []}'))


@pytest.mark.parametrize("spoil, message", [
    (drop("stats.json"), "stats.json is missing"), (drop("rejects.jsonl"), "rejects.jsonl is missing"), (drop("README.md"), "README.md is missing"),
    (drop("data/" + _shard_name("examples", 1, 2)), "missing examples-00001-of-00002"), (unlisted(swap), "occurs 2 times"), (swap, "differs from its checksum in stats.json"),
    (stray, "belongs to another run"), (resplit, "is in the splits test, train"), (unlisted(other), "wrong columns"), (other, "differs from its checksum"),
    (lambda folder: (folder / "stats.json").write_text("{}"), "unreadable")])
def test_validate_finds(tmp_path, spoil, message):
    write("examples", tmp_path)
    assert validate_dataset("examples", tmp_path) == []
    spoil(tmp_path)
    assert any(message in problem for problem in validate_dataset("examples", tmp_path)), validate_dataset("examples", tmp_path)


def test_a_missing_shard_stops_reading_before_the_first_row(tmp_path):
    write("examples", tmp_path)
    shard(tmp_path, "examples").unlink()
    with pytest.raises(ValueError, match="missing examples-00001-of-00002.parquet; run the stage 'supervise' again"): next(read_dataset("examples", tmp_path))


@pytest.mark.parametrize("column, value, message", [
    ("image", {"bytes": b"no picture", "path": None}, "cannot identify"), ("K", [[0.0] * 3] * 3, "wrong K"), ("depth", [1.0, 2.0], "reshape")])
def test_invalid_cells_are_rejected(tmp_path, column, value, message):
    "The columns are right, one cell is not."
    path = _write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1])
    rows = pq.read_table(path).to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, dataset_features("scenes").arrow_schema), path)
    with pytest.raises(ValueError, match=f"{path.name}: damaged shard .*{message}"): list(read_dataset("scenes", tmp_path))


def test_a_shard_of_older_columns_is_written_again(tmp_path):
    path = _write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1])
    before, old = path.read_bytes(), pq.read_table(path).drop_columns("licence")
    label = pq.read_metadata(path).metadata[b"world2vlm"]  # it still calls itself a shard of this recipe
    pq.write_table(old.replace_schema_metadata({"world2vlm": label}), path)
    assert _write_shard("scenes", tmp_path, 0, 1, lambda index, reject: SCENES[:1]).read_bytes() == before


def test_choosing_rows(tmp_path):
    write("examples", tmp_path)
    everything = ITEMS["examples"]
    for where in ({"task": "D1"}, {"task": ["A2", "D2"], "phrasing": "direct"}, {"split": "nowhere"}):
        allowed = {k: [v] if isinstance(v, str) else v for k, v in where.items()}
        assert [e.id for e in read_dataset("examples", tmp_path, **where)] == [e.id for e in everything if all(getattr(e, k) in v for k, v in allowed.items())]
    with pytest.raises(ValueError, match="no column 'tsk'"): list(read_dataset("examples", tmp_path, tsk="D1"))
