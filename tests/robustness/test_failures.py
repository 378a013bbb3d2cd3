"""Memory that runs out, numbers that are not finite, teachers that say nothing, and Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole_runs import STAGES, results, run

from kdfw.cli import main
from kdfw.data.ranking import Ranking
from kdfw.engine.runtime import Context
from kdfw.engine.training import Trainer
from kdfw.errors import KdfwError, TrainingError
from kdfw.models.bi_encoder import BiEncoder

PLAIN = "stages.distill.train.dropout=false"


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


@pytest.fixture
def cache(finished: Path, tmp_path: Path) -> Path:
    """A cache with everything before training."""
    return Path(
        shutil.copytree(finished / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("train-*", "evaluate-*"))
    )


def metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of the training log that tell of a step."""
    path = next(out.glob("stages/*-distill/metrics.jsonl"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "lr" in line]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_halves_the_micro_batch_and_changes_nothing(
    workspace: Path, cache: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    recipe = workspace / "recipe.yaml"
    run(recipe, tmp_path / "enough", PLAIN, cache=cache)
    shutil.rmtree(next((cache / "artifacts").glob("train-*")))
    encode = BiEncoder.encode
    seen: list[int] = []

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def small(self: BiEncoder, micro: Any, need: frozenset[str]) -> dict[str, torch.Tensor]:
        found = encode(self, micro, need)
        if not torch.is_grad_enabled():
            return found
        rows = len(found["embedding"])
        if rows > 3 and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if rows > 3:
            return {name: Explode.apply(value) for name, value in found.items()}
        seen.append(rows)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(BiEncoder, "encode", small)
        run(recipe, tmp_path / "little", PLAIN, "name=little", cache=cache)
    assert seen and max(seen) <= 3
    said = [record for record in caplog.records if "out of memory" in record.message]
    assert len(said) == 1
    for one, other in zip(metrics(tmp_path / "enough"), metrics(tmp_path / "little"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def test_memory_that_never_suffices_is_an_error_and_no_endless_loop(
    workspace: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(self: BiEncoder, micro: Any, need: frozenset[str]) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BiEncoder, "encode", never)
    with pytest.raises((KdfwError, torch.OutOfMemoryError), match="out of memory"):
        run(workspace / "recipe.yaml", tmp_path / "run", cache=cache)


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step's loss is NaN."""
    losses = Trainer._losses

    def spoil(self: Trainer, signals: Any, teachers: Any, batch: Any, clock: Any) -> Any:
        total, values = losses(self, signals, teachers, batch, clock)
        if clock.step == 2:
            return total * math.nan, {**values, "kl": math.nan, "loss": math.nan}
        return total, values

    monkeypatch.setattr(Trainer, "_losses", spoil)


@pytest.mark.usefixtures("spoilt")
def test_a_loss_that_is_not_finite_stops_and_names_the_items(workspace: Path, cache: Path, tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"step 2: (kl, loss|loss, kl) not finite; items: q\d+.*on_nan: skip"
    ) as caught:
        run(workspace / "recipe.yaml", tmp_path / "run", cache=cache)
    saved = next(iter(cache.glob("work/train-*/not-finite-step-00000002.json")))
    assert str(saved) in str(caught.value)
    batch = json.loads(saved.read_text(encoding="utf-8"))
    assert len(batch["ids"]) == 4 and batch["passages"] and batch["terms"]["kl"] == "nan"


@pytest.mark.usefixtures("spoilt")
def test_a_loss_that_is_not_finite_can_be_skipped_and_is_counted(workspace: Path, cache: Path, tmp_path: Path):
    result = run(workspace / "recipe.yaml", tmp_path / "run", "stages.distill.train.on_nan=skip", cache=cache)
    assert result.summaries["distill"]["skipped steps (loss not finite)"] == 1
    assert all(math.isfinite(value) for line in metrics(tmp_path / "run") for value in line.values())


def test_a_teacher_that_gives_nan_is_named_with_its_queries(workspace: Path, tmp_path: Path):
    base = altered(workspace / "teacher", tmp_path / "teacher", "word_embeddings.weight", math.nan)
    with pytest.raises(KdfwError, match=r"teacher 'teacher'.*q\d+"):
        run(workspace / "recipe.yaml", tmp_path / "run", f"models.teacher.base={base}")


def test_a_teacher_that_is_asked_while_training_is_named_with_its_queries(
    workspace: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    live = "stages.distill.teachers=[live]"
    model = "models.live={{type: cross-encoder, base: {}, max_pair_tokens: 48}}"
    broken = altered(workspace / "teacher", tmp_path / "broken", "word_embeddings.weight", math.nan)
    with pytest.raises(TrainingError, match=r"step 0: .* not finite; .*teacher 'live': NaN .* for q\d+, q\d+"):
        run(workspace / "recipe.yaml", tmp_path / "run", live, model.format(broken), cache=cache)
    # the last layer's output is multiplied by 0: one score for every pair
    flat = altered(workspace / "teacher", tmp_path / "flat", "layer.0.output.LayerNorm.weight", 0.0)
    run(workspace / "recipe.yaml", tmp_path / "flat-run", live, model.format(flat), cache=cache)
    said = [record.getMessage() for record in caplog.records if "all scores equal" in record.getMessage()]
    assert len(said) == 1 and re.search(r"teacher 'live': all scores equal for q\d+", said[0])


def altered(base: Path, to: Path, name: str, value: float) -> Path:
    """A copy of a model with one weight tensor filled with a value."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, to)
    tensors = load_file(to / "model.safetensors")
    (found,) = (key for key in tensors if key.endswith(name))
    tensors[found][:] = value
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_teacher_without_opinion_is_named_with_its_queries(
    workspace: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    scores = tmp_path / "scores.tsv"
    lists = Ranking.load(next(finished.glob("run/stages/*-mined")))
    ids = [f"p{number}" for number in range(40)]
    rows = [(query, passage) for query in lists.query_ids for passage in ids]
    rng = np.random.default_rng(0)
    first = lists.query_ids[0]
    text = "".join(f"{query}\t{passage}\t{1.0 if query == first else rng.normal()}\n" for query, passage in rows)
    scores.write_text(text, encoding="utf-8")
    setting = f"models.teacher={{type: score-file, path: {scores}}}"
    run(workspace / "recipe.yaml", tmp_path / "run", setting)
    assert any("same score in 1 queries" in record.message and first in record.message for record in caplog.records)
    with pytest.raises(TrainingError, match=rf"same score.*{first}"):
        run(workspace / "recipe.yaml", tmp_path / "other", setting, "stages.scores.on_constant=error")


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_any_stage_ends_with_130_and_the_run_goes_on(
    workspace: Path, finished: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kdfw.cli.tune_process", lambda: None)
    arguments = ["run", str(workspace / "recipe.yaml"), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "c")]
    if stage in ("hard", "kept", "vectors", "test"):  # what comes before is done
        later = shutil.ignore_patterns("evaluate-*", "encode-*", "filter-*", *(["mine-*"] if stage == "hard" else []))
        shutil.copytree(finished / "cache", tmp_path / "c", ignore=later)
    progress, summary = Context.progress, Context.summary
    sent = []

    def interrupted(self: Context) -> None:
        if self.planned.name == stage and not sent:
            sent.append(stage)
            os.kill(os.getpid(), signal.SIGINT)

    def show(self: Context, *given: Any, **named: Any) -> Any:
        interrupted(self)
        return progress(self, *given, **named)

    def summarise(self: Context, values: Any) -> None:
        interrupted(self)
        summary(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "progress", show)
        patch.setattr(Context, "summary", summarise)
        assert main(arguments) == 130
    assert sent == [stage]
    assert main(arguments) == 0
    assert results(tmp_path / "run") == results(finished / "run")


def test_a_fresh_run_keeps_the_old_one_and_a_changed_recipe_what_it_replaces(
    workspace: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("kdfw.cli.tune_process", lambda: None)
    shutil.copytree(finished, tmp_path / "w")
    out = tmp_path / "w" / "run"
    arguments = ["run", str(workspace / "recipe.yaml"), "--out", str(out), "--cache", str(tmp_path / "w" / "cache")]
    before = results(out)
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out

    assert main([*arguments, "stages.hard.depth=20"]) == 0
    assert "nothing to do" not in capsys.readouterr().out
    replaced = {path.name.rsplit("-", 1)[0]: path for path in (out / "stages" / ".replaced").iterdir()}
    assert set(replaced) == {"04-hard", "05-kept"}
    old = (finished / "run" / "stages" / "04-hard" / "run.trec").read_bytes()
    assert (replaced["04-hard"] / "run.trec").read_bytes() == old
    assert (out / "stages" / "04-hard" / "run.trec").read_bytes() != old

    assert main(arguments) == 0
    assert main([*arguments, "--fresh"]) == 0
    kept = [path for path in out.parent.iterdir() if path.name.startswith("run.")]
    assert len(kept) == 1 and results(kept[0]) == before
    assert results(out) == before
    made = json.loads((out / "manifest.json").read_text())["stages"]
    assert not any(stage["cached"] for stage in made)
