"""Contract of metrics: they distinguish good from bad outputs, independently of the sample order."""

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.model import Array
from edgeopt.plugin import Metric
from edgeopt.testing.conformance.options import check_options, demand, instance_of
from edgeopt.testing.workshop import Workshop


def check_metric(metric: Metric | type[Metric], workshop: Workshop) -> None:
    """Check that scores distinguish good from bad outputs.

    They must also be independent of the sample order and agree with the per-sample values.

    Raises:
        Nonconformance: the metric violates the contract.
    """
    instance = instance_of(metric)
    check_options(instance)
    name = type(instance).__name__
    rng = np.random.default_rng(0)
    outputs = rng.random((60, 10)).astype(np.float32)
    single = outputs[:, :1]
    targets: list[tuple[Array, Array, Array]] = [
        # Correct outputs, wrong outputs, and targets.
        (outputs, outputs[::-1].copy(), outputs.argmax(axis=1)),
        (outputs, outputs[::-1].copy(), outputs.copy()),
        (single, single[::-1].copy(), (single[:, 0] > 0.5).astype(np.int64)),
    ]
    distinguished = 0
    for correct, wrong, target in targets:
        if instance.against == "source" and target.shape != correct.shape:
            continue
        try:
            good, bad = instance.score(correct, target), instance.score(wrong, target)
        except (EdgeoptError, ValueError, TypeError, IndexError):
            continue  # not a supported target
        gain = good.value - bad.value if instance.higher_is_better else bad.value - good.value
        demand(gain >= 0, f"{name}: correct outputs score {good.value:g}, wrong ones {bad.value:g}")
        distinguished += gain > 0
        order = rng.permutation(len(correct))
        shuffled = instance.score(correct[order], target[order])
        demand(
            bool(np.isclose(shuffled.value, good.value, rtol=1e-9)),
            f"{name} depends on the order of the samples: {good.value:g}, {shuffled.value:g}",
        )
        if good.per_sample is not None:
            mean = float(np.mean(good.per_sample))
            demand(len(good.per_sample) == len(correct), f"{name} does not return one value per sample")
            demand(
                bool(np.isclose(mean, good.value, rtol=1e-6)),
                f"{name} is {good.value:g}, but the mean of its per-sample values is {mean:g}",
            )
    demand(
        distinguished > 0,
        f"{name} distinguishes correct from wrong outputs for no type of target",
    )
