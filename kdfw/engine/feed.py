"""Batches as a pure function of the step: order, draws, augmentation, collation; made ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdfw.samplers.collate import collate, epoch_order, item_rng
from kdfw.types import Batch, Clock

if TYPE_CHECKING:
    from kdfw.components import Augmenter, Sampler
    from kdfw.data.sets import Data
    from kdfw.engine.settings import TrainSettings

AHEAD = 4
"""Batches made ahead of the one in use."""


class Feed:
    """The batches of a training stage. The last batch of an epoch may be smaller."""

    def __init__(
        self, sampler: Sampler, augmenters: Sequence[Augmenter], data: Data, settings: TrainSettings, seed: int
    ) -> None:
        self.sampler = sampler
        self.augmenters = augmenters
        self.data = data
        self.settings = settings
        self.seed = seed
        self.ids = sampler.items()
        self._last_order: tuple[int, np.ndarray] | None = None
        self.steps_per_epoch = -(-len(self.ids) // settings.batch_size)
        if settings.steps is not None:
            self.total_steps = settings.steps
        else:
            self.total_steps = self.steps_per_epoch * (settings.epochs or 1)
        self.total_epochs = -(-self.total_steps // max(1, self.steps_per_epoch))

    def clock(self, step: int) -> Clock:
        """Where training stands before step `step`."""
        return Clock(
            step=step,
            total_steps=self.total_steps,
            epoch=step // max(1, self.steps_per_epoch),
            total_epochs=self.total_epochs,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
        )

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same whenever and wherever it is asked for."""
        clock = self.clock(step)
        order = self._order(clock.epoch)
        begin = (step % self.steps_per_epoch) * self.settings.batch_size
        examples = []
        for number in order[begin : begin + self.settings.batch_size]:
            item = int(number)
            rng = item_rng(self.seed, clock.epoch, self.ids[item])
            example = self.sampler.draw(item, clock, rng)
            for augmenter in self.augmenters:
                example = augmenter.apply(example, clock, rng)
            examples.append(example)
        return collate(examples, self.data.task, self.data)

    def _order(self, epoch: int) -> np.ndarray:
        if self._last_order is None or self._last_order[0] != epoch:
            self._last_order = (epoch, epoch_order(len(self.ids), self.seed, epoch))
        return self._last_order[1]

    def ahead(self, start: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from `start` to the last step, made in a thread while the caller trains."""
        box: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(maxsize=AHEAD)
        stop = threading.Event()

        def put(item: tuple[int, Batch] | BaseException | None) -> bool:
            while not stop.is_set():
                try:
                    box.put(item, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for step in range(start, self.total_steps):
                    if not put((step, self.batch(step))):
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="kdfw-feed", daemon=True)
        thread.start()
        try:
            while (item := box.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(timeout=10)
