"Furniture: labels, and objects that stand apart and inside."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.scenes.furniture import _draw_labels, _footprints_apart, furnish, FURNITURE, Item, OBJECT_COLOURS
from world2vlm.scenes.room import Room

ROOMS = [Room(seed) for seed in range(6)]


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_labels(room):
    labels = list(room.instances.values())
    nouns = [label.split()[-1] for label in labels]
    assert 7 <= len(labels) <= 12 and len(set(labels)) == len(labels)
    assert all(label.split()[0] in OBJECT_COLOURS and label.split()[1] in FURNITURE and len(label.split()) == 2 for label in labels)
    assert list(room.instances) == list(range(1, len(labels) + 1))


def test_rooms_repeat_a_noun_in_another_colour():
    nouns = [[label.split()[-1] for label in Room(seed).instances.values()] for seed in range(30)]
    assert sum(len(set(n)) < len(n) for n in nouns) >= 25


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), area=st.floats(16, 49))
def test_draw_labels(seed, area):
    labels = _draw_labels(np.random.default_rng(seed), area)
    assert 7 <= len(labels) <= 12 and len(set(labels)) == len(labels)
    assert len({label.split()[1] for label in labels}) < len(labels)


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.seed)
def test_objects_stand_apart_and_inside(room):
    floor = [i for i in room.items if i.parent < 0]
    assert all(_footprints_apart(a, b) for n, a in enumerate(floor) for b in floor[:n])
    body = room.solids.owner > 0
    reach = np.sqrt((room.solids.half[body][:, [0, 2]]**2).sum(1))
    assert (np.abs(room.solids.centre[body][:, [0, 2]]) < np.array(room.size[:2]) / 2).all() and (reach < 3).all()
    for i in room.items:
        if i.parent >= 0:
            under = room.items[i.parent]
            assert under.label.endswith(("table", "cabinet")) and i.base > .6 and np.hypot(i.x - under.x, i.z - under.z) < max(under.half)


def test_small_room_is_refused():
    with pytest.raises(ValueError, match="larger size"):
        furnish(np.random.default_rng(0), (1.5, 1.5, 2.6))


def test_apart():
    at = lambda x, turn: Item("", [], x, 0., turn, half=(.5, .2))
    assert _footprints_apart(at(0, 0), at(1.1, 0)) and not _footprints_apart(at(0, 0), at(.9, 0)) and _footprints_apart(at(0, 0), at(.8, np.pi / 2))
