"The shape of the library: packages that stack, modules of a readable size, names that say what they name."
import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "world2vlm"
ORDER = "core scenes teachers tasks dataset students evaluation report".split()  # each imports only from those before it
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py")) if p.stem not in ("__init__", "_modidx")}
VAGUE = set("told asked shown seen made found got said drawn kept wanted given some one mine more most least way ways off far look thing things".split())
MAX_PUBLIC, MAX_PUBLIC_IN_MODULE, MAX_SHARED, MAX_MODULE_LINES = 338, 25, 8, 450  # 8 for three adapters, the smoothed teacher, their contract, calibration and table
MAX_WIDTH, WIDE_SHARE, VAGUE_SHARE = 120, 0.005, 0.005
MEDIAN_LINES, LINES_OF_90_PERCENT, MAX_LINES = 9, 17, 40  # of a function


@cache
def tree(module: str) -> ast.Module: return ast.parse(MODULES[module].read_text())


def absolute(node: ast.ImportFrom, module: str) -> str:
    "The dotted name after `from`, seen from the package: core.camera."
    if node.level: return ".".join([*module.split(".")[:-node.level], *filter(None, [node.module])])
    return (node.module or "").removeprefix("world2vlm").lstrip(".") if (node.module or "").split(".")[0] == "world2vlm" else ""


def imports(module: str, code: ast.AST) -> set:
    "Modules of the library that `code`, which stands in `module`, imports at its top or inside a function."
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom): names |= {absolute(node, module), *(f"{absolute(node, module)}.{a.name}".lstrip(".") for a in node.names)}
        elif isinstance(node, ast.Import): names |= {a.name.removeprefix("world2vlm.") for a in node.names}
    return names & MODULES.keys()


def upward(module: str, code: ast.AST) -> list:
    "What `code` imports from a later package than that of `module`."
    place = ORDER.index(module.split(".")[0])
    return sorted(m for m in imports(module, code) if ORDER.index(m.split(".")[0]) > place)


def circle(graph: dict) -> list:
    "A path of modules in `graph` that ends where it begins, [] if there is none."
    finished = set()
    def visit(module, path):
        if module in path: return path[path.index(module):] + [module]
        if module in finished: return []
        found_below = next(filter(None, (visit(m, path + [module]) for m in sorted(graph[module]))), [])
        finished.add(module)
        return found_below
    return next(filter(None, (visit(m, []) for m in sorted(graph))), [])


def test_every_module_is_in_a_package(): assert {m.split(".")[0] for m in MODULES} == set(ORDER) and all("." in m for m in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_packages_stack(module): assert upward(module, tree(module)) == []


def test_no_module_imports_itself_by_others(): assert circle({m: imports(m, tree(m)) for m in MODULES}) == []


def test_checks_notice_offences():
    below = "def f():\n    from ..report.page import write_report\nfrom world2vlm.tasks import tasks\nimport world2vlm.core.camera"
    assert imports("core.runs", ast.parse(below)) == {"report.page", "tasks.tasks", "core.camera"}
    assert upward("core.runs", ast.parse(below)) == ["report.page", "tasks.tasks"] and upward("report.tables", ast.parse(below)) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"] and circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert set(bound(ast.parse("def one(some): more = seen"))) == {"one", "some", "more"}


def public(module: str) -> list:
    return [n.name for n in tree(module).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]


def bound(code: ast.AST) -> list:
    "Every name that `code` chooses: functions, classes, arguments, variables."
    nodes = list(ast.walk(code))
    stored = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return stored + [n.arg for n in nodes if isinstance(n, ast.arg)] + [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]


def test_few_public_names():
    counts = {m: len(public(m)) for m in MODULES}
    assert sum(counts.values()) <= MAX_PUBLIC
    assert {m: n for m, n in counts.items() if n > MAX_PUBLIC_IN_MODULE} == {}


def test_few_names_are_shared():
    owners = Counter(name for m in MODULES for name in set(public(m)))
    assert len(shared := sorted(name for name, n in owners.items() if n > 1)) <= MAX_SHARED, shared


def test_modules_are_short():
    lengths = {m: len(p.read_text().splitlines()) for m, p in MODULES.items()}
    assert {m: n for m, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_short():
    functions = [(n.end_lineno - n.lineno + 1, f"{m}.{n.name}") for m in MODULES for n in ast.walk(tree(m)) if isinstance(n, ast.FunctionDef)]
    lengths = sorted(n for n, _ in functions)
    assert lengths[len(lengths) // 2] <= MEDIAN_LINES and lengths[int(0.9 * len(lengths))] <= LINES_OF_90_PERCENT
    assert [f for f in functions if f[0] > MAX_LINES] == []


def test_names_say_what_they_name():
    names = [(name, m) for m in MODULES for name in bound(tree(m))]
    vague = [(name, m) for name, m in names if name in VAGUE]
    assert len(vague) <= VAGUE_SHARE * len(names), sorted(vague)


def test_lines_fit_the_screen():
    lines = [(m, i, line) for m, p in MODULES.items() for i, line in enumerate(p.read_text().splitlines(), 1) if line.strip()]
    wide = [f"{m}:{i}" for m, i, line in lines if len(line) > MAX_WIDTH and not line.startswith("__all__ = ")]  # nbdev writes __all__
    assert len(wide) <= WIDE_SHARE * len(lines), wide
