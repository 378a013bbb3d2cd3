"""The two learnable temperatures: one number, or one for each item. Any distillation loss takes either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.components import Model, Schedule, Teacher
from kdfw.errors import ConfigError
from kdfw.losses.masking import masked_log_softmax, wide
from kdfw.types import Clock, Needs, Signals
from kdfw_plugins.ctkd.curriculum import bounded_temperature, cosine_strength, linear_strength, reverse_gradient

_CURVES: dict[str, Callable[..., float]] = {"cosine": cosine_strength, "linear": linear_strength}

Lowest = Annotated[float, Field(gt=0, description="lower bound of the temperature (t_start)")]
Span = Annotated[float, Field(gt=0, description="upper bound minus lower bound (called t_end in the released code)")]
RampEpochs = Annotated[int, Field(ge=1, description="epochs until the adversary is at full strength (L)")]
Curve = Annotated[Literal["cosine", "linear"], Field(description="shape of the ramp")]
Strongest = Annotated[float, Field(le=0, description="factor on the temperature's gradient at the end of the ramp")]


class GlobalTemperature(Schedule, nn.Module):
    """One trained temperature, T = lowest + span * sigmoid(theta). The student minimises the loss, theta maximises it.

    Args:
        initial: theta at the start; 1.0 is a temperature of 15.62 with the default bounds.
    """

    paper = "arXiv:2211.16231, sec. 3"

    def __init__(
        self,
        *,
        lowest: Lowest = 1.0,
        span: Span = 20.0,
        ramp_epochs: RampEpochs = 10,
        curve: Curve = "cosine",
        strongest: Strongest = -1.0,
        initial: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        self.lowest = lowest
        self.span = span
        self.ramp_epochs = ramp_epochs
        self.curve = curve
        self.strongest = strongest
        self.theta = nn.Parameter(torch.tensor([float(initial)]))

    def strength(self, clock: Clock) -> float:
        """c of the running epoch. The clock counts epochs from 0, the method from 1."""
        return _CURVES[self.curve](clock.epoch + 1, last=self.strongest, ramp_epochs=self.ramp_epochs)

    def at(self, clock: Clock, student: Signals | None = None, teachers: Sequence[Signals] = ()) -> Tensor:
        """() temperature with a graph to theta."""
        raw = reverse_gradient(self.theta, self.strength(clock))
        return bounded_temperature(raw, lowest=self.lowest, span=self.span)[0]

    def __call__(self, clock: Clock) -> float:
        """The temperature as it stands, for logs. It depends on what was learned, not on the clock."""
        return self.at(clock).item()


class InstanceTemperature(Schedule, nn.Module):
    """A temperature for each item, from a two-layer network over the probabilities of teacher and student.

    The file with the authors' network is not public: inputs, width and activation are a reconstruction (see README).
    With several teachers their mean probability is read. An alternative without a finite score has probability 0.

    Args:
        alternatives: width of the logits: the number of classes, or of candidates; narrower logits are filled with 0.
        hidden: width of the hidden layer; default: `alternatives`.
    """

    version = 2
    paper = "arXiv:2211.16231, sec. 3 (network reconstructed)"
    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits"}), teachers=(1, None))

    def __init__(
        self,
        *,
        alternatives: Annotated[int, Field(ge=2)],
        hidden: Annotated[int | None, Field(ge=1)] = None,
        lowest: Lowest = 1.0,
        span: Span = 20.0,
        ramp_epochs: RampEpochs = 10,
        curve: Curve = "cosine",
        strongest: Strongest = -1.0,
    ) -> None:
        nn.Module.__init__(self)
        self.alternatives = alternatives
        self.hidden = alternatives if hidden is None else hidden
        self.lowest = lowest
        self.span = span
        self.ramp_epochs = ramp_epochs
        self.curve = curve
        self.strongest = strongest
        self.network = nn.Sequential()

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        """Draw the network's weights."""
        self.network = nn.Sequential(
            nn.Linear(2 * self.alternatives, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1)
        )

    def strength(self, clock: Clock) -> float:
        """c of the running epoch. The clock counts epochs from 0, the method from 1."""
        return _CURVES[self.curve](clock.epoch + 1, last=self.strongest, ramp_epochs=self.ramp_epochs)

    def at(self, clock: Clock, student: Signals | None = None, teachers: Sequence[Signals] = ()) -> Tensor:
        """(Q,) temperatures with a graph to the network, none to the student's logits."""
        assert student is not None and teachers, "an instance temperature is asked for with signals"
        assert len(self.network), "the network is drawn in setup"
        device = self.network[0].weight.device
        teacher = torch.stack([self._probabilities(signals).to(device) for signals in teachers]).mean(0)
        raw = self.network(torch.cat([teacher, self._probabilities(student).to(device)], dim=-1))[:, 0]
        return bounded_temperature(reverse_gradient(raw, self.strength(clock)), lowest=self.lowest, span=self.span)

    def _probabilities(self, signals: Signals) -> Tensor:
        """(Q, alternatives), constant."""
        logits = signals["logits"].detach()
        room = self.alternatives - logits.shape[-1]
        if room < 0:
            raise ConfigError(
                f"temperature ctkd-instance: alternatives is {self.alternatives}, the logits have {logits.shape[-1]}; "
                f"set alternatives: {logits.shape[-1]}"
            )
        real = logits.isfinite() if signals.mask is None else logits.isfinite() & signals.mask
        weight: Tensor = self.network[0].weight  # type: ignore[assignment]
        probabilities = masked_log_softmax(wide(logits), real).exp()
        return nn.functional.pad(probabilities, (0, room)).to(weight.dtype)

    def __call__(self, clock: Clock) -> float:
        raise TypeError("an instance temperature is a number for each item; use at()")
