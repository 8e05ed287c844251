"""Fewer distinct weights in quantized TFLite files, so that they can be stored in fewer bits."""

from collections.abc import Mapping
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.tflite.files.graphs import graphs_of, read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.weight_coding import layers_of
from edgeopt.formats.tflite.graph import naming
from edgeopt.formats.tflite.graph.interpreter import finished
from edgeopt.formats.tflite.quantize import bit_allocation, coarse_weights
from edgeopt.formats.tflite.quantize import calibration as tflite_calibration
from edgeopt.formats.tflite.quantize.rate_distortion import code_bits
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

FEWEST = 512
"""Layers with fewer weights stay as they are: describing a code takes more than it saves."""
TRIALS = 96
"""Samples on which the sensitivity of the outputs is measured."""


class CoarsenTflite(Stage):
    """Round int8 weights to multiples of a larger step, chosen for each layer by what its error costs.

    A coded weight takes ``bits`` on average: more in layers whose errors change the outputs more. Each weight
    is rounded to the value that weighs the error of its layer, on calibration samples, against the length of
    its code; the remaining weights and the bias compensate. Nothing is trained, and no label is used.

    The file keeps its size, and compresses better for download. ``compress`` stores the codes themselves, for
    runtimes that decode them. The weights of a layer get one scale.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"coarsen": frozenset({"values"})}
    after: ClassVar[frozenset[str]] = frozenset({"quantize"})
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 3

    scheme: Literal["values"] = Field("values", description="few values for the weights of a layer")
    coding: Literal["huffman", "tables"] = Field(
        "huffman",
        description="huffman: multiples of a step, of which frequent ones have short codes; tables: 2 to 128 "
        "values for each layer, for indices of 1 to 7 bits",
    )
    bits: float = Field(4.0, ge=1, le=8, description="mean number of bits of a coded weight, or of an index")
    keep: tuple[str, ...] = Field((), description="layers to leave in 8 bits, by name or pattern")
    samples: int = Field(512, ge=1, description="maximum number of calibration samples")

    def run(self, model: Model, context: Context) -> Model:
        """Coarsen the weights of one file.

        Raises:
            StageError: no layer has int8 weights and activations, a pattern matches none, or the calibration
                data are missing or unusable.
        """
        source = read_signature(model.path)
        loaded = load(model.path)
        names = naming.operator_names(model.path)
        layers = {names[layer.operator]: layer for layer in layers_of(graphs_of(loaded)[0])}
        if not layers:
            raise StageError(
                "the file has no layer with int8 weights and activations",
                fix="add 'quantize: int8' to the variant",
            )
        kept = matching(self.keep, list(layers), "keep")
        chosen = {
            name: layer
            for name, layer in layers.items()
            if layer.values.size >= FEWEST and layer.values.any() and name not in kept
        }
        if not chosen:
            raise StageError(
                f"no layer to coarsen has {FEWEST} weights or more",
                fix="shorten 'keep', or leave coarsen out",
            )
        described = model if model.inputs else model.model_copy(update={"inputs": source.inputs})
        samples = [*islice(tflite_calibration.samples(described, source, context), self.samples)]
        context.progress("measuring the sensitivity of the layers")
        file = coarse_weights.CoarseFile(loaded, list(chosen.values()), samples)
        read = [*(layer.input for layer in file.layers), *file.judged]
        originals = file.values(loaded.content, read, samples)
        found = coarse_weights.sensitivities(file, originals, TRIALS)
        context.progress("distributing the bits")
        allocate = bit_allocation.codes_of if self.coding == "huffman" else bit_allocation.tables_of
        choices = allocate(file.layers, found, self.bits)
        context.progress(f"rounding the weights of {len(file.layers)} layers")
        coarse_weights.coarsen(file, originals, choices)
        path = context.folder / "model.tflite"
        path.write_bytes(file.content())
        context.note(self._note(file, list(chosen)))
        return finished(path, described)

    def _note(self, file: coarse_weights.CoarseFile, names: list[str]) -> str:
        sizes = {name: layer.rows.size for name, layer in zip(names, file.layers, strict=True)}
        codes = {name: file.changed[number].codes for number, name in enumerate(names)}
        if self.coding == "huffman":
            bits = {name: code_bits(codes[name]) / sizes[name] for name in names}
        else:
            bits = {name: float((len(np.unique(codes[name])) - 1).bit_length()) for name in names}
        mean = sum(bits[name] * sizes[name] for name in names) / sum(sizes.values())
        each = ", ".join(f"{name} {bits[name]:.1f}" for name in names)
        text = f"coarsened the weights to {mean:.2f} bits on average: {each}"
        return f"{text}; only compress makes the file smaller"
