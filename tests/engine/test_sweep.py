"""`kdfw sweep`: the grid is checked as a whole, cells are ordinary runs, a failed one stops no other; comparison."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import write_beir, write_bert

from kdfw.cli import main
from kdfw.engine.cells import axes_of, cells_of, seeds_of
from kdfw.errors import ConfigError

RECIPE = """\
kdfw: 1
name: tiny
seed: 3
precision: fp32
data: {{type: beir, folder: {root}/beir}}
models:
  student: {{type: bi-encoder, base: {root}/bert, max_passage_tokens: 32, max_query_tokens: 16}}
stages:
  - name: distill
    type: train
    student: student
    {dev}
    sampler: {{type: in-batch}}
    losses: [{{type: info-nce, temperature: 1.0, in_batch: true}}]
    train: {{steps: 2, batch_size: 4, lr: 1e-3}}
  - {{name: test, type: evaluate, models: [student, distill], against: [bm25], measures: [nDCG@10], depth: 10}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_bert(folder / "bert")
    write_beir(folder / "beir", queries=40)
    for name, dev in (("plain", ""), ("chosen", "dev: dev")):
        (folder / f"{name}.yaml").write_text(RECIPE.format(root=folder, dev=dev))
    on_dev = "  - {name: tune, type: evaluate, models: [distill], split: dev, measures: [RR@10]}\n"
    (folder / "tuned.yaml").write_text(RECIPE.format(root=folder, dev="") + on_dev)
    return folder


# ---------------------------------------------------------------- the grid


def test_values_are_parted_at_commas_outside_of_brackets_and_quotes() -> None:
    (axis,) = axes_of(['a.b=1, [2,3],{type: x, y: 1},"p,q"'])
    assert axis.key == "a.b"
    assert axis.values == ("1", "[2,3]", "{type: x, y: 1}", '"p,q"')
    (axis,) = axes_of({"a": [1, 1e-5, "bm25", "1", True, None, [1, 2], {"type": "x"}]})
    assert axis.values == ("1", "1e-05", "bm25", '"1"', "true", "null", "[1, 2]", '{"type": "x"}')


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["a"], "not a key with values"),
        (["a=1,,2"], "not a key with values"),
        (["a=1", "a=2"], "the key again"),
        (["a=1,1"], "a value twice"),
        (["seed=1,2"], "write --seeds"),
    ],
)
def test_faults_of_a_grid(grid: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        axes_of(grid)


def test_seeds() -> None:
    assert seeds_of("3") == 3
    assert seeds_of("1,2,7") == (1, 2, 7) and seeds_of("7,") == (7,)
    for text in ("0", "-1", "1.5", "a", "1,a", ""):
        with pytest.raises(ConfigError, match="a number of seeds"):
            seeds_of(text)


def test_cells_are_every_combination_with_names_of_their_own(root: Path) -> None:
    samplers = "stages.distill.sampler={type: in-batch, positives_choice: rotate},in-batch"
    axes = axes_of(["stages.distill.losses.0.temperature=1,2", samplers])
    out, cells = cells_of(root / "plain.yaml", ["stages.distill.train.lr=1e-4"], axes, 2)
    assert out == Path("runs/tiny-sweep")
    assert len(cells) == 8 == len({cell.name for cell in cells})
    assert [cell.seed for cell in cells[:2]] == [3, 4]
    assert cells[0].group == cells[1].group and cells[0].name == f"{cells[0].group}_seed3"
    assert cells[2].name == "temperature=1_sampler=in-batch_seed3"
    assert cells[0].settings[0] == "stages.distill.train.lr=1e-4" and cells[-1].settings[-1] == "seed=4"
    _, seeds = cells_of(root / "plain.yaml", [], [], (5, 6))
    assert [cell.name for cell in seeds] == ["seed5", "seed6"]
    _, single = cells_of(root / "plain.yaml", [], axes[:1], None)
    assert [cell.name for cell in single] == ["temperature=1", "temperature=2"]


def test_the_whole_grid_is_checked_before_anything_runs(root: Path, tmp_path: Path, capsys: Any) -> None:
    grid = ["--grid", "stages.distill.train.lr=1e-3,-1", "--grid", "stages.distill.losses.0.temprature=1,2"]
    out = tmp_path / "out"
    assert main(["sweep", str(root / "plain.yaml"), *grid, "--seeds", "2", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "3 problems" in error  # one for each wrong value, not for each of eight cells
    assert "stages.distill.train.lr=-1" in error and "did you mean 'temperature'" in error
    assert not out.exists()
    for arguments, message in (
        ([], "a sweep of one run"),
        (["--seeds", "2", "--baseline", "bm52"], "did you mean 'bm25'"),
        (["--grid", "stages.distill.train.lr=1e-3,0.001"], "are the same run"),
        (["stages.distill.train.lr=1", "--grid", "stages.distill.train.lr=1,2"], "set for the whole sweep"),
    ):
        assert main(["sweep", str(root / "plain.yaml"), *arguments, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "\u0663x", ""])
def test_fewer_than_one_process_is_refused(command: str, number: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "quickstart", f"--processes={number}"])
    assert caught.value.code == 2 and "no whole number from 1 on" in capsys.readouterr().err


def test_fewer_than_one_process_is_refused_from_python() -> None:
    import kdfw

    with pytest.raises(ConfigError, match="whole number from 1 on"):
        kdfw.sweep("quickstart", seeds=2, processes=0)


def test_a_sweep_is_started_once(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", str(root / "plain.yaml"), "--seeds", "2"]) == 2
    assert "--processes N is for each of its runs" in capsys.readouterr().err


# ---------------------------------------------------------------- running


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells run inside this process, which is faster; their names in the order in which they were started."""
    names: list[str] = []

    def launch(processes: int, arguments: Sequence[str], output: Any) -> int:
        names.append(Path(arguments[arguments.index("--out") + 1]).name)
        text = open(os.dup(output.fileno()), "w", encoding="utf-8")
        with text, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            return main(arguments)

    monkeypatch.setattr("kdfw.engine.sweep.launch", launch)
    return names


@pytest.fixture
def sweep(root: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str, recipe: str = "plain") -> int:
        fixed = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        return main(["sweep", str(root / f"{recipe}.yaml"), *arguments, *fixed])

    return run


def test_a_sweep_runs_goes_on_and_reports_what_failed(
    sweep: Callable[..., int], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--grid", "stages.distill.train.lr=1e-3,1e30", "--seeds", "2"]
    assert sweep(*grid, "--plan") == 0
    text = capsys.readouterr().out
    assert "4 runs, 8 stages to do" in text and started == []
    assert sweep(*grid) == 2  # a loss that is not finite is the user's to mend
    assert started == ["lr=1e-3_seed3", "lr=1e-3_seed4", "lr=1e30_seed3", "lr=1e30_seed4"]
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert "2 of 4 runs failed" in printed and "not finite" in printed
    assert "nothing is chosen" not in printed or "split test" in printed
    assert (out / "comparison.txt").read_text().strip() in printed
    found = json.loads((out / "comparison.json").read_text())
    (comparison,) = found["comparisons"]
    assert comparison["measured_on"] == "split test"
    assert set(comparison["systems"]) == {"bm25", "student", "distill"}
    assert comparison["systems"]["distill"]["seeds"] == 2 and comparison["systems"]["bm25"]["seeds"] == 1
    assert (out / "lr=1e-3_seed3" / "manifest.json").is_file()  # an ordinary run folder
    states = {cell["name"]: cell["state"] for cell in json.loads((out / "sweep.json").read_text())["cells"]}
    assert list(states.values()) == ["finished", "finished", "failed", "failed"]

    started.clear()
    assert sweep(*grid, "--json") == 2
    assert started == ["lr=1e30_seed3", "lr=1e30_seed4"]
    assert json.loads(capsys.readouterr().out)["cells"][2]["exit_code"] == 2

    started.clear()
    assert sweep("--grid", "stages.distill.train.lr=1e-3,1e-2", "--seeds", "2") == 0
    assert started == ["lr=1e-2_seed3", "lr=1e-2_seed4"]
    (comparison,) = json.loads((out / "comparison.json").read_text())["comparisons"]
    assert comparison["order"] == ["bm25", "student", "lr=1e-3/distill", "lr=1e-2/distill"]
    assert comparison["baseline"] == "lr=1e-3/distill"  # the first values of the grid
    capsys.readouterr()
    assert sweep("--grid", "stages.distill.train.lr=1e-3,1e-2", "--seeds", "2", "--baseline", "lr=1e-2") == 0
    assert "against lr=1e-2/distill" in capsys.readouterr().out
    assert sweep("--grid", "stages.distill.train.lr=1e-3,1e-2", "--seeds", "2", "--baseline", "bm25") == 0
    text = capsys.readouterr().out
    assert "against bm25" in text
    assert "nothing is chosen" in text and "choose on split test" in text


def test_values_are_chosen_on_dev_and_the_table_says_its_split(
    sweep: Callable[..., int], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--grid", "stages.distill.train.lr=1e-9,3e-2", recipe="chosen") == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    choice = found["choice"]
    values = {group: entry["mean"] for group, entry in choice["values"].items()}
    assert choice["measure"] == "nDCG@10" and set(values) == {"lr=1e-9", "lr=3e-2"}
    for group, value in values.items():
        manifest = json.loads((tmp_path / "out" / group / "manifest.json").read_text())
        assert value == manifest["stages"][0]["summary"]["best dev nDCG@10"]
    assert choice["best"] == max(values, key=values.__getitem__)
    text = capsys.readouterr().out
    assert "chosen on dev" in text and f"dev split): {choice['best']}" in text and "measured on split test" in text


def test_an_evaluation_of_dev_chooses_too(
    sweep: Callable[..., int], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--grid", "stages.distill.train.lr=1e-9,3e-2", recipe="tuned") == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    values = {group: entry["mean"] for group, entry in found["choice"]["values"].items()}
    for group, value in values.items():
        (stage,) = (tmp_path / "out" / group).glob("stages/*-tune")
        result = json.loads((stage / "measures.json").read_text())
        assert result["systems"]["distill"]["measures"]["RR@10"] == value
    assert found["choice"]["best"] == max(values, key=values.__getitem__)
    assert [comparison["measured_on"] for comparison in found["comparisons"]] == ["split test", "split dev"]
    assert "distill in stage tune on split dev" in capsys.readouterr().out


def test_the_python_road(root: Path, started: list[str], tmp_path: Path) -> None:
    import kdfw

    result = kdfw.sweep(
        root / "plain.yaml", {"stages.distill.losses.0.temperature": [1, 2]}, out=tmp_path / "out",
        settings=["stages.distill.train.steps=1"], cache=tmp_path / "cache",
    )  # fmt: skip
    assert result.exit_code == 0 and not result.failed
    assert [cell.cell.group for cell in result.cells] == started == ["temperature=1", "temperature=2"]
    assert result.comparisons[0]["queries"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_with_the_same_command(root: Path, tmp_path: Path, sent: signal.Signals) -> None:
    """In processes of their own: finished cells are not run again, and one that was left behind is waited for."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kdfw", "sweep", str(root / "plain.yaml"), "--seeds", "2", "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    waited = time.monotonic()
    while not (out / "seed4" / "plan.json").exists():
        assert first.poll() is None and time.monotonic() - waited < 300
        time.sleep(0.05)
    first.send_signal(sent)
    _, error = first.communicate(timeout=120)
    if sent == signal.SIGINT:
        assert first.returncode == 130 and "goes on from here" in error
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "seed3: finished already" in again.stderr and "seed4: " in again.stderr
    assert "distill" in again.stdout and (out / "comparison.md").is_file()
