"""`kdfw export`: the student of a run as a folder that other libraries load, or as ONNX graphs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdfw import __version__
from kdfw.errors import ConfigError, KdfwError, one_of
from kdfw.files import files_below, inside, read_json, sync_file, write_atomic, write_json

if TYPE_CHECKING:
    from kdfw.components import Model
    from kdfw.models.onnx import Agreement, Written

log = logging.getLogger(__name__)
TOLERANCE = 1e-4
"""Largest difference between a model and its ONNX copy: of float32, after some ten layers, 1e-6 is usual."""
ONNX_FACTS = "onnx.json"


def trained_stages(run: Path) -> dict[str, Path]:
    """Stage name -> folder of every finished stage that left a model, in order. Raises ConfigError for no run."""
    try:
        plan: dict[str, Any] = read_json(run / "plan.json")
        stages = [(str(stage["name"]), str(stage["folder"])) for stage in plan["stages"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{run}: not a run folder (no readable plan.json)") from None
    found = {}
    for name, place in stages:
        folder = inside(run / "stages", place)
        if (folder / "model").is_dir():
            found[name] = folder
    return found


def student_of(run: Path, stage: str | None = None) -> Path:
    """The model folder of a training stage, of the last one by default.

    Args:
        run: a run folder, a folder with `model/` in it, or a model folder itself.
    Raises: ConfigError when there is no such student.
    """
    if (run / "model").is_dir():
        return run / "model"
    if (run / "kdfw.json").is_file():
        return run
    stages = trained_stages(run)
    if not stages:
        raise ConfigError(f"{run}: no finished training stage; run the recipe first")
    if stage is not None and stage not in stages:
        raise ConfigError(f"{run}: no finished training stage {stage!r}; {one_of(stage, stages)}")
    return stages[stage or list(stages)[-1]] / "model"


def export_student(run: Path, to: Path, *, stage: str | None = None) -> Path:
    """Copy a trained student, with its model card, to a new folder.

    Args:
        run: as in `student_of`.
        to: a folder that does not exist yet, or is empty.
        stage: which training stage; default: the last.
    Raises: ConfigError when there is no such student or `to` holds something.
    """
    source = student_of(run, stage)
    _say_what_is_left_out(source)
    with _new_folder(to) as building:
        for name in files_below(source):
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, building / name)
            sync_file(building / name)
    return to


def export_onnx(run: Path, to: Path, *, stage: str | None = None, tolerance: float = TOLERANCE) -> Agreement:
    """Write a trained student as ONNX graphs, with its tokenizer and a README, after comparing both on real texts.

    Args:
        tolerance: greatest difference of any output, relative where outputs are above 1.
    Returns: how the graph that agrees least compares with the model.
    Raises: ConfigError for a student that cannot be exported or whose graphs say something else (nothing is left
        behind then), MissingDependencyError without onnx, onnxscript and onnxruntime.
    """
    from kdfw.models import checkpoint
    from kdfw.models.onnx import compare, load_onnxruntime, write_graph

    runtime = load_onnxruntime()
    source = student_of(run, stage)
    model = checkpoint.load_model(source)
    graphs = model.graphs()
    if not graphs:
        raise ConfigError(f"{source}: a {checkpoint.type_name(type(model))} cannot be exported to ONNX")
    with _new_folder(to) as building:
        written, agreements = [], []
        for graph in graphs:
            written.append(write_graph(model, graph, building))
            session = runtime.InferenceSession(str(written[-1].file), providers=["CPUExecutionProvider"])
            agreements.append(compare(model, graph, session))
        worst = max(agreements, key=lambda agreement: agreement.largest_difference)
        if not worst.largest_difference <= tolerance:
            raise ConfigError(
                f"{source}: the ONNX copy differs from the model by {worst.largest_difference:.2g}, more than "
                f"{tolerance:g}; nothing was written. Allow more with --tolerance if that is meant to be so"
            )
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(building)
        for name, kept in (("config.json", "config.json"), ("README.md", "MODEL_CARD.md")):
            if (source / name).is_file():
                shutil.copyfile(source / name, building / kept)
        write_json(building / ONNX_FACTS, _facts(source, written, worst, tolerance))
        write_atomic(building / "README.md", _readme(model, written, worst, has_tokenizer=tokenizer is not None))
        for file in files_below(building):
            sync_file(building / file)
    return worst


def _say_what_is_left_out(source: Path) -> None:
    from kdfw.models import checkpoint

    try:
        model = checkpoint.build_model(source)
    except KdfwError as error:  # a copy needs no plugin
        log.debug("%s: %s", source, error)
        return
    for option, instead in model.left_out().items():
        log.warning("%s: other libraries do not follow this option of the model; to do: %s", option, instead)


@contextlib.contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends without an error, and not at all otherwise."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is not empty; give a new folder, nothing there was touched")
    building = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if to.exists():
            to.rmdir()
        os.replace(building, to)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _facts(source: Path, written: Sequence[Written], worst: Agreement, tolerance: float) -> Mapping[str, Any]:
    from kdfw.models import checkpoint

    found = checkpoint.read_description(source)
    return {
        "kdfw": __version__,
        "type": found["type"],
        "options": found.get("options", {}),
        "graphs": {
            one.file.name: {"rows": one.group, "inputs": dict(one.inputs), "outputs": dict(one.outputs)}
            for one in written
        },
        "compared": {
            "rows": worst.rows,
            "batches": worst.batches,
            "largest_difference": worst.largest_difference,
            "tolerance": tolerance,
        },
        "versions": {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    }


def _readme(model: Model, written: Sequence[Written], worst: Agreement, *, has_tokenizer: bool) -> str:
    shapes = "\n".join(
        f"| `{one.file.name}` | {what} | `{name}` | {' x '.join(str(size) for size in shape)} |"
        for one in written
        for what, named in (("input", one.inputs), ("output", one.outputs))
        for name, shape in named.items()
    )
    return f"""\
# ONNX copy of a student trained with kdfw

| graph | | name | shape |
|---|---|---|---|
{shapes}

Compared with the original on {worst.rows} rows in {worst.batches} batches: the largest difference is
{worst.largest_difference:.2g}. Sizes in words may be any. `{ONNX_FACTS}` has the options of the model.

How to run it (`folder` is this folder):

```python
{_TOKENIZED if has_tokenizer else _PLAIN}
{model.usage()}
```
"""


_PLAIN = """\
import numpy as np
import onnxruntime
from pathlib import Path

sessions = {path.stem: onnxruntime.InferenceSession(path) for path in Path(folder).glob("*.onnx")}
"""
_TOKENIZED = """\
import numpy as np
import onnxruntime
from pathlib import Path
from transformers import AutoTokenizer

sessions = {path.stem: onnxruntime.InferenceSession(path) for path in Path(folder).glob("*.onnx")}
tokenizer = AutoTokenizer.from_pretrained(folder)


def run(name, *texts, max_tokens, truncation=True, expand=False, **more):
    rows = tokenizer(*texts, truncation=truncation, max_length=max_tokens, return_tensors="np",
                     padding="max_length" if expand else True)
    if expand:  # queries of late interaction are filled up with [MASK], which counts
        rows["input_ids"][rows["attention_mask"] == 0] = tokenizer.mask_token_id
        rows["attention_mask"][:] = 1
    wanted = [entry.name for entry in sessions[name].get_inputs()]
    return sessions[name].run(None, {key: np.asarray({**rows, **more}[key], dtype=np.int64) for key in wanted})

"""
