"""Options that several losses share, each described once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdfw.components import Schedule, Weighting

Temperature = Annotated[Schedule | float, Field(gt=0, description="divides teacher and student scores")]
OwnTemperature = Annotated[
    Schedule | float, Field(gt=0, description="divides the student's scores; the order of the target has none")
]
StudentTemperature = Annotated[
    Schedule | None, Field(gt=0, description="divides the student's scores instead of `temperature`")
]
Teachers = Annotated[Weighting | None, Field(description="weights of teachers and items; default: equal")]
Signal = Annotated[str, Field(description="the signal of both sides that is compared")]
Target = Literal["teacher", "labels"]
TargetOption = Annotated[Target, Field(description="what the student is compared with")]
Activation = Annotated[Literal["none", "sigmoid"], Field(description="applied to these scores before comparing")]
Scale = Annotated[
    Literal["none", "min-max", "z-score"], Field(description="brings each item's scores to a common scale")
]
Cutoff = Annotated[int | None, Field(gt=0, description="only pairs with a candidate in the student's first so many")]
