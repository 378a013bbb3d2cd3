"""Whole runs in several processes: the same artifacts, and nobody left waiting when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_processes import Together

from kdfw.data.ranking import Ranking
from kdfw.files import files_below

UNLIKE = {"timing.json", "artifact.json", "metrics.jsonl", "manifest.json", "README.md"}
"""Files that hold times, or checksums of such files."""


SETTINGS = (
    "stages.distill.train.epochs=3",
    "stages.distill.losses.0.temperature={type: linear, start: 1.0, end: 2.0}",
    "stages.distill.losses.1.in_batch=true",
    "stages.test.models=[student, distill]",
    "stages.test.against=[bm25, teacher]",
)


def run(recipe: Path, out: Path, *settings: str) -> None:
    import kdfw
    from kdfw.retrieval import encode

    encode.PASSAGE_WINDOW = 16  # so that there is something to share among processes
    encode.QUERY_WINDOW = 4
    kdfw.run(recipe, (*SETTINGS, *settings), out=out, cache=out.parent / "cache")


def contents(folder: Path) -> dict[str, bytes]:
    return {name.as_posix(): (folder / name).read_bytes() for name in files_below(folder) if name.name not in UNLIKE}


def stage(out: Path, name: str) -> Path:
    (found,) = (out / "stages").glob(f"*-{name}")
    return found


@pytest.fixture(scope="module")
def recipe(workspace: Path) -> Path:
    return workspace / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process."""
    root = tmp_path_factory.mktemp("alone")
    started = Together(root).start(1, run, recipe, root / "run")
    assert started.codes() == [0], started.errors()
    return root / "run"


@pytest.fixture(scope="module")
def pair(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two."""
    root = tmp_path_factory.mktemp("pair")
    started = Together(root).start(2, run, recipe, root / "run")
    assert started.codes() == [0, 0], started.errors()
    return root / "run"


@pytest.mark.parametrize("name", ["mined", "scores"])
def test_candidates_and_teacher_scores_are_the_same_bytes(name: str, alone: Path, pair: Path):
    assert contents(stage(alone, name)) == contents(stage(pair, name))
    assert len(Ranking.load(stage(pair, name))) == 12


def test_trained_weights_agree(alone: Path, pair: Path):
    from safetensors.torch import load_file

    one, two = (load_file(stage(out, "distill") / "model" / "model.safetensors") for out in (alone, pair))
    assert set(one) == set(two)
    for name in one:
        if name.endswith("key.bias"):
            continue  # softmax cancels it: its gradient is rounding alone, which Adam makes into steps of full size
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-5), name
    lines = [json.loads(line) for line in (stage(pair, "distill") / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 9  # one writer


def test_search_embeddings_measures_and_run_files_are_the_same_bytes_for_the_same_weights(
    recipe: Path, alone: Path, together: Together, tmp_path: Path
):
    """The training stage is taken from the run of one process; what follows is done by two."""
    cache = tmp_path / "cache" / "artifacts"
    cache.mkdir(parents=True)
    for kind in ("mine-", "score-", "train-"):
        for folder in (alone.parent / "cache" / "artifacts").glob(f"{kind}*"):
            shutil.copytree(folder, cache / folder.name)
    hard = json.loads((stage(alone, "hard") / "artifact.json").read_text())["fingerprint"]
    shutil.rmtree(cache / f"mine-{hard}")
    started = together.start(2, run, recipe, tmp_path / "run")
    assert started.codes() == [0, 0], started.errors()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert [entry["name"] for entry in manifest["stages"] if not entry["cached"]] == ["hard", "kept", "vectors", "test"]
    for name in ("hard", "kept", "vectors", "test"):
        mine, theirs = contents(stage(tmp_path / "run", name)), contents(stage(alone, name))
        assert mine
        if name == "test":
            mine, theirs = ({path: _untimed(value) for path, value in each.items()} for each in (mine, theirs))
        assert mine == theirs
    embedded = {path.parent.name: path for path in (tmp_path / "cache" / "embeddings").glob("*/*.npy")}
    assert embedded
    for path in (tmp_path / "cache" / "embeddings").glob("*/*.npy"):
        other = alone.parent / "cache" / "embeddings" / path.parent.name / path.name
        assert np.array_equal(np.load(path), np.load(other)), path


def note_reads(recipe: Path, out: Path) -> None:
    """A run that notes, by stage, which passages' texts a process has read and how many rows of models it made."""
    from kdfw.context import Workers
    from kdfw.data import tokens
    from kdfw.data.table import TextTable
    from kdfw.engine import run as engine
    from kdfw.engine.launch import start_processes
    from kdfw.models.rows import Joined

    workers: Workers = start_processes()[0]
    tokens.BLOCK_TEXTS = 16  # as many as a window of the encoder
    read: dict[str, list[int]] = {}
    rows: dict[str, int] = {}
    now = [""]
    text, iterate, joined, do_stage = TextTable.text, TextTable.iterate, Joined.__getitem__, engine.do_stage

    def noting_text(self: TextTable, row: int) -> str:
        if len(self) == 40:  # the corpus
            read.setdefault(now[0], []).append(row)
        return text(self, row)

    def noting_iterate(self: TextTable, begin: int = 0, end: int | None = None) -> Any:
        if len(self) == 40:
            read.setdefault(now[0], []).extend(range(begin, len(self) if end is None else end))
        return iterate(self, begin, end)

    def noting_rows(self: Joined, row: Any) -> Any:
        rows[now[0]] = rows.get(now[0], 0) + 1
        return joined(self, row)

    def noting_stage(runtime: Any, planned: Any) -> Any:
        now[0] = planned.name
        return do_stage(runtime, planned)

    TextTable.text, TextTable.iterate, Joined.__getitem__ = noting_text, noting_iterate, noting_rows  # type: ignore
    engine.do_stage = noting_stage
    run(recipe, out)
    found = {"read": {name: sorted(set(value)) for name, value in read.items()}, "rows": rows}
    (out.parent / f"reads-{workers.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def test_each_process_reads_its_share(recipe: Path, together: Together, tmp_path: Path):
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes) / "run"
        out.parent.mkdir()
        started = together.start(processes, note_reads, recipe, out)
        assert started.codes() == [0] * processes, started.errors()
        found[processes] = [
            json.loads((out.parent / f"reads-{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)
        ]
    (alone,), (main, other) = found[1], found[2]
    for name in ("scores", "distill", "hard"):  # what goes through models: all of it once, and in even shares
        own = [process["rows"][name] for process in (main, other)]
        # a process that has no row of a group computes one, to know what there is of it
        assert alone["rows"][name] <= sum(own) <= 1.1 * alone["rows"][name], name
        assert max(own) <= 0.65 * sum(own), name
    # later stages tokenize no text again
    assert not any(set(process["read"]) & {"distill", "hard", "vectors"} for process in (alone, main, other))
    # the one line of a run file or an example of the report that needs a text is the main process's to write
    assert not other["read"].get("test")


def _untimed(value: bytes) -> Any:
    """A file of the evaluation stage without what depends on the clock."""
    try:
        return _without_times(json.loads(value))
    except ValueError:
        return value


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if "second" not in key}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- when something goes wrong


def fail_on(rank: int, recipe: Path, out: Path) -> None:
    from kdfw.engine.training import Trainer
    from kdfw.errors import DataError

    original = Trainer.step

    def step(self: Any, batch: Any, clock: Any) -> Any:
        if clock.step == 3 and self.workers.rank == rank:
            raise DataError("line 7 of the data is broken")
        return original(self, batch, clock)

    Trainer.step = step  # type: ignore[method-assign]
    run(recipe, out)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_takes_the_others_along(rank: int, recipe: Path, together: Together, tmp_path: Path):
    began = time.monotonic()
    started = together.start(2, fail_on, rank, recipe, tmp_path / "run")
    assert started.codes(timeout=60) == [2, 2], started.errors()
    assert time.monotonic() - began < 60
    assert started.errors().count("line 7 of the data is broken") == 1
    assert f"stopped with process {rank}, which failed: DataError" in started.errors()


def hang_on_main(recipe: Path, out: Path) -> None:
    """The main process fails while the other waits for something that is no collective."""
    from kdfw.engine.training import Trainer

    def step(self: Any, batch: Any, clock: Any) -> Any:
        if self.workers.main:
            raise RuntimeError("our own fault")
        time.sleep(600)

    Trainer.step = step  # type: ignore[method-assign]
    run(recipe, out)


def test_a_process_that_waits_elsewhere_is_ended_too(recipe: Path, together: Together, tmp_path: Path):
    started = together.start(2, hang_on_main, recipe, tmp_path / "run")
    assert started.codes(timeout=60) == [1, 1]


def too_little_memory(where: str, recipe: Path, out: Path) -> None:
    """The second process runs out of memory in its first pass, or on the way back, with more than two rows."""
    import torch

    from kdfw.engine.launch import start_processes
    from kdfw.models.bi_encoder import BiEncoder

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    workers, _ = start_processes()
    encode = BiEncoder.encode

    def small(self: BiEncoder, micro: Any, need: frozenset[str]) -> dict[str, torch.Tensor]:
        found = encode(self, micro, need)
        if workers.main or not torch.is_grad_enabled() or len(found["embedding"]) <= 2:
            return found
        if where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {name: Explode.apply(value) for name, value in found.items()}

    BiEncoder.encode = small  # type: ignore[method-assign]
    run(recipe, out)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_on_one_process_changes_nothing(
    where: str, recipe: Path, alone: Path, together: Together, tmp_path: Path
):
    shutil.copytree(alone.parent / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("train-*", "embeddings"))
    started = together.start(2, too_little_memory, where, recipe, tmp_path / "run")
    assert started.codes() == [0, 0], started.errors()
    assert started.errors().count("out of memory") == 1, started.errors()
    mine, theirs = (
        [json.loads(line) for line in (stage(out, "distill") / "metrics.jsonl").read_text().splitlines()]
        for out in (tmp_path / "run", alone)
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        assert one.get("gradient_norm", 0) == pytest.approx(other.get("gradient_norm", 0), rel=1e-3)


def never_enough(recipe: Path, out: Path) -> None:
    import torch

    from kdfw.engine.launch import start_processes
    from kdfw.models.bi_encoder import BiEncoder

    workers, _ = start_processes()
    encode = BiEncoder.encode

    def none(self: BiEncoder, micro: Any, need: frozenset[str]) -> dict[str, torch.Tensor]:
        if not workers.main and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, micro, need)

    BiEncoder.encode = none  # type: ignore[method-assign]
    run(recipe, out)


def test_memory_that_never_suffices_on_one_process_ends_all(
    recipe: Path, alone: Path, together: Together, tmp_path: Path
):
    shutil.copytree(alone.parent / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("train-*"))
    started = together.start(2, never_enough, recipe, tmp_path / "run")
    codes = started.codes(timeout=100)
    assert 0 not in codes, started.errors()
    assert "out of memory" in started.errors()


def interrupt_both(recipe: Path, out: Path) -> None:
    from kdfw.engine.training import Trainer

    original = Trainer.step

    def step(self: Any, batch: Any, clock: Any) -> Any:
        if clock.step == 4 and self.workers.rank == 1:  # only one of them hears it
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, clock)

    Trainer.step = step  # type: ignore[method-assign]
    run(recipe, out)


def test_an_interrupt_leaves_a_checkpoint_from_which_any_number_of_processes_goes_on(
    recipe: Path, pair: Path, together: Together, tmp_path: Path
):
    assert together(2, interrupt_both, recipe, tmp_path / "run") == [130, 130]
    checkpoints = list((tmp_path / "cache" / "work").glob("train-*/checkpoints/step-*"))
    assert max(path.name for path in checkpoints) == "step-00000005"
    shutil.copytree(tmp_path / "cache", tmp_path / "other" / "cache")
    assert together(2, run, recipe, tmp_path / "run") == [0, 0]
    weights = "model/model.safetensors"
    resumed = (stage(tmp_path / "run", "distill") / weights).read_bytes()
    assert resumed == (stage(pair, "distill") / weights).read_bytes()
    assert together(1, run, recipe, tmp_path / "other" / "run") == [0]


# ---------------------------------------------------------------- the command line


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", "kdfw", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env={**variables, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_launcher_runs_and_says_everything_once(recipe: Path, alone: Path, tmp_path: Path):
    shutil.copytree(alone.parent / "cache", tmp_path / "cache")
    done = command("run", recipe, *SETTINGS, "--processes", 2, "--out", tmp_path / "run", "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1
    assert done.stderr.count("03-distill: unchanged, taken from the cache") == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["processes"] == 2


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHERS = {
    "accelerate launch": [[*ACCELERATE, "--main_process_port", "PORT", "-m", "kdfw"]],
    "torchrun": [[sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                  "--master-port", "PORT", "-m", "kdfw"]],
    # each stands for a machine: they find each other by an address, and share a file system
    "accelerate launch on two machines": [
        [*ACCELERATE, "--num_machines", "2", "--machine_rank", rank, "--main_process_ip", "127.0.0.1",
         "--main_process_port", "PORT", "-m", "kdfw"]
        for rank in "01"
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_of_accelerate_and_torch_give_what_kdfw_run_gives(
    launcher: str, recipe: Path, alone: Path, pair: Path, tmp_path: Path
):
    """Training, encoding and evaluation; what comes before is taken from the run of one process."""
    for kind in ("mine-", "score-"):
        for folder in (alone.parent / "cache" / "artifacts").glob(f"{kind}*"):
            if json.loads((folder / "artifact.json").read_text()) in [
                json.loads((stage(alone, name) / "artifact.json").read_text()) for name in ("mined", "scores")
            ]:
                shutil.copytree(folder, tmp_path / "cache" / "artifacts" / folder.name)
    port = str(free_port())
    what = ["run", recipe, *SETTINGS, "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    machines = [
        subprocess.Popen(
            [port if word == "PORT" else word for word in command] + [str(word) for word in what],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**own, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        for command in LAUNCHERS[launcher]
    ]  # fmt: skip
    said = [machine.communicate(timeout=600) for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * len(machines), said
    assert sum(out.count("run folder: ") for out, _ in said) == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["processes"] == 2 and manifest["finished"]
    assert [entry["name"] for entry in manifest["stages"] if entry["cached"]] == ["mined", "scores"]
    weights = "model/model.safetensors"
    ours, theirs = ((stage(out, "distill") / weights).read_bytes() for out in (tmp_path / "run", pair))
    assert ours == theirs


def test_a_mistake_in_the_recipe_is_said_once_and_gives_exit_code_2(recipe: Path, tmp_path: Path):
    done = command("run", recipe, "stages.distill.losses.0.temprature=2", "--processes", 2, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("unknown key") == 1
    assert "Traceback" not in done.stderr
