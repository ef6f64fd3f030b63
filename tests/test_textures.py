"Textures: noise that is fixed and uniform, lines that keep their area."
import numpy as np
import pytest

from world2vlm.scenes.textures import _line, _noise, Face, PAINTERS


def test_noise_is_uniform_and_fixed():
    i, j = np.meshgrid(np.arange(-50, 50), np.arange(-50, 50))
    values = _noise(i, j)
    assert values.dtype == np.float32 and 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - .5) < .02 and (values == _noise(i, j)).all() and (values != _noise(i, j, 1)).mean() > .99


def test_line_keeps_its_area():
    "However wide the pixels, a line darkens by its own width."
    for blur in (.002, .01, .05):
        u = np.arange(-.5, .5, blur, np.float32)
        zero = np.zeros_like(u)
        f = Face(u, zero, zero, zero, zero > 0, zero + np.float32(blur), zero)
        assert np.isclose(_line(f, u, .02).sum() * blur, .02, atol=.004)


@pytest.mark.parametrize("name", PAINTERS)
def test_painters_work_point_by_point(name):
    "A colour depends on its own point alone, stays finite, and the input is left as it was."
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-1, 1, (2, 50)).astype(np.float32) * np.float32([[.6], [.4]])
    size = np.float32(.6) + 0 * u, np.float32(.4) + 0 * u
    face, rgb = Face(u, v, *size, u > 0, np.float32(.01) + 0 * u, np.arange(50)), rng.random((50, 3), np.float32)
    before = rgb.copy()
    whole, half = PAINTERS[name](face, rgb), PAINTERS[name](Face(*(a[::2] for a in face)), rgb[::2])
    assert whole.shape == (50, 3) and np.isfinite(whole).all() and (rgb == before).all()
    assert (whole[::2] == half).all()
