"""One of two disjoint parts of another dataset."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
)

from edgeopt.config import registry
from edgeopt.errors import UsageError
from edgeopt.evaluation.samples import fingerprint
from edgeopt.plugin import Dataset, Sample, digest_of


def _dataset(value: object, info: ValidationInfo) -> object:
    """A dataset from ``{uses: name, with: {options}}``, as in ``data``."""
    if isinstance(value, str):
        value = {"uses": value}
    if not isinstance(value, Mapping):
        return value
    options: Any = value.get("with") or {}
    if set(value) - {"uses", "with"} or not isinstance(value.get("uses"), str):
        raise ValueError("expected a dataset: {uses: name, with: {options}}")
    try:
        kind = registry.find(Dataset, value["uses"], (info.context or {}).get("roots", ()))
        return kind.model_validate(options, context=info.context)
    except UsageError as error:
        raise ValueError(error.message) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first.get("ctx", {}).get("error", first["msg"])
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {reason}") from error


def _as_written(dataset: Dataset, info: SerializationInfo) -> dict[str, Any]:
    return {"uses": registry.plugin_name(dataset), "with": dataset.model_dump(mode=info.mode)}


class Split(Dataset):
    """Samples for calibration and for evaluation out of one dataset, of which no sample is in both.

    A sample's content decides its part, so identical samples are in the same one, and adding samples moves
    no others. Neither depends on the order, which is that of the dataset.
    """

    of: Annotated[Dataset, BeforeValidator(_dataset), PlainSerializer(_as_written)] = Field(
        description="the dataset: {uses: name, with: {options}}"
    )
    part: Literal["calibration", "evaluation"] = Field(description="which of the two parts")
    share: float = Field(0.2, gt=0, lt=1, description="fraction of the samples that are for calibration")
    limit: int | None = Field(None, gt=0, description="read only the first samples of the part")

    @property
    def inner(self) -> Dataset:
        """The dataset that messages name."""
        return self.of

    @property
    def depth(self) -> int:
        """How many datasets inside this one are parts as well."""
        depth, inside = 0, self.of
        while (further := getattr(inside, "inner", None)) is not None:
            depth += isinstance(inside, Split)
            inside = further
        return depth

    def samples(self) -> Iterator[Sample]:
        threshold, depth = math.floor(self.share * 2**64), self.depth
        wanted = self.part == "calibration"
        return islice(
            (sample for sample in self.of.samples() if (_number(sample, depth) < threshold) == wanted),
            self.limit,
        )

    def digest(self) -> str:
        parts = ["split", self.of.digest(), self.part, self.share, self.limit]
        return digest_of([*parts, self.depth] if self.depth else parts)


def _number(sample: Sample, depth: int) -> int:
    """What decides the part of a sample, uniform below 2**64.

    It differs by depth: by the same number, a part of a part would be all of it, or nothing.
    """
    number = fingerprint(sample.inputs)
    return int(digest_of([number, depth])[:16], 16) if depth else number
