"""The report in a real browser: no error, sorting and search work, hostile text does not run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_run import write_run

from kdfw.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

DRIVER = """
const found = {};
const shown = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const column = (table, index) => shown(table).map((row) => row.cells[index].textContent);
const results = document.querySelector("#results table.sortable");
const button = results.tHead.rows[0].cells[1].querySelector("button");
button.click();
found.descending = column(results, 1);
found.sort = results.tHead.rows[0].cells[1].getAttribute("aria-sort");
button.click();
found.ascending = column(results, 1);
results.tHead.rows[0].cells[0].querySelector("button").click();
found.names = column(results, 0);
const table = document.querySelector("#queries .table");
const type = (input, text) => { input.value = text; input.dispatchEvent(new Event("input")); };
type(table.querySelector("input[type=search]"), "0017");
found.hits = column(table.querySelector("table"), 0);
found.status = table.querySelector("[role=status]").textContent;
const explorer = document.querySelector(".explorer");
const items = () => [...explorer.querySelectorAll(".query")].filter((item) => !item.hidden);
const asked = () => items().map((item) => item.querySelector(".asked").textContent);
const gains = () => items().map((item) => Number(item.getAttribute("data-k0")));
found.first = gains();
const order = explorer.querySelector("select");
found.orders = [...order.options].map((option) => option.textContent);
for (const way of ["down", "up"]) {
  order.value = [...order.options].find((option) => option.dataset.way === way).value;
  order.dispatchEvent(new Event("change"));
  found[`explorer ${way}`] = gains();
}
const columns = () => [...items()[0].querySelectorAll("[data-system]")];
const column_of = (name) => columns().find((part) => part.querySelector("h4").textContent === name);
const labels = [...explorer.querySelectorAll(".choice label")];
const box = labels.find((label) => label.textContent.trim() === "student").querySelector("input");
found.hidden = column_of("student").hidden;
box.click();
found.after_click = column_of("student").hidden;
items()[0].querySelector("summary").click();
found.open = items()[0].open && items()[0].querySelector("li.relevant, li") !== null;
const search = explorer.querySelector("input[type=search]");
type(search, "ASK q0005");
found.asked = asked();
type(search, "evil passage q0007-3");
found.by_passage = asked();
type(search, "nowhere to be found");
found.nothing = [items().length, explorer.querySelector("[role=status]").textContent];
type(search, "");
found.all = items().length;
const all = (selector) => [...document.querySelectorAll(selector)];
found.focusable = all("a, button, input, select, summary, [tabindex]").every((thing) => thing.tabIndex >= 0);
found.named = all("input, select").every((thing) => thing.labels.length > 0);
found.wider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
found.ran = window.ran === true;
document.documentElement.setAttribute("data-found", JSON.stringify(found));
"""


def open_page(path: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *arguments, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    attack = "<script>window.ran=true</script><img src=x onerror=window.ran=true>"
    names = {"passage": attack, "mined": attack, "text": f"</details>{attack} evil passage", "run": attack}
    path = write_report(write_run(tmp_path_factory.mktemp("browser") / "run", names=names, queries=60))
    assert path is not None
    return path


def test_it_opens_from_disk_without_an_error(report: Path, tmp_path: Path) -> None:
    done = open_page(report, tmp_path, "--enable-logging=stderr", "--dump-dom")
    assert "kdfw report" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


@pytest.fixture(scope="module")
def found(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw in the page."""
    place = tmp_path_factory.mktemp("driven")
    text = report.read_text(encoding="utf-8")
    # the page's own policy would refuse the test's script, too
    open_text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert open_text != text
    driven = place / "driven.html"
    driven.write_text(open_text.replace("</body>", f"<script>{{{DRIVER}}}</script></body>"), encoding="utf-8")
    done = open_page(driven, place / "profile", "--dump-dom")
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr
    result: dict[str, Any] = json.loads(html.unescape(match.group(1)))
    return result


def test_tables_sort_and_search_and_hostile_text_does_not_run(found: dict[str, Any]) -> None:
    values = [float(cell.rstrip("*")) for cell in found["descending"]]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert found["ascending"] == found["descending"][::-1]
    assert found["sort"] == "descending"
    assert found["names"] == ["bm25 baseline", "distill", "student", "teacher"]
    assert found["hits"] == ["q0017"] and found["status"] == "1 of 60 rows"
    assert found["ran"] is False


def test_the_explorer_sorts_searches_and_chooses_systems(found: dict[str, Any]) -> None:
    assert len(found["first"]) == 60
    far = [abs(gain) for gain in found["first"]]
    assert far == sorted(far, reverse=True)
    assert found["orders"][:2] == ["best and worst of distill against bm25", "best of distill against bm25"]
    assert found["explorer down"] == sorted(found["first"], reverse=True)
    assert found["explorer up"] == sorted(found["first"])
    assert found["hidden"] is True and found["after_click"] is False  # teacher, student and baseline come first
    assert found["open"] is True
    assert len(found["asked"]) == 1 and found["asked"][0].endswith("ask for q0005")
    assert len(found["by_passage"]) == 1 and found["by_passage"][0].endswith("ask for q0007")
    assert found["nothing"] == [0, "0 of 60 queries"] and found["all"] == 60


def test_it_works_by_keyboard_and_fits_its_window(found: dict[str, Any]) -> None:
    assert found["focusable"] and found["named"]
    assert found["wider"] is False


def test_it_is_drawn_in_light_and_in_dark(report: Path, tmp_path: Path) -> None:
    from PIL import Image

    paper = {}
    for mode, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{mode}.png"
        open_page(
            report, tmp_path / mode, f"--screenshot={shot}", "--window-size=900,1200",
            f"--blink-settings=preferredColorScheme={number}",
        )  # fmt: skip
        colours = Image.open(shot).convert("RGB").getcolors(1 << 20)
        assert colours is not None and len(colours) > 50  # charts and letters
        paper[mode] = sum(max(colours)[1])
    assert paper["dark"] < 150 < 600 < paper["light"]


def test_the_policy_of_the_page_refuses_any_other_script(report: Path, tmp_path: Path) -> None:
    attacked = tmp_path / "attacked.html"
    text = report.read_text(encoding="utf-8")
    attacked.write_text(text.replace("</main>", "<script>document.title='owned'</script></main>"), encoding="utf-8")
    done = open_page(attacked, tmp_path / "profile", "--enable-logging=stderr", "--dump-dom")
    assert "<title>owned" not in done.stdout
    assert any("CONSOLE" in line and "Content Security Policy" in line for line in done.stderr.splitlines())
