"""Progress: a bar in a terminal, plain log lines elsewhere, nothing on processes other than the main one."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

log = logging.getLogger("kdfw")
SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """A tqdm bar that also shows loss terms."""

    def __init__(self, total: int, title: str, unit: str, start: int = 0) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=total, desc=title, unit=unit, initial=start, leave=False, dynamic_ncols=True)

    def update(self, amount: int = 1, **shown: object) -> None:
        if shown:
            self._bar.set_postfix({name: _short(value) for name, value in shown.items()}, refresh=False)
        self._bar.update(amount)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


class Lines:
    """A line every half minute, with rate and time left."""

    def __init__(self, total: int, title: str, unit: str, start: int = 0) -> None:
        self.total, self.title, self.unit = total, title, unit
        self.done = self.first = start
        self.began = self.last = time.monotonic()

    def update(self, amount: int = 1, **shown: object) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = (self.done - self.first) / (now - self.began)
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s/{self.unit}"
        left = _time((self.total - self.done) / rate) if rate else "unknown time"
        values = " ".join(f"{name}={_short(value)}" for name, value in shown.items())
        log.info("%s: %d/%d %s, %s, %s left %s", self.title, self.done, self.total, self.unit, speed, left, values)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class Silent:
    """For processes that are not the main one."""

    def update(self, amount: int = 1, **shown: object) -> None:
        return None

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def progress(total: int, title: str, unit: str = "it", *, main: bool = True, start: int = 0) -> Bar | Lines | Silent:
    """The display that fits where the output goes."""
    if not main:
        return Silent()
    return (Bar if sys.stderr.isatty() else Lines)(total, title, unit, start)


def _time(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
