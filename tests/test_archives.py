"Archives and benchmark files stay inside their folder, and an archive unpacks to no more than is allowed."
import io
import json
import stat
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest
from PIL import Image

from world2vlm.evaluation.benchmarks.base import open_benchmark
from world2vlm.evaluation.benchmarks.hub import _unpack_zips
from world2vlm.evaluation.benchmarks.sat import unpack_sat

OUTSIDE = ["../a.png", "data/../../a.png", "/tmp/world2vlm_outside.png", "link/a.png", "link.png", "C:/a.png", "..\\a.png", ""]


@pytest.fixture
def home(tmp_path):
    "A folder with links out of it, and what lies outside."
    (tmp_path / "elsewhere").mkdir()
    for folder in ("home", "home/data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / folder / "link.png").symlink_to(tmp_path / "elsewhere/a.png")
    return tmp_path / "home"


def files(folder): return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_symlink())


def sat_files(home, name):
    import pyarrow as pa
    from pyarrow import parquet
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    parquet.write_table(pa.table({"image_bytes": [[buffer.getvalue()]], "question": ["?"]}), home / "SAT_test.parquet")
    record = dict(database_idx=0, question_type="perspective", question="?", answer_choices=["left", "right"], correct_answer="left", img_paths=[name])
    (home / "data/test.json").write_text(json.dumps([record]))
    return home / "SAT_test.parquet"


@pytest.mark.parametrize("name", [*OUTSIDE, "data/test.json", "a.py"])
def test_unpack_sat_writes_nothing_elsewhere_outside_kind(home, name):
    parquet = sat_files(home, name)
    before = files(home.parent)
    with pytest.raises(ValueError, match="test.json"): unpack_sat(parquet, home)
    assert files(home.parent) == before


def test_unpack_sat_writes_what_lies_inside_outside_kind(home):
    assert unpack_sat(sat_files(home, "data/new/a.png"), home) == 1 and (home / "data/new/a.png").is_file()


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("benchmark", ["sat", "vsibench", "mindcube"])
def test_benchmarks_read_nothing_elsewhere_outside_kind(home, benchmark, name):
    "The files exist, so that only their place is wrong."
    for place in (home.parent, home.parent / "elsewhere", home): Image.new("RGB", (8, 8)).save(place / "a.png")
    if benchmark == "sat": sat_files(home, name)
    elif benchmark == "mindcube":
        (home / "data/raw").mkdir()
        record = dict(id="among_1", question="?", images=[name], gt_answer="A")
        (home / "data/raw/MindCube_tinybench.jsonl").write_text(json.dumps(record) + "\n")
    else:
        name = name.replace("a.png", "a").replace("link.png", "link/a") or ".."
        for place in (home.parent, home.parent / "elsewhere"): (place / "a.mp4").write_bytes(b"film")
        folder, _, film = name.rpartition("/")
        record = dict(id=1, dataset=folder or "..", scene_name=film, question_type="object_counting", question="?", ground_truth="3", options=None)
        (home / "test.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match="path"): open_benchmark(benchmark).load(home, expected=None)


def archive(home, name, data=b"x", kind=ZIP_DEFLATED, attributes=0):
    info = ZipInfo(name)
    info.compress_type, info.external_attr, info.create_system = kind, attributes << 16, 3
    with ZipFile(home / "a.zip", "a") as file: file.writestr(info, data)


@pytest.mark.parametrize("name", OUTSIDE[:-1])
def test_zip_member_elsewhere_outside_kind(home, name):
    archive(home, "good.png")
    archive(home, name)
    before = files(home.parent)
    with pytest.raises(ValueError, match="a.zip.*path leaves"): _unpack_zips(home)
    assert files(home.parent) == before


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_zip_link_or_device_outside_kind(home, mode):
    archive(home, "a", b"/etc/passwd", attributes=mode)
    with pytest.raises(ValueError, match="a.zip.*link or a device"): _unpack_zips(home)


@pytest.mark.parametrize("members, size, kind", [(1, 300 * 10**6, ZIP_DEFLATED), (1, 30 * 10**6, ZIP_BZIP2), (1, 2 * 10**6, ZIP_DEFLATED), (40, 10**6, ZIP_DEFLATED)])
def test_zip_that_unpacks_to_too_much_bomb_kind(home, members, size, kind):
    "One large member, or many small ones; also beside an honest file that does not compress."
    for number in range(members): archive(home, f"{number}.bin", bytes(size), kind)
    if members == 1: archive(home, "honest.bin", np.random.default_rng(0).bytes(3 * 10**6))
    with pytest.raises(ValueError, match="a.zip.*max_ratio.*raise the limit"): _unpack_zips(home)
    assert not list(home.glob("*.bin"))


def test_limits_are_settings_bomb_kind(home):
    archive(home, "a.bin", bytes(2 * 10**6))
    with pytest.raises(ValueError, match="max_unpacked"): _unpack_zips(home, max_unpacked=10**6, max_ratio=2000)
    assert _unpack_zips(home, max_ratio=2000) and (home / "a.bin").stat().st_size == 2 * 10**6


def test_header_that_lies_about_its_size_bomb_kind(home):
    archive(home, "a.bin", bytes(4 * 10**6))
    path, true, false = home / "a.zip", (4 * 10**6).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(true, false))
    with pytest.raises(ValueError, match="a.zip"): _unpack_zips(home)
    assert not (home / "a.bin").exists() or (home / "a.bin").stat().st_size <= 1000


@pytest.mark.parametrize("cut", [10, 60, 2000])
def test_torn_zip_outside_kind(home, cut):
    archive(home, "a.bin", np.random.default_rng(0).bytes(5000))
    data = (home / "a.zip").read_bytes()
    (home / "a.zip").write_bytes(data[:-cut])
    with pytest.raises(ValueError, match="a.zip.*fetch it again"): _unpack_zips(home)
    (home / "a.zip").write_bytes(data[:100] + bytes(500) + data[600:])  # damaged in the middle
    with pytest.raises(ValueError, match="a.zip"): _unpack_zips(home)
    assert not (home / "a.unpacked").exists()
