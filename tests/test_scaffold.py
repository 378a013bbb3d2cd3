"""`kdfw new-plugin`: what it writes works as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from installing import install, run

from kdfw.errors import PluginError
from kdfw.scaffold import write_plugin


def test_the_package_installs_passes_its_test_and_is_seen_by_kdfw(tmp_path: Path) -> None:
    folder = write_plugin("soft-distance", tmp_path / "made")
    assert folder == tmp_path / "made" / "soft-distance"
    target = install(folder, tmp_path)
    tested = run(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests"), folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "5 passed" in tested.stdout
    listed = run(target, "-m", "kdfw", "plugins", "--json", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    found = next(plugin for plugin in json.loads(listed.stdout) if plugin["name"] == "soft-distance")
    assert (found["distribution"], found["version"], found["module"]) == ("soft-distance", "0.1.0", "soft_distance")
    assert found["components"] == {"loss": ["soft-distance"]}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "My-Loss",
        "my_loss",
        "-x",
        "x-",
        "a--b",
        "2fast",
        "../up",
        "a/b",
        "a b",
        "class",
        "json",
        "kdfw",
        "torch",
        "x" * 61,
    ],
)
def test_a_name_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PluginError, match="plugin name"):
        write_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["kl", "prod"])
def test_a_name_that_is_a_loss_or_a_plugin_already_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PluginError, match="of that name is installed"):
        write_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("years of it")
    with pytest.raises(PluginError, match="exists; choose another name"):
        write_plugin("mine", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.txt"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PluginError, match="exists"):
        write_plugin("mine", tmp_path)
    assert not (tmp_path / "elsewhere").exists()
