"Examples for trainers: TRL, ms-swift, LLaMA-Factory, EasyR1, verl, and the records of the release; read by the loaders' own code where it is installed."
import io
import json
import os
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from records_of_rooms import ITEMS

from world2vlm.dataset.export import (
    _command, _easyr1_row, _to_llama_factory, _to_rows, _verl_row, _WRITERS, _write_rows, read_release, to_messages, to_swift, to_trl)
from world2vlm.dataset.shards import write_shards


def test_messages_hold_one_placeholder_per_picture():
    for e in ITEMS["examples"]:
        user, assistant = to_messages(e)
        kinds = [part["type"] for part in user["content"]]
        assert kinds == ["image"] * len(e.images) + ["text"] and user["content"][-1]["text"] == e.question
        assert assistant == {"role": "assistant", "content": [{"type": "text", "text": e.answer}]}


def test_pixels_follow_the_size_of_the_student():
    box = next(e for e in ITEMS["examples"] if e.task == "D1" and e.phrasing == "direct")
    numbers = [int(n) for n in box.answer.strip("[]").split(",")]
    for size in (None, (128, 32)):
        answer = to_messages(box, "pixels", size)[1]["content"][0]["text"]
        width, height = size or (64, 64)
        assert json.loads(answer) == [round(n * s / 1000) for n, s in zip(numbers, (width, height) * 2)]
    with pytest.raises(ValueError, match="inches"): to_messages(box, "inches")


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
    ({"images": []}, "placeholders and pictures differ"), ({"images": "a.png"}, "no record"), ({"images": [3]}, "path"), ({"task_type": 1}, "no record"),
    ({"messages": RECORD["messages"][:1]}, "no record"), ({"messages": RECORD["messages"][::-1]}, "no record"), ({"messages": "x"}, "no record")])
def test_bad_records_of_a_release_cost_one_line(tmp_path, change, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [json.dumps(r) for r in (RECORD, {**RECORD, **change}, RECORD)] + ["", "[]", "null", "{"]
    (tmp_path / "r.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    rejects = []
    good = list(read_release(tmp_path / "r.jsonl", reject=lambda *reject: rejects.append(reject)))
    assert len(good) == 2 and good[0].question == "Where?" and [line for line, _ in rejects] == [f"r.jsonl line {i}" for i in (2, 5, 6, 7, 8)]
    assert message in rejects[0][1]
    with pytest.raises(ValueError, match="r.jsonl line 2"): list(read_release(tmp_path / "r.jsonl"))


EXAMPLES = [e for e in ITEMS["examples"] if e.split == "train"]


def needs(package: str): return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@needs("llamafactory")
def test_llama_factory_reads_them(tmp_path):
    "Its own parser finds the entry, and its own converter the roles, the answers and every picture."
    from types import SimpleNamespace
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list
    path = _to_llama_factory(ITEMS["examples"], tmp_path)
    [entry] = get_dataset_list(["world2vlm"], str(tmp_path))
    assert (entry.load_from, entry.dataset_name, entry.formatting) == ("file", path.name, "sharegpt")
    convert = get_dataset_converter(entry.formatting, entry, SimpleNamespace(media_dir=str(tmp_path)))
    for line, e in zip(path.read_text().splitlines(), ITEMS["examples"], strict=True):
        row = convert(json.loads(line))
        assert [m["role"] for m in row["_prompt"] + row["_response"]] == ["user", "assistant"] and row["_response"][0]["content"] == e.answer
        assert row["_prompt"][0]["content"].count("<image>") == len(row["_images"]) == len(e.images) and all(map(os.path.isfile, row["_images"]))


@needs("swift")
def test_swift_finds_the_pictures(tmp_path, monkeypatch):
    from swift.template.vision_utils import load_file
    record = json.loads(to_swift(ITEMS["examples"][:1], tmp_path).read_text())
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path))
    file = load_file(record["images"][0])
    assert (np.array(Image.open(file)) == ITEMS["examples"][0].images[0]).all()


@needs("verl")
def test_verl_builds_its_messages_from_them(tmp_path):
    from datasets import load_dataset
    from verl.utils.dataset.rl_dataset import RLHFDataset
    path = _to_rows(_verl_row, EXAMPLES, tmp_path, "norm1000", None)
    reader = RLHFDataset.__new__(RLHFDataset)  # without a tokenizer: only its reading of a row
    reader.prompt_key, reader.image_key, reader.video_key, reader.audio_key, reader.processor = "prompt", "images", "videos", "audios", object()
    for row, e in zip(load_dataset("parquet", data_files=str(path), split="train"), EXAMPLES, strict=True):
        [message] = reader._build_messages(dict(row), reader.prompt_key)
        pictures = [np.array(part["image"]) for part in message["content"] if part["type"] == "image"]
        assert all((a == b).all() for a, b in zip(pictures, e.images, strict=True)) and message["content"][-1]["text"] == e.question
        assert row["reward_model"]["ground_truth"] == e.answer and row["data_source"] == "world2vlm"


def test_easyr1_reads_them(tmp_path):
    "By the rules of its data set: a folder of parquet, a text cut at <image>, pictures as bytes, the answer in a column."
    from datasets import load_dataset
    _to_rows(_easyr1_row, EXAMPLES, tmp_path / "rows", "norm1000", None)
    rows = load_dataset("parquet", data_dir=str(tmp_path / "rows"), split="train")
    for row, e in zip(rows, EXAMPLES, strict=True):
        pieces = row["prompt"].split("<image>")
        assert len(pieces) == 1 + len(row["images"]) == 1 + len(e.images) and pieces[-1] == e.question
        assert (row["answer"], row["task_type"]) == (e.answer, e.task)
        assert all((np.array(Image.open(io.BytesIO(a["bytes"]))) == b).all() for a, b in zip(row["images"], e.images, strict=True))


def test_a_stopped_export_leaves_no_file(tmp_path):
    def rows():
        yield from (_easyr1_row(e, "norm1000", None) for e in EXAMPLES[:3])
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): _write_rows(rows(), tmp_path / "train.parquet", per_group=2)
    assert not (tmp_path / "train.parquet").exists()
    write = lambda name: _write_rows((_easyr1_row(e, "norm1000", None) for e in EXAMPLES), tmp_path / name, per_group=2)
    assert write("train.parquet").read_bytes() == write("again.parquet").read_bytes()


@pytest.mark.parametrize("trainer", _WRITERS)
def test_one_command_for_each_trainer(tmp_path, trainer):
    write_shards("examples", tmp_path / "data", lambda shard, reject: EXAMPLES)
    path, again = (_command([trainer, str(tmp_path / "data"), str(tmp_path / name), "--per-task", "2"]) for name in "ab")
    assert path.read_bytes() == again.read_bytes()
    from datasets import load_dataset
    rows = load_dataset(path.suffix[1:].replace("jsonl", "json"), data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    tasks = Counter(row.get("task_type") or row["ability"] for row in rows)
    assert tasks == {task: min(n, 2) for task, n in Counter(e.task for e in EXAMPLES).items()}
