"""Inputs without data: samples with the statistics of the batch norms of a Keras model, on TensorFlow."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeopt.formats.synthesis import NoNormsError, best_scale, chunks, rate_at
from edgeopt.model import Array
from edgeopt.plugin.synthesis import Start


def synthesize(
    network: Any, starts: Sequence[Start], steps: int, progress: Callable[[float], None]
) -> list[Array]:
    """Change samples until the inputs of every batch norm have the mean and deviation that it recorded.

    Args:
        network: a model of Keras 3 or tf_keras, of any form.
        starts: the samples of each input to begin with.
        steps: of gradient descent.
        progress: called with the loss of every step.

    Raises:
        StageError: the model has no batch norm that ran with these inputs.
    """
    losses: list[Any] = []
    norms = [layer for layer in network._flatten_layers() if type(layer).__name__ == "BatchNormalization"]
    calls = [norm.call for norm in norms]
    for norm, call in zip(norms, calls, strict=True):
        norm.call = _comparing(norm, call, losses)
    try:
        parts = [_matched(network, part, losses, steps, progress) for part in chunks(starts)]
    finally:
        for norm, call in zip(norms, calls, strict=True):
            norm.call = call
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _comparing(norm: Any, call: Callable[..., Any], losses: list[Any]) -> Callable[..., Any]:
    """The call of a batch norm that also compares what it receives with what it recorded."""
    import tensorflow as tf

    def compare(inputs: Any, *arguments: Any, **options: Any) -> Any:
        axis = (norm.axis[0] if isinstance(norm.axis, list | tuple) else norm.axis) % len(inputs.shape)
        mean, variance = tf.nn.moments(inputs, [each for each in range(len(inputs.shape)) if each != axis])
        known = tf.convert_to_tensor(norm.moving_variance)
        deviation = tf.sqrt(variance + 1e-12)
        scale = known + norm.epsilon
        losses.append(tf.reduce_mean(tf.square(mean - tf.convert_to_tensor(norm.moving_mean)) / scale))
        losses.append(tf.reduce_mean(tf.square(deviation - tf.sqrt(known)) / scale))
        return call(inputs, *arguments, **options)

    return compare


def _matched(
    network: Any,
    starts: Sequence[Start],
    losses: list[Any],
    steps: int,
    progress: Callable[[float], None],
) -> list[Array]:
    """One batch of samples, after gradient descent with Adam (Kingma and Ba 2015, arXiv:1412.6980)."""
    import tensorflow as tf

    def loss_of(given: Sequence[Any]) -> Any:
        losses.clear()
        network(given[0] if len(given) == 1 else list(given), training=False)
        if not losses:
            raise NoNormsError
        return tf.add_n(losses) / len(losses)

    compiled = tf.function(loss_of)
    scale = best_scale(starts, lambda each: float(compiled([tf.convert_to_tensor(one) for one in each])))
    inputs = [tf.Variable(each.at(scale)) for each in starts]
    free = [(value, each) for value, each in zip(inputs, starts, strict=True) if each.changes]
    moments = [tuple(tf.Variable(tf.zeros_like(value)) for _ in range(2)) for value, _ in free]

    @tf.function  # type: ignore[untyped-decorator]
    def descend(rate: Any, step: Any) -> Any:
        values = [value for value, _ in free]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = loss_of([tf.convert_to_tensor(each) for each in inputs])
        slopes = tape.gradient(loss, values, unconnected_gradients="zero")
        for (value, start), slope, (first, second) in zip(free, slopes, moments, strict=True):
            first.assign(0.9 * first + 0.1 * slope)
            second.assign(0.999 * second + 0.001 * slope * slope)
            spread = tf.sqrt(second / (1 - tf.pow(0.999, step))) + 1e-8
            moved = value - start.step(scale) * rate * first / (1 - tf.pow(0.9, step)) / spread
            value.assign(moved if start.low is None else tf.clip_by_value(moved, start.low, start.high))
        return loss

    for step in range(steps):
        loss = descend(tf.constant(rate_at(step, steps)), tf.constant(step + 1.0))
        progress(float(loss))
    return [each.numpy() for each in inputs]
