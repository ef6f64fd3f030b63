"Panoramas: crops turn as the camera's convention says, flow is the re-projection, bad files are one clear error."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from world2vlm.core.camera import homography, intrinsics, project, unproject, yaw
from world2vlm.core.config import repo_root
from world2vlm.scenes.panoramas import crop_panorama, read_panorama, TRAINING_PLACES, VALIDATION_PLACES
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
