"Rows: nothing is lost between a record and its row, and a wrong row is rejected."
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_of_rooms import ITEMS, SCENES, same

from world2vlm.core.camera import intrinsics
from world2vlm.core.records import Instance, RoomPose, Scene
from world2vlm.dataset.schema import _DATASET_KINDS, _row_scene, _scene_row, dataset_card, dataset_features, dumps, _from_png, from_row, to_png, to_row
from world2vlm.dataset.shards import _dict_rows


@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_rows_round_trip_through_arrow(kind):
    table = pa.Table.from_pylist([to_row(kind, item) for item in ITEMS[kind]], dataset_features(kind).arrow_schema)
    assert same([from_row(kind, row) for row in table.to_pylist()], ITEMS[kind])


def test_a_row_holds_one_kind():
    with pytest.raises(ValueError, match="examples hold Example, got Scene"): to_row("examples", SCENES[0])
    with pytest.raises(ValueError, match="unknown kind 'movies': choose one of scenes, rollouts, examples"): dataset_features("movies")


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
    assert same(_from_png(to_png(array)), array) and same(_from_png(to_png(array[::-1])), np.ascontiguousarray(array[::-1]))


@pytest.mark.parametrize("array", [np.ones((2, 2)), np.ones((2, 2, 3), bool), np.ones((2, 2, 3), np.uint16), np.ones((2, 2), np.int32)])
def test_arrays_that_no_png_holds_are_rejected(array):
    with pytest.raises(ValueError, match="no PNG for"): to_png(array)


def test_json_has_sorted_keys_and_no_strange_types():
    assert dumps({"b": np.arange(2), "a": np.float64(0.5), "ü": None}) == '{"a": 0.5, "b": [0, 1], "ü": null}'
    with pytest.raises(TypeError, match="JSON has no bytes"): dumps({"a": b""})


@pytest.mark.parametrize("kind", _DATASET_KINDS)
def test_the_card_explains_every_column(kind):
    stats = {"kind": kind, "rows": 3, "scenes": 2, "shards": [{}], "bytes": 1_500_000, "rejects": 4, "counts": {"teacher": {"b": 1, "a": 2}}}
    text = dataset_card({**stats, "recipe": {"seed": 3}}, "CC-BY-4.0")
    assert all(f"| `{name}` |" in text for name in dataset_features(kind)) and "Licence: CC-BY-4.0" in text and "| `seed` | `3` |" in text
    assert "3 rows about 2 scenes in 1 shards, 1.5 MB. `rejects.jsonl` lists 4 rejects." in text and "| `teacher` | a: 2, b: 1 |" in text
    assert "| setting |" not in dataset_card({**stats, "recipe": {}})
