"Photos: each broken input costs its own entry and no other, and cameras follow the pixels."
import json
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from world2vlm.core.camera import intrinsics, project, unproject
from world2vlm.core.camera import check_K
from world2vlm.scenes.photos import (_cover_window, _resize_map, _resize_scene_parts, _upright_rgb, count_photos, inside_folder,
                                     photo_scenes)

GOOD = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
K_GOOD = [[50, 0, 30], [0, 50, 20], [0, 0, 1]]


def png_header(width, height):
    "A PNG that promises a size and holds no pixels."
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    "Two good pictures and the maps that go with them."
    Image.fromarray(GOOD).save(tmp_path / "a.png")
    Image.fromarray(GOOD).save(tmp_path / "z.jpg", quality=95)
    np.save(tmp_path / "depth.npy", np.full((40, 60), 1.5, np.float32))
    np.save(tmp_path / "ids.npy", np.eye(40, 60, dtype=np.int64) * 3)
    return tmp_path


def walk(folder, **options):
    "All scenes and all rejects of a folder."
    rejected = []
    with warnings.catch_warnings(action="error"):
        scenes = list(photo_scenes(folder, reject=lambda name, reason: rejected.append((name, reason)), **options))
    return scenes, rejected


# Everything that may be wrong with an entry costs that entry and no other.
def spoil(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def save(name, array):
    return lambda folder: np.save(folder / name, array)


def encoded(array, format, **options):
    def write(folder): Image.fromarray(array).save(folder / f"bad.{format.lower()}", format, **options)
    return write


def cut(format):
    def write(folder):
        Image.fromarray(GOOD).save(folder / "whole", format)
        (folder / "bad").write_bytes((folder / "whole").read_bytes()[:1200])
    return write


def link(to):
    return lambda folder: (folder / "bad").symlink_to(to)


nothing = lambda folder: None
DEPTH = lambda name: {"file": "a.png", "id": "bad", "depth": name}
CASES = {
    "truncated png": (cut("PNG"), {"file": "bad"}, "damaged picture"),
    "truncated jpeg": (cut("JPEG"), {"file": "bad"}, "damaged picture"),
    "zero bytes": (spoil("bad.png", b""), {"file": "bad.png"}, "the file is empty"),
    "text": (spoil("bad.jpg", b"hello"), {"file": "bad.jpg"}, "not a picture"),
    "postscript": (spoil("bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), {"file": "bad.png"}, "not a picture"),
    "bomb": (spoil("bad.png", png_header(10_000, 10_000)), {"file": "bad.png"}, "too large: 10000x10000"),
    "larger bomb": (spoil("bad.png", png_header(60_000, 60_000)), {"file": "bad.png"}, "too large"),
    "header alone": (spoil("bad.png", png_header(60, 40)), {"file": "bad.png"}, "damaged picture"),
    "float picture": (encoded(np.ones((4, 4), np.float32), "TIFF"), {"file": "bad.tiff"}, "floating point"),
    "folder": (lambda folder: (folder / "bad.png").mkdir(), {"file": "bad.png"}, "missing"),
    "missing": (nothing, {"file": "none.png"}, "the file is missing"),
    "climbs": (nothing, {"file": "../a.png"}, "path leaves the folder"),
    "climbs inside": (nothing, {"file": "x/../../a.png"}, "path leaves the folder"),
    "absolute": (nothing, {"file": "/etc/hostname"}, "path leaves the folder"),
    "drive": (nothing, {"file": "C:/a.png"}, "path leaves the folder"),
    "backslash": (nothing, {"file": "..\\a.png"}, "path leaves the folder"),
    "link out": (link("/etc/hostname"), {"file": "bad"}, "is a link to elsewhere"),
    "link in circles": (link("bad"), {"file": "bad"}, "path|missing"),
    "nul": (nothing, {"file": "a\0.png"}, "cannot be resolved"),
    "long": (nothing, {"file": "a" * 5000}, "cannot be resolved|too long"),
    "depth nan": (save("d.npy", np.full((40, 60), np.nan)), DEPTH("d.npy"), "d.npy: depth holds NaN"),
    "depth negative": (save("d.npy", np.full((40, 60), -1.0)), DEPTH("d.npy"), "d.npy: depth holds negative"),
    "depth shape": (save("d.npy", np.ones((60, 40))), DEPTH("d.npy"), r"d.npy: wrong shape: the map has \[60, 40\]"),
    "depth integers": (save("d.npy", np.ones((40, 60), int)), DEPTH("d.npy"), "d.npy: wrong type"),
    "depth 8 bits": (encoded(np.ones((40, 60), np.uint8), "PNG"), DEPTH("bad.png"), "bad.png: wrong type"),
    "depth objects": (save("d.npy", np.array([{}])), DEPTH("d.npy"), "not a readable .npy"),
    "depth cut": (spoil("d.npy", b"\x93NUMPY\x01\x00"), DEPTH("d.npy"), "not a readable .npy"),
    "depth missing": (nothing, DEPTH("d.npy"), "d.npy: the file is missing"),
    "depth outside": (nothing, DEPTH("../d.npy"), "path leaves the folder"),
    "depth format": (spoil("d.exr", b"x"), DEPTH("d.exr"), "maps are .npy or .png"),
    "K shape": (nothing, {"file": "a.png", "K": [[1, 2], [3, 4]]}, "3 rows of 3"),
    "K ragged": (nothing, {"file": "a.png", "K": [[1], [3, 4]]}, "3 rows of 3"),
    "K words": (nothing, {"file": "a.png", "K": [["a"] * 3] * 3}, "3 rows of 3"),
    "K nan": (nothing, {"file": "a.png", "K": [[float("nan"), 0, 30], [0, 50, 20], [0, 0, 1]]}, "wrong K: NaN"),
    "K focal": (nothing, {"file": "a.png", "K": [[-50, 0, 30], [0, 50, 20], [0, 0, 1]]}, "focal lengths must be positive"),
    "K centre": (nothing, {"file": "a.png", "K": [[50, 0, 300], [0, 50, 20], [0, 0, 1]]}, "principal point outside"),
    "K skew": (nothing, {"file": "a.png", "K": [[50, 2, 30], [0, 50, 20], [0, 0, 1]]}, "without skew"),
    "K last row": (nothing, {"file": "a.png", "K": [[50, 0, 30], [0, 50, 20], [0, 0, 2]]}, "without skew"),
    "fov": (nothing, {"file": "a.png", "fov_deg": 180}, "fov_deg"),
    "fov text": (nothing, {"file": "a.png", "fov_deg": "60"}, "wrong value '60'"),
    "fov and K": (nothing, {"file": "a.png", "fov_deg": 60, "K": K_GOOD}, "not both"),
    "unknown key": (nothing, {"file": "a.png", "focal": 5}, "unknown key 'focal'"),
    "no file": (nothing, {"id": "x"}, "key 'file'"),
    "file is no text": (nothing, {"file": ["a.png"]}, "wrong value"),
    "entry is no object": (nothing, "a.png", "expected a JSON object"),
    "duplicate": (nothing, {"file": "z.jpg", "id": "first"}, "duplicate id: 'first'"),
    "ids alone": (nothing, {"file": "a.png", "ids": "ids.npy"}, "belong together"),
    "ids of floats": (nothing, {"file": "a.png", "ids": "depth.npy", "labels": {"1": "red chair"}}, "whole numbers"),
    "label of 0": (nothing, {"file": "a.png", "ids": "ids.npy", "labels": {"0": "red chair"}}, "no pair of an id"),
    "label twice": (nothing, {"file": "a.png", "ids": "ids.npy", "labels": {"3": "red chair", "03": "blue ball"}}, "no pair of an id")}
FIRST = {"file": "a.png", "id": "first", "K": K_GOOD, "depth": "depth.npy", "ids": "ids.npy", "labels": {"3": "red chair", "9": "blue ball"}}
LAST = {"file": "z.jpg", "id": "last", "licence": "CC-BY-4.0", "source": "a camera"}


@pytest.mark.parametrize("case", CASES)
def test_one_bad_entry_costs_one_line(folder, case):
    prepare, entry, message = CASES[case]
    prepare(folder)
    (folder / "manifest.json").write_text(json.dumps([FIRST, entry, LAST]))
    scenes, rejected = walk(folder)
    assert [s.id for s in scenes] == ["first", "last"] and len(rejected) == 1
    assert rejected[0][1] and "\n" not in rejected[0][1]
    assert re.search(message, rejected[0][1]), rejected[0][1]


def test_all_bad_entries_at_once(folder):
    entries = [entry for _, entry, _ in CASES.values()]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, [FIRST, *entries, LAST])) + '\n{"file": \n\n\xff')
    scenes, rejected = walk(folder)
    assert [s.id for s in scenes] == ["first", "last"] and len(rejected) == len(entries) + 2
    assert count_photos(folder) == len(scenes) + len(rejected)


def test_a_folder_without_manifest(folder):
    "Pictures in the order of their paths, also of folders below; other files are left alone; links may not leave."
    (folder / "b").mkdir()
    Image.fromarray(GOOD).save(folder / "b/c.PNG")
    (folder / "broken.png").write_bytes(b"PNG")
    (folder / "leaves.png").symlink_to(Path(skimage.__file__).parent / "data/astronaut.png")
    scenes, rejected = walk(folder)
    assert [s.id for s in scenes] == ["a.png", "b/c.PNG", "z.jpg"]
    assert [name for name, _ in rejected] == ["broken.png", "leaves.png"]
    assert {s.licence for s in scenes} == {"unknown"} and {s.source for s in scenes} == {"photo"}


def test_shards_of_a_folder_cover_it_once(folder):
    (folder / "broken.png").write_bytes(b"PNG")
    n = count_photos(folder)
    parts = [walk(folder, start=i, n=1) for i in range(n)]
    assert [s.id for scenes, _ in parts for s in scenes] == [s.id for s in walk(folder)[0]]
    assert sum((rejected for _, rejected in parts), []) == walk(folder)[1]


def test_a_duplicate_is_seen_across_shards(folder):
    (folder / "manifest.json").write_text(json.dumps([FIRST, LAST, {**LAST, "id": "first"}]))
    assert walk(folder, start=2)[1] == [("z.jpg", "duplicate id: 'first' is used before")]


def test_without_reject_bad_inputs_warn(folder):
    (folder / "broken.png").write_bytes(b"PNG")
    with pytest.warns(UserWarning, match="broken.png: not a picture"): assert len(list(photo_scenes(folder))) == 2


@pytest.mark.parametrize("name, text, message", [
    ("manifest.json", "[{", "not valid JSON"), ("manifest.json", "{}", "expected a list"), ("manifest.json", "[" * 100_000, "not valid JSON")])
def test_an_unusable_manifest_is_an_error(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message): list(photo_scenes(folder))


def test_two_manifests_or_no_folder_are_errors(folder):
    for name in ("manifest.json", "manifest.jsonl"): (folder / name).write_text("[]")
    with pytest.raises(ValueError, match="keep one"): list(photo_scenes(folder))
    with pytest.raises(ValueError, match="no such folder"): list(photo_scenes(folder / "none"))


def test_what_the_manifest_says_arrives(folder):
    (folder / "manifest.json").write_text(json.dumps([FIRST, LAST]))
    (first, last), _ = walk(folder)
    assert (first.K == K_GOOD).all() and (first.depth == 1.5).all() and first.licence == "unknown"
    assert [(i.id, i.label) for i in first.instances] == [(3, "red chair")] and first.instances[0].mask.sum() == 40
    assert last.depth is None and last.instances is None and (last.licence, last.source) == ("CC-BY-4.0", "a camera")
    assert (last.K == intrinsics(60, 40, 54)).all() and (first.image == GOOD).all()


# Pixels.
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    "The picture, its depth and its K are those of the upright view."
    stored = Image.fromarray(GOOD)
    stored.getexif()[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=stored.getexif())
    upright = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.save(tmp_path / "d.npy", upright[..., 0].astype(np.float32))
    (tmp_path / "manifest.json").write_text('[{"file": "a.png", "depth": "d.npy", "fov_deg": 90}]')
    [scene], _ = walk(tmp_path)
    assert (scene.image == upright).all() and (scene.depth == upright[..., 0]).all()
    assert scene.size == ((40, 60) if orientation > 4 else (60, 40)) and scene.K[0, 0] == pytest.approx(scene.size[0] / 2)


@pytest.mark.parametrize("picture, colour", [
    (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), (255, 255, 255)), (Image.new("RGBA", (3, 2), (255, 0, 0, 255)), (255, 0, 0)),
    (Image.new("LA", (3, 2), (0, 0)), (255, 255, 255)), (Image.new("L", (3, 2), 7), (7, 7, 7)), (Image.new("1", (3, 2), 1), (255, 255, 255)),
    (Image.fromarray(np.full((2, 3), 65535, np.uint16)), (255, 255, 255)), (Image.fromarray(np.full((2, 3), 257 * 9, np.uint16)), (9, 9, 9)),
    (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)), (Image.new("RGB", (3, 2), (1, 2, 3)).quantize(2), (1, 2, 3))])
def test_every_mode_becomes_rgb_on_white(picture, colour):
    assert (_upright_rgb(picture) == np.array(colour, np.uint8)).all()


def test_transparent_palette_is_put_on_white():
    picture = Image.new("P", (3, 2), 0)
    picture.info["transparency"] = 0
    assert (_upright_rgb(picture) == 255).all()


sizes = st.tuples(st.integers(8, 120), st.integers(8, 120))


@settings(max_examples=40, deadline=None)
@given(old=sizes, new=sizes, fov=st.floats(20, 120), seed=st.integers(0, 99))
def test_K_follows_resize_and_crop(old, new, fov, seed):
    "A point keeps its place in the content: projecting and then cutting is cutting and then projecting."
    rng = np.random.default_rng(seed)
    K, points = intrinsics(*old, fov), rng.uniform([-1, -1, 1], [1, 1, 4], (20, 3))
    left, top, scale = _cover_window(old, new)
    image, K_new = _resize_scene_parts(np.zeros((old[1], old[0], 3), np.uint8), K, new)
    before, after = project(points, K)[0], project(points, K_new)[0]
    assert image.shape == (new[1], new[0], 3)
    assert np.allclose((before - [left, top]) * scale, after, atol=1e-6)
    assert np.allclose(K_new[:2, 2], np.array(new) / 2) and check_K(K_new, new) is not None


@settings(max_examples=25, deadline=None)
@given(old=sizes, new=sizes)
def test_maps_keep_their_place(old, new):
    "Unprojecting the cut depth of a slanted wall gives points of the same wall, up to the size of an old pixel."
    K = intrinsics(*old, 60)
    rays = unproject(np.ones((old[1], old[0])), K)
    depth = (3 / (1 + 0.3 * rays[..., 0] + 0.2 * rays[..., 1])).astype(np.float32)  # z + 0.3 x + 0.2 y = 3
    cut, K_new = _resize_map(depth, new), _resize_scene_parts(np.zeros((old[1], old[0], 3), np.uint8), K, new)[1]
    points = unproject(cut, K_new)
    slack = 0.5 * depth.max() / K[0, 0] * (0.3 + 0.2) + 1e-4  # half an old pixel along the slant
    assert np.abs(points @ [0.3, 0.2, 1] - 3).max() <= slack
    assert set(np.unique(cut)) <= set(np.unique(depth))


def test_pictures_of_scikit_image():
    "Real pictures load at their own size and cut to a square; one TIFF layout is beyond Pillow."
    folder = Path(skimage.__file__).parent / "data"
    own, rejected = walk(folder)
    assert len(own) >= 20 and {name for name, _ in rejected} <= {"multipage_rgb.tif"}
    for scene, [square] in zip(own, ((s,) for s in walk(folder, size=(64, 64))[0]), strict=True):
        assert square.id == scene.id and square.size == (64, 64) and square.image.std() > 0
        assert square.K[0, 0] == pytest.approx(scene.K[0, 0] * 64 / min(scene.size))


def test_inside_takes_plain_names(tmp_path):
    assert inside_folder(tmp_path, "a/b.png") == (tmp_path / "a/b.png").resolve()
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "alias.png").symlink_to("a.png")
    assert inside_folder(tmp_path, "alias.png").name == "a.png"


def test_a_larger_limit_lets_a_larger_picture_in(folder):
    "The message of a picture over the limit names the argument that helps."
    (folder / "manifest.json").write_text(json.dumps([{**LAST, "file": "a.png"}]))
    assert "60x40 is over 0.001 megapixels" in walk(folder, max_pixels=1000)[1][0][1]
    assert "larger max_pixels to photo_scenes" in walk(folder, max_pixels=2399)[1][0][1]
    assert [s.size for s in walk(folder, max_pixels=2400)[0]] == [(60, 40)]
