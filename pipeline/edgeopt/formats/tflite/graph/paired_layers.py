"""TFLite files side by side: a float one, and the same with its operators quantized.

Operators stand in the same order in both, apart from those that convert between types, so their order
tells which belong together. Every graph that is run is made from the two files: with the outputs of all
operators, or with every operator reading inputs of its own.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from edgeopt.formats.tflite.graph import layers as tflite_layers
from edgeopt.formats.tflite.graph.editing import EditedFile, EditedInterpreter, cut, whole, with_errors
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import INPUT, Each, Layer, Values, in_step


class TflitePair:
    """Both files, and the interpreters made from them on demand."""

    def __init__(self, reference: Path, quantized: Path) -> None:
        self.float_file, self.int_file = EditedFile(reference), EditedFile(quantized)
        self.names = {layer.tensor: layer.name for layer in tflite_layers.read(reference)}
        self.matched = _matched(self.float_file, self.int_file)
        inputs = zip(self.float_file.graph.inputs, self.int_file.graph.inputs, strict=True)
        self.layers = [
            Layer(self.float_file.keys[f], self.float_file.keys[f], INPUT, grid, None, (), True)
            for f, q in inputs
            if (grid := self.int_file.entry_grid(int(q))) is not None
        ]
        self.layers += [self._layer(f, q) for f, q in self.matched]
        self.output = self.float_file.keys[int(self.float_file.graph.outputs[0])]
        there = {f for f, _ in self.matched}
        self.unmatched = [
            self.float_file.keys[self.float_file.operators[i].outputs[0]]
            for i in self.float_file.computing
            if i not in there
        ]

    def _layer(self, f: int, q: int) -> Layer:
        mine, theirs = self.float_file, self.int_file
        operator = mine.operators[f]
        key = mine.keys[operator.outputs[0]]
        return Layer(
            key,
            self.names.get(key, key),
            mine.kind(operator),
            theirs.grid(theirs.operators[q].outputs[0]),
            theirs.weights(theirs.operators[q]),
            tuple(dict.fromkeys(mine.keys[operator.inputs[slot]] for slot in mine.moving(f))),
            channels_last=True,
        )

    def reference(self, inputs: Sequence[Array]) -> Values:
        values = self._run_float.run(dict(zip(self.float_file.graph.inputs, inputs, strict=True)))
        given = zip(self.float_file.graph.inputs, inputs, strict=True)
        return {self.float_file.keys[index]: value for index, value in (*values.items(), *given)}

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        if written:
            return None
        file = self.int_file
        given = zip(file.graph.inputs, inputs, strict=True)
        values = self._run_quantized.run({index: file.stored(index, value) for index, value in given})
        keys = self._keys_of_quantized
        return {keys[index]: file.real(index, value) for index, value in values.items() if index in keys}

    @cached_property
    def _keys_of_quantized(self) -> dict[int, str]:
        mine, theirs = self.float_file, self.int_file
        keys = {
            int(theirs.operators[q].outputs[0]): mine.keys[mine.operators[f].outputs[0]]
            for f, q in self.matched
        }
        # Where the graph ends in real numbers, these are what the model gives.
        last, end = int(mine.graph.outputs[0]), int(theirs.graph.outputs[0])
        if mine.keys[last] not in keys.values():
            keys[end] = mine.keys[last]
        return keys

    def each(self, values: Values) -> Each:
        sides = []
        for file, interpreter, which in (
            (self.float_file, self._cut_float, 0),
            (self.int_file, self._cut_quantized, 1),
        ):
            feeds = {}
            for pair in self.matched:
                for slot, tensor in interpreter.inputs[pair[which]].items():
                    key = self.float_file.keys[self.float_file.operators[pair[0]].inputs[slot]]
                    feeds[tensor] = file.stored(tensor, values[key], of=interpreter.model)
            found = interpreter.run(feeds)
            sides.append(
                {
                    self.float_file.keys[self.float_file.operators[pair[0]].outputs[0]]: file.real(
                        out := int(file.operators[pair[which]].outputs[0]), found[out]
                    )
                    for pair in self.matched
                }
            )
        return Each(sides[0], sides[1], None)

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Array:
        feeds = dict(zip(self.float_file.graph.inputs, inputs, strict=True))
        output = int(self.float_file.graph.outputs[0])
        return self._disturbed.run(feeds | {self._disturbed.errors[key]: error})[output]

    @cached_property
    def _run_float(self) -> "EditedInterpreter":
        return whole(self.float_file)

    @cached_property
    def _run_quantized(self) -> "EditedInterpreter":
        return whole(self.int_file)

    @cached_property
    def _cut_float(self) -> "EditedInterpreter":
        return cut(self.float_file, [f for f, _ in self.matched])

    @cached_property
    def _cut_quantized(self) -> "EditedInterpreter":
        return cut(self.int_file, [q for _, q in self.matched])

    @cached_property
    def _disturbed(self) -> "EditedInterpreter":
        return with_errors(self.float_file, [layer.key for layer in self.layers])


def _matched(one: EditedFile, other: EditedFile) -> list[tuple[int, int]]:
    """Operators of both files that do the same on tensors of the same shape."""
    kinds = [[file.kind(file.operators[i]) for i in file.computing] for file in (one, other)]
    found = []
    for a, b in in_step(*kinds):
        f, q = one.computing[a], other.computing[b]
        shapes = [
            tuple(file.graph.tensors[file.operators[i].outputs[0]].shape)
            for file, i in ((one, f), (other, q))
        ]
        if shapes[0] == shapes[1] and one.moving(f) and one.moving(f) == other.moving(q):
            found.append((f, q))
    return found
