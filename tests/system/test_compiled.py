"""The build that `scripts/install` compiles does what plain Python does: the same tests, the same random histories."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tests.proof.test_simulation import DIGESTS
from tests.running import environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800.0
"""Seconds for a compiler on a machine that does other things as well."""
SUITE = ("tests/gateway", "tests/node", "tests/protocol", "tests/contracts", "tests/backends/test_sqlite_store.py")
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"][
    "mypyc"
]
MODULES = sorted(
    {path for pattern in HOOK["include"] for path in ROOT.glob(pattern)} - {ROOT / path for path in HOOK["exclude"]}
)


def compiler() -> bool:
    """Whether there is what `scripts/install` looks for."""
    program = "import sys, os, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
    return (
        shutil.which("cc") is not None and not subprocess.run([sys.executable, "-c", program], check=False).returncode
    )


pytestmark = pytest.mark.timeout(PATIENCE)
compiles = pytest.mark.skipif(not compiler(), reason="nothing compiles here: apt-get install gcc python3-dev")


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """This checkout, with the package as it is installed."""
    with tempfile.TemporaryDirectory(prefix="yan") as directory:
        root, tree = Path(directory, "root"), Path(directory, "tree")
        call = [ROOT / "scripts/install", "--root", root]
        done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        assert "(compiled)" in done.stderr
        (site,) = root.glob("opt/yanchat/current/lib/python*/site-packages")
        tree.mkdir()
        shutil.copytree(site / "yanchat", tree / "yanchat")
        for library in site.glob("*__mypyc*"):
            shutil.copy(library, tree)
        for name in ("tests", "configs", "docs", "scripts", "systemd"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        yield tree


def run(tree: Path, *arguments: str) -> str:
    """What Python says in the tree; AssertionError when it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment(PYTHONPATH=str(tree)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@compiles
def test_every_module_that_is_to_be_compiled_is(tree: Path) -> None:
    assert run(tree, "-m", "yanchat", "--version").strip().endswith("(compiled)")
    plain = [
        path
        for path in MODULES
        if not any((tree / path.relative_to(ROOT)).with_suffix(end).exists() for end in EXTENSION_SUFFIXES)
    ]
    assert not plain


@compiles
def test_the_tests_pass(tree: Path) -> None:
    """All but those that change code while it runs."""
    said = run(tree, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not plain", *SUITE)
    assert "yanchat: compiled" in said


@compiles
def test_random_histories_are_the_same_to_the_last_step(tree: Path) -> None:
    """The digest is over all that happens, and when."""
    here = subprocess.run([sys.executable, "-c", DIGESTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run(tree, "-c", DIGESTS) == here.stdout


def test_no_class_outside_is_made_from_one_that_is_compiled() -> None:
    """Compiled code calls its own methods without asking whether a class of plain Python has others."""

    def classes(path: Path) -> Iterator[ast.ClassDef]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield node

    compiled = {one.name for path in MODULES for one in classes(path) if not _is_protocol(one)}
    wrong = [
        f"{path.relative_to(ROOT)}: {one.name}"
        for path in ROOT.glob("yanchat/**/*.py")
        if path not in MODULES
        for one in classes(path)
        if compiled & {base.id for base in one.bases if isinstance(base, ast.Name)}
    ]
    assert compiled and not wrong, "compile these as well, in pyproject.toml"


def _is_protocol(one: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in one.bases)
