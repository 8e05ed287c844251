"""Keras' LSTM and GRU layers as recurrent operators of torch, instead of a loop that an export unrolls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def recurrent_operators() -> Iterator[None]:
    """Within this context, Keras' torch backend calls ``aten.lstm`` and ``aten.gru``.

    Layers that these cannot compute keep Keras' loop: those with a mask, other activations than tanh and
    sigmoid, or ``reset_after=False``.
    """
    from keras.src import backend

    before = backend.lstm, backend.gru
    backend.lstm, backend.gru = _lstm, _gru
    try:
        yield
    finally:
        backend.lstm, backend.gru = before


def _lstm(
    inputs: Any,
    initial_state_h: Any,
    initial_state_c: Any,
    mask: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    activation: Any,
    recurrent_activation: Any,
    return_sequences: bool = False,
    go_backwards: bool = False,
    unroll: bool = False,
    **_: Any,
) -> tuple[Any, Any, list[Any]]:
    import torch

    _require_usual(mask, activation, recurrent_activation)
    x, hidden, cell, w_x, w_h, b_x = map(
        _tensor, (inputs, initial_state_h, initial_state_c, kernel, recurrent_kernel, bias)
    )
    weights = [w_x.T.contiguous(), w_h.T.contiguous(), *([] if b_x is None else [b_x, torch.zeros_like(b_x)])]
    x = torch.flip(x, [1]) if go_backwards else x
    states = hidden[None], cell[None]
    found, h, c = torch.ops.aten.lstm.input(x, states, weights, b_x is not None, 1, 0.0, False, False, True)
    return h[0], found if return_sequences else h.transpose(0, 1), [h[0], c[0]]


def _gru(
    inputs: Any,
    initial_state: Any,
    mask: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    activation: Any,
    recurrent_activation: Any,
    return_sequences: bool = False,
    go_backwards: bool = False,
    unroll: bool = False,
    reset_after: bool = True,
) -> tuple[Any, Any, list[Any]]:
    import torch

    _require_usual(mask, activation, recurrent_activation)
    if not reset_after:
        raise NotImplementedError
    x, hidden, w_x, w_h, biases = map(_tensor, (inputs, initial_state, kernel, recurrent_kernel, bias))

    def ordered(values: "torch.Tensor") -> "torch.Tensor":
        """Gates in the order of torch, reset first, along the last axis."""
        size = values.shape[-1] // 3
        return torch.cat([values[..., size : 2 * size], values[..., :size], values[..., 2 * size :]], -1)

    weights = [ordered(w_x).T.contiguous(), ordered(w_h).T.contiguous()]
    weights += [] if biases is None else [ordered(biases)[0], ordered(biases)[1]]
    x = torch.flip(x, [1]) if go_backwards else x
    found, h = torch.ops.aten.gru.input(
        x, hidden[None], weights, biases is not None, 1, 0.0, False, False, True
    )
    return h[0], found if return_sequences else h.transpose(0, 1), [h[0]]


def _tensor(value: Any) -> Any:
    from keras.src import backend

    return None if value is None else backend.convert_to_tensor(value)


def _require_usual(
    mask: Any, activation: Callable[..., Any], recurrent_activation: Callable[..., Any]
) -> None:
    """Raise the error after which Keras takes its own loop, unless torch's operators compute the same."""
    from keras import activations

    if (
        mask is not None
        or activation is not activations.tanh
        or recurrent_activation is not activations.sigmoid
    ):
        raise NotImplementedError
