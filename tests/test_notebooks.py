"The house style of the notebooks, as one pure function that lists offences; and notebooks, library and README agree."
import ast, io, json, re, shutil, statistics, subprocess, sys, tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb")) + sorted((ROOT / "nbs/pipeline").glob("*.ipynb"))
MAX_BYTES, MAX_LINES, MEDIAN_LINES, REACH = 500_000, 40, 8, 3
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|mnt)/\w")
EMBEDDED = re.compile(r"base64,[\w+/=\\n]+")


def text(part) -> str:
    "A notebook stores text as a string or a list of lines."
    return part if isinstance(part, str) else "".join(part or [])


def source(cell: dict) -> str: return text(cell["source"])
def code_cells(nb: dict) -> list: return [c for c in nb["cells"] if c["cell_type"] == "code" and source(c).strip()]
def is_export(cell: dict) -> bool: return bool(re.search(r"^\s*#\s*\|\s*exports?\b", source(cell), re.M))


def body(cell: dict) -> str:
    "The cell's Python, without directives and magics."
    return "\n".join("" if re.match(r"\s*(#\s*\||%|!)", line) else line for line in source(cell).splitlines())


def length(cell: dict) -> int:
    "Lines of a cell that are not blank."
    return sum(bool(line.strip()) for line in body(cell).splitlines())


def bare_length(cell: dict) -> int:
    "The same, where each signature counts as one line: docments cost nothing."
    funcs = [n for n in ast.walk(ast.parse(body(cell))) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return length(cell) - sum(max(0, f.body[0].lineno - f.lineno - 1) for f in funcs)


def definitions(cell: dict) -> list:
    "Functions and classes defined at the top of a cell."
    return [n for n in ast.parse(body(cell)).body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]


def names_used(cell: dict) -> set:
    "Every name a cell mentions."
    nodes = list(ast.walk(ast.parse(body(cell))))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def printed(cell: dict) -> str:
    "The text of a cell's outputs, pictures left out."
    out = []
    for o in cell.get("outputs", []):
        out += [text(o.get("text"))] + [text(v) for k, v in o.get("data", {}).items() if k.startswith("text/")]
    return EMBEDDED.sub("", "\n".join(out))


def opening(nb: dict, library: bool) -> list:
    "Title, purpose, default_exp, kernel."
    found, cells = [], nb["cells"]
    if library and not re.match(r"#\s*\|\s*default_exp \w", source(cells[0])): found.append("the first cell is not `#| default_exp`")
    prose = [source(c) for c in cells[:3] if c["cell_type"] == "markdown"]
    if not prose or not prose[0].startswith("# "): found.append("no `# Title` among the first three cells")
    if not any(re.search(r"^> \S", p, re.M) for p in prose): found.append("no `> one line of purpose` below the title")
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3": found.append("the kernelspec is not python3")
    return found


def sizes(nb: dict, n_bytes: int) -> list:
    "Weight of the file and length of the exported cells."
    found = [f"{n_bytes // 1000} KB, over {MAX_BYTES // 1000}"] if n_bytes > MAX_BYTES else []
    lengths = [bare_length(c) for c in code_cells(nb) if is_export(c)]
    for c in code_cells(nb):
        if is_export(c) and length(c) > MAX_LINES: found.append(f"export cell of {length(c)} lines: {body(c).split(chr(10))[1][:50]}")
    if lengths and statistics.median(lengths) > MEDIAN_LINES: found.append(f"export cells have a median of {statistics.median(lengths)} lines")
    return found


def rhythm(nb: dict) -> list:
    "Exported definitions that no plain cell uses soon after."
    found, code = [], code_cells(nb)
    for i, cell in enumerate(code):
        if not is_export(cell): continue
        soon = set().union(*[names_used(c) for c in [c for c in code[i + 1:] if not is_export(c)][:REACH]])
        near = set().union(*[names_used(c) for c in code[i + 1:i + 1 + REACH] if not is_export(c)])
        for d in (d for d in definitions(cell) if not d.name.startswith("_")):
            if d.name not in near: found.append(f"`{d.name}` is not used in a plain cell within {REACH} cells" + (" (later it is)" if d.name in soon else ""))
    return found


def comment_lines(code: str) -> set:
    "Line numbers that carry a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.COMMENT}


def undocumented(f, where: str, comments: set) -> list:
    "What the signature of function `f` leaves unsaid; a property of one line says enough by its name and type."
    if len(f.body) == 1 and any(ast.unparse(d) == "property" for d in f.decorator_list): return [] if f.returns else [f"`{where}`: no return type"]
    found = [] if ast.get_docstring(f) else [f"`{where}` has no docstring"]
    params = f.args.posonlyargs + f.args.args + f.args.kwonlyargs
    for p in (p for p in params if p.arg not in ("self", "cls")):
        if p.annotation is None: found.append(f"`{where}`: `{p.arg}` has no type")
        elif p.end_lineno not in comments: found.append(f"`{where}`: `{p.arg}` has no docment")
    if f.returns is None: found.append(f"`{where}`: no return type")
    elif ast.unparse(f.returns) != "None" and f.returns.end_lineno not in comments: found.append(f"`{where}`: no docment of what it returns")
    return found


def documents(nb: dict) -> list:
    "Docstrings and docments of everything public."
    found = []
    for cell in filter(is_export, code_cells(nb)):
        comments = comment_lines(body(cell) + "\n")
        for d in (d for d in definitions(cell) if not d.name.startswith("_")):
            if not isinstance(d, ast.ClassDef):
                found += undocumented(d, d.name, comments)
                continue
            if not ast.get_docstring(d): found.append(f"`{d.name}` has no docstring")
            for m in d.body:
                if isinstance(m, ast.AnnAssign) and m.lineno not in comments: found.append(f"`{d.name}.{ast.unparse(m.target)}` has no docment")
                if isinstance(m, ast.FunctionDef) and not m.name.startswith("_"): found += undocumented(m, f"{d.name}.{m.name}", comments)
    return found


def outputs(nb: dict, pipeline: bool) -> list:
    "Executed or bare, never broken, never tied to one machine."
    found, code = [], code_cells(nb)
    some = any(c["outputs"] for c in code)
    if pipeline and some: found.append("a pipeline notebook holds outputs")
    if not pipeline and not some: found.append("not executed: no cell has an output")
    for i, c in enumerate(code):
        if any(o["output_type"] == "error" for o in c["outputs"]): found.append(f"code cell {i} ends in an error")
        if any(o.get("name") == "stderr" or any("widget" in kind for kind in o.get("data", {})) for o in c["outputs"]):
            found.append(f"code cell {i} shows a progress bar or a warning: run `make notebooks`")
        if c["execution_count"] is not None: found.append(f"code cell {i} has an execution count: run `make sync`")
    for c in nb["cells"]:
        hit = MACHINE.search(source(c)) or MACHINE.search(printed(c))
        if hit: found.append(f"path of one machine: {hit.string[hit.start():hit.start() + 40]!r}")
    return found


def offences(nb: dict, n_bytes: int, pipeline: bool = False) -> list:
    "Every breach of the house style by one notebook."
    library = not pipeline and any(map(is_export, code_cells(nb)))
    found = opening(nb, library) + sizes(nb, n_bytes) + outputs(nb, pipeline)
    return found + (rhythm(nb) + documents(nb) if library else [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_style(path):
    found = offences(json.loads(path.read_text()), path.stat().st_size, path.parent.name == "pipeline")
    if found: pytest.fail(f"{path.name}:\n  " + "\n  ".join(found), pytrace=False)


# The gate must find what it forbids.
GOOD = """#| export
def area(
    width: float,  # metres
    height: float,  # metres
) -> float:  # square metres
    "Area of a `width` by `height` rectangle."
    return width * height"""


def notebook(*cells) -> dict:
    "A small notebook: strings that start with `# ` or `> ` are prose."
    def cell(s):
        prose = s.startswith(("# ", "> "))
        return dict(source=s, cell_type="markdown") if prose else dict(source=s, cell_type="code", outputs=[dict(output_type="stream", text="1")], execution_count=None)
    return dict(cells=[cell(s) for s in cells], metadata=dict(kernelspec=dict(name="python3")))


def test_gate_rejects_progress_bars():
    bar = notebook("#| default_exp a", "# A\n> why", GOOD, "area(1, 2)")
    bar["cells"][-1]["outputs"] = [dict(output_type="stream", name="stderr", text="100 %")]
    assert any("progress bar" in o for o in offences(bar, 1000))


def test_gate_accepts():
    assert offences(notebook("#| default_exp a", "# A\n> why", GOOD, "area(1, 2)"), 1000) == []


@pytest.mark.parametrize("cells, expected", [
    (["# A\n> why", GOOD, "area(1, 2)"], "default_exp"),
    (["#| default_exp a", "# A", GOOD, "area(1, 2)"], "purpose"),
    (["#| default_exp a", "# A\n> why", GOOD, "1 + 1"], "`area` is not used"),
    (["#| default_exp a", "# A\n> why", GOOD.replace(": float,  # metres", ",", 1), "area(1, 2)"], "`width` has no type"),
    (["#| default_exp a", "# A\n> why", GOOD.replace("  # metres", "", 1), "area(1, 2)"], "`width` has no docment"),
    (["#| default_exp a", "# A\n> why", GOOD.replace("  # square metres", ""), "area(1, 2)"], "what it returns"),
    (["#| default_exp a", "# A\n> why", GOOD.replace('"Area of', '# "Area'), "area(1, 2)"], "no docstring"),
    (["#| default_exp a", "# A\n> why", GOOD + "\n    # x" * 50, "area(1, 2)"], "export cell of"),
    (["#| default_exp a", "# A\n> why", GOOD, "area(1, 2); open('/ho" + "me/me/x')"], "path of one machine"),
])
def test_gate_rejects(cells, expected):
    assert any(expected in o for o in offences(notebook(*cells), 1000))


def test_library_agrees_with_notebooks(tmp_path):
    "A fresh export of the notebooks gives the committed library, byte for byte."
    for part in ("nbs", "world2vlm"): shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "settings.ini", tmp_path)
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = lambda root: {str(p.relative_to(root)): p.read_text() for p in (root / "world2vlm").rglob("*.py") if p.name != "_modidx.py"}
    fresh, kept = modules(tmp_path), modules(ROOT)
    assert fresh.keys() == kept.keys()
    assert [n for n in fresh if fresh[n] != kept[n]] == [], "run `make sync`"


def test_every_module_has_a_notebook():
    exported = {m.group(1) for p in (ROOT / "nbs").glob("*.ipynb") if (m := re.search(r"#\|\s*default_exp ([\w.]+)", p.read_text()))}
    package = ROOT / "world2vlm"
    assert exported == {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("[!_]*.py")}


@pytest.mark.parametrize("page, path", [("README", "nbs/index.ipynb"), ("RESULTS", "nbs/95_results.ipynb")])
def test_pages_are_current(tmp_path, page, path):
    "README and RESULTS are what their notebooks give now, numbers included, and every picture and link is there."
    command = ["-m", "jupyter", "nbconvert", "--execute", "--to", "markdown", "--no-input", "--output-dir", str(tmp_path), "--output", page, path]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (ROOT / f"{page}.md").read_text()
    assert re.sub(r"\n{3,}", "\n\n", (tmp_path / f"{page}.md").read_text()).strip() == text.strip(), "run `make sync`"
    local = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_readme_is_short():
    "An idea, a picture, a table, a few lines of Python, two commands, what each part is worth."
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120 and next(i for i, line in enumerate(lines) if line.startswith("```")) < 40
    assert sum(line.startswith("![") for line in lines) == 1


def test_python_of_the_readme_runs(tmp_path):
    "The example as written, from a checkout."
    from PIL import Image
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "photos").mkdir()
    Image.open(ROOT / "data/panoramas/interior.png").convert("RGB").crop((200, 60, 360, 180)).save(tmp_path / "photos/room.jpg")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(blocks) == 2 and done.stdout.count("->") >= 5 and done.stdout.strip().splitlines()[-1].count("->") == 1
