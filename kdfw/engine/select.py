"""The stage kind `select`: the best of several models by a dev split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Model, Stage
from kdfw.engine.dev import DevEvaluation, check_dev
from kdfw.errors import DataError, Problem
from kdfw.files import write_json
from kdfw.models.forward import Budget
from kdfw.models.precision import autocast_dtype
from kdfw.processes import from_main
from kdfw.references import CandidatesRef, DataRef, ModelRef

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.recipe.view import PlanView

FILE = "selection.json"


def best_of(values: Mapping[str, float]) -> str:
    """The name with the highest value, the first of equal ones; NaN is never the best.

    Raises: DataError when no value is a number.
    """
    numbers = {name: value for name, value in values.items() if not math.isnan(value)}
    if not numbers:
        raise DataError(f"none of {', '.join(values)} has a value that is a number on the dev split")
    return max(numbers, key=lambda name: numbers[name])


class Select(Stage):
    """Take the best of several models by a dev split; the stage's name then means that model.

    For models of one definition: the same student after other cycles, with other settings, from other teachers. Every
    value seen is in `selection.json`. The first of equally good models is taken.
    """

    produces = frozenset({"model"})

    def __init__(
        self,
        *,
        of: Annotated[list[ModelRef], Field(description="models to choose from")],
        data: Annotated[DataRef | None, Field(description="data set; default: the first")] = None,
        split: Annotated[str, Field(description="split they are measured on; never a test split")] = "dev",
        measure: Annotated[str | None, Field(description="what is best by; default: the task's measure")] = None,
        candidates: Annotated[
            CandidatesRef | None, Field(description="lists of the split to re-rank; default: search a pool of passages")
        ] = None,
        pool: Annotated[int, Field(ge=1, description="passages in that pool, besides the relevant ones")] = 5000,
    ) -> None:
        self.of = list(of)
        self.data = data
        self.split = split
        self.measure = measure
        self.candidates = candidates
        self.pool = pool

    def trained_models(self) -> dict[str, str]:
        """The definition is that of any of them."""
        return {"student": self.of[0]} if self.of else {}

    def check(self, plan: PlanView) -> Iterator[Problem]:
        if not self.of:
            yield plan.problem("of", found="no models", fix="name at least one")
            return
        definitions = [plan.model(name) for name in self.of]
        for number, model in enumerate(definitions):
            if not isinstance(model, Model):
                fix = "name a model, or a stage that trains one"
                yield plan.problem("of", number, found=f"{self.of[number]!r} is no model", fix=fix)
            elif model is not definitions[0]:
                found = f"{self.of[number]!r} and {self.of[0]!r} are not the same model under `models:`"
                fix = "choose among models of one definition, and write a stage for each"
                yield plan.problem("of", number, found=found, fix=fix)
            elif (unfit := plan.unfit(model)) is not None:
                yield plan.problem("of", number, found=f"a model that {unfit[0]}", fix=unfit[1])
        yield from check_dev(plan, "split", self.split, ("measure", self.measure), self.candidates, self.of[0])

    def estimate(self, plan: PlanView) -> Workload:
        work = Workload(amounts={"models": Amount(len(self.of))})
        if plan.task == "ranking":
            return work
        items = plan.sizes.of(plan.sizes.items, self.split)
        for name in self.of:
            work = work + plan.reading(name, items=items, split=self.split)
        return work

    def run(self, context: StageContext) -> None:
        dev = self._dev(context)
        autocast = autocast_dtype(context.precision)
        values: dict[str, float] = {}
        with context.progress(len(self.of), f"measure {dev.name}", unit="model") as bar:
            for name in self.of:
                values[name] = from_main(dev.measure(context.model(name), Budget(), autocast), context.workers)
                context.log.info("%s: %s %.4f on %s", name, dev.name, values[name], self.split)
                bar.update(1)
        chosen = best_of(values)
        if context.workers.main:
            context.model(chosen).save(context.folder / "model")
            shown = {name: None if math.isnan(value) else value for name, value in values.items()}
            found = {"chosen": chosen, "measure": dev.name, "split": self.split, "values": shown}
            write_json(context.folder / FILE, found)
        numbers = {f"dev {dev.name} of {name}": value for name, value in values.items() if not math.isnan(value)}
        context.summary({"chosen": chosen, **numbers})

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        dev = self._dev(context)
        context.model(self.of[0]).save(context.folder / "model")
        return {"models": len(self.of), "measure": dev.name}

    def _dev(self, context: StageContext) -> DevEvaluation:
        return DevEvaluation(
            context, context.data(self.data), split=self.split, measure=self.measure, candidates=self.candidates,
            pool=self.pool,
        )  # fmt: skip
