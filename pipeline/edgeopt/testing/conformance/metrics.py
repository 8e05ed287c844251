"""Metrics: they tell good outputs from bad ones, whatever the order of the samples."""

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.model import Array
from edgeopt.plugin import Metric
from edgeopt.testing.conformance.options import check_options, demand, instance_of
from edgeopt.testing.workshop import Workshop


def check_metric(metric: Metric | type[Metric], workshop: Workshop) -> None:
    """Scores do not depend on the order of the samples, agree with those per sample, and tell good from bad.

    Raises:
        Nonconformance: it does not keep to this.
    """
    given = instance_of(metric)
    check_options(given)
    name = type(given).__name__
    chance = np.random.default_rng(0)
    outputs = chance.random((60, 10)).astype(np.float32)
    single = outputs[:, :1]
    targets: list[tuple[Array, Array, Array]] = [
        # Outputs that are right, outputs that are not, and what is right.
        (outputs, outputs[::-1].copy(), outputs.argmax(axis=1)),
        (outputs, outputs[::-1].copy(), outputs.copy()),
        (single, single[::-1].copy(), (single[:, 0] > 0.5).astype(np.int64)),
    ]
    told_apart = 0
    for right, wrong, target in targets:
        if given.against == "source" and target.shape != right.shape:
            continue
        try:
            good, bad = given.score(right, target), given.score(wrong, target)
        except (EdgeoptError, ValueError, TypeError, IndexError):
            continue  # these are not what it judges
        gain = good.value - bad.value if given.higher_is_better else bad.value - good.value
        demand(gain >= 0, f"{name}: right outputs score {good.value:g}, wrong ones {bad.value:g}")
        told_apart += gain > 0
        order = chance.permutation(len(right))
        moved = given.score(right[order], target[order])
        demand(
            bool(np.isclose(moved.value, good.value, rtol=1e-9)),
            f"{name} depends on the order of the samples: {good.value:g}, {moved.value:g}",
        )
        if good.per_sample is not None:
            mean = float(np.mean(good.per_sample))
            demand(len(good.per_sample) == len(right), f"{name} does not have one value per sample")
            demand(
                bool(np.isclose(mean, good.value, rtol=1e-6)),
                f"{name} is {good.value:g}, and the mean of its values per sample is {mean:g}",
            )
    demand(
        told_apart > 0,
        f"{name} tells right from wrong neither by classes, nor by scores, nor by arrays",
    )
