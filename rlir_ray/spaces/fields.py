"""Fields of an action space: one of several alternatives, or a number and its quantiser. Numpy only."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, FiniteFloat, PositiveFloat
from pydantic.dataclasses import dataclass as pydantic_dataclass

STRICT = ConfigDict(extra="forbid")


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Quantise a range in bins of equal width.

    Example: with 3 bins a range from -1 to 1 has the centres -2/3, 0 and 2/3.
    """

    num_bins: Annotated[int, Field(ge=2)]
    kind: Literal["uniform"] = "uniform"

    def bins(self, values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.int64]:
        share = (values - low) / (high - low)
        return np.clip(np.floor(share * self.num_bins), 0, self.num_bins - 1).astype(np.int64)

    def centres(self, bins: npt.NDArray[np.int64], low: float, high: float) -> npt.NDArray[np.float64]:
        return low + (bins + 0.5) * (high - low) / self.num_bins


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class MuLaw:
    """Quantise a range in bins that are finer around its middle, as VPT, MineWorld and Oasis quantise the camera.

    The first and the last bin have their centres at the ends of the range.
    """

    num_bins: Annotated[int, Field(ge=3)]
    """Odd: the middle bin stands for no movement."""
    mu: PositiveFloat
    """Strength of the companding; larger gives finer bins around the middle."""
    kind: Literal["mu_law"] = "mu_law"

    def __post_init__(self) -> None:
        if self.num_bins % 2 == 0:
            raise ValueError(f"num_bins must be odd for mu_law, got {self.num_bins}; give {self.num_bins + 1}")

    def bins(self, values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.int64]:
        half, middle = (high - low) / 2, (high + low) / 2
        offset = np.clip(values - middle, -half, half)
        companded = np.sign(offset) * (np.log1p(self.mu * np.abs(offset) / half) / np.log1p(self.mu)) * half
        return np.asarray(np.round((companded + half) / (2 * half / (self.num_bins - 1))), np.int64)

    def centres(self, bins: npt.NDArray[np.int64], low: float, high: float) -> npt.NDArray[np.float64]:
        half, middle = (high - low) / 2, (high + low) / 2
        companded = bins * (2 * half / (self.num_bins - 1)) - half
        share = np.abs(companded) / half
        return np.asarray(middle + np.sign(companded) * ((1 + self.mu) ** share - 1) * half / self.mu)


Quantizer = Annotated[Uniform | MuLaw, Field(discriminator="kind")]


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class Choice:
    """One of several alternatives a frame.

    Example: ``Choice(name="forward", classes=("released", "pressed"))``.
    """

    name: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the alternatives; a value is an index into them."""
    null_class: int | None = 0
    """The alternative that does nothing; None: every alternative acts."""
    is_mirrored: bool = False
    """Whether a mirrored picture shows the acting alternatives in reverse order, as left and right."""
    kind: Literal["choice"] = "choice"

    def __post_init__(self) -> None:
        if self.null_class is not None and not 0 <= self.null_class < len(self.classes):
            raise ValueError(
                f"null_class of {self.name} must be below its {len(self.classes)} classes, got {self.null_class}; "
                "give the index of the class that does nothing, or null"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def bins(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the classes of values; a value of a choice is its class."""
        return np.asarray(values).astype(np.int64)

    @property
    def is_graded(self) -> bool:
        """Whether an error has a size; two different classes are just different."""
        return False

    def centres(self, bins: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the values of classes."""
        return np.asarray(bins, np.float64)

    def mirrored(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the classes that a horizontally mirrored picture shows."""
        if not self.is_mirrored:
            return bins
        acting = [number for number in range(self.num_classes) if number != self.null_class]
        table = np.arange(self.num_classes)
        table[acting] = acting[::-1]
        return table[bins]

    def words(self, value: float) -> str:
        """Return a value for a person."""
        return self.classes[int(value)]


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class Axis:
    """A number a frame; its classes are the bins of its quantiser.

    Example: ``Axis(name="yaw", low=-10, high=10, unit="degrees", quantizer=MuLaw(num_bins=11, mu=10))``.
    """

    name: str
    low: FiniteFloat
    high: FiniteFloat
    quantizer: Quantizer
    unit: str = ""
    is_clipped: bool = False
    """Whether values outside the range are legal: their class is that of the nearest end. Otherwise an error."""
    direction: Literal["none", "right", "down"] = "none"
    """Direction in the picture in which a positive value moves things."""
    kind: Literal["axis"] = "axis"

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low of {self.name} must be below its high={self.high:g}, got {self.low:g}; swap them")

    @property
    def num_classes(self) -> int:
        return self.quantizer.num_bins

    @property
    def is_graded(self) -> bool:
        """Whether figures measure the size of an error; bins of a mu-law count as classes, as VPT counts them."""
        return isinstance(self.quantizer, Uniform)

    @property
    def null_class(self) -> int | None:
        """The bin of zero; None: zero is outside the range."""
        return int(self.bins(0.0)) if self.low <= 0 <= self.high else None

    def bins(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the bins of values of any shape."""
        return self.quantizer.bins(np.asarray(values, np.float64), self.low, self.high)

    def centres(self, bins: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the centres of bins of any shape."""
        return self.quantizer.centres(np.asarray(bins, np.int64), self.low, self.high)

    @property
    def is_mirrored(self) -> bool:
        """Whether a mirrored picture shows the opposite bin."""
        return self.direction == "right"

    def mirrored(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the bins that a horizontally mirrored picture shows."""
        return self.num_classes - 1 - bins if self.is_mirrored else bins

    def words(self, value: float) -> str:
        """Return a value for a person."""
        return f"{value:+.3g} {self.unit}".rstrip()


ActionField = Annotated[Choice | Axis, Field(discriminator="kind")]
