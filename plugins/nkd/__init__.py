"""NKD and TF-NKD: the non-target classes normalised on their own, with a teacher and without (arXiv:2208.10139)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.nkd.nkd import NKD
from kdfw_plugins.nkd.teacher_free import TeacherFreeNKD


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"nkd": NKD, "tf-nkd": TeacherFreeNKD}
