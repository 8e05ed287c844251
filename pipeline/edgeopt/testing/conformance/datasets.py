"""Contract of datasets: reproducible samples and digest."""

from itertools import islice
from typing import Any, cast

import numpy as np

from edgeopt.plugin import Dataset
from edgeopt.run.executors.executor import Say
from edgeopt.testing.conformance.options import check_options, demand, instance_of
from edgeopt.testing.workshop import Workshop

SAMPLES = 50
"""Number of samples to check."""


def check_dataset(dataset: Dataset | type[Dataset], workshop: Workshop) -> None:
    """Check that every pass yields the same samples, all of one type.

    The digest must be the same in another process.

    Raises:
        Nonconformance: the dataset violates the contract.
    """
    data = instance_of(dataset)
    check_options(data)
    name = type(data).__name__
    samples, again = list(islice(data.samples(), SAMPLES)), list(islice(data.samples(), SAMPLES))
    demand(bool(samples), f"{name} has no samples")
    demand(len(samples) == len(again), f"{name} yields a different number of samples on the second pass")
    for index, (one, other) in enumerate(zip(samples, again, strict=True)):
        demand(
            all(map(_same, (*one.inputs, one.label), (*other.inputs, other.label))),
            f"{name}: sample {index} differs on the second pass",
        )
        demand(
            all(isinstance(value, np.ndarray) for value in one.inputs),
            f"{name}: sample {index} has inputs that are not arrays",
        )
        demand(
            len(one.inputs) == len(samples[0].inputs)
            and sorted(one.names) == sorted(samples[0].names)
            and type(one.label) is type(samples[0].label),
            f"{name}: sample {index} differs from the first in its inputs or its label type",
        )
    digest = data.digest()
    demand(len(digest) == 64 and int(digest, 16) >= 0, f"{name}: its digest is not a sha256")
    elsewhere = workshop.call(_digest_of, (data,), "plain", 1)
    demand(digest == elsewhere, f"{name} has a different digest in another process")


def _digest_of(say: Say, dataset: Dataset) -> str:
    return dataset.digest()


def _same(one: object, other: object) -> bool:
    return one is other or bool(np.array_equal(cast(Any, one), cast(Any, other)))
