import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.tasks.rewards import _REWARDS, _box_reward, _numeric_credit, normalise_answer, paper_reward, read_bool, read_box_text, _read_steps
from world2vlm.core.records import iou

HERE = Path(__file__).parent
BOX = "[400, 300, 600, 700]"  # 200 x 400, diagonal 447.2, centre tolerance 268.3

# task, answer, response, parts; each row worked out by hand from the published parts and weights
ROWS = [
    ("A1", "move left 1 meters", "move left 1 meters", dict(overall=1, format=1, action=1, numeric=1)),
    ("A1", "move left 1 meters", "Move Left 1.5 Meters.", dict(overall=1, numeric=1)),
    ("A1", "move left 1 meters", "move left 3.25 meters", dict(overall=0.45 + 0.55 * 2.75 / 4.5, numeric=2.75 / 4.5)),
    ("A1", "move left 1 meters", "move left 6 meters", dict(overall=0.45, action=1, numeric=0)),
    ("A1", "move left 1 meters", "move left -1 meter", dict(overall=0.45 + 0.55 * 3 / 4.5)),
    ("A1", "move left 1 meters", "move right 1 meters", dict(overall=0.1, format=1, action=0, numeric=0)),
    ("A1", "move left 1 meters", "turn left 1 degree", dict(overall=0.1, format=1, action=0)),
    ("A1", "move left 1 meters", "move right 1 meters, move left 6 meters, move left 1 meters", dict(overall=1)),
    ("A1", "move left 1 meters", "move left", dict(overall=0, format=0)),
    ("A1", "move left 1 meters", "no idea", dict(overall=0, format=0)),
    ("A1", "B", "B", dict(overall=0, format=0, action=0, numeric=0)),
    ("A2", "turn right 30 degrees", "turn right 35 degrees", dict(overall=1)),
    ("A2", "turn right 30 degrees", "turn right 77.5 degrees", dict(overall=0.45 + 0.55 * 0.5, numeric=0.5)),
    ("A2", "turn right 30 degrees", "turn left 30 degrees", dict(overall=0.1)),
    ("A3", "move left 1 meters; turn left 10 degrees", "move left 1 meters; turn left 10 degrees", dict(overall=1, order=1)),
    ("A3", "move left 1 meters; turn left 10 degrees", "turn left 10 degrees; move left 1 meters",
     dict(overall=0.35, action=1, order=0, numeric=0)),
    ("A3", "move left 1 meters; turn left 10 degrees", "move left 1 meters",
     dict(overall=0.1 + 0.125 + 0.175 + 0.15, action=0.5, order=0.5, numeric=0.5)),
    ("A3", "move left 1 meters", "move left 1 meters then turn left 5 degrees then turn left 5 degrees",
     dict(overall=0.1 + 0.25 / 3 + 0.35 + 0.3 - 0.06, action=1 / 3, order=1)),
    ("D3", "move left 1 meters", "turn left 1 degrees" + "; turn right 1 degrees" * 4, dict(overall=0, format=1)),
    ("D3", "move left 1 meters", "First move left 1 meters", dict(overall=1)),
    ("D3", "move left 1 meters", "", dict(overall=0, format=0, action=0, order=0, numeric=0)),
    ("D1", BOX, BOX, dict(overall=1, format=1, validity=1, geometry=1, iou=1, center=1, size=1, l1=1)),
    ("D1", BOX, "bbox" + BOX, dict(overall=1, format=1)),
    ("D1", BOX, "  BBOX \n[ 400.0,300 ,600,\t700 ]  ", dict(overall=1, format=1)),
    ("D1", BOX, BOX + ".", dict(overall=0.88, format=0.4)),
    ("D1", BOX, f"It moves to {BOX} in the end", dict(overall=0.88, format=0.4, geometry=1)),
    ("D1", BOX, f"bbox: {BOX}", dict(overall=0.88, format=0.4)),
    ("D1", BOX, f"{BOX} or [1, 2, 3, 4]", dict(overall=0.88, format=0.4)),
    ("D1", BOX, "[600, 700, 400, 300]", dict(overall=0.2 + 0.15 * 0.3 + 0.65 * 0.51, validity=0.3, geometry=0.51, iou=1)),
    ("D1", BOX, "[400, 700, 600, 300]", dict(validity=0.3, geometry=0.51)),
    ("D1", BOX, "[400, 300, 400, 700]", dict(validity=0.3, iou=0, size=0, center=1 - 100 / (0.6 * math.hypot(200, 400)),
                                             l1=1 - 50 / 180)),
    ("D1", BOX, "[400, 300, 600, 1500]", dict(validity=0.7 + 0.3 * (1 - 125 / 200), iou=4 / 7, l1=1 - 75 / 180)),
    ("D1", BOX, "[-4000, -4000, 4000, 4000]", dict(validity=0.7, iou=0.08, l1=0)),
    ("D1", BOX, "[100.5, 300, 300.5, 700]", dict(validity=1, iou=0, size=1, l1=1 - 149.75 / 180)),
    ("D1", BOX, "[400, 300, 600]", dict(overall=0, format=0, validity=0, geometry=0, iou=0, center=0, size=0, l1=0)),
    ("D1", BOX, "[400, 300, 600, 700, 800]", dict(overall=0, format=0)),
    ("D1", BOX, "400, 300, 600, 700", dict(overall=0, format=0)),
    ("D1", BOX, "(400, 300, 600, 700)", dict(overall=0, format=0)),
    ("D1", "yes", BOX, dict(overall=0, format=0)),
    ("A4", "true", "TRUE", dict(overall=1, format=1, accuracy=1)),
    ("A4", "true", "yes!", dict(overall=1)),
    ("A4", "true", "no", dict(overall=0.2, format=1, accuracy=0)),
    ("D2", "no", ' "False" ', dict(overall=0, format=0)),
    ("D2", "no", 'false"', dict(overall=1)),
    ("D2", "no", "no, it stays", dict(overall=0, format=0, accuracy=0)),
    ("D4", "yes", "yes ?!", dict(overall=1)),
    ("D4", "A", "A", dict(overall=0, format=0, accuracy=0)),
] + [(task, "yes", " " + "y" * 201, dict(overall=-1, format=0)) for task in _REWARDS]


@pytest.mark.parametrize("task, answer, response, parts", ROWS)
def test_rows_worked_out_by_hand(task, answer, response, parts):
    ours = paper_reward(task, answer, response)
    for part, value in parts.items(): assert ours[part] == pytest.approx(value, abs=1e-9), part


def test_a_long_response_is_counted_without_the_space_around_it():
    assert paper_reward("D2", "yes", "yes" + " " * 300)["overall"] == 1
    assert paper_reward("A1", "move left 1 meters", "move left 1 meters" + "." * 182)["overall"] == 1
    assert paper_reward("A1", "move left 1 meters", "move left 1 meters" + "." * 183) == {"overall": -1, "format": 0}


def test_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="choose one of A1"): paper_reward("E5", "yes", "yes")


@settings(max_examples=200, deadline=None)
@given(task=st.sampled_from(sorted(_REWARDS)), answer=st.sampled_from(["move left 1 meters", "turn left 30 degrees", BOX, "yes"]),
       response=st.text(max_size=210))
def test_any_text_gets_a_bounded_reward(task, answer, response):
    reward = paper_reward(task, answer, response)
    assert -1 <= reward["overall"] <= 1 + 1e-9
    assert all(0 <= v <= 1 + 1e-9 for k, v in reward.items() if k != "overall")


number = st.integers(-300, 1300)


@settings(max_examples=200, deadline=None)
@given(box=st.tuples(number, number, number, number))
def test_boxes_of_any_shape(box):
    reward = _box_reward(BOX, str(list(box)))
    assert set(reward) == {"overall", "format", "validity", "geometry", "iou", "center", "size", "l1"}
    assert reward["format"] == 1 and 0.2 <= reward["overall"] <= 1
    x1, y1, x2, y2 = box
    twisted = _box_reward(BOX, str([x2, y2, x1, y1]))
    assert all(twisted[k] == pytest.approx(reward[k]) for k in ("iou", "center", "size", "l1"))


@settings(deadline=None)
@given(error=st.floats(0, 200, allow_nan=False), kind=st.sampled_from(["forward", "turn_left"]))
def test_closeness_falls_and_is_symmetric(error, kind):
    assert _numeric_credit(kind, 50 + error, 50) == pytest.approx(_numeric_credit(kind, 50 - error, 50))
    assert _numeric_credit(kind, 50 + error, 50) >= _numeric_credit(kind, 50 + error + 1, 50)


def test_readers():
    assert normalise_answer(" A\n B !") == "a b"
    assert read_bool("Yes") is True and read_bool("yesno") is None
    assert _read_steps("turn left 1 degrees, move  back 2 meters, MOVE backward 2.50 meter") == [("turn_left", 1.0), ("backward", 2.5)]
    assert read_box_text("x") == (None, 0.0)
    assert iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_parity_script_counts_the_rows_that_differ(tmp_path):
    row = {"task": "D2", "answer": "yes", "response": "no", "overall": 0.2, "format": 1.0, "accuracy": 0.0}
    run = lambda rows: subprocess.run([sys.executable, HERE / "reward_parity.py", write(rows)], capture_output=True, text=True)
    def write(rows):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
        return path
    good, bad = run([row]), run([row, row | {"overall": 0.2001}, row | {"unknown part": 0.0}])
    assert good.returncode == 0 and "0 of 1 rows differ" in good.stdout
    assert bad.returncode == 1 and "2 of 3 rows differ" in bad.stdout
