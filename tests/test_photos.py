"Photos: each broken input costs its own entry and no other, and cameras follow the pixels."
import json
import os
import re
import struct
import subprocess
import sys
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
from world2vlm.core.records import Instance
from world2vlm.core.runs import read_jsonl
from world2vlm.dataset.synthesis import Scenes, make_scenes
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
    Image.fromarray(255 - GOOD).save(folder / "b/c.PNG")
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
    "Real pictures load at their own size and cut to a square; one TIFF layout is beyond Pillow, one picture is there twice."
    folder = Path(skimage.__file__).parent / "data"
    own, rejected = walk(folder)
    assert len(own) >= 20 and {name for name, _ in rejected} <= {"multipage_rgb.tif", "chessboard_RGB.png"}
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


# Kinds of input that failed before: whatever is in a folder is taken or refused, once.
def grey(folder, name, size=(40, 30), value=90, **tags):
    "A picture of its own shade; `tags` are numbers of EXIF."
    picture = Image.new("RGB", size, (value, 0, 0))
    exif = picture.getexif()
    exif.get_ifd(0x8769).update({int(tag[1:], 16): number for tag, number in tags.items()})
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name, {".mpo": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG"}.get(Path(name).suffix), exif=exif)


def manifest(folder, *entries, name="manifest.json"):
    (folder / name).write_text(json.dumps(list(entries)))


def test_every_file_is_taken_or_refused_once_kind(tmp_path):
    taken = ["a.jpg", "b.jfif", "c.jpe", "d.mpo", "e.JPEG", "no_suffix"]
    for shade, name in enumerate(taken[:5]): grey(tmp_path, name, value=shade * 40)
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "no_suffix", "JPEG")
    refused = ["f.HEIC", "g.avif", "h.DNG", "i.mov", "j.svg", "k.jp2"]
    for name in refused: (tmp_path / name).write_bytes(b"II*\0 not opened")
    (tmp_path / "notes.txt").write_text("no picture")
    scenes, rejected = walk(tmp_path)
    assert [s.id for s in scenes] == taken and [name for name, _ in rejected] == refused
    assert all("save it as JPEG or PNG" in why or "JPEG or PNG" in why for _, why in rejected)
    assert count_photos(tmp_path) == len(taken) + len(refused)


def test_nothing_usable_is_an_error_at_once_kind(tmp_path):
    out, settings = tmp_path / "out", dict(source="photos", n=0, size=(32, 32))
    bad, empty = tmp_path / "bad", tmp_path / "empty"
    bad.mkdir(), empty.mkdir()
    (bad / "a.HEIC").write_bytes(b"x")
    (bad / "b.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="(?s)bad: none of its pictures.*a.HEIC: .heic is not read.*b.jpg: not a picture"):
        make_scenes(Scenes(folder=str(bad), **settings), out)
    assert not out.exists()
    with pytest.raises(ValueError, match="empty: no pictures"): make_scenes(Scenes(folder=str(empty), **settings), out)
    with pytest.raises(ValueError, match="folder.*params.yaml"): make_scenes(Scenes(**settings), out)
    manifest(empty)
    with pytest.raises(ValueError, match="no pictures"): list(photo_scenes(empty))
    grey(bad, "c.png")  # a repaired folder is read again
    assert make_scenes(Scenes(folder=str(bad), **settings), out)["rows"] == 1
    with pytest.raises(ValueError, match="first = 7"): make_scenes(Scenes(folder=str(bad), first=7, **settings), out)


def test_a_name_in_latin1_is_a_scene_kind(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    grey(tmp_path, "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"bad\xe9.png")).write_bytes(b"x")
    grey(tmp_path, "2024-01-01 12:30:05.jpg", value=1)
    scenes, rejected = walk(tmp_path)
    assert [s.id for s in scenes] == ["2024-01-01 12:30:05.jpg", "caf\\xe9.jpg"] and [n for n, _ in rejected] == ["bad\\xe9.png"]
    out = tmp_path.with_name(tmp_path.name + "-out")
    stats = make_scenes(Scenes(source="photos", folder=str(tmp_path), n=0, size=(32, 32)), out)
    assert (stats["rows"], stats["rejects"]) == (2, 1)
    manifest(tmp_path, {"file": "2024-01-01 12:30:05.jpg", "id": "\ud800"}, {"file": "none\udce9.png"}, {"file": "2024-01-01 12:30:05.jpg"})
    assert [len(part) for part in walk(tmp_path)] == [1, 2] and "Unicode" in walk(tmp_path)[1][0][1]


def test_the_same_picture_is_one_scene_kind(tmp_path):
    grey(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.open(tmp_path / "a.png").save(tmp_path / "c.bmp")  # equal pixels in another format
    grey(tmp_path, "d.png", value=91)
    scenes, rejected = walk(tmp_path)
    assert [s.id for s in scenes] == ["a.png", "d.png"]
    assert [n for n, why in rejected if "the same picture as a.png" in why] == ["b.png", "c.bmp"]
    parts = [walk(tmp_path, start=i, n=1, size=(8, 8)) for i in range(4)]
    assert [[s.id for s in part] for part, _ in parts] == [["a.png"], [], [], ["d.png"]]
    manifest(tmp_path, {"file": "a.png", "id": "bad", "K": [[1, 0, 99], [0, 1, 99], [0, 0, 1]]}, {"file": "b.png"}, {"file": "b.png", "id": "x"})
    assert [[s.id for s in part[0]] for part in (walk(tmp_path), walk(tmp_path, start=1, n=1), walk(tmp_path, start=2))] == [["b.png"], ["b.png"], []]


def test_thumbnails_and_hidden_folders_are_left_out_once_kind(tmp_path):
    grey(tmp_path, "a.png")
    folders = "@eaDir", ".ipynb_checkpoints", ".thumbnails", "__MACOSX", "b/@eaDir", "Thumbnails"
    for shade, folder in enumerate(folders):
        for i in range(2): grey(tmp_path, f"{folder}/{i}.png", value=shade * 9 + i)
    grey(tmp_path, "._a.png", value=200)
    (tmp_path / ".git").mkdir()
    scenes, rejected = walk(tmp_path)
    assert [s.id for s in scenes] == ["a.png"] and {n for n, _ in rejected} == {*folders, "._a.png"} and len(rejected) == 7
    assert all("2 pictures" in why for name, why in rejected if name != "._a.png")


@pytest.mark.parametrize("size", [(400, 300), (300, 400)])
@pytest.mark.parametrize("tags, focal", [
    ({"xA405": 26}, 301), ({"xA405": 200}, 2311), ({"xA405": 26, "xA002": 4000, "xA003": 3000}, 301),
    ({"x920A": 4.0, "xA20E": 7500.0, "xA210": 3, "xA002": 4000, "xA003": 3000}, 300), ({"x920A": 10.0, "xA20E": 762.0}, 300)])
def test_exif_focal_length_is_used_kind(tmp_path, size, tags, focal):
    "26 mm are 26 / 43.27 of the diagonal of 500 pixels."
    grey(tmp_path, "a.jpg", size, **tags)
    [scene], _ = walk(tmp_path)
    assert scene.K[0, 0] == scene.K[1, 1] == pytest.approx(focal, abs=1) and (scene.K_evidence, scene.source) == ("exif", "photo; K from EXIF")
    assert (scene.K[:2, 2] == np.array(size) / 2).all()
    manifest(tmp_path, {"file": "a.jpg", "fov_deg": 90})
    assert walk(tmp_path)[0][0].K[0, 0] == pytest.approx(size[0] / 2) and walk(tmp_path)[0][0].source == "photo"


@pytest.mark.parametrize("tags, reason", [
    ({"x920A": 26.0}, "no size of the sensor"), ({"xA405": 26, "xA002": 4000, "xA003": 2000}, "cropped from 4000x2000"), ({"xA405": 60000}, "implausible")])
def test_exif_that_cannot_be_used_warns_kind(tmp_path, tags, reason):
    grey(tmp_path, "a.jpg", (400, 300), **tags)
    with pytest.warns(UserWarning, match=f"a.jpg: the focal length in EXIF is not used: .*{reason}"): [scene] = photo_scenes(tmp_path)
    assert scene.K[0, 0] == pytest.approx(392.5, abs=0.1) and (scene.K_evidence, scene.source) == ("assumed", "photo")


def test_exif_of_zero_says_nothing_kind(tmp_path):
    grey(tmp_path, "a.jpg", (400, 300), xA405=0)
    assert walk(tmp_path)[0][0].K[0, 0] == pytest.approx(392.5, abs=0.1)


def centred(width, height, focal): return [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]


@pytest.mark.parametrize("size, K, sizes", [
    ((300, 400), centred(400, 300, 301), "400x300.*300x400"), ((1296, 968), centred(640, 480, 577), "640x480.*1296x968"),
    ((800, 600), centred(640, 480, 577), "640x480.*800x600"), ((1080, 1920), centred(1920, 1080, 1400), "1080x1920"), ((400, 300), centred(400, 300, 26), "26 pixels"),
    ((400, 300), [[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]], "1x1.*400x300")])
def test_a_K_of_another_size_is_refused_kind(tmp_path, size, K, sizes):
    grey(tmp_path, "a.png", size)
    manifest(tmp_path, {"file": "a.png", "K": K})
    assert [len(walk(tmp_path)[0]), len(walk(tmp_path)[1])] == [0, 1] and re.search(sizes, walk(tmp_path)[1][0][1])


def test_a_K_with_its_size_is_rescaled_with_a_warning_kind(tmp_path):
    grey(tmp_path, "a.png", (1296, 968))
    grey(tmp_path, "b.png", (968, 1296))
    entry = {"K": centred(640, 480, 577), "K_size": [640, 480]}
    manifest(tmp_path, {"file": "a.png", **entry}, {"file": "b.png", **entry}, {"file": "b.png", "K_size": [640]}, {"file": "a.png", "K_size": [1296, 968]})
    with pytest.warns(UserWarning, match="a.png: K rescaled from 640x480 to 1296x968"):
        rejected = []
        [scene] = photo_scenes(tmp_path, reject=lambda *row: rejected.append(row))
    assert scene.K[0, 0] == pytest.approx(577 * 2.025) and scene.K[:2, 2] == pytest.approx([648, 484])
    assert "belongs to a picture of 640x480, the upright picture is 968x1296" in rejected[0][1] and "wrong value" in rejected[1][1] and "needs K" in rejected[2][1]


@pytest.mark.parametrize("name, values, options, metres", [
    ("D.PNG", 1500, {}, 1.5), ("d.png", 5000, {"depth_scale": 5000}, 1), ("d.png", 512, {"depth_scale": 256}, 2), ("D.NPY", 1.5, {}, 1.5)])
def test_depth_units_and_suffixes_kind(tmp_path, name, values, options, metres):
    grey(tmp_path, "a.jpg")
    if name.lower().endswith("npy"):
        with (tmp_path / name).open("wb") as file: np.save(file, np.full((30, 40), values, np.float32))
    else: Image.fromarray(np.full((30, 40), values, np.uint16)).save(tmp_path / name)
    manifest(tmp_path, {"file": "a.jpg", "depth": name, **options})
    assert walk(tmp_path)[0][0].depth.max() == pytest.approx(metres)


@pytest.mark.parametrize("scale", [0, -1, True, "5000", float("inf"), float("nan")])
def test_a_bad_depth_scale_is_one_reject_kind(tmp_path, scale):
    grey(tmp_path, "a.jpg")
    manifest(tmp_path, {"file": "a.jpg", "depth": "d.png", "depth_scale": scale})
    assert "depth_scale" in walk(tmp_path)[1][0][1]


@pytest.mark.parametrize("label, name, category", [
    ("chair 1", "chair", "chair"), ("chair (wooden)", "chair", "chair"), ("chair #3", "chair", "chair"), ("hot dog", "hot dog", "hot dog"),
    ("red chair", "red chair", "chair"), ("red chair 2", "red chair", "chair"), ("chair_2", "chair", "chair"), ("chair-02", "chair", "chair"),
    ("chair.001", "chair", "chair"), ("Chair [old]", "Chair", "chair"), ("chair no. 4", "chair", "chair"), ("hot_dog 2", "hot dog", "hot dog"),
    ("teddy bear", "teddy bear", "teddy bear"), ("large brown box", "large brown box", "box"), ("chair, armchair", "chair", "chair"), ("12", "12", "12"), ("#3", "#3", "#3")])
def test_labels_become_classes_kind(label, name, category):
    instance = Instance(1, label, np.ones((2, 2), bool))
    assert (instance.label, instance.category) == (name, category)


def test_labels_of_a_manifest_become_classes_kind(tmp_path):
    grey(tmp_path, "a.png")
    np.save(tmp_path / "ids.npy", np.arange(1200).reshape(30, 40) % 4)
    manifest(tmp_path, {"file": "a.png", "ids": "ids.npy", "labels": {"1": "chair 1", "2": "chair (wooden)", "3": "hot dog"}})
    assert [i.label for i in walk(tmp_path)[0][0].instances] == ["chair", "chair", "hot dog"]


def test_nerfstudio_and_colmap_cameras_are_read_kind(tmp_path):
    for shade, name in enumerate(["images/a.jpg", "images/b.jpg", "images/c.jpg"]): grey(tmp_path, name, (400, 300), 50 * shade)
    nerf = {"camera_model": "OPENCV", "w": 400, "h": 300, "fl_x": 310, "fl_y": 311, "cx": 201, "cy": 149,
            "frames": [{"file_path": f"./images/{name}"} for name in ("a.jpg", "b", "c.jpg")]}
    (tmp_path / "transforms.json").write_text(json.dumps(nerf))
    scenes, rejected = walk(tmp_path)
    assert not rejected and {(s.K_evidence, s.source) for s in scenes} == {("measured", "photo; K from transforms.json")}
    assert all(s.K.tolist() == [[310, 0, 201], [0, 311, 149], [0, 0, 1]] for s in scenes)
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": np.pi / 2, "frames": nerf["frames"]}))
    assert walk(tmp_path)[0][0].K[0, 0] == pytest.approx(200)
    (tmp_path / "transforms.json").unlink()
    (tmp_path / "sparse/0").mkdir(parents=True)
    (tmp_path / "sparse/0/cameras.txt").write_text("# Camera list\n1 SIMPLE_RADIAL 400 300 320 200 150 0.01\n")
    scenes, _ = walk(tmp_path)
    assert {(s.K[0, 0], s.source) for s in scenes} == {(320, "photo; K from cameras.txt")}
    (tmp_path / "sparse/0/cameras.txt").write_text("1 PINHOLE 400 300 320 321 200 150\n2 PINHOLE 400 300 330 331 200 150\n")
    (tmp_path / "sparse/0/images.txt").write_text("# header\n" + "".join(f"{i} 1 0 0 0 0 0 0 {1 + i % 2} {n}.jpg\n\n" for i, n in enumerate("abc")))
    assert [s.K[0, 0] for s in walk(tmp_path)[0]] == [320, 330, 320]


@pytest.mark.parametrize("name, text", [("transforms.json", '{"fl_x": 320, "w": 400, "h": 300, "k1": -0.3}'), ("cameras.txt", "1 OPENCV 400 300 320 321 200 150 -0.3 0.1 0 0")])
def test_a_lens_that_bends_the_picture_is_told_kind(tmp_path, name, text):
    grey(tmp_path, "a.jpg", (400, 300))
    (tmp_path / name).write_text(text)
    with pytest.warns(UserWarning, match="a.jpg: the distortion .* undistort"): [scene] = photo_scenes(tmp_path)
    assert scene.source == f"photo; K from {name}"


@pytest.mark.parametrize("name, text, reason", [
    ("transforms.json", "{", "Expecting|property"), ("transforms.json", "[]", "transforms.json"), ("transforms.json", '{"frames": [{"file_path": "x.jpg"}], "fl_x": 5}', "does not list"),
    ("transforms.json", '{"fl_x": 300, "w": 300, "h": 400}', "300x400, the upright picture is 400x300"), ("transforms.json", '{"fl_x": "a"}', "could not convert"),
    ("cameras.txt", "1 OPENCV_FISHEYE 400 300 1 1 200 150", "undistort"), ("cameras.txt", "1 PINHOLE 400", "not enough|unpack"), ("cameras.txt", "", "0 cameras"),
    ("cameras.bin", "", "model_converter"), ("transforms.json", '{"fl_x": NaN}', "NaN")])
def test_a_camera_file_that_cannot_be_used_warns_kind(tmp_path, name, text, reason):
    grey(tmp_path, "a.jpg", (400, 300))
    (tmp_path / name).write_text(text)
    with pytest.warns(UserWarning, match=reason): [scene] = photo_scenes(tmp_path)
    assert scene.K[0, 0] == pytest.approx(392.5, abs=0.1) and scene.source == "photo"


@pytest.mark.parametrize("damage", [
    lambda data: data.replace(b"}", b"{"), lambda data: data.replace(b"'descr'", b"'''escr'"), lambda data: data.replace(b"(30, 40)", b"(30, 4e)"),
    lambda data: data[:20], lambda data: b"PK\x03\x04" + data, lambda data: data.replace(b"<f4", b"<O9")])
def test_a_damaged_npy_header_is_one_reject_kind(tmp_path, damage):
    grey(tmp_path, "a.jpg")
    grey(tmp_path, "b.jpg", value=1)
    np.save(tmp_path / "d.npy", np.ones((30, 40), np.float32))
    (tmp_path / "d.npy").write_bytes(damage((tmp_path / "d.npy").read_bytes()))
    manifest(tmp_path, {"file": "a.jpg", "depth": "d.npy"}, {"file": "b.jpg"})
    scenes, rejected = walk(tmp_path)
    assert [s.id for s in scenes] == ["b.jpg"] and len(rejected) == 1 and "d.npy: not a readable .npy array" in rejected[0][1]


def test_an_npz_named_npy_is_one_reject_kind(tmp_path):
    grey(tmp_path, "a.jpg")
    with (tmp_path / "d.npy").open("wb") as file: np.savez(file, a=np.ones(3))
    manifest(tmp_path, {"file": "a.jpg", "depth": "d.npy"})
    assert "d.npy: not a readable .npy array" in walk(tmp_path)[1][0][1]


def test_the_limit_of_pixels_can_be_raised_kind(tmp_path, monkeypatch):
    "The remedy works also beyond Pillow's own limit, here a thousand times lower than it is."
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS // 1000)
    Image.new("1", (1000, 200)).save(tmp_path / "a.png")
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    out, settings = tmp_path.with_name(tmp_path.name + "-out"), dict(source="photos", folder=str(tmp_path), n=0, size=(32, 32))
    assert make_scenes(Scenes(max_pixels=50_000, **settings), out)["rows"] == 1
    [row] = read_jsonl(out / "rejects.jsonl")
    assert "1000x200 is over 0.05 megapixels" in row["reason"] and "scenes.max_pixels in params.yaml" in row["reason"]
    assert make_scenes(Scenes(max_pixels=200_000, **settings), out)["rows"] == 2


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_manifests_are_utf8_with_lines_that_end_at_newline_alone_kind(tmp_path, locale):
    grey(tmp_path, "図.png")
    rows = [{"file": "図.png", "id": "first\u2028\u0085\u2029", "source": "中文\x0b\x0c"}, {"file": "none.png"}]
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    code = ("import sys; from world2vlm.scenes.photos import photo_scenes\n"
            "for s in photo_scenes(sys.argv[1], reject=lambda *r: print(ascii(r))): print(ascii((s.id, s.source)))")
    env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == [ascii((rows[0]["id"], rows[0]["source"])), ascii(("none.png", "the file is missing"))], done.stderr
    (tmp_path / "manifest.jsonl").rename(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False).encode())
    assert [s.id for s in walk(tmp_path)[0]] == [rows[0]["id"]]
