"""Amounts: what is computed from several numbers is as sure as the least sure of them; how work is written."""

from __future__ import annotations

import numpy as np
import pytest

from kdfw.amounts import UNREAD, Amount, Sizes, Workload, unknown

EXACT, BOUND, ROUGH, LATER = Amount(6), Amount(4, "up to"), Amount(5, "about"), unknown("it is read")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (EXACT + 1, Amount(7)),
        (EXACT * BOUND, Amount(24, "up to")),
        (BOUND + ROUGH, Amount(9, "about")),
        (ROUGH * LATER, LATER),
        (LATER + EXACT, LATER),
        (EXACT.within(4), Amount(4)),
        (EXACT.within(BOUND), BOUND),
        (LATER.within(EXACT), Amount(6, "up to")),
        (EXACT.within(LATER), Amount(6, "up to")),
        (EXACT.larger(BOUND), Amount(6, "up to")),
        (EXACT.at_most(), Amount(6, "up to")),
        (ROUGH.at_most(), ROUGH),
        (LATER.at_most(), LATER),
        (BOUND.about(), Amount(4, "about")),
        (EXACT.in_portions_of(4), Amount(2)),
        (LATER.in_portions_of(4), LATER),
    ],
)
def test_arithmetic(found: Amount, expected: Amount) -> None:
    assert found == expected


def test_work_is_written_with_what_is_not_known_at_the_end() -> None:
    work = Workload(
        amounts={
            "queries": Amount(4836),
            "candidates": Amount(96_720, "up to"),
            "tokens": Amount(2_114_321, "about"),
            "FLOP": Amount(1.353e14, "about"),
            "bytes of vectors": Amount(9_216_000),
            "pairs read": unknown(UNREAD),
            "texts encoded": unknown(UNREAD),
        },
        note="3.20 USD",
    )
    assert str(work) == (
        "4,836 queries, up to 96,720 candidates, about 2.11M tokens, about 135 TFLOP, 9.22 MB of vectors; "
        "pairs read, texts encoded: unknown until the data is read; 3.20 USD"
    )
    assert work.plain()["candidates"] == {"value": 96_720, "sure": "up to"}
    assert work.plain()["pairs read"] == {"value": None, "until": "the data is read"}
    assert str(Workload()) == ""
    assert str(Workload(amounts={"steps": unknown("x")})) == "steps: unknown until x"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "about 0 rows"), (999, "about 999 rows"), (999.6, "about 1k rows"), (1234, "about 1.23k rows"),
     (999_600, "about 1M rows"), (8_841_823, "about 8.84M rows")],
)  # fmt: skip
def test_rough_figures_have_three_digits(value: float, text: str) -> None:
    assert str(Workload(amounts={"rows": Amount(value, "about")})) == text


def test_works_add_up_and_a_backward_pass_costs_two_forward_ones() -> None:
    read = Workload(amounts={"tokens": Amount(10, "about"), "FLOP": Amount(100, "about")})
    both = read.with_backward() + read + Workload(amounts={"steps": Amount(3)}, note="once")
    assert both.amounts == {"tokens": Amount(20, "about"), "FLOP": Amount(400, "about"), "steps": Amount(3)}
    assert both.note == "once"


def test_tokens_are_cut_text_by_text() -> None:
    # 45 bytes: 10 tokens and 2 special ones; 900 bytes: 202, cut at 100
    sizes = Sizes(passage_bytes=np.array([45, 900]))
    assert sizes.passage_tokens(100) == Amount((12 + 100) / 2, "about")
    assert sizes.item_tokens("train", 100) == unknown(UNREAD)


def test_a_carved_split_is_about_its_share() -> None:
    sizes = Sizes(items={"train": Amount(200), "test": Amount(7)}).with_dev(0.1)
    assert sizes.items == {"train": Amount(180, "about"), "test": Amount(7), "dev": Amount(20, "about")}
