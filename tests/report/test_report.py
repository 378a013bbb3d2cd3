"""The report: complete, self-contained, escaped, and never broken by what a run folder lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from fake_run import SYSTEMS, write_run

from kdfw.cli import main
from kdfw.errors import DataError
from kdfw.report import write_report
from kdfw.report.curves import chart_groups, constants, series_of
from kdfw.report.explorer import MAX_CHARACTERS, gains
from kdfw.report.figures import histogram, intervals, lines, scatter, sorted_bars, thin
from kdfw.report.folder import read_run
from kdfw.report.html import Markup, element, join
from kdfw.report.numbers import as_number, count, duration, p_value, short
from kdfw.report.results import system_before, teacher_systems, trained_systems

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """Parses strictly: every opened element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)

    def text(self) -> str:
        return "\n".join(data for tag, data in self.texts if tag not in ("style", "script"))


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without their drawings, for tests that write hundreds of pages; the data still go through."""

    def described(title: str, description: str, draw: object, *caption: Markup | None, **_: float) -> Markup:
        return element("figure", title, description, *caption)

    monkeypatch.setattr("kdfw.report.figures.figure", described)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_report(write_run(tmp_path_factory.mktemp("runs") / "quickstart"))
    assert path is not None
    return path


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_it_holds_what_was_run_and_what_came_of_it(report: Path, page: Page) -> None:
    text = page.text()
    assert report.name == "report.html" and report.parent.name == "quickstart"
    measures = json.loads((report.parent / "stages/04-test/measures.json").read_text())
    for name in SYSTEMS:
        for value in measures["systems"][name]["measures"].values():
            assert f"{value:.4f}" in text
    assert f"{_share(measures):.1%}" in text
    assert "3.4x faster" in text  # 312 against 92 queries per second
    assert f"distill keeps {_share(measures):.1%} of its teacher's nDCG@10" in text
    assert "3 min 25 s" in text  # 6.3 + 61.2 + 118.4 + 19.0
    assert "1 taken from the cache" in text
    assert "steps 400, items 2,140, precision bf16" in text and "constant rows" not in text  # there are none
    for title in ("Loss terms", "Learning rate", "Temperature", "Weight", "Dev split", "Gradient norm"):
        assert title in text
    assert "distill minus bm25, nDCG@10 by query" in text
    assert "nDCG@10: difference from bm25, with its 95 % interval" in text
    assert "torch" in text and "2.13.0" in text


def _share(measures: dict[str, dict[str, dict[str, dict[str, float]]]]) -> float:
    systems = measures["systems"]
    return systems["distill"]["measures"]["nDCG@10"] / systems["teacher"]["measures"]["nDCG@10"]


def test_it_is_one_file_that_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "srcset", "action", "xlink:href"} & set(attributes)
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
        assert "url(" not in str(attributes.get("style", "")).replace("url(#", "")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy
    style = next(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_every_link_has_a_target_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for _, a in page.tags if "href" in a} <= set(ids)


def test_tables_and_figures_can_be_read_without_eyes(page: Page) -> None:
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption") >= 6
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    figures = list(page.all("svg"))
    assert len(figures) >= 12
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in figures)
    assert next(page.all("html"))["lang"] == "en"
    assert (
        names.count("label") == names.count("input") + names.count("select") == 2 + 1 + 4
    )  # two searches, four systems
    headings = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(after <= before + 1 for before, after in pairwise(headings))


def test_drawings_take_the_colours_and_letters_of_the_page(page: Page) -> None:
    styles = [str(a["style"]) for _, a in page.tags if "style" in a]
    assert any("var(--c0)" in style for style in styles) and any("var(--ink)" in style for style in styles)
    assert not [style for style in styles if "#a0f" in style or "DejaVu" in style or "Arial" in style]
    assert not [name for name in ("metadata", "style") if sum(tag == name for tag, _ in page.tags) > (name == "style")]


def test_teacher_and_student_are_described(page: Page) -> None:
    text = page.text()
    for words in (
        "Scores of teacher", "Targets of KL at temperature 0.05", "suggested temperature", "0.125", "31.4%",
        "teacher is constant in 3.3% of them", "a note on teacher", "128 training examples", "+0.310", "+0.400",
        "Suspected false negatives, of teacher", "text of a passage", "0.91 · d7",
    ):  # fmt: skip
        assert words in text, words


def test_queries_can_be_looked_at_one_by_one(report: Path, page: Page) -> None:
    rows = [json.loads(line) for line in (report.parent / "stages/04-test/examples.jsonl").read_text().splitlines()]
    items = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "query"]
    assert len(items) == len(rows) == 200
    text = page.text()
    assert "200 of 240: the best and the worst of each comparison." in text
    for row in rows[:5]:
        assert row["text"] in text
        for hits in row["lists"].values():
            for passage, score in hits:
                assert row["passages"][passage] in text and f"{short(score)} · {passage}" in text
    first = [abs(float(str(item["data-k0"]))) for item in items]
    assert first == sorted(first, reverse=True)  # the best and the worst come first
    found = dict(gains(read_run(report.parent).stages[3].evaluation, "distill", "nDCG@10"))  # type: ignore[arg-type]
    assert first[0] == pytest.approx(max(abs(found[row["query"]]) for row in rows), rel=1e-5)
    ways = [str(option["data-way"]) for option in page.all("option")]
    assert ways == ["far", "down", "up"] * 3 + ["up", "down"]  # against bm25, teacher and itself; its own value
    assert "rank by bm25: not found, teacher: 1, student: not found, distill: not found" in text


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;</style></title>]]>"


def test_hostile_names_stay_text(tmp_path: Path, page: Page) -> None:
    names = {key: f"{key}{EVIL}" for key in ("run", "distill", "teacher", "bm25", "mined")}
    names["query"] = "<script>alert(4)</script>"
    names["passage"] = "</script><script>alert(3)</script>"
    names["text"] = "</details></svg><script>alert(5)</script><!-- $x_1$ \x07"
    folder = write_run(tmp_path / "run", names=names, queries=30)
    metrics = folder / "stages/03-distill/metrics.jsonl"
    metrics.write_text(
        metrics.read_text() + json.dumps({"step": 400, f"loss{EVIL}": 1.0, f"{EVIL}/temperature": 2}) + "\n"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["device"] = manifest["libraries"]["torch"] = EVIL
    (folder / "manifest.json").write_text(json.dumps(manifest))
    path = write_report(folder)
    assert path is not None
    hostile = Page(path.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in hostile.tags]
    assert tags.count("script") == tags.count("style") == 1 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    own = [data for tag, data in hostile.texts if tag == "script"]
    assert own == [data for tag, data in page.texts if tag == "script"]
    for name in names.values():
        assert name.replace("\x07", "\ufffd") in hostile.text()


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "plan.json", "recipe.yaml", "stages/03-distill/metrics.jsonl", "stages/04-test/measures.json",
     "stages/04-test/per_query.jsonl", "stages/04-test/examples.jsonl", "stages/03-distill/artifact.json",
     "diagnosis.json"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[1, 2]", "null", '{"stages": 3, "systems": 1, "data": []}', "\x00\xff", '{"step": "x"}\n[]\n{"st'],
)
def test_a_file_that_is_missing_or_mangled_breaks_nothing(
    plain_figures: None, tmp_path: Path, name: str, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", queries=5, steps=30)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode("latin-1"))
    path = write_report(folder)
    assert path is not None
    assert Page(path.read_text(encoding="utf-8")).text()
    assert not [record for record in caplog.records if "could not be shown" in record.message]


@pytest.mark.parametrize("value", [None, "text", -1, [], {}, [[1]], {"a": {"b": []}}, 1e400, True])
def test_a_value_of_another_shape_breaks_nothing(
    plain_figures: None, tmp_path: Path, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", queries=4, steps=20)
    for name in ("manifest.json", "plan.json", "stages/04-test/measures.json"):
        original = json.loads((folder / name).read_text())
        for key in original:
            (folder / name).write_text(json.dumps({**original, key: value}))
            path = write_report(folder)
            assert path is not None
            Page(path.read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(original))
    for path in ("diagnosis.json", "stages/04-test/examples.jsonl"):
        first, _, rest = (folder / path).read_text().partition("\n" if path.endswith("l") else "\0")
        whole = json.loads(first)
        for changed in _with_one_value(whole, value):
            (folder / path).write_text(json.dumps(changed) + "\n" + rest)
            assert write_report(folder) is not None
        (folder / path).write_text(json.dumps(whole) + "\n" + rest)
    assert not [record for record in caplog.records if "could not be shown" in record.message]


def _with_one_value(whole: object, value: object) -> Iterator[object]:
    """The same with one inner value replaced, for each there is."""
    if isinstance(whole, dict):
        for key, inner in whole.items():
            yield {**whole, key: value}
            yield from ({**whole, key: changed} for changed in _with_one_value(inner, value))
    elif isinstance(whole, list) and whole:
        yield [value, *whole[1:]]
        if len(whole) < 8:  # not into every bin of a histogram
            yield from ([changed, *whole[1:]] for changed in _with_one_value(whole[0], value))


def test_an_unfinished_run_is_said_to_be_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=4, steps=20)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"finished": False, "stages": manifest["stages"][:2]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    path = write_report(folder)
    assert path is not None
    text = Page(path.read_text(encoding="utf-8")).text()
    assert "not finished" in text and text.count("not run") == 2


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, names={"run": name}, queries=10) for name in ("first", "second")]
    out = tmp_path / "both.html"
    assert write_report(*folders, out=out) == out
    page = Page(out.read_text(encoding="utf-8"))
    assert "Side by side" in page.text() and "first and second" in page.text()
    assert "Loss of the last training stage" in page.text() and "nDCG@10 against parameters" in page.text()
    differs = page.text().split("Values of the recipes that are not the same in all runs.")[1]
    shown = [line for line in differs.splitlines() if line]
    assert shown[:6] == ["key", "first", "second", "name", "first", "second"]
    test_every_link_has_a_target_and_ids_are_unique(page)


def test_folders_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "gone")
    assert write_report(tmp_path) is None
    assert main(["report", str(tmp_path)]) == 2 and "no run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_cannot_point_outside_the_run_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=4, steps=20)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stolen": 1}\n')
    plan = json.loads((folder / "plan.json").read_text())
    plan["stages"][2]["folder"] = "../.."
    (folder / "plan.json").write_text(json.dumps(plan))
    assert read_run(folder).stages[2].metrics == ()


def test_a_usual_run_stays_below_five_megabytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=7000, steps=20_000)
    path = write_report(folder)
    assert path is not None and path.stat().st_size < 5_000_000


def test_an_explorer_that_would_be_too_large_leaves_out_what_changed_least(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=200, steps=20)
    path = folder / "stages/04-test/examples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["passages"] = {id: "long " * 300 for id in row["passages"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(folder)
    assert report is not None and report.stat().st_size < MAX_CHARACTERS + 1_000_000
    page = Page(report.read_text(encoding="utf-8"))
    kept = [float(str(a["data-k0"])) for tag, a in page.tags if tag == "details" and a.get("class") == "query"]
    run = read_run(folder)
    every = [gain for _, gain in gains(run.stages[3].evaluation, "distill", "nDCG@10")]  # type: ignore[arg-type]
    expected = sorted((abs(gain) for gain in every), reverse=True)[: len(kept)]
    assert 20 < len(kept) < 200 and [abs(gain) for gain in kept] == pytest.approx(expected, rel=1e-5)
    assert f"{len(kept)} of 200: the best and the worst" in page.text()
    several = write_report(*[folder] * 4, out=tmp_path / "several.html")  # share the room
    assert several is not None and several.stat().st_size < MAX_CHARACTERS + 2_500_000


def test_an_older_run_without_texts_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=4, steps=20)
    (folder / "stages/04-test/examples.jsonl").unlink()
    (folder / "diagnosis.json").unlink()
    path = write_report(folder)
    assert path is not None
    text = Page(path.read_text(encoding="utf-8")).text()
    assert "No texts were kept with this evaluation" in text and "it has not been diagnosed" in text


def test_items_of_other_tasks_show_the_answers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", queries=4, steps=20)
    rows = [{"query": f"q{n:04d}", "text": f"sentence {n}", "gold": "yes", "answers": {"bm25": "no", "distill": "yes"}}
            for n in range(4)]  # fmt: skip
    path = folder / "stages/04-test/examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(folder)
    assert report is not None
    page = Page(report.read_text(encoding="utf-8"))
    assert "sentence 3" in page.text() and "Look at single items" in page.text()
    assert sum(tag == "li" and a.get("class") == "relevant" for tag, a in page.tags) == 4


def test_gains_are_sorted_and_paired_by_query(report: Path) -> None:
    run = read_run(report.parent)
    found = run.stages[3].evaluation
    assert found is not None
    rows = gains(found, "distill", "nDCG@10")
    assert len(rows) == 240 and [value for _, value in rows] == sorted((value for _, value in rows), reverse=True)
    query, gain = rows[0]
    assert gain == found.per_query["distill"][query]["nDCG@10"] - found.per_query["bm25"][query]["nDCG@10"]
    assert trained_systems(run, found) == ["distill"]
    assert system_before(run, "distill") == "student" and teacher_systems(run, found, "distill") == ["teacher"]


# ---------------------------------------------------------------- parts


def test_text_is_escaped_unless_it_is_markup() -> None:
    made = element(
        "p", 'a < b & "c"', element("b", "<i>"), Markup("<hr>"), None, ["x", 3, 0.5], title='"><script>', hidden=True
    )
    assert made == (
        '<p title="&quot;&gt;&lt;script&gt;" hidden>a &lt; b &amp; &quot;c&quot;<b>&lt;i&gt;</b><hr>x30.5</p>'
    )
    assert element("td", made + "<script>") == element("td", str(made) + "<script>")  # sums are plain text again
    assert join(["<", ">"], separator="&") == "&lt;&amp;&gt;"
    assert element("br") == "<br>"
    assert element("p", "a\x00b\ud800c\n") == "<p>a\ufffdb\ufffdc\n</p>"


def test_thinning_keeps_spikes_and_ends() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thin(points, keep=100)
    assert len(kept) <= 102 and (4321.0, 9.0) in kept and kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (15.6e6, 22.7e6, ["16M", "18M", "20M", "22.5M"]),
        (15.6e6, 15.9e6, ["15.6M", "15.9M"]),
        (15.6e6, 15.7e6, []),
        (300, 3000, ["200", "500", "1,000", "2,000"]),
    ],
)
def test_a_logarithmic_axis_has_marks_however_short_it_is(low: float, high: float, marks: list[str]) -> None:
    drawn = re.findall(r">([^<>]+)</text>", str(scatter("t", {"one": (low, 0.5), "two": (high, 0.6)}, "x label")))
    assert (drawn[: drawn.index("x label")] if drawn else []) == marks


def test_figures_of_nothing_are_nothing() -> None:
    assert lines("t", {}) == "" and lines("t", {"a": []}) == "" and sorted_bars("t", [], "x", "d") == ""
    assert scatter("t", {"a": (1.0, 1.0), "b": (0.0, 1.0)}, "x") == "" and intervals("t", {}, "x") == ""
    assert histogram("t", [0.0, 1.0], {"a": [0]}, "x") == "" and histogram("t", [], {"a": [1]}, "x") == ""


def test_figures_of_odd_values_are_drawn() -> None:
    for drawn in (
        lines("t", {"a": [(1.0, 2.0)], "b": [(1.0, 2.0), (2.0, 2.0)]}),
        lines("t", {"a": [(1.0, 1e300), (2.0, -1e300)]}),
        scatter("t", {"a": (1.0, 1.0), "b": (1.0, 1.0), "c": (1e12, 1.0)}, "x", ["a"]),
        sorted_bars("t", [0.0, 0.0], "x", "d"),
        histogram("t", [0.0, 0.0], {"a": [3], "b": [1]}, "x", {"mark": 0.0}),
        intervals("t", {"\u4e2d\u6587 $\\frac{1}{2}$ <b>": (0.0, 0.0, 0.0)}, "x"),
    ):
        assert drawn.count("<svg") == 1 and "nan" not in drawn and "<b>" not in drawn


def test_a_drawing_repeats_to_the_byte_and_refers_to_nothing() -> None:
    series = {"loss": [(float(x), 1.0 / (x + 1)) for x in range(12)]}
    drawn = lines("t", series)
    assert lines("t", series) == drawn
    assert not re.search(r"\bid=|href=|url\(|<use|<defs", drawn)
    dots = [path for path in re.findall(r"<path [^>]*>", drawn) if "fill: var(--c0)" in path]
    marks = [float(re.findall(r"translate\(([\d.]+) ", path)[0]) for path in dots]
    assert len(marks) == 12 and marks == sorted(marks)  # a dot for each of few points


def test_a_gain_is_above_the_line_and_a_loss_below() -> None:
    drawn = sorted_bars("t", [0.5, -0.25], "x", "d")
    found = {}
    for colour in ("good", "bad"):
        (path,) = re.findall(rf'<path d="([^"]+)"[^>]*fill: var\(--{colour}\)', drawn)
        found[colour] = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
    zero = max(found["good"])  # the axis of a drawing points down
    assert min(found["bad"]) == pytest.approx(zero, abs=0.1)
    assert zero - min(found["good"]) == pytest.approx(2 * (max(found["bad"]) - zero), abs=0.2)


def test_curves_are_grouped_by_what_they_are() -> None:
    points = [(1.0, 1.0)]
    names = [
        "loss", "KL", "KL/temperature", "KL/weight", "KL/weight/big", "KL/weight/small", "lr", "lr/ranker",
        "dev/nDCG@10", "gradient_norm", "x/flops",
    ]  # fmt: skip
    series = {name: points for name in names} | {"loss": [(1.0, 2.0)]}
    found = {title: list(group) for title, group in chart_groups(series).items()}
    assert found == {
        "Loss": ["loss"],
        "Loss terms": ["KL"],
        "Dev split": ["nDCG@10"],
        "Learning rate": ["learning rate", "ranker"],
        "Temperature": ["KL"],
        "Weight": ["KL"],
        "Weight of teachers": ["KL: big", "KL: small"],
        "Gradient norm": ["gradient norm"],
        "Other values": ["x/flops"],
    }


def test_what_never_changes_is_drawn_as_a_level_line(report: Path) -> None:
    run = read_run(report.parent)
    stage = run.stages[2]
    logged = series_of(stage.metrics)
    assert constants(run, stage, logged) == {  # the recipe writes `kl`; the log and the diagnosis have `KL`
        "kl/weight": [(10.0, 1.0), (400.0, 1.0)]
    }
    losses = [
        "nce",
        {"type": "kl", "temperature": 4, "weight": 0.5},
        {"type": "kl", "name": "own", "weight": {"type": "linear"}},
    ]
    recipe = {"stages": [{"repeat": 2, "stages": [{"name": "distill", "losses": losses}]}]}
    found = constants(replace(run, recipe=recipe), replace(stage, name="distill#2"), {"loss": [(1.0, 3.0), (5.0, 2.0)]})
    assert found == {
        "nce/weight": [(1.0, 1.0), (5.0, 1.0)],
        "kl-1/weight": [(1.0, 0.5), (5.0, 0.5)],
        "kl-1/temperature": [(1.0, 4.0), (5.0, 4.0)],
    }


def test_numbers_are_written_for_people() -> None:
    assert [short(v) for v in (0.0, 0.51234, 12.345, 1234.5, 2e-5, 3)] == [
        "0",
        "0.5123",
        "12.35",
        "1,234",
        "2e-05",
        "3",
    ]
    assert [duration(v) for v in (0.44, 12.2, 185.4, 8040)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 14 min"]
    assert [count(v) for v in (950, 22_713_216, 1.2e9, 15_000)] == ["950", "22.7M", "1.2B", "15.0k"]
    assert [p_value(v) for v in (0.0004, 0.0321)] == ["< 0.001", "0.032"]
    assert [as_number(v) for v in (True, "1", None, float("nan"), float("inf"), 10**400, 2)] == [None] * 6 + [2.0]
