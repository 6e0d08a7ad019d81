"""Options that all architectures have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mtlkit.settings import Settings, Sizes, without_unused

DEFAULT_TOWER: Sizes = (16,)
OF_NUMBERS = {"piecewise": ("number_bins",), "periodic": ("frequencies", "frequency_std")}
"""Choice of ``numbers`` to the options that it reads."""


class BaseOptions(Settings):
    """Options that every architecture has."""

    embedding: int = Field(8, gt=0, description="width of the embedding of each id and bag feature")
    embedding_dims: dict[str, int] = Field(
        default_factory=dict, description="feature: its own embedding width"
    )
    embedding_std: float = Field(
        0.05, ge=0, description="standard deviation of the initial embeddings"
    )
    init: Literal["uniform", "xavier"] = Field(
        "uniform",
        description="initial linear layers: uniform in +-1/sqrt(inputs) as torch.nn.Linear, or "
        "Glorot normal with zero biases",
    )
    numbers: Literal["value", "vector", "piecewise", "periodic"] = Field(
        "value",
        description="dense features: appended as they are; or a vector of the embedding's width "
        "each: a learnt one times the value, or a layer on the value's place among bins, or on "
        "sines and cosines of it (arXiv:2203.05556)",
    )
    number_bins: int = Field(
        32, gt=0, le=256, description="most bins of a number, for numbers=piecewise"
    )
    frequencies: int = Field(
        16, gt=0, le=256, description="sines, and as many cosines, for numbers=periodic"
    )
    frequency_std: float = Field(
        0.1, gt=0, description="standard deviation of the initial frequencies"
    )
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = Field(
        0.0, ge=0, lt=1, description="after each hidden layer of experts, bottoms and towers"
    )
    tower: Sizes | dict[str, Sizes] = Field(
        DEFAULT_TOWER, description="hidden layers of the towers, for all or by task"
    )

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what ``numbers`` does not read, unless it was set: keys of old runs stay."""
        unused = [
            option
            for choice, options in OF_NUMBERS.items()
            for option in options
            if choice != self.numbers
        ]
        return without_unused(self, dump(self), unused)


class ModelOptions(BaseOptions):
    """Options of the architectures that train the steps of a funnel by the option ``cvr``."""

    def has_default(self, option: str) -> bool:
        """Whether an option is what the architecture takes where the user says nothing."""
        return bool(getattr(self, option) == type(self).model_fields[option].default)

    cvr: Literal["derived", "clicked"] = Field(
        "derived",
        description="later steps of a funnel: derived: trained on all rows as CTCVR, from which "
        "CVR is derived; clicked: trained as CVR on the rows that took the step before",
    )
