"""Distillation into a TFLite file: single training steps, with the complete state in files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.output_scales import ScaledOutputs
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile
from edgeopt.formats.tflite.files.weight_coding import layers_of
from edgeopt.formats.tflite.graph.scores import before_sharp
from edgeopt.formats.tflite.train.codes import Codes, with_codes
from edgeopt.formats.tflite.train.simulation import Simulation

if TYPE_CHECKING:
    import torch

Outputs: TypeAlias = NDArray[np.float32]
Network: TypeAlias = "Callable[[list[torch.Tensor]], list[torch.Tensor]]"
"""Outputs of a network for a batch of inputs, in the layout of the file."""

OF_BIAS = 2.0
"""Learning rate of biases, in steps of an output, relative to that of weights, in steps of a weight."""


def network_of(file: TfliteFile) -> Network:
    """The network in a file, without the activations that its class scores end in.

    Raises:
        StageError: an operator of the file is not simulated.
    """
    return _network(Simulation(graphs_of(file)[0], file.name))


def _network(simulation: Simulation, replaced: "Callable[[], Mapping[int, torch.Tensor]]" = dict) -> Network:
    outputs = [before_sharp(simulation.graph, tensor).number for tensor in simulation.graph.outputs]
    return lambda inputs: simulation.run(inputs, outputs, replaced())


class CodeLearner:
    """The weights of a file as the student, with the interface of ``edgeopt.stages._training_loop``.

    The optimizer is Adam: gradients of layers differ by orders of magnitude, and so do their steps. It moves
    a weight with a clear gradient to its next value; with a high rate, noise would move all of them.

    Args:
        file: with int8 weights and activations.
        teacher: the network to imitate.
        temperature: divisor of the logits in the loss.
        squared_error: the loss is the mean squared error of the outputs, instead of the KL divergence of the
            classes.

    Raises:
        StageError: an operator of the file is not simulated, or no layer has int8 weights.
    """

    def __init__(
        self, file: TfliteFile, teacher: Network, *, temperature: float, squared_error: bool
    ) -> None:
        import torch

        self.file, self._teacher = file, teacher
        self.temperature, self.squared_error = temperature, squared_error
        graph = graphs_of(file)[0]
        self.codes = [Codes(graph, layer) for layer in layers_of(graph)]
        if not self.codes:
            raise StageError(
                "the file has no layer with int8 weights and activations",
                fix="add 'quantize: int8' to the variant",
            )
        self._before = [each.values for each in self.codes]
        self._student = _network(Simulation(graph, file.name), self._constants)
        biases = [each.bias for each in self.codes if each.bias is not None]
        self._rates = (1.0, OF_BIAS)
        groups = [{"params": [each.weights for each in self.codes]}, {"params": biases}]
        self._optimizer = torch.optim.Adam(groups, lr=0.0)
        self._logs: dict[bool, bool] = {}
        self._scaled = ScaledOutputs()

    @property
    def changed(self) -> float:
        """The fraction of the weights that differ from those of the file."""
        pairs = zip(self.codes, self._before, strict=True)
        differing = sum(int((each.values != before).sum()) for each, before in pairs)
        count: int = sum(before.numel() for before in self._before)
        return differing / count

    def content(self) -> bytes:
        """The file with the present weights."""
        return with_codes(self.file, self.codes)

    def begin(self, epoch: int) -> bool:
        """Every epoch may become the result."""
        return True

    def step(self, inputs: Sequence[NDArray[Any]], target: Outputs, rate: float) -> float:
        """Train on one batch and return the loss.

        Args:
            inputs: arrays with the batch axis first.
            target: outputs or probabilities, see ``squared_error``.
            rate: learning rate, in steps of the weights.
        """
        import torch

        for group, factor in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        scores, expected = self._scores(inputs, of_student=True), torch.from_numpy(target)
        if self.squared_error:
            loss = torch.nn.functional.mse_loss(scores, expected)
        else:
            predicted = torch.nn.functional.log_softmax(scores / self.temperature, dim=1)
            # Times T^2, so that the size of the gradients does not depend on the temperature (Hinton et al.
            # 2015, arXiv:1503.02531).
            loss = torch.nn.functional.kl_div(predicted, expected, reduction="batchmean")
            loss = loss * self.temperature**2
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def outputs(self, inputs: Sequence[NDArray[Any]]) -> Outputs:
        """The outputs of the file; several are scaled and concatenated."""
        return self._numbers(inputs, of_student=True)

    def teacher(self, inputs: Sequence[NDArray[Any]]) -> Outputs:
        """The outputs of the network to imitate, in the same form."""
        return self._numbers(inputs, of_student=False)

    def save(self, folder: Path) -> None:
        """Write the complete training state to ``state.pt``."""
        import torch

        weights = [parameter.data for each in self.codes for parameter in each.parameters]
        torch.save({"weights": weights, "optimizer": self._optimizer.state_dict()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Restore the state that ``save`` wrote."""
        import torch

        state = torch.load(folder / "state.pt", weights_only=True)
        parameters = [parameter for each in self.codes for parameter in each.parameters]
        for parameter, saved in zip(parameters, state["weights"], strict=True):
            parameter.data.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])

    def _constants(self) -> "dict[int, torch.Tensor]":
        return {number: value for each in self.codes for number, value in each.constants().items()}

    def _numbers(self, inputs: Sequence[NDArray[Any]], *, of_student: bool) -> Outputs:
        import torch

        with torch.no_grad():
            return np.asarray(self._scores(inputs, of_student=of_student).numpy(), np.float32)

    def _scores(self, inputs: Sequence[NDArray[Any]], *, of_student: bool) -> "torch.Tensor":
        """The outputs of one of the networks as one tensor, with logarithms instead of probabilities."""
        import torch

        network = self._student if of_student else self._teacher
        values = network([torch.from_numpy(np.ascontiguousarray(each)) for each in inputs])
        if self.squared_error:
            return self._scaled(values)
        if len(values) > 1:
            raise StageError(
                f"loss: kl teaches one output of class scores, and the model has {len(values)} outputs",
                fix="set loss: mse in distill, which teaches every output",
            )
        (scores,) = values
        if scores.ndim != 2:
            return scores
        if of_student not in self._logs:
            # Decided once: a later batch that happens to look different must not change the loss.
            first = scores.detach()
            sums = bool(((first.sum(dim=1) - 1).abs() < 1e-3).all())
            self._logs[of_student] = bool((first >= 0).all()) and sums
        return scores.clamp_min(1e-7).log() if self._logs[of_student] else scores
