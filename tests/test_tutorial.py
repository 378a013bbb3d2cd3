"""The tutorial in docs/writing-a-plugin.md does what it says: its files are written, its commands run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from installing import install, run

PAGE = (Path(__file__).parents[1] / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    (command, expected.splitlines())
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tutorial's files."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def target(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(place / "kdfw-brier", tmp_path_factory.mktemp("installed"))


def test_every_code_block_is_part_of_a_file_or_a_command() -> None:
    assert len(FILES) == 6 and len(COMMANDS) == 6
    assert PAGE.count("```") == 2 * (len(FILES) + len(re.findall(r"```console\n", PAGE)))


@pytest.mark.parametrize(("command", "expected"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_prints_what_the_tutorial_shows(place: Path, target: Path, command: str, expected: list[str]) -> None:
    program, *arguments = command.split()
    if program == "pip":
        assert arguments == ["install", "-e", "kdfw-brier"]  # the fixture has done it, into a folder of its own
        return
    if program == "pytest":
        done = run(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, folder=place)
    else:
        assert program == "kdfw"
        done = run(target, "-m", "kdfw", *arguments, folder=place)
    output = said(done)
    for line in expected:
        wanted = line.removeprefix("error: ").strip()
        assert wanted in output, f"{command} did not print {wanted!r}:\n{output}"
    assert done.returncode == (2 if any(line.startswith("error:") for line in expected) else 0), output


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr
