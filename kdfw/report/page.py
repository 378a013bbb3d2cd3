"""The report page: from run folders to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from kdfw import __version__
from kdfw.report.curves import losses_of, training
from kdfw.report.explorer import queries
from kdfw.report.folder import RunView, StageView, mapping, mappings, strings
from kdfw.report.html import Child, Markup, element, join
from kdfw.report.numbers import as_number, count, duration, short
from kdfw.report.results import results, side_by_side
from kdfw.report.tables import Cell, table
from kdfw.report.teaching import teaching

log = logging.getLogger("kdfw")
SECTIONS = {
    "results": "Results", "plan": "What was run", "training": "Training", "teaching": "Teacher and student",
    "queries": "Queries", "setup": "Setup",
}  # fmt: skip
EMPTY = {
    "training": "No stage of this run trained a model.",
    "teaching": "No stage of this run learned from a teacher, or it has not been diagnosed (`kdfw diagnose`).",
    "queries": "There are no values by query.",
}


def page(runs: Sequence[RunView]) -> str:
    """The whole page as text."""
    style, script = _resource("report.css"), _resource("report.js")
    title = " and ".join(run.name for run in runs[:3]) + (" and others" if len(runs) > 3 else "")
    body = [_header(runs, title), element("main", *_main(runs), id="content"), _footer()]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: kdfw report"),
        element("style", style),
    ]
    document = element("html", element("head", head), element("body", body, element("script", script)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _policy(script: str) -> str:
    """Nothing is fetched, and no script runs but the page's own, even if text should get past the escaping."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"


def _resource(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup((importlib.resources.files("kdfw.report") / name).read_text(encoding="utf-8"))


def _guarded(what: str, build: Callable[[], Child]) -> Child:
    """One part of the page. A report is the last thing a run of hours writes: a fault here must not lose the rest."""
    try:
        return build()
    except Exception as error:
        log.warning("report: %s could not be shown: %s: %s", what, type(error).__name__, error)
        return element("p", f"{what} could not be shown: {type(error).__name__}: {error}", class_="note warn")


# ---------------------------------------------------------------- frame


def _header(runs: Sequence[RunView], title: str) -> Markup:
    first = runs[0]
    links = [element("a", name, href=f"#{key}") for key, name in SECTIONS.items()]
    if len(runs) > 1:
        runs_ = [element("a", run.name, href=f"#run-{number}") for number, run in enumerate(runs, start=1)]
        links = [element("a", "Side by side", href="#comparison"), *runs_]
    description = first.recipe.get("description")
    return element(
        "header",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("p", "kdfw report", class_="kicker"),
        element("h1", title),
        element("p", description, class_="lead") if isinstance(description, str) and len(runs) == 1 else None,
        _chips(first) if len(runs) == 1 else None,
        element("nav", links, aria_label="Sections"),
    )


def _chips(run: RunView) -> Markup:
    manifest = run.manifest
    seconds = sum(stage.seconds or 0.0 for stage in run.stages)
    finished = manifest.get("finished")
    chips: list[Child] = [
        element(
            "li", "finished" if finished is True else "not finished", class_="good" if finished is True else "warn"
        ),
        element("li", f"{len(run.stages)} stages"),
        element("li", duration(seconds)) if seconds else None,
    ]
    for key, words in (("seed", "seed {}"), ("device", "{}"), ("precision", "{}"), ("processes", "{} processes")):
        value = manifest.get(key)
        if isinstance(value, (str, int)) and not (key == "processes" and value == 1) and value != "":
            chips.append(element("li", words.format(value)))
    return element("ul", chips, class_="chips", aria_label="In short")


def _footer() -> Markup:
    words = f"Written by kdfw {__version__}. This page is one file: it loads nothing from anywhere."
    return element("footer", element("p", words))


def _main(runs: Sequence[RunView]) -> Iterator[Child]:
    if len(runs) == 1:
        yield from _run_sections(runs[0], "", 1)
        return
    made = _guarded("the comparison", lambda: join(side_by_side(runs)))
    charts = _guarded("the losses", lambda: element("div", list(losses_of(runs)), class_="charts"))
    yield element("section", element("h2", "Side by side"), made, charts, id="comparison")
    for number, run in enumerate(runs, start=1):
        parts = list(_run_sections(run, f"run-{number}-", len(runs)))
        yield element("section", element("h2", run.name, class_="run"), _chips(run), parts, id=f"run-{number}")


def _run_sections(run: RunView, prefix: str, runs: int) -> Iterator[Child]:
    if run.notes:
        items = [element("li", note) for note in run.notes[:20]]
        yield element(
            "aside", element("p", "Some files of this run could not be read:"), element("ul", items), class_="warn"
        )
    parts: dict[str, Callable[[RunView], Child]] = {
        "results": results, "plan": _plan, "training": training, "teaching": teaching,
        "queries": partial(queries, runs=runs), "setup": _setup,
    }  # fmt: skip
    for key, build in parts.items():
        content = join([_guarded(SECTIONS[key].lower(), partial(_built, build, run))])
        shown = content or element("p", EMPTY.get(key, "Nothing to show."), class_="note")
        yield element("section", element("h2", SECTIONS[key]), shown, id=prefix + key)


def _built(build: Callable[[RunView], Child], run: RunView) -> Markup:
    """A part as text: a generator does its work here, where a fault is caught."""
    return join([build(run)])


# ---------------------------------------------------------------- plan


def _plan(run: RunView) -> Child:
    total = sum(stage.seconds or 0.0 for stage in run.stages)
    rows: list[list[Child | Cell]] = []
    for stage in run.stages:
        state = {True: "from the cache", False: "made", None: "not run"}[stage.cached]
        share = (stage.seconds or 0.0) / total if total else 0.0
        bar = (
            element("meter", value=round(share, 4), min=0, max=1, aria_hidden="true")
            if stage.seconds is not None
            else None
        )
        time: Child = [duration(stage.seconds), bar] if stage.seconds is not None else ""
        made = Cell(state, kind="quiet" if stage.cached else "")
        reads = ", ".join(stage.inputs)
        rows.append([stage.name, stage.type, reads, stage.data, made, _summary(stage), Cell(time, stage.seconds)])
    cached = [stage for stage in run.stages if stage.cached is True]
    caption = f"{len(rows)} stages in order, {len(cached)} taken from the cache; {duration(total)} in all"
    earlier = sum(stage.seconds or 0.0 for stage in cached)
    caption += f", of which {duration(earlier)} were spent by the run that filled the cache." if earlier else "."
    return table(
        caption,
        ["stage", "type", "reads", "data", "state", "what came of it", "time"],
        rows,
        text_columns=6,
        sortable=False,
    )


def _summary(stage: StageView) -> Child:
    """The plain numbers of a stage's summary; measures have a table of their own."""
    if stage.evaluation is not None:
        return "measures above"
    parts = []
    for key, value in stage.summary.items():
        words = key.replace("_", " ")
        number = as_number(value)
        if isinstance(value, dict) and isinstance(value.get(key), str):  # {precision: {precision: fp32, ...}}
            value = value[key]
        if number is not None and number != 0:  # what did not happen need not be told
            parts.append(f"{words} {count(number) if key == 'parameters' else short(number)}")
        elif isinstance(value, (str, bool)):
            parts.append(f"{words} {value}")
    return ", ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")


# ---------------------------------------------------------------- setup


def _setup(run: RunView) -> Iterator[Child]:
    manifest = run.manifest
    for title, key, head in (
        ("Data sets", "data", ("data set", "fingerprint")),
        ("Models", "models", ("model", "fingerprint")),
        ("Plugins", "plugins", ("plugin", "distribution")),
        ("Libraries", "libraries", ("library", "version")),
    ):
        rows = [[name, _written(run, key, name), str(value)] for name, value in mapping(manifest.get(key)).items()]
        if not rows:
            continue
        if key in ("data", "models"):
            yield table(f"{title} of the run.", [head[0], "as written", head[1]], rows, text_columns=3, sortable=False)
        else:
            short_rows = [[name, value] for name, _, value in rows]
            yield table(f"{title}.", head, short_rows, text_columns=2, sortable=False)
    rows = [
        [name, str(entry.get("file")), str(entry.get("count")), "; ".join(strings(entry.get("first")))]
        for name, entries in mapping(manifest.get("skipped lines")).items()
        for entry in mappings(entries)
    ]
    if rows:
        heading = ["data set", "file", "lines", "the first of them"]
        yield table("Lines that cannot be read and were left out.", heading, rows, text_columns=4, sortable=False)
    machine = mapping(manifest.get("machine"))
    facts = [("kdfw", manifest.get("kdfw")), ("python", manifest.get("python")), ("git commit", manifest.get("commit")),
             ("recipe fingerprint", manifest.get("recipe")), *machine.items()]  # fmt: skip
    rows = [[str(name), str(value)] for name, value in facts if value not in (None, "")]
    if rows:
        yield table("Machine and versions.", ["", "value"], rows, text_columns=2, sortable=False)
    if run.recipe_text:
        text = run.recipe_text if len(run.recipe_text) < 200_000 else run.recipe_text[:200_000] + "\n..."
        code = element("pre", element("code", text), tabindex="0", aria_label="recipe.yaml")
        yield element("details", element("summary", "The recipe in full (recipe.yaml)"), code)


def _written(run: RunView, key: str, name: str) -> str:
    """How the recipe defines a model or data set, in a few words."""
    value = run.recipe.get(key)
    written = value if key == "data" and isinstance(value, dict) and "type" in value else mapping(value).get(name)
    if isinstance(written, str):
        return written
    return ", ".join(
        f"{option}: {item}" for option, item in mapping(written).items() if not isinstance(item, (dict, list))
    )
