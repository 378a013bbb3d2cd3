"""Text classifier: classes of one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdfw.errors import ConfigError
from kdfw.models import checkpoint
from kdfw.models.options import Base, Dropout, Layers, Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import TextModel, first_states, on, restore, run_transformer, texts_of
from kdfw.models.tokenize import unique_texts
from kdfw.types import Batch, Signals


class TextClassifier(TextModel):
    """A pretrained transformer with a classification head (arXiv:1810.04805, sec. 4.1).

    Its `features` are what the last layer of the head reads.
    """

    version = 2
    paper = "arXiv:1810.04805"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "features", "hidden"})
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    new_head: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base: Base,
        max_tokens: Annotated[int, Field(ge=3, description="longer texts are cut")] = 128,
        extra_tokens: Annotated[
            list[str] | None, Field(description="markers in the texts that become tokens of their own: <e1>, </e1>")
        ] = None,
        layers: Layers = None,
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.max_tokens = max_tokens
        self.extra_tokens = extra_tokens
        self.layers = layers
        self.dropout = dropout
        self.revision = revision
        self.classes: list[str] = []
        """Names of the classes, in the order of the logits; set by `fit_data`."""
        self.classifier: nn.Module

    def fit_data(self, data: Any) -> None:
        """Take the classes from the data. Called before `load`."""
        self.classes = [str(name) for name in data.classes]

    def load(self, weights: Path | None = None) -> None:
        source = self.source(weights)
        more: dict[str, Any] = {}
        if weights is None and self.classes:
            more = {
                "num_labels": len(self.classes),
                "id2label": dict(enumerate(self.classes)),
                "label2id": {name: number for number, name in enumerate(self.classes)},
                "ignore_mismatched_sizes": True,
            }
        classifier = self.open_transformer(source, weights, layers=self.layers, dropout=self.dropout, **more)
        if more:
            checkpoint.arrange_classes(classifier, checkpoint.configuration(self.base, self.revision), self.classes)
        found = int(classifier.config.num_labels)
        if self.classes and found != len(self.classes):
            raise ConfigError(f"{weights}: a classifier of {found} classes; the data has {len(self.classes)}")
        self.classes = [str(classifier.config.id2label[number]) for number in range(found)]
        self.classifier = classifier
        self.open_tokenizer(source)
        self.check_length(classifier, max_tokens=self.max_tokens)
        if self.extra_tokens and weights is None:
            self.tokenizer.add_tokens(self.extra_tokens)
            if len(self.tokenizer) > classifier.get_input_embeddings().num_embeddings:
                classifier.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self.set_tokenizer(self.tokenizer)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_transformer(self.classifier, folder)
        self.save_tokenizer(folder, self.max_tokens)
        checkpoint.save_description(self, folder)

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the logits: the last linear one with an output for each class."""
        layers = [layer for layer in self.classifier.modules() if isinstance(layer, nn.Linear)]
        found = [layer for layer in layers if layer.out_features == len(self.classes)]
        if not found:
            raise ConfigError(f"base: no linear layer of {self.base!r} gives the {len(self.classes)} logits")
        return found[-1]

    def width(self, signal: str) -> int:
        """Of hidden states and features."""
        if signal == "features":
            return self.output.in_features
        config: Any = self.classifier.config
        return int(config.hidden_size) if signal == "hidden" else super().width(signal)

    def head(self, features: Tensor) -> Tensor:
        """Logits from features (Q, C), or from maps (Q, C, h, w) after averaging: the last layer, differentiable."""
        logits: Tensor = self.output(features if features.dim() == 2 else features.mean((2, 3)))
        return logits

    def graphs(self) -> Sequence[Graph]:
        return [Graph(name="model", group="text", finish=lambda found: {"logits": found["logits"]})]

    def usage(self) -> str:
        return f"""\
# texts: a list
classes = {self.classes!r}
(scores,) = run("model", texts, max_tokens={self.max_tokens})
best = [classes[number] for number in scores.argmax(-1)]"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        texts, _ = unique_texts(texts_of(batch, "text"))
        return [self.single_group("text", texts, "", self.max_tokens)]

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        read: list[Tensor] = []
        hook = None
        if "features" in need:
            hook = self.output.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            output = run_transformer(self.classifier, micro, "hidden" in need)
        finally:
            if hook is not None:
                hook.remove()
        found = {"logits": output.logits}
        if read:
            if read[0].dim() != 2:
                raise ConfigError(f"base: {self.base!r} classifies token by token; it has no features of a text")
            found["features"] = read[0]
        if "hidden" in need:
            found["hidden"] = first_states(output)
        return found

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        texts = texts_of(batch, "text")
        found = {name: restore(value, texts) for name, value in reps["text"].items()}
        logits = found.pop("logits")
        return Signals(logits=logits, labels=on(batch.labels, logits), extra=found)
