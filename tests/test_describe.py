"""`kdfw plugins`, `explain` and `doctor`: what they say, and how they refuse."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from kdfw import describe as module
from kdfw.components import KINDS, Loss, Schedule, Stage
from kdfw.describe import describe, docstring, doctor_text, explain_text, extras, option_rows, plugins_text
from kdfw.errors import PluginError
from kdfw.plugins import registry
from kdfw.references import CandidatesRef, ModelRef

SAY_THEMSELVES = ("start", "end", "peak", "value", "period")
"""Options whose name and type leave nothing to say."""


class Inner(BaseModel):
    """Settings inside a setting."""

    deep: int = Field(default=3, ge=1, le=9, description="how deep")


class Settings(BaseModel):
    """Settings of a stage."""

    rate: float = Field(default=0.5, gt=0, description="how fast")
    inner: Inner = Field(default=Inner(), description="what is inside")


DEFAULT = Settings()


class Sample(Stage):
    """A stage with every form of option.

    More words.

    Args:
        plain: from the docstring
    """

    produces = frozenset({"model"})

    def __init__(
        self,
        *,
        student: Annotated[ModelRef, Field(description="what trains")],
        of: list[CandidatesRef] = [],  # noqa: B006
        plain: int = 4,
        losses: list[Loss] = [],  # noqa: B006
        heat: Annotated[Schedule | float, Field(description="a number")] = 1.0,
        cool: Schedule | None = None,
        settings: Annotated[Settings, Field(description="inside")] = DEFAULT,
    ) -> None:
        pass


def test_every_form_of_option_is_described() -> None:
    found = {row.name: (row.type, row.default, row.range, row.description) for row in option_rows(Sample)}
    assert found == {
        "student": ("name of a model", "required", "", "what trains"),
        "of": ("list: name of a stage with candidates", "[]", "", ""),
        "plain": ("int", "4", "", "from the docstring"),
        "losses": ("list of loss", "[]", "", ""),
        "heat": ("number or schedule", "1.0", "", "a number"),
        "cool": ("number or schedule or null", "null", "", ""),
        "settings": ("Settings", "see below", "", "inside"),
        "settings.rate": ("float", "0.5", "> 0", "how fast"),
        "settings.inner": ("Inner", "see below", "", "what is inside"),
        "settings.inner.deep": ("int", "3", ">= 1, <= 9", "how deep"),
    }


def test_a_docstring_is_cut_before_its_arguments() -> None:
    assert docstring(Sample) == ("A stage with every form of option.", "More words.")


def test_explain_prints_needs_paper_and_both_kinds_of_options() -> None:
    text = explain_text("loss", "kl")
    for expected in (
        "loss kl",
        "from plugin kdfw (kdfw ",
        "kdfw.losses.kl.KL",
        "paper: arXiv:1503.02531",
        "needs of the student: logits",
        "needs of each teacher: logits",
        "teachers: 1 or more",
        "number or schedule, default 1.0",
        "forward | reverse, default forward",
        "options that every loss has:",
        "in a recipe: {type: kl}",
    ):
        assert expected in text
    assert text.count("  temperature ") == 1


def test_explain_reaches_into_the_settings_of_a_training_stage() -> None:
    text = explain_text("stage", "train")
    assert "train.lr " in text and "float, default 2e-05, >= 0" in text
    assert "in a recipe: {type: train, student: ..., losses: ...}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_installed_component_can_be_explained(kind: str) -> None:
    listed = explain_text(kind)
    for name in registry().names(kind):
        assert name in listed
        found = describe(kind, name)
        text, docs = explain_text(kind, name), f"{found.summary} {found.details}"
        assert found.summary and " ".join(found.summary.split()[:4]) in " ".join(text.split())
        for row in (*found.options, *found.common):
            assert f"  {row.name} " in text
            plain = row.name in SAY_THEMSELVES or row.type.startswith(("name of", "list: name of"))
            said = row.description or plain or row.name.rstrip("s") in docs
            assert said, f"{kind} {name}: nothing is said about the option {row.name}"


def test_an_unknown_kind_or_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="no kind of component 'los'; did you mean 'loss'"):
        explain_text("los")
    with pytest.raises(PluginError, match="no loss 'margin-mes'; did you mean 'margin-mse'"):
        explain_text("loss", "margin-mes")


def test_plugins_are_listed_as_text_and_json() -> None:
    found = json.loads(plugins_text(as_json=True))
    ours = next(plugin for plugin in found if plugin["name"] == "kdfw")
    assert ours["distribution"] == "kdfw" and ours["module"] == "kdfw.builtin"
    assert "kl" in ours["components"]["loss"]
    text = plugins_text()
    assert "kdfw  (kdfw " in text and "margin-mse" in text and max(map(len, text.splitlines())) <= 120


def test_the_doctor_names_versions_devices_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name == "sacrebleu" else installed(name))
    text = doctor_text()
    for title in ("versions", "devices", "machine", "plugins", "optional packages"):
        assert f"\n{title}\n" in f"\n{text}\n"
    assert "precision auto is" in text and "GiB free of" in text
    assert "missing sacrebleu: pip install 'kdfw[translation]'" in text


def test_the_doctor_still_works_with_a_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise PluginError("plugin 'bad' of kdfw-bad 1.0 cannot be imported; pip uninstall kdfw-bad")

    monkeypatch.setattr(module, "registry", broken)
    assert "broken  plugin 'bad' of kdfw-bad 1.0 cannot be imported; pip uninstall kdfw-bad" in doctor_text()


def test_extras_come_from_the_distribution() -> None:
    found = extras()
    assert "pytest" in found["test"] and found["translation"] == ["sacrebleu"]
    assert extras("no-such-distribution") == {}
