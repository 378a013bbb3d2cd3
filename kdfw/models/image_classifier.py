"""Image classifier: a small convolutional network, or a transformers image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.errors import ConfigError
from kdfw.models import checkpoint, image_nets
from kdfw.models.options import Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import on
from kdfw.types import Batch, Signals


class ImageClassifier(Model):
    """Feature map, global average pooling, linear layer.

    Its rows are images; networks with batch normalisation see one micro-batch as one batch, so in training a step's
    images on a process should fit into one (`Budget.tokens` counts an image as 1).
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    reads: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(
        self,
        *,
        net: Annotated[str | None, Field(description=f"network from scratch: {image_nets.NAMES}")] = None,
        base: Annotated[
            str | None, Field(description="instead of `net`: hub name or folder of a transformers image classifier")
        ] = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        if (net is None) == (base is None):
            raise ConfigError("image-classifier: write either `net` (from scratch) or `base` (pretrained)")
        if net is not None:
            image_nets.check(net)
        self.net = net
        self.base = base
        self.revision = revision
        self.allow_remote_code = False
        self.facts: dict[str, Any] = {}
        """Of the data: `classes` (names), `channels`, `mean`, `std`; set by `fit_data`, kept with the weights."""
        self.body: nn.Module
        self.output: nn.Linear

    def fit_data(self, data: Any) -> None:
        """Take classes, channels and normalisation from the data. Called before `load`."""
        channels = next((split.images.shape[3] for split in data.splits.values() if split.images is not None), 3)
        self.facts = {
            "classes": [str(name) for name in data.classes],
            "channels": int(channels),
            "mean": [float(value) for value in data.image_mean],
            "std": [float(value) for value in data.image_std],
        }

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.facts.get("classes", []))

    def num_transformers(self) -> int | None:
        return 0 if self.net is not None else 1

    def base_fingerprint(self) -> str:
        return f"scratch:{self.net}" if self.base is None else checkpoint.fingerprint(self.base, self.revision)

    def load(self, weights: Path | None = None) -> None:
        if weights is not None:
            self.facts = dict(checkpoint.read_description(weights)["facts"])
        if not self.facts:
            raise ConfigError("image-classifier: the number of classes is not known; give it data (`fit_data`) first")
        count = len(self.classes)
        if self.base is not None:
            source = weights or checkpoint.locate(self.base) or self.base
            more: dict[str, Any] = {"num_labels": count, "ignore_mismatched_sizes": True} if weights is None else {}
            self.body = checkpoint.load_transformer(
                "AutoModelForImageClassification",
                source,
                revision=None if isinstance(source, Path) else self.revision,
                allow_remote_code=self.allow_remote_code,
                new_head=weights is None,
                **more,
            )
            if weights is None:
                config = checkpoint.configuration(self.base, self.revision)
                checkpoint.arrange_classes(self.body, config, self.classes)
            return
        assert self.net is not None
        self.body, width = image_nets.build(self.net, int(self.facts["channels"]))
        self.output = nn.Linear(width, count)
        if weights is not None:
            from safetensors.torch import load_file

            self.load_state_dict(load_file(weights / "model.safetensors"), strict=True)

    def save(self, folder: Path) -> None:
        """A transformers folder for a `base`; for a `net`, `model.safetensors` with the parameters by name."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.base is not None:
            checkpoint.save_transformer(self.body, folder)
        else:
            from safetensors.torch import save_file

            tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
        checkpoint.save_description(self, folder, self.facts)

    def width(self, signal: str) -> int:
        """Channels of the feature map of a `net`."""
        return self.output.in_features if signal == "features" and self.base is None else super().width(signal)

    def head(self, features: Tensor) -> Tensor:
        """Logits from a feature map (Q, C, h, w) or pooled features (Q, C): the model's classifier, differentiable."""
        if self.base is not None:
            raise ConfigError("head: a transformers image model has no classifier over feature maps; use `net`")
        pooled = features if features.dim() == 2 else features.mean((2, 3))
        logits: Tensor = self.output(pooled)
        return logits

    def graphs(self) -> Sequence[Graph]:
        side = 32 if self.base is None else checkpoint.image_side(self.body)
        finish = {"image": (int(self.facts["channels"]), side, side)}
        return [Graph(name="model", group="image", finish=lambda found: {"logits": found["logits"]}, **finish)]

    def usage(self) -> str:
        mean, std = self.facts["mean"], self.facts["std"]
        return f"""\
# images: bytes, rows x height x width x channels
classes = {self.classes!r}
mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in ({mean}, {std}))
pixels = (images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
(scores,) = sessions["model"].run(None, {{"pixel_values": pixels}})
best = [classes[number] for number in scores.argmax(-1)]"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        images = batch.inputs["image"]
        assert isinstance(images, Tensor)
        return [RowGroup(name="image", tensor=images)]

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        assert micro.tensor is not None
        if self.base is not None:
            output = self.body(micro.tensor, output_hidden_states="features" in need)
            found = {"logits": output.logits}
            if "features" in need:
                found["features"] = output.hidden_states[-1]
            return found
        features = self.body(micro.tensor)
        found = {"logits": self.head(features)}
        if "features" in need:
            found["features"] = features
        return found

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        found = dict(reps["image"])
        logits = found.pop("logits")
        return Signals(logits=logits, labels=on(batch.labels, logits), extra=found)
