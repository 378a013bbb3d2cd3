"""Image and text encoders side by side: an image and a caption become vectors that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.amounts import Shape
from kdfw.errors import ConfigError, Problem
from kdfw.fingerprint import fingerprint
from kdfw.models import checkpoint, image_nets
from kdfw.models.bi_encoder import pool, vector_signals
from kdfw.models.rows import Graph, MicroBatch, Pictures, RowGroup, is_image
from kdfw.models.text import TextModel, run_transformer, texts_of
from kdfw.models.tokenize import unique_texts
from kdfw.types import Batch, Signals, Text

_TEXT, _IMAGE = "text", "image"
"""Folders of the pretrained towers in a saved model."""
SCALE = 20.0
"""Of cosines, where a checkpoint does not bring its own."""


class ImageTextEncoder(TextModel):
    """One vector an image, one a text, compared by their cosine (arXiv:2103.00020).

    Either a checkpoint with both towers (`base`, of CLIP's kind), or towers of your choice, each followed by a linear
    projection: for images a small network from scratch (`net`) or a transformers image model (`image_base`), for texts
    a transformer (`text_base`). Which tower a row goes through is decided by what it is, not by its role: queries may
    be images or texts.
    """

    paper = "arXiv:2103.00020"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "batch_logits", "query_embeddings", "passage_embeddings"})
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking"})
    reads: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    search: ClassVar[str] = "dense"

    def __init__(
        self,
        *,
        base: Annotated[
            str | None, Field(description="hub name or folder of a transformers checkpoint with both towers (CLIP)")
        ] = None,
        net: Annotated[str | None, Field(description=f"image network from scratch: {image_nets.NAMES}")] = None,
        image_base: Annotated[
            str | None, Field(description="instead of `net`: hub name or folder of a transformers image model")
        ] = None,
        text_base: Annotated[
            str | None, Field(description="hub name, folder, or package:NAME of the transformer for texts")
        ] = None,
        text_layers: Annotated[
            int | str | list[int] | None,
            Field(description="keep these of its layers: N (the last N), first-N, last-N, or a list from 0"),
        ] = None,
        text_pooling: Annotated[
            Literal["mean", "cls", "max", "last"], Field(description="how its token states become one vector")
        ] = "mean",
        projection: Annotated[int, Field(ge=1, description="width of the vectors; a `base` has its own")] = 128,
        scale: Annotated[
            float | None, Field(gt=0, description="scores are cosines times this; default: the checkpoint's, or 20")
        ] = None,
        max_text_tokens: Annotated[int, Field(ge=3, le=32768, description="longer texts are cut")] = 32,
        revision: Annotated[str | None, Field(description="commit, tag or branch of a hub `base`")] = None,
    ) -> None:
        super().__init__()
        towers = (net, image_base, text_base)
        if base is not None and any(tower is not None for tower in towers):
            raise ConfigError("image-text-encoder: `base` has both towers; leave net, image_base and text_base out")
        if base is None and (text_base is None or (net is None) == (image_base is None)):
            raise ConfigError("image-text-encoder: write `base`, or `text_base` with either `net` or `image_base`")
        if net is not None:
            image_nets.build(net, 1)  # an unknown name is refused before anything loads
        self.base = base  # type: ignore[assignment]
        self.net, self.image_base, self.text_base = net, image_base, text_base
        self.text_layers, self.text_pooling, self.projection = text_layers, text_pooling, projection
        self.scale, self.max_text_tokens, self.revision = scale, max_text_tokens, revision
        self.facts: dict[str, Any] = {}
        """Of the images: `channels`, `height`, `width`, `mean`, `std`; set by `fit_data`, kept with the weights."""
        self.both: Any = None
        """The checkpoint with both towers, or None: then `text`, `image` and the projections."""
        self.text: Any = None
        self.image: Any = None
        self.projections = nn.ModuleDict()

    def shape(self) -> Shape | None:
        return None  # an image has no tokens to count

    def num_transformers(self) -> int | None:
        return 1 if self.net is not None else 2

    def fit_data(self, data: Any) -> None:
        """Take size and normalisation from the data's images. Called before `load`."""
        for source in (*getattr(data, "queries", {}).values(), getattr(data, "corpus", None)):
            if getattr(source, "image", None) is not None and len(source):
                height, width, channels = source.image(0).shape
                self.facts = {
                    "channels": channels, "height": height, "width": width,
                    "mean": list(source.mean), "std": list(source.std),
                }  # fmt: skip
                return

    def check_base(self, where: Callable[[str], str]) -> Iterator[Problem]:
        return self.check_layers(where, base="text_base", layers="text_layers")

    def base_fingerprint(self) -> str:
        if self.base is not None:
            return checkpoint.fingerprint(self.base, self.revision)
        assert self.text_base is not None
        image = f"scratch:{self.net}" if self.image_base is None else checkpoint.fingerprint(self.image_base)
        return fingerprint([checkpoint.fingerprint(self.text_base), image])

    # ------------------------------------------------------------ loading and saving

    def load(self, weights: Path | None = None) -> None:
        if weights is not None:
            self.facts = dict(checkpoint.read_description(weights)["facts"])
        if not self.facts:
            raise ConfigError("image-text-encoder: the data has no images; use data of the type image-text")
        if self.base is not None:
            source = self.source(weights)
            self.both = self.open_transformer(source, weights)
            self.open_tokenizer(source)
            self.facts |= checkpoint.image_normalisation(source, self.revision)
            self.check_length(self.both, max_text_tokens=self.max_text_tokens)
            return
        self._load_text(weights)
        width = self._load_image(weights)
        self.projections["text"] = nn.Linear(int(self.text.config.hidden_size), self.projection, bias=False)
        self.projections["image"] = nn.Linear(width, self.projection, bias=False)
        if weights is not None:
            from safetensors.torch import load_file

            for name, module in self._own_parts().items():
                module.load_state_dict(load_file(weights / f"{name}.safetensors"), strict=True)

    def _load_text(self, weights: Path | None) -> None:
        assert self.text_base is not None
        source = weights / _TEXT if weights else checkpoint.locate(self.text_base) or self.text_base
        self.text = self.open_transformer(source, weights, layers=self.text_layers)
        self.open_tokenizer(source)
        self.check_length(self.text, max_text_tokens=self.max_text_tokens)

    def _load_image(self, weights: Path | None) -> int:
        """Build the image tower; returns its width."""
        if self.net is not None:
            self.image, width = image_nets.build(self.net, int(self.facts["channels"]))
            return width
        assert self.image_base is not None
        source = weights / _IMAGE if weights else checkpoint.locate(self.image_base) or self.image_base
        self.image = self.open_transformer(source, weights, uses_pooler=True)
        self.facts |= checkpoint.image_normalisation(source, None)
        return int(getattr(self.image.config, "hidden_size", 0) or self.image.config.hidden_sizes[-1])

    def _own_parts(self) -> dict[str, nn.Module]:
        """What is not a transformers folder, by file name."""
        return {"projections": self.projections} | ({"net": self.image} if self.net is not None else {})

    def save(self, folder: Path) -> None:
        """One transformers folder for a `base`; else `text/`, `image/` or `net.safetensors`, and the projections."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self.both is not None:
            checkpoint.save_transformer(self.both, folder)
            self.save_tokenizer(folder, self.max_text_tokens)
            checkpoint.save_normalisation(self.facts, checkpoint.image_side(self.both), folder)
        else:
            checkpoint.save_transformer(self.text, folder / _TEXT)
            self.save_tokenizer(folder / _TEXT, self.max_text_tokens)
            if self.net is None:
                checkpoint.save_transformer(self.image, folder / _IMAGE)
                checkpoint.save_normalisation(self.facts, checkpoint.image_side(self.image), folder / _IMAGE)
            for name, module in self._own_parts().items():
                tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
                save_file(tensors, folder / f"{name}.safetensors")
        checkpoint.save_description(self, folder, self.facts)

    def graphs(self) -> Sequence[Graph]:
        size = (int(self.facts["channels"]), int(self.facts["height"]), int(self.facts["width"]))
        return [
            Graph(
                name="image", group="query", finish=lambda found: {"image_embedding": found["embedding"]}, image=size
            ),
            Graph(name="text", group="passage", finish=lambda found: {"text_embedding": found["embedding"]}),
        ]

    def usage(self) -> str:
        return f"""\
# images: bytes, rows x height x width x channels; texts: a list
(image,) = sessions["image"].run(None, {{"pixel_values": images.transpose(0, 3, 1, 2)}})
(text,) = run("text", texts, max_tokens={self.max_text_tokens})
scores = {float(self._scale())} * image @ text.T"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        return [self.text_rows(unique_texts(texts_of(batch, role))[0], role) for role in ("query", "passage")]

    def text_rows(self, texts: Sequence[Text], role: str) -> RowGroup:
        """Rows of images or texts, for encoding outside a batch too. `role`: `query` or `passage`."""
        if texts and is_image(texts[0]):
            return RowGroup(name=role, pictures=Pictures(texts))
        return self.single_group(role, texts, "", self.max_text_tokens)

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        """`embedding` (R, H), of length 1."""
        found = self._encode_text(micro) if micro.tensor is None else self._encode_images(micro.tensor)
        return {"embedding": nn.functional.normalize(found.float(), dim=-1)}

    def _encode_text(self, micro: MicroBatch) -> Tensor:
        if self.both is not None:
            mask = None if micro.mask is None else micro.mask.long()
            return _pooled(self.both.get_text_features(input_ids=micro.ids, attention_mask=mask))
        states = run_transformer(self.text, micro).last_hidden_state
        found: Tensor = self.projections["text"](pool(states, micro.mask, self.text_pooling))
        return found

    def _encode_images(self, images: Tensor) -> Tensor:
        """(R, channels, height, width) uint8 -> (R, H)."""
        mean, std = (torch.tensor(self.facts[name], device=images.device)[:, None, None] for name in ("mean", "std"))
        pixels = (images.float() / 255 - mean) / std
        if self.net is not None:
            found: Tensor = self.projections["image"](self.image(pixels).mean((2, 3)))
            return found
        tower = self.image if self.both is None else self.both
        side = checkpoint.image_side(tower)
        if tuple(pixels.shape[2:]) != (side, side):
            pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)
        if self.both is not None:
            return _pooled(self.both.get_image_features(pixel_values=pixels))
        found = self.projections["image"](_pooled(self.image(pixel_values=pixels)))
        return found

    def _scale(self) -> Tensor | float:
        if self.scale is not None:
            return self.scale
        own = getattr(self.both, "logit_scale", None)
        return SCALE if own is None else own.exp()

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        return vector_signals(reps, batch, need, self._scale())


def _pooled(output: Any) -> Tensor:
    """(R, H) of what a transformers model gives: features, or states with or without their own pooling."""
    if isinstance(output, Tensor):  # transformers 4
        return output
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)
