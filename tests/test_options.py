"""Options of components: read from signatures, checked in full, built with what is nested in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from kdfw.components import Constant, Loss, Schedule, Stage, as_schedule
from kdfw.errors import PluginError, Problem
from kdfw.hookspecs import hookimpl
from kdfw.options import Spec, check, iterate_specs, options_of, with_options
from kdfw.plugins import build_registry
from kdfw.references import CandidatesRef, ModelRef
from kdfw.types import Needs


class Ramp(Schedule):
    """Ends at `end`."""

    def __init__(self, *, end: Annotated[float, Field(gt=0)]) -> None:
        self.end = end


class Files(Schedule):
    """Paths alone, in a mapping, in a pair in a mapping; and a text that only looks like one."""

    def __init__(
        self, *, one: Path, by_split: dict[str, Path], pairs: dict[str, tuple[Path, Path]], text: str = ""
    ) -> None:
        self.options = (one, by_split, pairs, text)


class Term(Loss):
    """A loss with a temperature."""

    def __init__(
        self, *, temperature: Schedule | float = 1.0, margin: Annotated[float, Field(ge=0, lt=5)] = 0.5
    ) -> None:
        super().__init__()
        self.temperature = as_schedule(temperature)
        self.margin = margin

    @property
    def needs(self) -> Needs:
        return Needs()


class Work(Stage):
    """A stage with losses and references."""

    def __init__(
        self,
        *,
        student: ModelRef,
        losses: list[Loss],
        of: list[CandidatesRef] = [],  # noqa: B006
        named: dict[str, Loss] = {},  # noqa: B006
        extra: Schedule | None = None,
    ) -> None:
        self.student, self.losses, self.of, self.named, self.extra = student, losses, of, named, extra


class Offers:
    """A plugin."""

    @hookimpl
    def kdfw_schedules(self) -> dict[str, Any]:
        return {"constant": Constant, "ramp": Ramp, "files": Files}

    @hookimpl
    def kdfw_losses(self) -> dict[str, Any]:
        return {"term": Term}

    @hookimpl
    def kdfw_stages(self) -> dict[str, Any]:
        return {"work": Work}


REGISTRY = build_registry([("offers", Offers(), "d", "1")])


def checked(kind: str, raw: Any) -> tuple[Spec | None, list[str]]:
    problems: list[Problem] = []
    spec = check(kind, raw, ("here",), REGISTRY, lambda path: ".".join(map(str, path)), problems)
    assert (spec is None) == bool(problems)
    return spec, [str(problem) for problem in problems]


def test_numbers_names_and_mappings_stand_for_components() -> None:
    raw = {
        "type": "work",
        "student": "small",
        "losses": ["term", {"type": "term", "temperature": 4, "weight": {"type": "ramp", "end": 2}, "name": "second"}],
        "of": "mined",
        "named": {"a": {"type": "term", "margin": 1}},
    }
    spec, faults = checked("stage", raw)
    assert faults == [] and spec is not None
    work = spec.build()
    assert work.student == "small" and work.of == ["mined"] and work.extra is None
    first, second = work.losses
    assert (first.margin, first.temperature.value, first.settings.weight.value) == (0.5, 1.0, 1.0)
    assert (second.temperature.value, second.settings.weight.end, second.settings.name) == (4.0, 2.0, "second")
    assert work.named["a"].margin == 1.0
    assert [(r.name, r.ref.to, r.path) for r in spec.references] == [
        ("small", "model", ("here", "student")),
        ("mined", "candidates", ("here", "of")),
    ]
    assert sorted(nested.name for nested in iterate_specs(spec)) == ["constant", "ramp", "term", "term", "term", "work"]


def test_every_fault_is_found_at_once_with_its_place_and_the_nearest_name() -> None:
    raw = {
        "type": "work",
        "student": 3,
        "losses": [{"type": "tern"}, {"type": "term", "margn": 1}, {"type": "term", "margin": 9, "temperature": "hot"}],
        "extra": {"type": "ramp"},
        "named": ["term"],
    }
    _, faults = checked("stage", raw)
    text = "\n".join(faults)
    assert len(faults) == 7
    assert "here.student: found 3; write the name of a model" in text
    assert "here.losses.0.type: no loss 'tern'; did you mean 'term'?" in text
    assert "here.losses.1.margn: unknown key 'margn'; did you mean 'margin'?" in text
    assert "here.losses.2.margin: found 9; input should be less than 5" in text
    assert "here.losses.2.temperature.type: no schedule 'hot'" in text
    assert "here.extra: missing key 'end'" in text
    assert "here.named: found ['term']" in text


@pytest.mark.parametrize(("raw", "fault"), [(None, "found None"), (3, "found 3"), ({}, "a loss without `type`")])
def test_what_is_no_component_is_refused(raw: Any, fault: str) -> None:
    _, faults = checked("loss", raw)
    assert len(faults) == 1 and fault in faults[0]


def test_the_canonical_form_changes_exactly_with_the_meaning() -> None:
    def canonical(raw: Any) -> Any:
        spec, faults = checked("loss", raw)
        assert spec is not None and faults == []
        return spec.canonical()

    plain = canonical({"type": "term"})
    assert canonical("term") == plain
    assert canonical({"type": "term", "margin": 0.5}) == plain  # the default written out
    assert canonical({"type": "term", "margin": 0.6}) != plain
    assert canonical({"type": "term", "weight": 2}) != plain
    assert plain["version"] == 1 and plain["options"]["margin"] == 0.5


def test_changed_options_leave_the_first_spec_alone() -> None:
    spec, _ = checked("loss", {"type": "term", "margin": 1})
    assert spec is not None
    assert (with_options(spec, margin=2).build().margin, spec.build().margin) == (2, 1.0)


def test_a_constructor_must_have_typed_keyword_options() -> None:
    class Positional(Schedule):
        def __init__(self, end: float) -> None: ...

    class Untyped(Schedule):
        def __init__(self, *, end=1) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(PluginError, match="option 'end' must be keyword-only"):
        options_of(Positional)
    with pytest.raises(PluginError, match="option 'end' has no type"):
        options_of(Untyped)


class Inner(BaseModel):
    """Settings in settings."""

    model_config = ConfigDict(extra="forbid")

    names: tuple[str, ...] = ()
    rate: Annotated[float, Field(gt=0)] = 1.0


class Lists(Schedule):
    """Plain lists, and what is none."""

    def __init__(
        self,
        *,
        names: list[str] = [],  # noqa: B006
        places: list[int] | None = None,
        every: Annotated[int, Field(ge=1)]
        | Literal["epoch"]
        | list[Annotated[int, Field(ge=1)] | Literal["epoch"]] = 1,
        inner: Inner = Inner(),  # noqa: B008
        inners: dict[str, Inner] = {},  # noqa: B006
        pair: tuple[int, int] | None = None,
    ) -> None:
        self.options = (names, places, every, inner, inners, pair)


def lists(raw: Any) -> tuple[Spec | None, list[str]]:
    class Own:
        @hookimpl
        def kdfw_schedules(self) -> dict[str, Any]:
            return {"lists": Lists}

    problems: list[Problem] = []
    known = build_registry([("own", Own(), "d", "1")])
    spec = check("schedule", {"type": "lists", **raw}, (), known, lambda path: ".".join(map(str, path)), problems)
    return spec, [str(problem) for problem in problems]


def test_a_list_of_one_needs_no_brackets() -> None:
    bare, faults = lists({"names": "a", "places": 0, "inner": {"names": "b"}, "inners": {"x": {"names": "c"}}})
    full, _ = lists({"names": ["a"], "places": [0], "inner": {"names": ["b"]}, "inners": {"x": {"names": ["c"]}}})
    assert faults == [] and bare is not None and full is not None
    assert bare.build().options == full.build().options
    assert bare.canonical() == full.canonical()


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (
            {"every": 0},
            "every: found 0; write a whole number >= 1 or 'epoch' or a list, each a whole number >= 1 or 'epoch'",
        ),
        ({"every": [1, "epok"]}, "every.1: found 'epok'; write a whole number >= 1 or 'epoch'"),
        ({"names": 3}, "names: found 3; input should be a valid string"),
        ({"pair": 3}, "pair: found 3; write [a whole number, a whole number]"),
        ({"pair": [3]}, "pair: found [3]; write [a whole number, a whole number]"),
        ({"inner": {"rte": 3}}, "inner.rte: unknown key 'rte'; did you mean 'rate'? known keys: names, rate"),
        (
            {"inners": {"x": {"rte": 3}}},
            "inners.x.rte: unknown key 'rte'; did you mean 'rate'? known keys: names, rate",
        ),
    ],
)
def test_a_fault_in_a_value_is_one_readable_problem(raw: Any, fault: str) -> None:
    _, faults = lists(raw)
    assert faults == [fault]


def test_paths_are_expanded_wherever_they_stand_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDFW_TEST_PLACE", "/place")
    monkeypatch.delenv("KDFW_TEST_NOWHERE", raising=False)
    place = "$KDFW_TEST_PLACE/a"
    raw = {"type": "files", "one": place, "by_split": {"x": place}, "pairs": {"y": [place, "b"]}, "text": place}
    spec, faults = checked("schedule", raw)
    assert faults == [] and spec is not None
    full = Path("/place/a")
    assert spec.build().options == (full, {"x": full}, {"y": (full, Path("b"))}, place)

    nowhere = "$KDFW_TEST_NOWHERE/a"
    spec, faults = checked("schedule", {**raw, "one": nowhere, "pairs": {"y": [place, nowhere]}})
    assert [fault.split(";")[0] for fault in faults] == [
        "here.one: the environment variable KDFW_TEST_NOWHERE is not set",
        "here.pairs.y.1: the environment variable KDFW_TEST_NOWHERE is not set",
    ]
