"""Options that several models share, each described once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Base = Annotated[str, Field(description="hub name, folder, or package:NAME of the pretrained transformer")]
Layers = Annotated[
    int | str | list[int] | None,
    Field(description="keep these layers of the base: N (the last N), first-N, last-N, or a list from 0"),
]
Dropout = Annotated[float | None, Field(ge=0, lt=1, description="dropout in training; default: as the base says")]
Revision = Annotated[str | None, Field(description="commit, tag or branch of a hub model")]
QueryPrefix = Annotated[str, Field(description="text put before every query")]
PassagePrefix = Annotated[str, Field(description="text put before every passage")]
MaxQueryTokens = Annotated[int, Field(ge=3, le=32768, description="longer queries are cut")]
MaxPassageTokens = Annotated[int, Field(ge=3, le=32768, description="longer passages are cut")]
