"""Imports point one way; heavy packages appear in one named place; the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bindsearch"

LAYERS = [
    ("errors",),
    ("types",),
    ("registry",),
    ("makers",),
    ("drawing",),
    ("config",),
    ("processes",),
    ("row_table",),
    ("linked",),
    ("members",),
    ("sources",),
    ("modalities",),
    ("models",),
    ("listing",),
    ("store",),
    ("exchange",),
    ("embed",),
    ("index",),
    ("query",),
    ("search",),
    ("cache",),
    ("llm",),
    ("truth",),
    ("zeroshot",),
    ("probe",),
    ("evaluate",),
    ("gap",),
    ("world",),
    ("train",),
    ("preview",),
    ("sheet",),
    ("carriers",),
    ("render",),
    ("verdicts",),
    ("doctor",),
    ("bench",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HOMES = {
    "faiss": {"index/faiss_index.py"},
    "typer": {"cli/"},
    "transformers": {"llm/"},
    "open_clip": {"models/open_clip_space.py"},
    "timm": {"models/foreign_stems.py"},
    "sklearn": {"probe/linear.py"},
    "torchaudio": set(),
    "torchvision": set(),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path, top_level_only: bool) -> set[str]:
    """Dotted names that a module imports; type-checking blocks do not run and do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            if module == "bindsearch":
                found.update(f"bindsearch.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"{own} is in no layer: add it to LAYERS where it belongs"
    for name in imports(path, top_level_only=True):
        if name.startswith("bindsearch."):
            other = name.split(".")[1]
            if other in ("__version__",):
                continue
            assert RANK[other] <= RANK[own], f"{own} imports {other}, which stands above it"


@pytest.mark.parametrize("package", sorted(HOMES))
def test_heavy_packages_have_one_home(package: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name == package or name.startswith(f"{package}.") for name in imports(path, top_level_only=False))
    }
    homes = HOMES[package]
    strays = {user for user in users if not any(user == home or user.startswith(home) for home in homes)}
    assert not strays, f"{package} belongs in {homes or 'no module'}, found in {strays}"


@pytest.mark.parametrize("module", ["bindsearch", "bindsearch.cli", "bindsearch.config", "bindsearch.query"])
def test_light_imports(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'faiss', 'pyarrow', 'PIL', 'av', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_faiss() -> None:
    code = (
        "import sys\nfrom bindsearch.cli import run\ncode = run(['--help'])\n"
        "print(code, [name for name in ('torch', 'faiss', 'numpy', 'pyarrow') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_exports_exist_and_are_sorted() -> None:
    import bindsearch

    assert list(bindsearch.__all__) == sorted(bindsearch.__all__)
    for name in bindsearch.__all__:
        assert getattr(bindsearch, name) is not None


def test_no_machine_path_is_committed() -> None:
    root = PACKAGE.parent
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    needles = ["/wo" + "rk/", "/ro" + "ot/", "/opt/py" + "pi"]
    for name in listed:
        path = root / name
        if not path.is_file() or path.suffix not in (".py", ".md", ".cfg", ".toml", ".json", ".txt", ".cff", ""):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        for needle in needles:
            assert needle not in text, f"{name} names a machine path: {needle}"
