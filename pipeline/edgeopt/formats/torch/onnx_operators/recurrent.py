"""Recurrent layers, whose gates ONNX and PyTorch order differently."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.onnx_operators.table import Unsupported, operator

if TYPE_CHECKING:
    from torch import Tensor

USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Places of PyTorch's gates among those of ONNX: i, f, g, o among i, o, f, c; r, z, n among z, r, h."""


def _check(
    kind: str,
    x: "Tensor",
    lengths: Any,
    activations: list[str] | None,
    clip: float | None,
    others: tuple[Any, ...],
) -> None:
    usual = USUAL[kind]
    if activations and [name.lower() for name in activations] != [name.lower() for name in usual] * (
        len(activations) // len(usual)
    ):
        raise Unsupported(f"activations other than {', '.join(usual)} are not carried")
    if clip is not None or any(each is not None and each != 0 for each in others):
        raise Unsupported("clip, peepholes and coupled gates are not carried")
    if lengths is not None and not (isinstance(lengths, np.ndarray) and (lengths == x.shape[0]).all()):
        raise Unsupported("sequences of several lengths are not carried")


def _weights(kind: str, w: "Tensor", r: "Tensor", b: "Tensor | None", direction: int) -> "list[Tensor]":
    """Input weights, recurrent weights and biases of one direction, as PyTorch orders them."""
    import torch

    def reorder(value: "Tensor") -> "Tensor":
        parts = value.chunk(len(ORDER[kind]))
        return torch.cat([parts[place] for place in ORDER[kind]]) if len(parts) > 1 else value

    weights = [reorder(w[direction]), reorder(r[direction])]
    if b is not None:
        weights += [reorder(half) for half in b[direction].chunk(2)]
    return weights


def _run(
    kind: str,
    compute: "Callable[[Tensor, list[Tensor], list[Tensor], bool, bool], tuple[Tensor, ...]]",
    x: "Tensor",
    w: "Tensor",
    r: "Tensor",
    b: "Tensor | None",
    states: "list[Tensor | None]",
    direction: str,
    layout: int,
) -> "tuple[Tensor, ...]":
    """All directions of a layer: Y ``[steps, directions, batch, hidden]``, and the last states."""
    import torch

    x = x.transpose(0, 1) if layout else x
    directions, hidden = w.shape[0], r.shape[-1]
    given = [state.transpose(0, 1) if state is not None and layout else state for state in states]
    first = [x.new_zeros(directions, x.shape[1], hidden) if state is None else state for state in given]
    weights = [each for at in range(directions) for each in _weights(kind, w, r, b, at)]
    sequence = torch.flip(x, [0]) if direction == "reverse" else x
    y, *last = compute(sequence, first, weights, b is not None, directions == 2)
    y = torch.flip(y, [0]) if direction == "reverse" else y
    steps, batch = x.shape[:2]
    y = y.reshape(steps, batch, directions, hidden)
    if layout:
        return (y.transpose(0, 1), *(state.transpose(0, 1) for state in last))
    return (y.transpose(1, 2), *last)


@operator("LSTM", maybe=(4,))
def lstm(
    x: "Tensor",
    w: "Tensor",
    r: "Tensor",
    b: "Tensor | None" = None,
    sequence_lens: Any = None,
    initial_h: "Tensor | None" = None,
    initial_c: "Tensor | None" = None,
    peepholes: "Tensor | None" = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
) -> "tuple[Tensor, ...]":
    import torch

    # Peepholes of zeros have no effect; some exporters write them.
    peeping = peepholes is not None and bool((peepholes != 0).any())
    _check("LSTM", x, sequence_lens, activations, clip, (input_forget, int(peeping)))

    def compute(x: "Tensor", states: Any, weights: Any, biased: bool, both: bool) -> "tuple[Tensor, ...]":
        return torch.lstm(x, states, weights, biased, 1, 0.0, False, both, False)  # type: ignore[no-any-return]

    return _run("LSTM", compute, x, w, r, b, [initial_h, initial_c], direction, layout)


@operator("GRU", maybe=(4,))
def gru(
    x: "Tensor",
    w: "Tensor",
    r: "Tensor",
    b: "Tensor | None" = None,
    sequence_lens: Any = None,
    initial_h: "Tensor | None" = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> "tuple[Tensor, ...]":
    import torch

    _check("GRU", x, sequence_lens, activations, clip, ())

    def compute(x: "Tensor", states: Any, weights: Any, biased: bool, both: bool) -> "tuple[Tensor, ...]":
        if linear_before_reset:
            return torch.gru(x, states[0], weights, biased, 1, 0.0, False, both, False)  # type: ignore[no-any-return]
        return _reset_first(x, states[0], weights, biased, both)

    return _run("GRU", compute, x, w, r, b, [initial_h], direction, layout)


def _reset_first(
    x: "Tensor", state: "Tensor", weights: "list[Tensor]", biased: bool, both: bool
) -> "tuple[Tensor, ...]":
    """A GRU whose reset gate applies before the product, which PyTorch lacks: unrolled."""
    import torch

    each = 4 if biased else 2
    results, last = [], []
    for direction in range(1 + both):
        w, r, *biases = weights[direction * each : direction * each + each]
        wb, rb = biases if biases else (None, None)
        size = r.shape[-1]
        h = state[direction]
        sequence = torch.flip(x, [0]) if direction else x
        outputs = []
        from_input = torch.nn.functional.linear(sequence, w, wb)
        for step in range(x.shape[0]):
            gates = torch.nn.functional.linear(h, r[: 2 * size], None if rb is None else rb[: 2 * size])
            reset, update = torch.sigmoid(from_input[step][:, : 2 * size] + gates).chunk(2, -1)
            new = torch.nn.functional.linear(reset * h, r[2 * size :], None if rb is None else rb[2 * size :])
            new = torch.tanh(from_input[step][:, 2 * size :] + new)
            h = new + update * (h - new)
            outputs.append(h)
        stacked = torch.stack(outputs)
        results.append(torch.flip(stacked, [0]) if direction else stacked)
        last.append(h)
    return torch.cat(results, -1), torch.stack(last)


@operator("RNN", maybe=(4,))
def rnn(
    x: "Tensor",
    w: "Tensor",
    r: "Tensor",
    b: "Tensor | None" = None,
    sequence_lens: Any = None,
    initial_h: "Tensor | None" = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
) -> "tuple[Tensor, ...]":
    import torch

    relu = bool(activations) and {name.lower() for name in activations or ()} == {"relu"}
    _check("RNN", x, sequence_lens, None if relu else activations, clip, ())

    def compute(x: "Tensor", states: Any, weights: Any, biased: bool, both: bool) -> "tuple[Tensor, ...]":
        run = torch.rnn_relu if relu else torch.rnn_tanh
        return run(x, states[0], weights, biased, 1, 0.0, False, both, False)  # type: ignore[no-any-return]

    return _run("RNN", compute, x, w, r, b, [initial_h], direction, layout)
