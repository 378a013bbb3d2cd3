"""What is said of work under way where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from kdfw.engine import progress


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.2, "train: 4/100 step, 5.0 step/s, 19 s left loss=0.5"),
        (9.6, "train: 4/100 step, 9.6 s/step, 15 min left loss=0.5"),
        (600.0, "train: 4/100 step, 600.0 s/step, 16.0 h left loss=0.5"),
    ],
)
def test_lines_show_rate_and_time_left_in_fitting_units(
    seconds: float, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "kdfw"):
        shown = progress.Lines(100, "train", "step", start=3)
        now += seconds
        shown.update(loss=0.5)
    assert [record.getMessage() for record in caplog.records] == [line]
