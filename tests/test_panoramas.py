"Panoramas: crops turn as the camera's convention says, flow is the re-projection, bad files are one clear error."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from world2vlm.core.camera import homography, intrinsics, project, unproject, yaw
from world2vlm.core.config import repo_root
from world2vlm.scenes.panoramas import _crop_ids, _object_ids, _read_outlines, crop_panorama, panorama_scenes, read_panorama, TRAINING_PLACES, VALIDATION_PLACES
from world2vlm.students.dense_targets import _turn_targets

FOLDER = repo_root() / "data/panoramas"
K, SIZE = intrinsics(64, 64, 90), (64, 64)
LONGITUDES = np.tile(np.linspace(0, 255, 512)[None, :, None], (256, 1, 3)).astype(np.uint8)  # brighter to the right


def test_thirteen_places_of_which_ten_train():
    assert len(TRAINING_PLACES) == 10 and len(VALIDATION_PLACES) == 3 and not set(TRAINING_PLACES) & set(VALIDATION_PLACES)
    assert {path.stem for path in FOLDER.glob("*.png")} == {*TRAINING_PLACES, *VALIDATION_PLACES} and (FOLDER / "README.md").is_file()


@pytest.mark.parametrize("name", (*TRAINING_PLACES, *VALIDATION_PLACES))
def test_every_place_opens(name): assert crop_panorama(read_panorama(FOLDER / f"{name}.png"), 33.3, K, SIZE).shape == (64, 64, 3)


def test_a_turn_to_the_right_shows_larger_longitudes():
    middle = [crop_panorama(LONGITUDES, heading, K, SIZE)[32, 31:33].mean() for heading in (-90, 0, 90)]
    assert np.allclose(middle, [255 / 4, 255 / 2, 3 * 255 / 4], atol=1.5)


def test_crops_go_on_behind_the_camera():
    a, b = (crop_panorama(LONGITUDES, heading, K, SIZE) for heading in (180, -180))
    assert (a == b).all() and a[32, 0, 0] > 180 and a[32, 63, 0] < 75


@settings(max_examples=40, deadline=None)
@given(heading=st.floats(0, 360), turn=st.floats(-60, 60))
def test_flow_is_the_reprojection(heading, turn):
    "Property: a patch of the second crop lies in the first where its ray is, and both crops show the same direction of the place there."
    targets = _turn_targets(SIZE, K, yaw(turn)[:3, :3])
    pixels = np.stack(np.meshgrid(np.arange(4, 64, 8), np.arange(4, 64, 8)), -1) + .5
    expected, z = project(unproject(np.ones((64, 64)), K)[4::8, 4::8] @ yaw(turn)[:3, :3].T, K)
    inside = (z > 0) & np.all((expected >= 0) & (expected < 64), -1)
    assert (targets["visible"] == inside).all() and np.isnan(targets["flow"][~inside]).all()
    assert np.allclose(targets["flow"][inside] * 64, expected[inside], atol=1e-3)
    warped = np.concatenate([pixels, np.ones((8, 8, 1))], -1) @ homography(K, K, yaw(-turn)[:3, :3]).T
    assert np.allclose((warped[..., :2] / warped[..., 2:])[inside], expected[inside], atol=1e-6)
    wave = np.tile(128 + 100 * np.cos(np.linspace(0, 2 * np.pi, 512, endpoint=False))[None, :, None], (256, 1, 3)).astype(np.uint8)
    first, second = (crop_panorama(wave, angle, K, SIZE)[..., 0].astype(float) for angle in (heading, heading + turn))
    x, y = np.where(inside[..., None], expected, 0).astype(int).transpose(2, 0, 1)
    assert np.abs(first[y, x] - second[4::8, 4::8])[inside].max(initial=0) <= 6


@pytest.mark.parametrize("content, reason", [(b"no picture", "not a readable panorama"), (None, "twice as wide as high")])
def test_bad_files_are_one_clear_error(tmp_path, content, reason):
    path = tmp_path / "place.png"
    path.write_bytes(content) if content else Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(ValueError, match=reason) as error: read_panorama(path)
    assert str(path) in str(error.value)


# Outlines of objects.
def test_unseen_places_have_outlines():
    "Those of the exam, and no others."
    labels = {place: [label for label, _ in _read_outlines(FOLDER, place) or []] for place in (*TRAINING_PLACES, *VALIDATION_PLACES)}
    assert {place for place, names in labels.items() if names} == set(VALIDATION_PLACES) and all(len(labels[place]) >= 4 for place in VALIDATION_PLACES)
    for place in VALIDATION_PLACES:
        corners = np.concatenate([outline for _, outline in _read_outlines(FOLDER, place)])
        assert (abs(corners[:, 1]) <= 90).all() and (np.ptp(corners[:, 0]) <= 420) and all(len(outline) >= 4 for _, outline in _read_outlines(FOLDER, place))
        shown = np.unique(_object_ids(_read_outlines(FOLDER, place)))
        assert len(shown) == 1 + len(labels[place]), "no outline is hidden by the others"


@settings(max_examples=40, deadline=None)
@given(left=st.floats(-180, 180), width=st.floats(8, 60), low=st.floats(-40, 20), height=st.floats(8, 40), heading=st.floats(-720, 720))
def test_outlines_are_seen_in_their_direction(left, width, low, height, heading):
    "Property: a pixel shows the object just where its ray points into the outline, also across 180 degrees."
    outline = np.array([(left, low), (left + width, low), (left + width, low + height), (left, low + height)])
    ids = _crop_ids(_object_ids([("box", outline)]), heading, K, SIZE)
    x, y, z = np.moveaxis(unproject(np.ones((64, 64)), K), -1, 0)
    longitude = (np.degrees(np.arctan2(x, z)) + heading - left) % 360
    latitude = np.degrees(np.arctan2(-y, np.hypot(x, z))) - low
    margin = np.minimum(np.minimum(longitude, width - longitude), np.minimum(latitude, height - latitude))  # degrees to the nearest edge, < 0 outside
    assert ids[margin > .5].all() and not ids[(margin < -.5) & (longitude < 359)].any()


def test_later_outlines_hide_earlier_ones():
    square = lambda a: np.array([(-a, -a), (a, -a), (a, a), (-a, a)], float)
    ids = _crop_ids(_object_ids([("wall", square(30)), ("lamp", square(10))]), 0, K, SIZE)
    assert ids[32, 32] == 2 and ids[32, 20] == 1 and ids[32, 2] == 0
    assert not (_crop_ids(_object_ids([("lamp", square(10)), ("wall", square(30))]), 0, K, SIZE) == 1).any()


@pytest.mark.parametrize("text", ["no json", "[]", '{"hall": [{"label": "lamp"}]}', '{"hall": [{"label": "lamp", "outline": [[1, 2, 3], [4, 5]]}]}', '{"hall": 3}'])
def test_bad_outlines_are_one_clear_error(tmp_path, text):
    (tmp_path / "hall.png").write_bytes((FOLDER / "hall.png").read_bytes())
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(ValueError, match="no outlines of the objects of hall .*; fetch it again") as error: next(panorama_scenes(["hall"], 1, 0, folder=tmp_path))
    assert str(tmp_path / "objects.json") in str(error.value)
