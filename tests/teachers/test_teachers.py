"""What the package offers, through the registry's own checks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdfw.components import KINDS, Teacher
from kdfw.options import options_of
from kdfw.teachers import STAGES, TEACHERS


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_every_teacher_has_described_options(name: str) -> None:
    cls = TEACHERS[name]
    assert issubclass(cls, KINDS["teacher"]) and cls.__doc__
    options = options_of(cls)
    assert name == "frozen-student" or options
    undescribed = [option for option, found in options.items() if not found.description]
    assert not undescribed


def test_the_stage_takes_one_name_or_several() -> None:
    options = options_of(STAGES["score"])
    assert options["of"].container == "list" and options["of"].form == "reference"
    assert options["teacher"].form == "reference" and options["data"].container == "optional"
    assert STAGES["score"].produces == {"scores"}


def test_the_frozen_student_is_recognised_by_an_attribute() -> None:
    marked = [name for name, cls in TEACHERS.items() if cls.copies_student]
    assert marked == ["frozen-student"]
    assert not TEACHERS["frozen-student"].cacheable and not Teacher.copies_student


def test_importing_teachers_loads_nothing_heavy() -> None:
    code = (
        "import sys, kdfw.teachers; print({'transformers', 'faiss', 'scipy', 'datasets', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
