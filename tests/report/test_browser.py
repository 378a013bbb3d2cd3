"""The report in a real browser: no error, sorting and search work, hostile text does not run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

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
const box = document.querySelector(".search");
const input = box.querySelector("input");
input.value = "0017";
input.dispatchEvent(new Event("input"));
found.hits = column(box.parentElement.querySelector("table"), 0);
found.status = box.querySelector("[role=status]").textContent;
found.ran = window.ran === true;
document.documentElement.setAttribute("data-found", JSON.stringify(found));
"""


def open_page(path: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *arguments, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"passage": "<script>window.ran=true</script>", "mined": "<img src=x onerror=window.ran=true>"}
    path = write_report(write_run(tmp_path_factory.mktemp("browser") / "run", names=names, queries=60))
    assert path is not None
    return path


def test_it_opens_from_disk_without_an_error(report: Path, tmp_path: Path) -> None:
    done = open_page(report, tmp_path, "--enable-logging=stderr", "--dump-dom")
    assert "kdfw report" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


def test_sorting_and_search_work_and_hostile_text_does_not_run(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    # the page's own policy would refuse the test's script, too
    open_text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert open_text != text
    driven = tmp_path / "driven.html"
    driven.write_text(open_text.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    done = open_page(driven, tmp_path / "profile", "--dump-dom")
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr
    found = json.loads(html.unescape(match.group(1)))
    values = [float(cell.rstrip("*")) for cell in found["descending"]]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert found["ascending"] == found["descending"][::-1]
    assert found["sort"] == "descending"
    assert found["names"] == ["bm25 baseline", "distill", "student", "teacher"]
    assert found["hits"] == ["q0017"] and found["status"] == "1 of 60 rows"
    assert found["ran"] is False


def test_the_policy_of_the_page_refuses_any_other_script(report: Path, tmp_path: Path) -> None:
    attacked = tmp_path / "attacked.html"
    text = report.read_text(encoding="utf-8")
    attacked.write_text(text.replace("</main>", "<script>document.title='owned'</script></main>"), encoding="utf-8")
    done = open_page(attacked, tmp_path / "profile", "--enable-logging=stderr", "--dump-dom")
    assert "<title>owned" not in done.stdout
    assert any("CONSOLE" in line and "Content Security Policy" in line for line in done.stderr.splitlines())
