"""Real places as equirectangular pictures: two crops of one are a real turn of the camera."""

# %%
from functools import lru_cache
from pathlib import Path

import numpy as np


# %%
def read_panorama(
    path: str | Path,  # an equirectangular PNG, twice as wide as high
) -> np.ndarray:  # uint8 [H, 2 H, 3]
    "The panorama at `path`; ValueError if it is no picture of all directions."
    from PIL import Image
    try: picture = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable panorama ({error}); fetch it again") from None
    h, w = picture.shape[:2]
    if w != 2 * h: raise ValueError(f"{path}: {w} x {h} pixels; a panorama of all directions is twice as wide as high")
    return picture

# %%
@lru_cache
def _directions(
    focal: tuple[float, float, float, float],  # fx, fy, cx, cy in pixels
    size: tuple[int, int],  # width and height, pixels
) -> tuple[np.ndarray, np.ndarray]:  # float32 [height, width] longitude and latitude, turns; right and down are positive
    "The direction of each pixel of a level camera that looks at longitude 0."
    fx, fy, cx, cy = focal
    x, y = np.meshgrid((np.arange(size[0]) + .5 - cx) / fx, (np.arange(size[1]) + .5 - cy) / fy)
    return np.float32(np.arctan(x) / (2 * np.pi)), np.float32(np.arctan2(y, np.hypot(x, 1)) / (2 * np.pi))

# %%
def crop_panorama(
    panorama: np.ndarray,  # uint8 [H, 2 H, 3]
    yaw_deg: float,  # heading; 0 looks at the middle column, turns to the right are positive
    K: np.ndarray,  # [3, 3] pixels
    size: tuple[int, int],  # width and height, pixels
    rays: int = 2,  # per pixel and side
) -> np.ndarray:  # uint8 [height, width, 3]
    "What a level camera in the middle of a `panorama` sees."
    import cv2
    h, w = panorama.shape[:2]
    focal = tuple(float(v) * rays for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    longitude, latitude = _directions(focal, (size[0] * rays, size[1] * rays))
    column = ((longitude + np.float32(yaw_deg / 360 + .5)) % 1) * w - .5  # pixel centres at +0.5
    row = (latitude + .25) * 2 * h - .5
    colours = cv2.remap(panorama, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return cv2.resize(colours, size, interpolation=cv2.INTER_AREA)

# %%
TRAINING_PLACES = ("apartment", "city", "esplanade", "forest_2", "hall", "lab", "studio", "sunrise", "sunset", "workshop")
VALIDATION_PLACES = ("city_2", "forest", "interior")  # a town, a wood, a room
