"""Sources of teacher scores that are not trainable models, the score store, and the stages that write scores.

Components import what is heavy inside their functions; `kdfw.components` has torch loaded already.
"""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Stage, Teacher
from kdfw.teachers.endpoint import OpenAI
from kdfw.teachers.ensemble import Ensemble, EnsembleOfScores
from kdfw.teachers.frozen import FrozenStudent
from kdfw.teachers.llm import LocalLLM
from kdfw.teachers.score_file import ScoreFile
from kdfw.teachers.score_stage import Score

TEACHERS: Mapping[str, type[Teacher]] = {
    "ensemble": Ensemble,
    "frozen-student": FrozenStudent,
    "llm": LocalLLM,
    "openai": OpenAI,
    "score-file": ScoreFile,
}
STAGES: Mapping[str, type[Stage]] = {"ensemble": EnsembleOfScores, "score": Score}
