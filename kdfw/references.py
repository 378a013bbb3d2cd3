"""Names in a recipe that stand for something defined elsewhere in it.

A reference is written as the name of a model, a stage or a data set. `a | b` means: `a` if there is one at this point
of the plan, else `b`; it is how the first cycle of a repeated block starts from something else than the later ones.
Inside a repeated block a name means its latest earlier occurrence; `name#2` means that of the second cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

Target = Literal["model", "teacher", "candidates", "scores", "data", "stage", "system"]


@dataclass(frozen=True)
class Ref:
    """What a reference may point to."""

    to: Target


ModelRef = Annotated[str, Ref("model")]
"""A model under `models:` or a stage that trains one."""
TeacherRef = Annotated[str, Ref("teacher")]
"""A model, a stage that trains one, or a stage of kind `score`."""
CandidatesRef = Annotated[str, Ref("candidates")]
"""A stage that writes candidate lists."""
ScoresRef = Annotated[str, Ref("scores")]
"""A stage that writes teacher scores."""
DataRef = Annotated[str, Ref("data")]
"""A data set under `data:`, or a stage that writes one."""
SystemRef = Annotated[str, Ref("system")]
"""A model or teacher, or the name of a retriever type with its usual options (`bm25`)."""
StageRef = Annotated[str, Ref("stage")]
"""Any stage."""
