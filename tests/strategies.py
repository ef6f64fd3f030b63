"Inputs of every kind that this package reads, whole, odd or damaged: strategies of Hypothesis for the fuzz tests."
import io
import json
import struct
import zipfile

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from world2vlm.core.camera import Action, ACTION_KINDS

NUMBERS = st.one_of(
    st.integers(-3, 300), st.floats(-1e3, 1e3), st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, 1e-9,
        1e300, 10**400, -10**400]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(["", "a", "1", "1e-4", "\ud800", "\0", "../a",
    "é" * 300, "9" * 5000]), st.text(max_size=6))
JSON = st.recursive(SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=4), part,
    max_size=3), max_leaves=6)


def place(data: bytes): return st.integers(0, max(0, len(data) - 1))


@st.composite
def damaged(draw, data: bytes) -> bytes:
    "`data` cut, with other bytes at one place, doubled in part or with more at its end; at times as it is."
    start, size = draw(place(data)), draw(st.sampled_from([1, 1, 2, 4, 16, 200]))
    end = min(len(data), start + size)
    return draw(st.sampled_from([
        lambda: data, lambda: data[:start], lambda: data[:start] + data[end:], lambda: data[:end] + data[start:],
        lambda: data[:start] + bytes(b ^ draw(st.sampled_from([1, 2, 4, 128,
            255])) for b in data[start:end]) + data[end:],
        lambda: data[:start] + draw(st.binary(min_size=1, max_size=8)) + data[start + 1:],
                                 lambda: data + draw(st.binary(max_size=30)),
        lambda: data[:start] + bytes(end - start) + data[end:]]))()


@st.composite
def changed(draw, value, other=JSON):
    "Nested dicts and lists with another value, a key less or a key more at one place."
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        how = draw(st.sampled_from(["deeper", "deeper", "deeper", "less", "more"]))
        if how == "less": return {k: v for k, v in value.items() if k != key}
        if how == "more": return {**value, draw(st.sampled_from(["", "x", f"{key}_", f"{key}s"])): draw(other)}
        return {**value, key: draw(changed(value[key], other))}
    if isinstance(value, (list, tuple)) and value and draw(st.integers(0, 3)):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], draw(changed(value[i], other)), *value[i + 1:]]
    return draw(other)


# Answers of students
@st.composite
def targets(draw) -> tuple[str, object]:
    "A type of answer and a canonical answer of it."
    kind = draw(st.sampled_from(["actions", "box", "yes", "true"]))
    if kind in ("yes", "true"): return kind, draw(st.booleans())
    if kind == "box":
        x, y = (sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True))) for _ in "xy")
        return kind, (x[0] / 1000, y[0] / 1000, x[1] / 1000, y[1] / 1000)
    amounts = st.one_of(st.integers(1, 90).map(float), st.integers(1, 600).map(lambda n: n / 100))
    return kind, tuple(Action(draw(st.sampled_from(ACTION_KINDS)), draw(amounts)) for _ in range(draw(st.integers(1,
        3))))


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "\\text{", "}", "{", "<|begin_of_box|>",
        "<|end_of_box|>", "◁think▷", "◁/think▷", "<reasoning>", "</reasoning>"]
WORDS = ["yes", "no", "not", "isn't", "true", "A", "B.", "(C)", "turn left 20 degrees", "move right 0.5 meters",
         "[1, 2, 3, 4]", "12", "-3.5", "twenty-one", "one hundred and",
         "Answer:", "Output:", "8, 9", "bbox", "°", "left", "right", "about", ";", ",", ".", "\n", " ", "\t", "é",
         "\u2028", "\ud800", "\0", "\u0130", "٣", "²", "9" * 400, "1e999", "**", "`", "\"", "['"]
TEXTS = st.one_of(st.lists(st.sampled_from(TAGS + WORDS), max_size=14).map(" ".join),
                  st.lists(st.sampled_from(TAGS + WORDS), max_size=14).map("".join), st.text(max_size=80))
REMARKS = st.sampled_from(["", "Let me see. ", "The lamp is on my side. ", "Hmm, wait. ",
                           "First I compare both pictures.\n", "桌子。 ", "It was 3 chairs. "])
FORMS = ["{remark}<think>{noise}</think>{right}", "<think>{noise}</think>\n\n<answer>{right}</answer>",
         "{noise}</think>{right}", "<answer>{right}</answer>", "{remark}<answer> {right} </answer>{remark}",
         "<thinking>{noise}</thinking><final_answer>{right}</final_answer>",
         "<answer>{noise}</answer> no, <answer>{right}</answer>", "{noise}<answer>{right}",
         "```\n<answer>{right}</answer>\n```", "**{right}**", "`{right}`",
         "{right}.", "\n\n{right}\n", "{remark}\\boxed{{{right}}}", "$\\boxed{{\\text{{{right}}}}}$",
         "<|begin_of_box|>{right}<|end_of_box|>", "◁think▷{noise}◁/think▷{right}",
         "<think>{noise}</think>{right}<think>{noise}"]


# Settings
YAML_LINES = ["a: 2026-13-45", "b: 0b_", "c: ._", "? [x]", "<<: 3", "1: 2", "d: *nowhere", "e: &e [*e]",
              "profiles: [a]", "arms: 3", "profiles: {mini: 3}", "scenes: {n: 1, n: 2}", "\tf: 1",
              "g: !!python/object:os.system {}", "h: \"\\ud800\"",
              "i: " + "[" * 3000, "---", "...", "%YAML 9.9", "j: !!int x", "k: 1:99", "l: =", "null: 3", "teachers: {}",
              "arms: {x: {scenes: 3}}", "profiles: {2: {}}", "m: !!binary é", "n: 12e03", "o: 9999-99-99 99:99:99"]


@st.composite
def yaml_files(draw, text: str) -> bytes:
    "A params.yaml with lines that are odd, lost or damaged."
    lines = text.split("\n")
    for _ in range(draw(st.integers(0, 2))):
        i = draw(st.integers(0, len(lines)))
        lines[i:i + draw(st.integers(0, 1))] = [draw(st.sampled_from(YAML_LINES))]
    data = "\n".join(lines).encode()
    return draw(st.one_of(st.just(data), damaged(data)))


# Pictures and photo folders
@st.composite
def pictures(draw) -> tuple[str, bytes, Image.Image]:
    "Name, file and picture of any format, mode, size and EXIF."
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    mode = draw(st.sampled_from(["RGB", "RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "I;16"]))
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 99) if mode == "I;16" else Image.fromarray(noise).convert(mode)
    formats = [f for f, modes in {"PNG": "RGB L RGBA P 1 LA I;16", "JPEG": "RGB L CMYK", "WEBP": "RGB RGBA",
                                  "BMP": "RGB L P 1", "TIFF": "RGB L RGBA P 1 LA CMYK I;16",
                                  "GIF": "L P 1"}.items() if mode in modes.split()]
    form, exif = draw(st.sampled_from(formats)), Image.Exif()
    if draw(st.booleans()) and form in ("PNG", "JPEG", "WEBP"):
        exif[0x0112] = draw(st.integers(0, 9))
        tags = st.sampled_from([0xA002, 0xA003, 0x920A, 0xA405, 0xA20E, 0xA210])
        exif.get_ifd(0x8769).update(draw(st.dictionaries(tags, st.integers(0, 4000), max_size=4)))
    file = io.BytesIO()
    picture.save(file, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {}))
    return f"a.{form.lower()}", file.getvalue(), picture


ENTRY = {"file": "a.png", "id": "x", "fov_deg": 60, "K": [[50, 0, 30], [0, 50, 20], [0, 0, 1]], "K_size": [60, 40],
         "depth": "d.npy", "depth_scale": 1, "ids": "i.npy", "labels": {"3": "red chair"}, "source": "s",
         "licence": "l"}
ENTRIES = st.one_of(JSON, st.fixed_dictionaries({"file": st.sampled_from(["a.png", "b.jpg", "bad.png", "no.png",
    "d.npy", "\ud800.png", "\udce9.png", "../a.png", "", "a" * 300, "a\0"])}, optional={
    key: st.one_of(st.just(value), st.just(value), JSON) for key, value in ENTRY.items() if key not in ("file",)}))
LABELS = st.dictionaries(st.one_of(st.sampled_from(["1", "3", "0", "03", "65535", "65536", "²", "-1", ""]),
                                   st.text(max_size=3)),
                         st.one_of(st.text(max_size=12), st.sampled_from(["chair #3", "(wooden)", "  ", "[",
                             "hot_dog-02", "12", "\ud800", ",", "a,b", "((((", "no. 4"])), max_size=3)


@st.composite
def manifests(draw) -> tuple[str, bytes, int | None]:
    "Name and bytes of a manifest, and its entries where it is undamaged."
    entries = draw(st.lists(st.one_of(ENTRIES, LABELS.map(lambda labels: {"file": "b.jpg", "ids": "i.npy",
        "labels": labels})), min_size=1, max_size=4))
    lines = draw(st.booleans())
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries)
    data, bom = text.encode(), draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    broken = draw(st.one_of(st.just(data), damaged(data)))
    return f"manifest.json{'l' * lines}", bom + broken, len(entries) if broken == data else None


@st.composite
def maps(draw) -> dict[str, bytes]:
    "A depth map and an id map of a picture of 60 x 40, of any type and shape, or damaged."
    def npy(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    kind = st.sampled_from(["f4", "f8", "f2", "u2", "i8", "u1", "?", "c8", "U3"])
    size = st.sampled_from([(40, 60), (40, 60), (60, 40), (40,), (0, 0), (40, 60, 1)])
    files = {name: npy((np.ones(draw(size)) * draw(st.sampled_from([0, 1, 3,
        1.5]))).astype(draw(kind))) for name in ("d.npy", "i.npy")}
    return {name: draw(st.one_of(st.just(data), damaged(data))) for name, data in files.items()}


TRANSFORMS = {"camera_model": "OPENCV", "w": 60, "h": 40, "fl_x": 50, "fl_y": 51, "cx": 30, "cy": 20,
              "camera_angle_x": 1.0, "frames": [{"file_path": "./a.png", "fl_x": 52}]}
CAMERA_LINES = ["# header", "1 PINHOLE 60 40 50 51 30 20", "2 SIMPLE_RADIAL 60 40 50 30 20 0.01", "1 PINHOLE 60 40",
                "x", "", "1 OPENCV_FISHEYE 60 40 1 1 1 1", "1 PINHOLE nan 40 50 51 30 20", "1 PINHOLE 0 0 50 51 30 20",
                "1 PINHOLE 60 40 1e999 51 30 20"]
IMAGE_LINES = ["# header", "1 1 0 0 0 0 0 0 1 a.png", "", "2 1 0 0 0 0 0 0 2 b.png", "1 2", "1 1 0 0 0 0 0 0 7 a.png"]


@st.composite
def camera_files(draw) -> dict[str, bytes]:
    "Files of nerfstudio and COLMAP beside the picture a.png of 60 x 40."
    lines = lambda pool: "\n".join(draw(st.lists(st.sampled_from(pool), max_size=4))).encode()
    makers = {"transforms.json": lambda: json.dumps(draw(changed(TRANSFORMS))).encode(),
              "cameras.txt": lambda: lines(CAMERA_LINES), "images.txt": lambda: lines(IMAGE_LINES)}
    names = draw(st.lists(st.sampled_from(sorted(makers)), min_size=1, unique=True))
    return {name: draw(st.one_of(st.just(data), damaged(data))) for name in names for data in [makers[name]()]}


# Answer files, benchmark files, archives, weights
@st.composite
def line_files(draw, lines: list[bytes]) -> bytes:
    "JSON lines with some doubled, lost, moved, odd or damaged."
    lines = list(lines)
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, len(lines)))
        how = draw(st.sampled_from(["odd", "double", "lose", "damage"]))
        if how == "odd" or i == len(lines): lines.insert(i, draw(st.one_of(JSON.map(json.dumps).map(str.encode),
            st.sampled_from([b"", b"  ", b"\xff", b"[" * 3000, b'{"id": "q0"}', b"NaN", b"\xef\xbb\xbf{}"]))))
        elif how == "double": lines.insert(draw(st.integers(0, len(lines))), lines[i])
        elif how == "lose": del lines[i]
        else: lines[i] = draw(damaged(lines[i]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"\n".join(lines) + draw(st.sampled_from([b"\n", b"",
        b"\n\n", b'\n{"id": "q1", "ke']))


NAMES = st.sampled_from(["a.png", "a.png", "b/c.png", "b", "b/", "a.png/x", "../up.png", "/tmp/world2vlm_outside.png",
                         "C:/d.png", "..\\e.png", "n\0ul.png", "é.png", "l" * 300, "x/" * 200 + "y", "./f.png",
                         "//g.png", "link/h.png",
                         "", ".", "a.zip", "a.unpacked", "b//i.png", "j ", "\ud7ff"])


@st.composite
def archives(draw) -> bytes:
    "A zip file with members of any name, size and kind, whole or damaged."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in draw(st.lists(NAMES, max_size=4)):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 3
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                zipfile.ZIP_LZMA]))
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o40755, 0o100000, 0o120777, 0o010644])) << 16
            size = draw(st.sampled_from([0, 1, 50, 3000, 2 * 2**20]))
            archive.writestr(info, bytes(size) if draw(st.booleans()) else np.random.default_rng(size).bytes(min(size,
                3000)))
    return draw(st.one_of(st.just(file.getvalue()), damaged(file.getvalue())))


@st.composite
def weight_files(draw, data: bytes) -> bytes:
    "A file of safetensors cut, or with a header that names other, fewer, more or misshapen weights."
    n = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + n]), data[8 + n:]
    key = draw(st.sampled_from(sorted(k for k in header if k != "__metadata__")))
    how = draw(st.sampled_from(["cut", "bytes", "rename", "lose", "more", "type", "shape", "place", "change"]))
    if how == "cut": return data[:draw(place(data))]
    if how == "bytes": return draw(damaged(data[:8 + n])) + body
    if how == "rename": header[f"{key}_"] = header.pop(key)
    if how == "lose": del header[key]
    if how == "more": header["more"] = {**header[key], "data_offsets": [len(body), len(body)], "shape": [0]}
    if how == "type": header[key] = {**header[key], "dtype": draw(st.sampled_from(["I32", "U32", "F64", "BF16",
        "F8_E4M3", "x"]))}
    if how == "shape": header[key] = {**header[key], "shape": draw(st.sampled_from([header[key]["shape"][::-1], [], [1,
        *header[key]["shape"]], [-1], [2**40]]))}
    if how == "place": header[key] = {**header[key], "data_offsets": draw(st.sampled_from([[0, 4], [4, 0], [-1, 3], [0,
        2**50], header[key]["data_offsets"]]))}
    if how == "change": header = draw(changed(header))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
