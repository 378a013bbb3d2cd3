"""A model as ONNX graphs: the whole computation from token ids or pixels to vectors or scores, checked against it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.errors import ConfigError, MissingDependencyError
from kdfw.models.forward import assemble, evaluating
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.types import Batch, Text

OPSET = 18
WITHIN_ONE_FILE = 1_500_000_000
"""Bytes of weights from which they lie in a file of their own: a file of ONNX holds less than 2 GB."""
BATCHES = (1, 2, 7, 16)
"""Rows of the batches that are compared: one of each size, of short and of long rows."""
ALONE = 3
"""Rows and tokens of the example the graph is traced with; no size that occurs elsewhere in it."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A graph on disk."""

    file: Path
    group: str
    inputs: Mapping[str, Sequence[str | int]]
    """Shapes by name; a text is a size that may be any."""
    outputs: Mapping[str, Sequence[str | int]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a graph compares with the model it was made from."""

    rows: int
    batches: int
    largest_difference: float
    """Of any number of any output, where outputs above 1 count as shares of themselves."""


def load_onnxruntime() -> ModuleType:
    """onnxruntime, when all that exporting needs is there. Raises: MissingDependencyError, ConfigError."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = __import__(name)
        except ImportError:
            raise MissingDependencyError(name, "exporting to ONNX", "export") from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise ConfigError(f"exporting to ONNX needs torch 2.6 or newer; found {torch.__version__}")
    return module


class _Computation(nn.Module):
    """`Model.encode` of one group of rows, and what the graph makes of it, as a function of plain tensors."""

    def __init__(self, model: Model, graph: Graph, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        mask = given.get("attention_mask")
        micro = MicroBatch(
            group=self.graph.group,
            ids=given.get("input_ids"),
            mask=None if mask is None else mask.bool(),
            type_ids=given.get("token_type_ids"),
            targets=given.get("target_ids"),
            tensor=given.get("pixel_values"),
        )
        return tuple(self.graph.finish(self.model.encode(micro, frozenset({"logits"}))).values())


def write_graph(model: Model, graph: Graph, folder: Path) -> Written:
    """Trace one graph of a loaded model and write `<name>.onnx`; rows and tokens may be any number.

    Raises: ConfigError when the model's code cannot be traced.
    """
    group = _group(model, graph, texts()[:ALONE])
    inputs = _inputs(_micro(group, np.arange(ALONE), model))
    computation = _Computation(model, graph, list(inputs)).eval()
    outputs = graph.finish(model.encode(_micro(group, np.arange(ALONE), model), frozenset({"logits"})))
    path = folder / f"{graph.name}.onnx"
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with _traceable(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about itself
        try:
            program = torch.onnx.export(
                computation,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(tuple(_dynamic(name) for name in inputs),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=size > WITHIN_ONE_FILE)
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ConfigError(f"{type(model).__name__} cannot be exported to ONNX: {_reason(error)}") from error
    return Written(
        file=path,
        group=graph.group,
        inputs={name: _shape(name, value) for name, value in inputs.items()},
        outputs={name: ["rows", *value.shape[1:]] for name, value in outputs.items()},
    )


def _reason(error: BaseException) -> str:
    """The first line of the innermost error: those around it say how to report a bug to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def compare(model: Model, graph: Graph, session: Any) -> Agreement:
    """Run real texts of several lengths (or made-up images), in batches of several sizes, through both."""
    sample = texts()
    largest, rows, batches = 0.0, 0, 0
    for size in BATCHES:
        for begin in (0, len(sample) - size):  # the shortest and the longest
            group = _group(model, graph, sample[begin : begin + size])
            micro = _micro(group, np.arange(len(group)), model)
            with torch.inference_mode():
                expected = graph.finish(model.encode(micro, frozenset({"logits"})))
            found = session.run(None, {name: value.numpy() for name, value in _inputs(micro).items()})
            for value, other in zip(expected.values(), found, strict=True):
                largest = max(largest, _difference(value, other))
            rows, batches = rows + len(group), batches + 1
    return Agreement(rows=rows, batches=batches, largest_difference=largest)


def _difference(value: Tensor, other: np.ndarray) -> float:
    own = value.float().numpy()
    if own.shape != other.shape:
        return float("inf")
    difference = np.abs(own - other.astype(np.float32)) / np.maximum(1.0, np.abs(own))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


# ---------------------------------------------------------------- what is tried


def texts() -> list[str]:
    """Real English texts of 1 to some 300 words, shortest first: documentation of the standard library."""
    import argparse
    import collections
    import json
    import logging
    import pathlib

    documented = [
        json.loads, json.dumps, pathlib.Path.glob, pathlib.Path.stem, collections.Counter.update, collections.ChainMap,
        collections.deque.rotate, logging.Logger.warning, logging.Formatter, argparse.FileType,
    ]  # fmt: skip
    long = [re.sub(r"\s+", " ", inspect.getdoc(thing) or "") for thing in documented]
    short = ["x", "naïve café?", "What does it return?", "How are words counted?", "a 3.14 % share of the rows"]
    sentences = [text.split(". ")[0] for text in long]
    return sorted({*short, *sentences, *long} - {""}, key=lambda text: (len(text), text))


def _group(model: Model, graph: Graph, sample: Sequence[str]) -> RowGroup:
    """The rows of a graph's group that a batch of these texts has."""
    made = [Text(source=None, made=text) for text in sample]
    other = [Text(source=None, made=text) for text in reversed(sample)]
    image = torch.randn(len(sample), *graph.image, generator=torch.Generator().manual_seed(len(sample)))
    inputs: dict[str, Sequence[Text] | Tensor] = {
        "query": made, "passage": other, "text": made, "source": made, "target": other, "image": image,
    }  # fmt: skip
    if graph.image != (0, 0, 0) and graph.group != "image":
        source: Any = _Pictures(graph.image)
        inputs[graph.group] = [Text(source=source, row=row) for row in range(len(sample))]
    batch = Batch(
        task="ranking",
        ids=tuple(str(number) for number in range(len(sample))),
        inputs=inputs,
        num_items=float(len(sample)),
        candidates=torch.arange(len(sample))[:, None],
    )
    return next(group for group in model.rows(batch, frozenset({"logits"})) if group.name == graph.group)


class _Pictures:
    """Images of noise, as a stored source has them."""

    fingerprint = ""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self.shape = (height, width, channels)

    def image(self, row: int) -> np.ndarray:
        """(height, width, channels) uint8."""
        return np.random.default_rng(row).integers(0, 256, size=self.shape, dtype=np.uint8)


def _micro(group: RowGroup, rows: np.ndarray, model: Model) -> MicroBatch:
    return assemble(group, rows, torch.device("cpu"), _pad_id(model))


def _pad_id(model: Model) -> int:
    return int(getattr(model, "pad_id", 0))


def _inputs(micro: MicroBatch) -> dict[str, Tensor]:
    """The graph's inputs: the mask is there also where nothing is padded."""
    if micro.tensor is not None:
        return {"pixel_values": micro.tensor}
    assert micro.ids is not None
    mask = torch.ones_like(micro.ids) if micro.mask is None else micro.mask.long()
    found = {"input_ids": micro.ids, "attention_mask": mask}
    if micro.type_ids is not None:
        found["token_type_ids"] = micro.type_ids
    if micro.targets is not None:
        found["target_ids"] = micro.targets
    return found


def _dynamic(name: str) -> dict[int, Any]:
    any_size = torch.export.Dim.DYNAMIC
    return {0: any_size} if name == "pixel_values" else {0: any_size, 1: any_size}


def _shape(name: str, value: Tensor) -> list[str | int]:
    if name == "pixel_values":
        return ["rows", *value.shape[1:]]
    return ["rows", "target_tokens" if name == "target_ids" else "tokens"]


@contextlib.contextmanager
def _traceable(model: Model) -> Iterator[None]:
    """While a model is traced: no dropout, and attention in a form that the exporter knows."""
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "set_attn_implementation")]
    before = [part.config._attn_implementation for part in parts]
    log = logging.getLogger("torch.onnx")
    level = log.level
    with evaluating(model):
        try:
            log.setLevel(logging.ERROR)  # it names every package that it could have used
            for part in parts:
                part.set_attn_implementation("sdpa" if getattr(part, "_supports_sdpa", False) else "eager")
            yield
        finally:
            log.setLevel(level)
            for part, name in zip(parts, before, strict=True):
                part.set_attn_implementation(name)
