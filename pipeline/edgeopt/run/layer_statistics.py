"""What is known of the layers of a float and a quantized file, once they were run side by side."""

from pydantic import BaseModel, ConfigDict, Field


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerStatistics(_Value):
    """One layer of a float and a quantized file, over all samples."""

    name: str = Field(description="of the operator, or of the tensor it gives")
    operator: str
    snr_db: float = Field(description="its output in the quantized model against the float model")
    own_snr_db: float = Field(description="the same with exact inputs: what this layer adds")
    alone_snr_db: float = Field(description="the model's output, if this layer alone were quantized")
    share: float = Field(description="of the error of the model's output, layer by layer")
    mean_error: float = Field(description="of the layer alone, in its own unit")
    bias: float = Field(description="share of its own error that is a shift of its channels' means")
    low: float | None = Field(None, description="smallest value that it can give; none if it is in float")
    high: float | None = None
    minimum: float = Field(description="smallest value of the float model")
    maximum: float
    clipped: float = Field(0.0, description="share of values beyond low and high")
    clipped_noise: float = Field(0.0, description="share of its own error that is due to them")
    outlier: float = Field(1.0, description="largest absolute value against the 99.9th percentile")
    activation_spread: float = Field(
        1.0, description="largest channel, over all samples, against the lower quartile"
    )
    weight_type: str | None = None
    weights_per_channel: bool | None = None
    weight_spread: float | None = Field(None, description="largest max |w| of a channel against the smallest")
    weight_spread_median: float | None = Field(None, description="the same against the median")
    weight_spread_quartile: float | None = Field(None, description="the same against the lower quartile")
    weight_levels: int | None = Field(None, description="steps from zero that the smallest channel has")
    weight_input_spread: float | None = Field(
        None, description="largest max |w| of an input channel against the lower quartile"
    )
    runtime_snr_db: float | None = Field(
        None, description="its integers in the runtime against the same file computed in float"
    )
    runtime_noise: float = Field(
        0.0, description="that difference against the error of quantizing, in energy"
    )
    inputs: tuple[tuple[str, float], ...] = Field(
        (), description="layers it reads, with their largest |value|"
    )


class Comparison(_Value):
    """A float and a quantized file of one model."""

    layers: tuple[LayerStatistics, ...]
    samples: int
    snr_db: float
    agreement: float | None = Field(None, description="samples with the same largest output")
    written_snr_db: float | None = Field(None, description="SNR when the file is computed in float")
    clipped_by_data: dict[str, float] = Field(
        {}, description="largest share clipped in any layer, per dataset"
    )
    unmatched: tuple[str, ...] = ()
