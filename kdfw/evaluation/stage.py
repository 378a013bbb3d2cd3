"""The stage `evaluate`: systems side by side on one split, with significance, speed and size."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Model, Stage, WrittenOut
from kdfw.errors import ConfigError, DataError, one_of
from kdfw.evaluation.benchmarks import slug_of
from kdfw.references import CandidatesRef, DataRef, ModelRef, SystemRef

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data, RankingData
    from kdfw.errors import Problem
    from kdfw.types import Qrels, TextSource

TIMING = ("seconds", "queries_per_second", "passages_per_second", "items_per_second")
TIMED_QUERIES, TIMED_PASSAGES = 64, 128
"""Texts encoded to measure a model's speed."""
RANKING_MEASURES = ("nDCG@10", "RR@10", "R@100", "AP")


@dataclasses.dataclass(kw_only=True)
class _System:
    """What is known of one evaluated system."""

    values: dict[str, dict[str, float]]
    """Per-query values by measure."""
    facts: dict[str, Any]
    means: dict[str, float]


class Evaluate(Stage):
    """Measures models and baselines on a split or on benchmarks: full retrieval, or re-ranking of given candidates.

    With `benchmarks` it is written out as one stage for each of them, and one for `split` where that is given, so that
    each is kept for itself.
    """

    version = 2
    produces = frozenset({"measures"})

    def __init__(
        self,
        *,
        models: Annotated[list[ModelRef], Field(description="what is measured")],
        against: Annotated[
            Sequence[SystemRef],
            Field(
                description="what it is compared with: retrievers (`bm25`), models, teachers; the first is the baseline"
            ),
        ] = (),
        data: Annotated[DataRef | None, Field(description="default: the recipe's data set")] = None,
        split: Annotated[
            str | None, Field(description="which split is measured; default: `test`, or none with `benchmarks`")
        ] = None,
        benchmarks: Annotated[
            list[str | dict[str, Any]] | None,
            Field(
                description="test sets by name (`trec-dl-2019/passage`, `scifact`), with their official measures; "
                "`{name, folder, candidates}` says where its files are, or which retriever's results are re-ranked"
            ),
        ] = None,
        candidates: Annotated[
            CandidatesRef | None, Field(description="re-rank these lists instead of searching the corpus")
        ] = None,
        measures: Annotated[
            list[str] | None,
            Field(
                description="names of measures; default: those of the task; of a benchmark, beside the official ones"
            ),
        ] = None,
        depth: Annotated[
            int, Field(ge=1, description="how many passages of a query are retrieved or re-ranked")
        ] = 1000,
        rerank_depth: Annotated[
            int, Field(ge=1, description="how many BM25 results a model that cannot search gets to re-rank")
        ] = 100,
        baseline: Annotated[
            str | None, Field(description="which system the others are tested against; default: the first of `against`")
        ] = None,
        beam: Annotated[int, Field(ge=1, description="beam width of translations")] = 4,
    ) -> None:
        self.models = models
        self.against = list(against)
        self.data = data
        self.split = split or "test"
        self.candidates = candidates
        self.measures = measures
        self.depth = depth
        self.rerank_depth = rerank_depth
        self.baseline = baseline
        self.beam = beam

    @property
    def systems(self) -> list[str]:
        """References of everything measured, baselines first, each once."""
        return list(dict.fromkeys([*self.against, *self.models]))

    @classmethod
    def write_out(cls, entry: Mapping[str, Any], recipe: Mapping[str, Any]) -> WrittenOut | None:
        """One stage for each benchmark, and what each of them stands on."""
        from kdfw.evaluation.benchmark_stages import benchmark_stages

        return benchmark_stages(entry, recipe)

    def check(self, plan: Any) -> Iterator[Problem]:
        from kdfw.evaluation.measures import parse_measures
        from kdfw.evaluation.tasks import MEASURES

        if plan.splits and self.split not in plan.splits:
            yield plan.problem("split", found=f"no split {self.split!r}", fix=f"known: {', '.join(plan.splits)}")
        if not self.systems:
            yield plan.problem("models", found="nothing to measure", fix="name a model, or something in `against`")
        if self.measures == []:
            yield plan.problem("measures", found="no measures", fix="name at least one, or leave it out for the usual")
        elif self.measures is not None and plan.task == "ranking":
            try:
                parse_measures(self.measures)
            except DataError as error:
                yield plan.problem("measures", found=str(error))
        elif self.measures is not None:
            known = MEASURES.get(plan.task, ())
            for name in self.measures:
                if name not in known:
                    fix = one_of(name, known)
                    yield plan.problem("measures", found=f"no measure {name!r} for {plan.task}", fix=fix)
        if self.baseline is not None and self.baseline not in self.systems:
            fix = f"known: {', '.join(self.systems)}"
            yield plan.problem("baseline", found=f"{self.baseline!r} is not measured here", fix=fix)
        for name in self.systems:
            yield from plan.as_far_as_known(self._check_system(plan, name))
        if self.candidates is not None and self.data is not None:
            of = getattr(plan.stage_of(self.candidates), "data", self.data)
            if of != self.data:
                fix = "name them for each benchmark: {name: ..., candidates: bm25}"
                yield plan.problem("candidates", found="lists for queries of other data", fix=fix)

    def _check_system(self, plan: Any, name: str) -> Iterator[Problem]:
        from kdfw.retrieval import RETRIEVERS

        if plan.task == "pairs":
            split = getattr(plan.stage_of(name), "split", self.split) if plan.model(name) is None else self.split
            if split != self.split:
                fix = f"this stage measures {self.split!r}"
                yield plan.problem("against", found=f"scores of the split {split!r} ({name!r})", fix=fix)
        search = RETRIEVERS[name]() if plan.target(name).kind == "retriever" else None
        unfit = plan.unfit(search or plan.model(name))
        if search is not None and plan.task != "ranking":
            yield plan.problem("against", found=f"{name!r} searches passages", fix=f"the data are {plan.task}")
        elif unfit is not None:
            key = "models" if name in self.models else "against"
            yield plan.problem(key, found=f"{name!r} {unfit[0]}", fix=unfit[1])

    def estimate(self, plan: Any) -> Workload:
        """What every measured model has to read; retrievers without a model count for nothing."""
        sizes = plan.sizes
        items = sizes.of(sizes.items, self.split)
        what = {"ranking": "queries", "pairs": "pairs", "translation": "sentences"}.get(plan.task, "items")
        work = Workload(amounts={"systems": Amount(len(self.systems)), what: items})
        pairs = (items * self.rerank_depth).at_most()
        if self.candidates is not None:
            pairs = plan.lists(self.candidates)[1].within(items * self.depth)
        for reference in self.systems:
            model = plan.model(reference)
            if not isinstance(model, Model):
                continue
            if plan.task != "ranking":
                work = work + plan.reading(reference, items=items, split=self.split)
            elif self.candidates is None and model.search:
                work = work + plan.encoding(reference, queries=items, passages=sizes.passages, split=self.split)
                if model.search == "dense":
                    work = work + plan.vectors(reference, items + sizes.passages)
            else:
                work = work + plan.scoring(reference, queries=items, pairs=pairs, split=self.split)
        return work

    def run(self, context: StageContext) -> None:
        data = context.data()
        if data.task == "ranking":
            self._run_ranking(context, data)  # type: ignore[arg-type]
        else:
            self._run_task(context, data)

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        """A few items through every model; nothing is measured."""
        from kdfw.evaluation.tasks import first_batch
        from kdfw.models.forward import signals_of
        from kdfw.models.precision import autocast_dtype

        batch = first_batch(context.data(), self.split)
        report: dict[str, Any] = {"items": len(batch), "systems": len(self.systems)}
        for reference in self.systems:
            if not context.is_model(reference):
                continue
            model = context.model(reference)
            groups = model.rows(batch, frozenset({"logits"}))
            signals = signals_of(
                model, batch, frozenset({"logits"}), device=context.device, autocast=autocast_dtype(context.precision)
            )
            rows = sum(len(group) for group in groups)
            assert signals.logits is not None
            report[_short(reference)] = {
                "logits": list(signals.logits.shape),
                "truncated": f"{sum(group.truncated for group in groups) / max(1, rows):.1%}",
            }
        return report

    # ------------------------------------------------------------ ranking

    def _run_ranking(self, context: StageContext, data: RankingData) -> None:
        from kdfw.evaluation import examples
        from kdfw.evaluation.agreement import Lists
        from kdfw.evaluation.answers import answer_measure, first_answers
        from kdfw.evaluation.formats import write_trec
        from kdfw.evaluation.measures import Measure, parse_measures, score_run
        from kdfw.files import write_json

        answers = data.answers.get(self.split)
        qrels = data.qrels.get(self.split) if answers is None else {query: {} for query in answers}
        if not qrels:
            raise DataError(f"data {data.name!r} has no judgements for the split {self.split!r}")
        names = self._measures(data, RANKING_MEASURES)
        wanted = parse_measures(names) if answers is None else [answer_measure(name) for name in names]
        judged = Measure(kind="judged", cutoff=10, text="\0judged")
        found: dict[str, _System] = {}
        lists = Lists(qrels)
        for reference in self.systems:
            name = _short(reference)
            ranking, facts = self._rank(context, data, reference, qrels)
            if not context.workers.main:
                continue
            run = ranking.run(data.corpus)
            if data.query_in_corpus:
                run = {q: {p: score for p, score in rows.items() if p != q} for q, rows in run.items()}
            write_trec(run, context.folder / f"run.{_file_name(name)}.trec", tag=_file_name(name))
            lists.add(name, run)
            if answers is None:
                values = score_run(run, qrels, [*wanted, judged])
                share = values.pop(judged.text)
                present = [query for query in qrels if run.get(query)]
                facts["judged@10"] = float(np.mean([share[query] for query in present]))
            else:
                deepest = max(measure.cutoff or 1 for measure in wanted)
                found_answers = first_answers(
                    {query: list(rows) for query, rows in run.items()},
                    answers,
                    lambda id: data.corpus.text(data.corpus.row(id)),
                    deepest,
                )
                values = score_run(run, found_answers, wanted)
                for query, grades in found_answers.items():
                    qrels[query] |= grades
            facts["depth"] = max(len(rows) for rows in run.values())
            means = {measure: float(np.mean(list(each.values()))) for measure, each in values.items()}
            found[name] = _System(values=values, facts=facts, means=means)
            context.log.info("%s: %s", name, ", ".join(f"{m} {value:.4f}" for m, value in means.items()))
        if context.workers.main:
            write_json(context.folder / "agreement.json", lists.compare())
            values = {name: system.values[wanted[0].text] for name, system in found.items()}
            chosen = examples.choose(values, [_short(reference) for reference in self.models])
            examples.write_ranking(context.folder, data, self.split, qrels, lists, chosen)
            self._write(context, "ranking", [m.text for m in wanted], found, len(qrels))

    def _rank(
        self, context: StageContext, data: RankingData, reference: str, qrels: Qrels
    ) -> tuple[Ranking, dict[str, Any]]:
        from kdfw.models.precision import autocast_dtype
        from kdfw.retrieval import RETRIEVERS, search_with
        from kdfw.retrieval.rerank import rerank_lists

        queries = data.queries[self.split]
        facts: dict[str, Any] = {}
        retriever = RETRIEVERS.get(reference)
        began = time.perf_counter()
        if retriever is not None and not _is_target(context, reference):
            facts["setting"] = "full retrieval"
            ranking = retriever().search(data, queries, self.depth, context)
        elif context.holds_scores(reference):
            lists = context.scores(reference)
            facts["setting"] = f"re-ranking by the stored scores of {_short(reference)}"
            ranking = _sorted(lists, np.asarray(lists.scores), data, qrels, self.depth)
        else:
            model = context.model(reference)
            facts |= size_of(model)
            began = time.perf_counter()
            if self.candidates is not None:
                given = _cut(context.candidates(self.candidates), qrels, self.depth)
                facts["setting"] = f"re-ranking of {_first_stage(self.candidates, self.split)}"
                ranking = rerank_lists(
                    model,
                    data.corpus,
                    queries,
                    given,
                    device=context.device,
                    workers=context.workers,
                    autocast=autocast_dtype(context.precision),
                )
            else:
                facts["setting"] = "full retrieval" if model.search else f"re-ranking of bm25 at {self.rerank_depth}"
                ranking = search_with(reference, data, queries, self.depth, context, first_depth=self.rerank_depth)
        seconds = time.perf_counter() - began
        facts["seconds"] = seconds
        if (
            _is_target(context, reference)
            and context.is_model(reference)
            and self.candidates is None
            and context.model(reference).search
        ):
            if context.workers.main:  # alone: processes that work at the same time would slow each other down
                facts |= encoding_speed(context.model(reference), data, queries, context)
        elif not (_is_target(context, reference) and context.holds_scores(reference)):
            facts["queries_per_second"] = len(queries) / seconds if seconds > 0 else None
        return ranking, facts

    def _measures(self, data: Data, usual: Sequence[str]) -> list[str]:
        """Names of the measures: what the recipe asks for, after what is customary on a benchmark."""
        if data.convention is None:
            return list(self.measures or usual)
        return list(dict.fromkeys([*data.convention.measures, *(self.measures or ())]))

    # ------------------------------------------------------------ other tasks

    def _run_task(self, context: StageContext, data: Any) -> None:
        from kdfw.evaluation import examples
        from kdfw.evaluation.tasks import DEFAULT_MEASURES, evaluate_scores, evaluate_split
        from kdfw.models.precision import autocast_dtype

        official = [data.measure] if getattr(data, "measure", "") else []
        names = self._measures(data, list(dict.fromkeys([*official, *DEFAULT_MEASURES[data.task]])))
        found: dict[str, _System] = {}
        answers: dict[str, dict[str, str]] = {}
        for reference in self.systems:
            facts: dict[str, Any]
            if context.holds_scores(reference):
                values = evaluate_scores(context.scores(reference), data, self.split, names)
                facts = {"setting": "stored scores"}
            else:
                model = context.model(reference)
                began = time.perf_counter()
                values = evaluate_split(
                    model,
                    data,
                    self.split,
                    names,
                    device=context.device,
                    workers=context.workers,
                    autocast=autocast_dtype(context.precision),
                    beam=self.beam,
                )
                seconds = time.perf_counter() - began
                facts = {**size_of(model), "seconds": seconds, "items_per_second": len(values.ids) / seconds}
            if values.groups:
                facts["groups"] = values.groups
            per_item = {
                name: dict(zip(values.ids, column.tolist(), strict=True)) for name, column in values.per_item.items()
            }
            found[_short(reference)] = _System(values=per_item, facts=facts, means=dict(values.measures))
            answers[_short(reference)] = examples.answers_of(values, data)
            context.log.info(
                "%s: %s", _short(reference), ", ".join(f"{m} {value:.4f}" for m, value in values.measures.items())
            )
        if context.workers.main:
            measured = {name: next((s.values[m] for m in names if m in s.values), {}) for name, s in found.items()}
            models = [_short(reference) for reference in self.models]
            chosen = examples.choose(measured, models) if all(measured.values()) else []
            chosen = chosen or examples.spaced(list(next(iter(answers.values()))))
            examples.write_answers(context.folder, data, self.split, answers, chosen)
            self._write(
                context, data.task, names, found, len(next(iter(next(iter(found.values())).values.values()), ()))
            )

    # ------------------------------------------------------------ results

    def _write(
        self, context: StageContext, task: str, measures: Sequence[str], found: Mapping[str, _System], queries: int
    ) -> None:
        from kdfw.evaluation.compare import compare_measure, measure_rows
        from kdfw.files import write_json, write_lines

        def lines() -> Iterator[str]:
            for name, system in found.items():
                ids = next(iter(system.values.values()), {})
                for query in ids:
                    values = {measure: each[query] for measure, each in system.values.items()}
                    yield json.dumps({"query": query, "system": name, **values}, ensure_ascii=False) + "\n"

        write_lines(context.folder / "per_query.jsonl", lines())
        baseline = _short(self.baseline or self.systems[0])
        classes = list(getattr(context.data(), "classes", ()))
        convention = context.data().convention
        compared: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in found}
        for measure in measures:
            rows, statistic = measure_rows({name: system.values for name, system in found.items()}, measure, classes)
            if not rows:
                continue
            for name, entry in compare_measure(rows, baseline, statistic).items():
                if "against_baseline" in entry:
                    result = entry["against_baseline"]
                    compared[name][measure] = {**result, "holm": result["randomisation_holm"]}
        # speed differs from run to run; everything else is the same bytes when the stage is done again
        timing = {
            name: {key: system.facts.pop(key) for key in TIMING if key in system.facts}
            for name, system in found.items()
        }
        write_json(context.folder / "timing.json", timing)
        write_json(
            context.folder / "measures.json",
            {
                "task": task,
                "split": self.split,
                "queries": queries,
                "measures": list(measures),
                "baseline": baseline,
                "systems": {
                    name: _finite({"measures": system.means, "against_baseline": compared[name], **system.facts})
                    for name, system in found.items()
                },
                "order": list(found),
                **({"classes": classes} if classes else {}),
                **({"benchmark": dataclasses.asdict(convention)} if convention is not None else {}),
            },
        )
        context.summary({name: _finite(system.means) for name, system in found.items()})


def size_of(model: Model) -> dict[str, Any]:
    """Parameters of a model and the memory they take."""
    tensors = list(model.parameters())
    return {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
    }


def _is_target(context: StageContext, name: str) -> bool:
    """Whether the recipe defines the name itself (a model may be called `bm25`)."""
    try:
        return bool(getattr(context, "target")(name).kind != "retriever")  # noqa: B009
    except (AttributeError, ConfigError, KeyError):
        return False


def _finite(value: Any) -> Any:
    """The value with None for what is no number (a correlation of scores that are all the same): JSON has none."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_stage(candidates: str, split: str) -> str:
    """The name shown for what is re-ranked; of a benchmark's own first stage without the benchmark's name."""
    name = _short(candidates)
    return name.partition(f"{slug_of(split)}-")[2] or name


def _short(reference: str) -> str:
    """The name shown for a reference: `scores | teacher` is `scores`."""
    return reference.split("|")[0].strip()


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._#-]+", "-", name).strip(".-") or "system"


def encoding_speed(model: Model, data: RankingData, queries: TextSource, context: StageContext) -> dict[str, float]:
    """Queries and passages a model encodes a second, timed on some: embeddings may come from the cache, speed not."""
    from kdfw.models.forward import encode_blocks
    from kdfw.models.precision import autocast_dtype

    name = {"dense": "embedding", "sparse": "sparse", "maxsim": "tokens"}[model.search]
    found = {}
    for role, texts, number in (("query", queries, TIMED_QUERIES), ("passage", data.corpus, TIMED_PASSAGES)):
        rows = range(min(number, len(texts)))
        for _ in range(2):  # the first time pays for tokenizing and warm-up
            began = time.perf_counter()
            for _ in encode_blocks(
                model,
                texts,
                role,
                name=name,
                rows=rows,
                device=context.device,
                autocast=autocast_dtype(context.precision),
            ):
                pass
            seconds = time.perf_counter() - began
        found["queries_per_second" if role == "query" else "passages_per_second"] = len(rows) / seconds
    return found


def _cut(lists: Ranking, qrels: Qrels, depth: int) -> Ranking:
    """The first `depth` candidates of the queries that are judged."""
    from kdfw.data.ranking import Ranking

    kept = ((query, *lists.of(number)) for number, query in enumerate(lists.query_ids) if query in qrels)
    return Ranking.from_lists((query, rows[:depth], scores[:depth]) for query, rows, scores in kept)


def _sorted(lists: Ranking, scores: np.ndarray, data: RankingData, qrels: Qrels, depth: int) -> Ranking:
    """Lists in the order of new scores; a passage without a score (NaN) is left out."""
    from kdfw.data.order import ranked
    from kdfw.data.ranking import Ranking

    found = []
    for number, query in enumerate(lists.query_ids):
        if query not in qrels:
            continue
        begin, end = int(lists.starts[number]), int(lists.starts[number + 1])
        own = scores[begin:end]
        known = ~np.isnan(own)
        found.append((query, *ranked(np.array(lists.passages[begin:end])[known], own[known], data.corpus, depth)))
    return Ranking.from_lists(iter(found))


STAGES: Mapping[str, type[Stage]] = {"evaluate": Evaluate}
