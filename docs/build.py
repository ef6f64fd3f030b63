"The notebooks as a static site: `make docs`, then open _docs/site/index.html."
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "_docs"  # ignored by git
SECTIONS = {"0": "Core", "1": "Scenes", "2": "Teachers", "3": "Stable Virtual Camera", "4": "Tasks", "5": "Data sets", "6": "Students", "7": "Evaluation", "8": "Report", "9": "Guides"}
CONFIG = {
    "site_name": "world2vlm", "docs_dir": "src", "site_dir": "site", "use_directory_urls": False,
    "theme": {"name": "material", "font": False, "features": ["navigation.indexes", "navigation.footer", "toc.follow"],
              "palette": {"primary": "white", "accent": "teal"}},
    "extra_css": ["style.css"], "markdown_extensions": ["tables", "md_in_html", "pymdownx.highlight", "pymdownx.superfences"],
    "plugins": ["search", {"mkdocs-jupyter": {"execute": False, "include_requirejs": False}}],
}
MATH = re.compile(r"(?<!\\)\$([^$\n]+)\$")  # becomes MathML, which browsers draw by themselves
IMPORTS = "<details markdown><summary>imports</summary>\n\n```python\n{code}\n```\n</details>"


def is_imports(code: str) -> bool:
    "Whether `code` does nothing but import."
    try: return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)
    except SyntaxError: return False  # a magic


def page_cell(cell: dict) -> dict | None:
    "A cell as the site shows it: directives and hidden cells dropped, imports folded."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return cell | {"source": MATH.sub(lambda formula: convert(formula[1]), source)}
    directives, code = re.findall(r"^#\| *(\w+)", source, re.M), re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if {"hide", "default_exp"} & set(directives): return None
    if code and is_imports(code): return {"cell_type": "markdown", "metadata": {}, "source": IMPORTS.format(code=code)}
    return cell | {"source": code}


def copy_notebook(path: Path) -> str:
    "Write the page of one notebook; its title."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [shown for cell in notebook["cells"] if (shown := page_cell(cell))]
    (WORK / "src" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    titles = (re.match(r"# (.+)", "".join(cell["source"])) for cell in notebook["cells"])
    return next((title[1] for title in titles if title), path.stem)


def copy_pages() -> None:
    "README and RESULTS with their pictures; links to notebooks become links to pages."
    for name, target in (("README.md", "index.md"), ("RESULTS.md", "results.md")):
        text = re.sub(r"\]\(nbs/([\w/]+\.ipynb)\)", r"](\1)", (ROOT / name).read_text(encoding="utf-8")).replace("](RESULTS.md)", "](results.md)")
        for picture in re.findall(r"(?:!\[[^\]]*\]\(|src=\")([^)\"\s]+\.png)", text):
            (WORK / "src" / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / picture, WORK / "src" / picture)
        (WORK / "src" / target).write_text(text, encoding="utf-8")


def main() -> int:
    "Copy everything to _docs/src and let mkdocs build it."
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "src").mkdir(parents=True)
    shutil.copy(ROOT / "docs/style.css", WORK / "src/style.css")
    copy_pages()
    nav: dict[str, list] = {name: [] for name in SECTIONS.values()}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")): nav[SECTIONS[path.name[0]]].append({copy_notebook(path): path.name})
    pages = [{"world2vlm": "index.md"}, {"Results": "results.md"}, *({name: pages} for name, pages in nav.items() if pages)]
    (WORK / "mkdocs.yml").write_text(json.dumps(CONFIG | {"nav": pages}), encoding="utf-8")  # JSON is YAML
    return subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(WORK / "mkdocs.yml")]).returncode


if __name__ == "__main__": sys.exit(main())
