"""Run model files by their runtimes alone and compare every output with the framework's own.

    evaluate.py RESULTS FILE...

The files are below the folders of ``prepare.py``. One JSON object per file is appended to ``RESULTS``, as
soon as it is known: a runtime that ends the process loses only the file that it ran.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Spec(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str


def snr_db(found: Array, reference: Array) -> float:
    """Signal-to-noise ratio of all values; -999 for values that are not finite."""
    if not np.isfinite(found).all():
        return -999.0
    noise = np.square(reference.astype(np.float64) - found).sum()
    signal = np.square(reference.astype(np.float64)).sum()
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-16 * max(signal, 1e-30))))


def fit(value: Array, shape: Sequence[int]) -> Array:
    """The value in a shape of the same size, with its channel axis moved where that is the difference."""
    shape = tuple(shape)
    if value.shape == shape or not shape:
        return value.reshape(shape)
    for move in ((1, -1), (-1, 1)):
        moved = np.moveaxis(value, *move) if value.ndim > 2 else value
        if moved.shape == shape:
            return np.ascontiguousarray(moved)
    if value.size != np.prod(shape):
        raise ValueError(f"shape {list(value.shape)} does not fit {list(shape)}")
    return value.reshape(shape)


def ordered(values: dict[str, Array], wanted: Sequence[Spec]) -> list[Array]:
    """The values of a sample for the inputs of a file: by name, else in order, else by shape."""
    names = list(values)
    spec_names = [spec.name.removeprefix("serving_default_").partition(":")[0] for spec in wanted]
    if set(spec_names) == set(names):
        picked = [values[name] for name in spec_names]
    else:
        sizes = [values[name].size for name in names]
        known = [int(np.prod(spec.shape)) for spec in wanted]
        indices = range(len(names))
        if sizes != known and all(known):
            indices = next(p for p in permutations(indices) if [sizes[i] for i in p] == known)  # type: ignore[assignment]
        picked = [values[names[index]] for index in indices]
    made = zip(picked, wanted, strict=True)
    return [fit(value, spec.shape).astype(spec.dtype) for value, spec in made]


Samples = Sequence[dict[str, Array]]


def litert(file: Path, samples: Samples, _: list[Spec]) -> Iterator[dict[str, Array]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    signatures = interpreter.get_signature_list()
    declared = Interpreter(str(file))  # a runner keeps references to the memory of its interpreter
    given = {each["index"]: each for each in interpreter.get_input_details()}
    made = interpreter.get_output_details()
    names = {index: each["name"] for index, each in given.items()}
    outputs = [(each["name"], each["index"]) for each in made]
    if len(signatures) == 1:
        runner = declared.get_signature_runner(next(iter(signatures)))
        names = {detail["index"]: name for name, detail in runner.get_input_details().items()}
        outputs = [(name, detail["index"]) for name, detail in runner.get_output_details().items()]
    in_order = sorted(names, key=lambda index: (len(names[index]), names[index]))
    for index in given:
        if index not in names:
            raise ValueError(f"input {given[index]['name']} is not part of the signature")
    scales = {each["index"]: (*each["quantization"], each["dtype"]) for each in (*given.values(), *made)}
    # Files of int8 inputs and outputs get and give numbers as these stand for.
    kinds = {
        i: "float32" if given[i]["dtype"] is np.int8 else np.dtype(given[i]["dtype"]).name for i in given
    }
    specs = [Spec(names[i], tuple(given[i]["shape"]), kinds[i]) for i in in_order]
    for sample in samples:
        for index, value in zip(in_order, ordered(sample, specs), strict=True):
            scale, zero, kind = scales[index]
            if kind is np.int8:
                value = np.clip(np.round(value / scale) + zero, -128, 127).astype(np.int8)
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        found = {}
        for name, index in outputs:
            scale, zero, kind = scales[index]
            value = interpreter.get_tensor(index)
            found[name] = (value.astype(np.float32) - zero) * scale if kind is np.int8 else value
        yield found


def onnxruntime(file: Path, samples: Samples, source: list[Spec]) -> Iterator[dict[str, Array]]:
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
    specs = [
        Spec(each.name, tuple(size if isinstance(size, int) else 1 for size in each.shape), kinds[each.type])
        for each in session.get_inputs()
    ]
    names = [each.name for each in session.get_outputs()]
    for sample in samples:
        feeds = {spec.name: value for spec, value in zip(specs, ordered(sample, specs), strict=True)}
        yield dict(zip(names, session.run(None, feeds), strict=True))


def lite_interpreter(file: Path, samples: Samples, source: list[Spec]) -> Iterator[dict[str, Array]]:
    import torch
    import torch.jit.mobile

    torch.set_num_threads(1)
    torch.backends.quantized.engine = "qnnpack"  # the weights are packed for it while the file is loaded
    model = torch.jit.mobile._load_for_lite_interpreter(str(file))
    with torch.no_grad():
        for sample in samples:
            found = model(*map(torch.from_numpy, ordered(sample, source)))
            yield named(found)


def named(found: Any) -> dict[str, Array]:
    """Outputs by name, or by their place: tuples may be nested."""
    import torch

    if isinstance(found, dict):
        return {name: value.numpy() for name, value in found.items()}

    def flat(value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            yield value
        else:
            for each in value:
                yield from flat(each)

    return {f"output_{index}": value.detach().numpy() for index, value in enumerate(flat(found))}


def executorch(file: Path, samples: Samples, source: list[Spec]) -> Iterator[dict[str, Array]]:
    import executorch.kernels.quantized  # noqa: F401  # registers the operators of int8
    import torch
    from executorch.extension.pybindings._portable_lib import _load_for_executorch

    program = _load_for_executorch(str(file))
    about = program.method_meta("forward")
    kinds = {6: "float32", 4: "int64", 3: "int32"}
    specs = []
    for index in range(about.num_inputs()):
        info = about.input_tensor_meta(index)
        name = source[index].name if about.num_inputs() == len(source) else str(index)
        specs.append(Spec(name, tuple(info.sizes()), kinds[int(info.dtype())]))
    for sample in samples:
        given = [torch.from_numpy(value) for value in ordered(sample, specs)]
        # The next run writes to the same memory.
        yield {f"output_{i}": each.clone().numpy() for i, each in enumerate(program.forward(given))}


RUNTIMES: dict[str, Callable[[Path, Samples, list[Spec]], Iterator[dict[str, Array]]]] = {
    ".tflite": litert,
    ".onnx": onnxruntime,
    ".ptl": lite_interpreter,
    ".pte": executorch,
}


def compared(found: dict[str, list[Array]], reference: dict[str, Array]) -> tuple[float, str]:
    """The SNR of the worst output, and a note if the outputs' names do not say which is which.

    Outputs are matched by name, else in order, else in the order of the best result.
    """
    names = list(reference)
    if len(found) != len(names):
        return -999.0, f"{len(found)} outputs instead of {len(names)}"

    def worst(order: Sequence[str]) -> float:
        ratios = []
        for key, name in zip(order, names, strict=True):
            try:
                values = np.stack([fit(np.asarray(value), reference[name].shape[1:]) for value in found[key]])
            except ValueError:
                return -998.0
            ratios.append(snr_db(values, reference[name]))
        return min(ratios)

    if set(found) == set(names):
        return worst(names), ""
    in_order = worst(list(found))
    if len(names) == 1 or len(names) > 5:
        return in_order, ""
    best = max(worst(order) for order in permutations(found))
    return best, "" if best <= in_order + 3 else "outputs in another order"


def evaluate(file: Path) -> dict[str, Any]:
    folder = next(parent for parent in file.parents if (parent / "about.json").exists())
    about = json.loads((folder / "about.json").read_text())
    source = [Spec(name, tuple(shape), dtype) for name, shape, dtype in about["specs"]]
    card, places = file.with_name(file.name + ".json"), []
    if card.is_file():  # of edgeopt: says which input and output has which place, for files that do not
        listed = json.loads(card.read_text())
        source = [Spec(each["name"], tuple(each["shape"]), each["dtype"]) for each in listed["inputs"]]
        places = [each["name"] for each in listed["outputs"]]
    with np.load(folder / "evaluation.npz") as archive:
        arrays = {key.removeprefix("in_"): archive[key] for key in archive.files}
    with np.load(folder / "reference.npz") as archive:
        reference = {key.partition(":")[2]: archive[key] for key in archive.files}
    count = len(next(iter(arrays.values())))
    samples = [{key: value[i : i + 1] for key, value in arrays.items()} for i in range(count)]
    found: dict[str, list[Array]] = {}
    for outputs in RUNTIMES[file.suffix](file, samples, source):
        for name, value in outputs.items():
            found.setdefault(name, []).append(value)
    if set(places) == set(reference) and set(found) == {f"output_{i}" for i in range(len(places))}:
        found = {name: found[f"output_{place}"] for place, name in enumerate(places)}
    ratio, note = compared(found, reference)
    return {"snr": round(ratio, 1), "note": note}


def main(results: Path, files: list[Path]) -> None:
    for file in files:
        with results.open("a") as stream:
            stream.write(json.dumps({"file": str(file), "started": True}) + "\n")
        try:
            row = evaluate(file)
        except Exception as error:  # noqa: BLE001  # whatever a runtime raises is the result of its file
            row = {"error": f"{type(error).__name__}: {error}"[:600]}
        with results.open("a") as stream:
            stream.write(json.dumps({"file": str(file), "bytes": file.stat().st_size, **row}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
