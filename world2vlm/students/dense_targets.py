"""What a simulator knows of every patch of two pictures: kind, colour, depth, box, and the same surface point in the other."""

# %%
from typing import NamedTuple

import numpy as np

from ..core.camera import project, relative_pose, transform
from ..scenes.furniture import FURNITURE, OBJECT_COLOURS

# %%
KINDS = ("structure", *FURNITURE)  # what a patch may show
COLOURS = ("none", *OBJECT_COLOURS)


PICTURE_TARGETS = {"kind": "share of each of `KINDS`", "colour": "share of each of `COLOURS`", "depth": "log of the median depth",
                   "box": "of its object, xyxy in shares"}  # [pictures, P, P, ...]; NaN where unknown
PAIR_TARGETS = {"flow": "x, y in the first picture, shares", "visible": "whether the first picture shows it",
                "other_box": "of its object in the first picture"}  # [P, P, ...] of the second picture's patches

# %%
def _patches(
    pixels: np.ndarray,  # [H, W, ...]
    patch: int,  # side, pixels
) -> np.ndarray:  # [H / patch, W / patch, patch * patch, ...]
    "The pixels of each patch."
    h, w = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels.reshape(h, patch, w, patch, *pixels.shape[2:]).swapaxes(1, 2)
    return cut.reshape(h, w, patch * patch, *pixels.shape[2:])

# %%
def object_boxes(
    ids: np.ndarray,  # [H, W] instance ids, 0 = structure
    n: int,  # ids are below `n`
) -> np.ndarray:  # float32 [n, 4] xyxy in shares of the picture; NaN for what is not in view
    "The box around each object of a view."
    h, w = ids.shape
    boxes = np.full((n, 4), np.nan, np.float32)
    for i in np.unique(ids):
        ys, xs = np.nonzero(ids == i)
        if i: boxes[i] = xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h
    return boxes

# %%
def _main_object(
    ids: np.ndarray,  # [P, P, n] instance ids of the pixels of each patch
    least: float = .25,  # share of the patch
) -> np.ndarray:  # int [P, P]; 0 where no object covers that much
    "The object that covers most of each patch."
    counts = (ids[..., None] == np.arange(1, ids.max() + 2)).mean(2)  # [P, P, objects]
    return np.where(counts.max(-1) >= least, counts.argmax(-1) + 1, 0)

# %%
def _name_tables(
    labels: dict[int, str],  # instance id -> "red chair"
) -> tuple[np.ndarray, np.ndarray]:  # int [ids + 1] each: index into `KINDS`, into `COLOURS`
    "Kind and colour of each instance id."
    kinds, colours = np.zeros((2, max(labels, default=0) + 1), int)
    for i, label in labels.items():
        colour, kind = label.split()
        kinds[i], colours[i] = KINDS.index(kind), COLOURS.index(colour)
    return kinds, colours

# %%
def patch_centres(
    size: tuple[int, int],  # width and height, pixels
    patch: int = 8,  # side, pixels
) -> np.ndarray:  # int [P, P, 2] x, y
    "The pixel in the middle of each patch."
    x, y = np.meshgrid(np.arange(patch // 2, size[0], patch), np.arange(patch // 2, size[1], patch))
    return np.stack([x, y], -1)


def point_flow(
    pixels: np.ndarray,  # int [..., 2] x, y of pixels of the second view
    depth: np.ndarray,  # [...] z-depth there, metres; 1 where the camera only turned
    K: np.ndarray,  # [3, 3] pixels of both views
    pose: np.ndarray,  # [4, 4] the second camera in the frame of the first
) -> tuple[np.ndarray, np.ndarray]:  # [..., 2] x, y in pixels of the first view, NaN behind it; [...] z-depth there
    "Where the surface at `pixels` of the second view lies in the first."
    rays = np.concatenate([pixels + .5, np.ones((*pixels.shape[:-1], 1))], -1) @ np.linalg.inv(K).T
    return project(transform(pose, rays * depth[..., None]), K)


def _in_picture(
    points: np.ndarray,  # [..., 2] pixels, may be NaN
    size: tuple[int, int],  # width and height
) -> np.ndarray:  # bool [...]
    "Which `points` lie within the picture."
    return np.all((points >= 0) & (points < size), -1)


def _flow_targets(
    points: np.ndarray,  # [P, P, 2] pixels of the first picture
    visible: np.ndarray,  # bool [P, P]
    size: tuple[int, int],  # width and height
) -> dict[str, np.ndarray]:  # flow and visible
    "Flow in shares of the picture, where it is visible."
    return dict(flow=np.where(visible[..., None], points / size, np.nan).astype(np.float32), visible=visible.astype(np.float32))

# %%
class ViewTargets(NamedTuple):
    "What one view of a room shows in each patch."
    kind: np.ndarray  # float32 [P, P, 13]
    colour: np.ndarray  # float32 [P, P, 9]
    depth: np.ndarray  # float32 [P, P]
    box: np.ndarray  # float32 [P, P, 4]
    main: np.ndarray  # int [P, P] id of the object that covers most, 0 for none
    boxes: np.ndarray  # float32 [ids + 1, 4] of all objects


def view_targets(
    view: "View",  # image, depth, ids
    labels: dict[int, str],  # instance id -> label
    patch: int = 8,  # side, pixels
) -> ViewTargets:
    "What a `view` shows in each patch."
    kinds, colours = _name_tables(labels)
    ids = _patches(view.ids.astype(int), patch)
    shares = [np.eye(len(names), dtype=np.float32)[table[ids]].mean(2)
              for names, table in ((KINDS, kinds), (COLOURS, colours))]
    main, boxes = _main_object(ids), object_boxes(view.ids, len(kinds))
    depth = np.log(np.median(_patches(view.depth, patch), -1)).astype(np.float32)
    return ViewTargets(*shares, depth, boxes[main], main, boxes)

# %%
def picture_targets(
    views: list[ViewTargets],  # of one row
) -> dict[str, np.ndarray]:  # of `PICTURE_TARGETS`
    "What several pictures show."
    return {name: np.stack([getattr(view, name) for view in views]) for name in PICTURE_TARGETS}


def room_targets(
    known: tuple[ViewTargets, ViewTargets],  # of the first and of the second view
    depths: tuple[np.ndarray, np.ndarray],  # [H, W] z-depth of each, metres
    poses: tuple[np.ndarray, np.ndarray],  # [4, 4] camera to room
    K: np.ndarray,  # [3, 3] pixels
    patch: int = 8,  # side, pixels
    tolerance: float = .08,  # relative difference of depth up to which two points are one
) -> dict[str, np.ndarray]:  # of `PICTURE_TARGETS` and `PAIR_TARGETS`
    "The targets of two views of a room."
    size = depths[0].shape[::-1]
    pixels = patch_centres(size, patch)
    points, z = point_flow(pixels, depths[1][pixels[..., 1], pixels[..., 0]], K, relative_pose(*poses))
    visible = _in_picture(points, size)
    x, y = np.where(visible[..., None], points, 0).astype(int).transpose(2, 0, 1)
    visible &= np.abs(depths[0][y, x] - z) <= tolerance * z
    return picture_targets(known) | _flow_targets(points, visible, size) | dict(other_box=known[0].boxes[known[1].main])


def turn_targets(
    size: tuple[int, int],  # width and height, pixels
    K: np.ndarray,  # [3, 3] pixels
    R: np.ndarray,  # [3, 3] rotation of the second camera in the frame of the first
    patch: int = 8,  # side, pixels
) -> dict[str, np.ndarray]:  # flow and visibility; NaN for all else
    "The targets of two pictures of a real place between which the camera turned."
    pixels, pose = patch_centres(size, patch), np.eye(4)
    pose[:3, :3], (h, w) = R, pixels.shape[:2]
    points, _ = point_flow(pixels, np.ones((h, w)), K, pose)
    shapes = dict(kind=(2, h, w, len(KINDS)), colour=(2, h, w, len(COLOURS)), depth=(2, h, w), box=(2, h, w, 4), other_box=(h, w, 4))
    unknown = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
    return unknown | _flow_targets(points, _in_picture(points, size), size)


def apart_targets(
    known: tuple[ViewTargets, ViewTargets],  # of the first and of the second view
) -> dict[str, np.ndarray]:  # nothing is visible in both
    "The targets of views of two places."
    nowhere = {name: np.full((*known[0].depth.shape, n), np.nan, np.float32) for name, n in (("flow", 2), ("other_box", 4))}
    return picture_targets(known) | nowhere | dict(visible=np.zeros_like(known[0].depth))
