"""A frozen copy of the student as a teacher."""

from __future__ import annotations

from typing import ClassVar

from kdfw.components import Teacher


class FrozenStudent(Teacher):
    """The student as it was when the training stage began: a guard against forgetting (arXiv:1606.09282).

    A stand-in: it has no scores of its own. The trainer sees `copies_student`, copies the student's weights before the
    first step, and lets the copy answer in its place, with every signal the student gives.
    """

    paper = "arXiv:1606.09282"
    cacheable: ClassVar[bool] = False
    copies_student: ClassVar[bool] = True

    def fingerprint(self) -> str:
        return "frozen-student"
