"""ROUGE-L between a pseudo-query and the query of the example."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdfw_plugins.capstone.porter import stem


def tokens(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9; those of more than three characters stemmed."""
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [stem(word) if len(word) > 3 else word for word in words]


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length."""
    row = [0] * (len(second) + 1)
    for one in first:
        before = row
        row = [0]
        for column, other in enumerate(second):
            row.append(before[column] + 1 if one == other else max(before[column + 1], row[-1]))
    return row[-1]


def rouge_l(target: str, prediction: str) -> float:
    """F1 of the longest common subsequence: 2 LCS / (both lengths); 0 without a common token."""
    first, second = tokens(target), tokens(prediction)
    common = longest_common_subsequence(first, second)
    if not common:
        return 0.0
    precision, recall = common / len(second), common / len(first)
    return 2 * precision * recall / (precision + recall)
