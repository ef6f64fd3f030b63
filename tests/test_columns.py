"Examples without their pictures, and a few out of many."
import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from world2vlm.core.records import Example
from world2vlm.dataset import columns
from world2vlm.dataset.columns import _read_columns, _read_texts, _selected_file
from world2vlm.dataset.shards import read_dataset, shard_paths, write_shards
from world2vlm.dataset.synthesis import answer_counts


def noisy(n):
    rng = np.random.default_rng(0)
    target = {"actions": None, "box": None, "yes": True}
    return [Example(f"e{i}", "D2", "forward", [rng.integers(0, 255, (128, 128, 3), np.uint8)] * (1 + i % 2), f"Is it {i}?", "yes", target,
                    f"s{i}", "simulator", "train", "exact", "direct", None) for i in range(n)]


@pytest.fixture
def home(tmp_path):
    write_shards("examples", tmp_path / "examples", lambda index, reject: noisy(40)[index::2], 2)
    return tmp_path


class Counting(io.FileIO):
    "A file that counts what is read of it."
    total = 0

    def readinto(self, buffer):
        n = super().readinto(buffer)
        Counting.total += n
        return n

    def read(self, size=-1):
        data = super().read(size)
        Counting.total += len(data)
        return data


def test_texts_are_read_without_pictures(home, monkeypatch):
    size = sum(path.stat().st_size for path in shard_paths("examples", home / "examples"))
    monkeypatch.setattr(columns, "_arrow_source", lambda path: Counting(path))
    Counting.total = 0
    texts = list(_read_texts(home / "examples"))
    assert 0 < Counting.total < .25 * size
    whole = list(read_dataset("examples", home / "examples"))
    assert [(e.id, e.question, e.answer, e.target, e.images) for e in texts] == [(e.id, e.question, e.answer, e.target, []) for e in whole]
    assert answer_counts(home / "examples") == {"D2": {"yes": 40}}


def test_pictures_are_counted_without_reading_them(home):
    counted = [_read_columns(path, ["id", "images.list.element.path"]) for path in shard_paths("examples", home / "examples")]
    lengths = {name: len(images) for table in counted for name, images in zip(table["id"].to_pylist(), table["images"].to_pylist())}
    assert lengths == {f"e{i}": 1 + i % 2 for i in range(40)}


def test_chosen_rows_are_copied_once(home):
    paths, rows = shard_paths("examples", home / "examples"), np.array([1, 19, 20, 39])
    file = _selected_file(paths, rows, home / "cache")
    whole, data = list(read_dataset("examples", home / "examples")), Dataset.from_file(str(file))
    assert data["id"][:] == [whole[row].id for row in rows]
    for row, line in zip(rows, data): assert (np.array(line["images"][0]) == whole[row].images[0]).all()
    assert file.stat().st_size < .3 * sum(path.stat().st_size for path in paths)
    written = file.stat().st_mtime_ns
    assert _selected_file(paths, rows, home / "cache") == file and file.stat().st_mtime_ns == written
    assert _selected_file(paths, rows[:2], home / "cache") != file
    assert not [path for path in Path(home / "cache").iterdir() if path.name.endswith(".tmp")]
