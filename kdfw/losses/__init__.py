"""The losses of the field, over signals. Each file holds the formula as plain functions and a thin component."""

from __future__ import annotations

from kdfw.components import Loss, Weighting
from kdfw.losses.bce import BCE
from kdfw.losses.contrastive import InfoNCE, LocalizedContrastive
from kdfw.losses.cross_entropy import CrossEntropy
from kdfw.losses.flops import Flops
from kdfw.losses.kl import KL
from kdfw.losses.listwise import LambdaLoss, ListNet
from kdfw.losses.margin_mse import MarginMSE
from kdfw.losses.mse import MSE
from kdfw.losses.pairwise import PairwiseHinge, RankNet
from kdfw.losses.representation import EmbeddingMSE, HiddenMSE
from kdfw.losses.weighting import Fixed, Uniform

LOSSES: dict[str, type[Loss]] = {
    "bce": BCE,
    "cross-entropy": CrossEntropy,
    "embedding-mse": EmbeddingMSE,
    "flops": Flops,
    "hidden-mse": HiddenMSE,
    "info-nce": InfoNCE,
    "kl": KL,
    "lambda-loss": LambdaLoss,
    "listnet": ListNet,
    "localized-contrastive": LocalizedContrastive,
    "margin-mse": MarginMSE,
    "mse": MSE,
    "pairwise-hinge": PairwiseHinge,
    "ranknet": RankNet,
}

WEIGHTINGS: dict[str, type[Weighting]] = {"fixed": Fixed, "uniform": Uniform}
