"Examples for trainers: TRL, ms-swift, LLaMA-Factory, and the records of the release."
import json

import numpy as np
import pytest
from PIL import Image
from records_of_rooms import ITEMS

from world2vlm.dataset.export import read_release, to_messages, to_swift, to_trl


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
