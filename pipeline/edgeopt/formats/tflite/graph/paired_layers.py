"""Layer-by-layer comparison of a float TFLite file with its quantized version.

Apart from conversions between types, both files have the same operators in the same order, so the order
identifies corresponding operators. All graphs that are run are derived from the two files: with the outputs
of all operators, or with every operator reading inputs of its own.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from edgeopt.formats.tflite.graph import naming
from edgeopt.formats.tflite.graph.editing import EditedFile, EditedInterpreter, cut, whole, with_errors
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import INPUT, Each, Layer, Values, in_step


class TflitePair:
    """Both files, and the interpreters derived from them on demand."""

    def __init__(self, reference: Path, quantized: Path) -> None:
        self.float_file, self.int_file = EditedFile(reference), EditedFile(quantized)
        names = naming.operator_names(reference)
        outputs = [self.float_file.keys[operator.outputs[0]] for operator in self.float_file.operators]
        self.names: dict[str, str] = dict(zip(outputs, names, strict=False))
        self.matched = _matched(self.float_file, self.int_file)
        inputs = zip(self.float_file.graph.inputs, self.int_file.graph.inputs, strict=True)
        self.layers = [
            Layer(self.float_file.keys[f], self.float_file.keys[f], INPUT, grid, None, (), True)
            for f, q in inputs
            if (grid := self.int_file.entry_grid(int(q))) is not None
        ]
        self.layers += [self._layer(f, q) for f, q in self.matched]
        self.outputs = [self.float_file.keys[int(index)] for index in self.float_file.graph.outputs]
        matched = {f for f, _ in self.matched}
        self.unmatched = [
            self._name(self.float_file.keys[self.float_file.operators[i].outputs[0]])
            for i in self.float_file.computing
            if i not in matched
        ]

    def _layer(self, f: int, q: int) -> Layer:
        mine, theirs = self.float_file, self.int_file
        operator = mine.operators[f]
        key = mine.keys[operator.outputs[0]]
        return Layer(
            key,
            self._name(key),
            mine.kind(operator),
            theirs.grid(theirs.operators[q].outputs[0]),
            theirs.weights(theirs.operators[q]),
            tuple(dict.fromkeys(mine.keys[operator.inputs[slot]] for slot in mine.variable_inputs(f))),
            channels_last=True,
        )

    def _name(self, key: str) -> str:
        return self.names.get(key, key)

    def reference(self, inputs: Sequence[Array]) -> Values:
        values = self._run_float.run(dict(zip(self.float_file.graph.inputs, inputs, strict=True)))
        given = zip(self.float_file.graph.inputs, inputs, strict=True)
        return {self.float_file.keys[index]: value for index, value in (*values.items(), *given)}

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        if written:
            return None  # the file has integer operators, not QDQ pairs that could run in float
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
        # If the graph ends in a DEQUANTIZE, which has no counterpart, compare the final float output.
        for last, end in zip(mine.graph.outputs, theirs.graph.outputs, strict=True):
            if mine.keys[int(last)] not in keys.values():
                keys[int(end)] = mine.keys[int(last)]
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
            results = interpreter.run(feeds)
            sides.append(
                {
                    self.float_file.keys[self.float_file.operators[pair[0]].outputs[0]]: file.real(
                        out := int(file.operators[pair[which]].outputs[0]), results[out]
                    )
                    for pair in self.matched
                }
            )
        return Each(sides[0], sides[1], None)

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Values:
        feeds = dict(zip(self.float_file.graph.inputs, inputs, strict=True))
        values = self._disturbed.run(feeds | {self._disturbed.errors[key]: error})
        return {
            self.float_file.keys[int(index)]: values[int(index)] for index in self.float_file.graph.outputs
        }

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
    """Corresponding operators: same kind in the same order, output shape and variable inputs."""
    kinds = [[file.kind(file.operators[i]) for i in file.computing] for file in (one, other)]
    pairs = []
    # The order alone is not sufficient: fused or split operators shift it.
    for a, b in in_step(*kinds):
        f, q = one.computing[a], other.computing[b]
        shapes = [
            tuple(file.graph.tensors[file.operators[i].outputs[0]].shape)
            for file, i in ((one, f), (other, q))
        ]
        slots = one.variable_inputs(f)
        if shapes[0] == shapes[1] and slots and slots == other.variable_inputs(q):
            pairs.append((f, q))
    return pairs
