"""What training sees: samplers draw examples, `collate` makes batches of them."""

from __future__ import annotations

from kdfw.components import Augmenter, Sampler
from kdfw.samplers.mined import InBatch, Mined, Scored
from kdfw.samplers.rows import Labelled, Pairs, Parallel
from kdfw.samplers.triples import Triples
from kdfw.samplers.uniform import Uniform
from kdfw.samplers.views import Distort, Views

SAMPLERS: dict[str, type[Sampler]] = {
    "in-batch": InBatch,
    "labelled": Labelled,
    "mined": Mined,
    "pairs": Pairs,
    "parallel": Parallel,
    "random": Uniform,
    "scored": Scored,
    "triples": Triples,
    "views": Views,
}
AUGMENTERS: dict[str, type[Augmenter]] = {"distort": Distort}
