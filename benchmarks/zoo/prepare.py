"""Build models of the zoo with seeds, and write what their cells need: ``prepare.py FOLDER NAME...``.

The folder of each name gets the model (``weights.pt`` and its code, ``model.keras``, ``model.h5`` or a
SavedModel), the samples ``calibration.npz`` and ``evaluation.npz``, the outputs of the framework itself in
``reference.npz``, and ``recipe.yaml``. Weights are random, with what a trained model has: batch norms hold
the statistics of inputs, and the last layer is scaled: its outputs have mean 0 and one size, so decisions
vary.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
PARTS = {"settle": 192, "calibration": 64, "evaluation": 24}
Arrays = dict[str, np.ndarray[Any, Any]]


def main(name: str, folder: Path) -> None:
    entry = yaml.safe_load((HERE / "models.yaml").read_text())[name]
    folder.mkdir(parents=True, exist_ok=True)
    parts = {part: samples(entry["inputs"], name, part, count) for part, count in PARTS.items()}
    for part in ("calibration", "evaluation"):
        np.savez(folder / f"{part}.npz", **{f"in_{key}": value for key, value in parts[part].items()})
    made = torch_model if "torch" in entry else keras_model
    model, found = made(entry, parts, folder, zlib.crc32(name.encode()) % 1000)
    np.savez(folder / "reference.npz", **found)
    write_recipe(name, entry, model, folder)
    about = {"framework": next(key for key in ("torch", "keras", "tf_keras") if key in entry), **entry}
    about["specs"] = [
        [key, list(batched(given)), str(parts["evaluation"][key].dtype)]
        for key, given in entry["inputs"].items()
    ]
    (folder / "about.json").write_text(json.dumps(about))


def batched(given: list[Any]) -> tuple[int, ...]:
    return (1, *given[1])


def samples(inputs: dict[str, list[Any]], name: str, part: str, count: int) -> Arrays:
    """Samples ``[count, ...]`` by input."""
    random = np.random.default_rng(zlib.crc32(f"{name} {part}".encode()))
    return {key: np.stack([sample(random, *given) for _ in range(count)]) for key, given in inputs.items()}


def sample(random: np.random.Generator, kind: str, shape: list[int], extra: Any = None) -> Any:
    from scipy.ndimage import gaussian_filter

    if kind == "tokens":
        return random.integers(1, extra, shape)
    if kind == "mask":
        return (np.arange(shape[0]) < random.integers(shape[0] // 2, shape[0] + 1)).astype(np.int64)
    noise = random.normal(0, 1, shape)
    if kind in ("image", "pixels"):
        narrow = {axis for axis in range(len(shape)) if shape[axis] <= 8}
        smooth = gaussian_filter(
            noise, [0 if axis in narrow else random.uniform(1, 4) for axis in range(len(shape))]
        )
        # Contrast and brightness differ from image to image, as exposure does.
        noise = smooth / smooth.std() * random.uniform(0.2, 1.4) + random.normal(0, 0.6) + 0.1 * noise
        noise = np.clip(noise, -2.5, 2.5)
        if kind == "pixels":
            noise = (noise + 2.5) * 51
    if kind == "audio":
        time = np.arange(max(shape)) / 8000
        tones = sum(np.sin(2 * np.pi * random.uniform(60, 2000) * time) for _ in range(3))
        noise = 0.25 * tones.reshape(shape) + 0.05 * noise
    if kind == "series":
        noise = 0.4 * noise + np.cumsum(noise, int(np.argmax(shape))) / np.sqrt(max(shape))
    if kind == "state":
        noise = np.tanh(0.5 * noise)
    return noise.astype(np.float32)


def torch_model(
    entry: dict[str, Any], parts: dict[str, Arrays], folder: Path, seed: int
) -> tuple[Any, Arrays]:
    import torch

    module_name, _, function = entry["torch"].partition(":")
    shutil.copy(HERE / f"{module_name}.py", folder)
    sys.path.insert(0, str(folder))
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # on busy machines, threads mostly wait for each other
    module = getattr(import_module(module_name), function)(**entry.get("arguments", {})).eval()
    norms = [each for each in module.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    # The batch axis of a state comes second.
    single = any(given[0] == "state" for given in entry["inputs"].values())
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for each in module.modules():
            if isinstance(each, torch.nn.PReLU):
                each.weight.uniform_(0.05, 0.4)
        batches = list(torch_batches(parts["settle"], 1 if single else 32))
        for batch in batches:
            module(*batch)
        for norm in norms:
            norm.eval()
            norm.momentum = 0.1
        scale_last_layer(module, batches)
        found: list[list[Any]] = []
        for batch in torch_batches(parts["evaluation"], 1):
            made = module(*batch)
            names = list(made) if isinstance(made, dict) else []
            values = (
                list(made.values()) if names else [made] if isinstance(made, torch.Tensor) else list(made)
            )
            found.append([value.numpy() for value in values])
    torch.save(module.state_dict(), folder / "weights.pt")
    names = names or [f"output_{index}" for index in range(len(found[0]))]
    keyed = {
        f"{index}:{name}": np.stack(each)
        for index, (name, each) in enumerate(zip(names, zip(*found, strict=True), strict=True))
    }
    model: dict[str, Any] = {"factory": entry["torch"], "weights": "weights.pt"}
    if "arguments" in entry:
        model["arguments"] = entry["arguments"]
    model["inputs"] = []
    for key, given in entry["inputs"].items():
        spec = {"name": key, "shape": list(batched(given)), "dtype": str(parts["evaluation"][key].dtype)}
        if len(spec["shape"]) == 4 and given[0] == "image":
            spec["layout"] = "NCHW"
        model["inputs"].append(spec)
    return model, keyed


def torch_batches(arrays: Arrays, size: int) -> Iterator[tuple[Any, ...]]:
    import torch

    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        yield tuple(torch.from_numpy(value[start : start + size]) for value in arrays.values())


def scale_last_layer(module: Any, batches: list[Any]) -> None:
    """Give the outputs of the layer that runs last mean 0 and standard deviation 2, per channel."""
    import torch

    seen: list[tuple[Any, Any]] = []
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d)
    hooks = [
        each.register_forward_hook(lambda layer, _, made: seen.append((layer, made)))
        for each in module.modules()
        if isinstance(each, kinds)
    ]
    for batch in batches[:4]:
        module(*batch)
    for hook in hooks:
        hook.remove()
    last = seen[-1][0]
    axis = -1 if isinstance(last, torch.nn.Linear) else 1
    values = torch.cat(
        [made.movedim(axis, -1).reshape(-1, made.shape[axis]) for layer, made in seen if layer is last]
    )
    # Means far above the deviations would need 16 bits, which no trained network does.
    factor = 2 / torch.maximum(values.std(0), values.mean(0).abs() / 4).clamp(min=1e-3)
    last.weight.mul_(factor.reshape(-1, *[1] * (last.weight.ndim - 1)))
    if last.bias is not None:
        last.bias.copy_((last.bias - values.mean(0)) * factor)


def keras_model(
    entry: dict[str, Any], parts: dict[str, Arrays], folder: Path, seed: int
) -> tuple[Any, Arrays]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(HERE))
    import keras_nets

    if "keras" in entry:
        import keras
    else:
        import tf_keras as keras
    keras.utils.set_random_seed(seed)
    model = getattr(keras_nets, entry.get("keras") or entry["tf_keras"])(keras)
    random = np.random.default_rng(seed)
    layers = list(flattened(model))
    for layer in layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(random.normal(0, 0.2, layer.beta.shape))
            layer.momentum = 0.8
        if type(layer).__name__ == "PReLU":
            layer.alpha.assign(random.uniform(0.05, 0.4, layer.alpha.shape))
        if type(layer).__name__ == "Normalization":
            layer.mean, layer.variance = layer.mean * 0 + 120.0, layer.variance * 0 + 3000.0
    order = [each.name.split(":")[0] for each in model.inputs]
    given = {part: [cast(parts[part], order, name) for name in order] for part in parts}
    for _ in range(2):
        for start in range(0, PARTS["settle"], 32):
            model([each[start : start + 32] for each in given["settle"]], training=True)
    scale_last_keras(model, given["settle"])
    for layer in layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.99
    made = model(given["evaluation"], training=False)
    names = list(made) if isinstance(made, dict) else model.output_names
    values = (
        list(made.values()) if isinstance(made, dict) else made if isinstance(made, list | tuple) else [made]
    )
    found = {
        f"{index}:{name}": np.asarray(value)[:, None]
        for index, (name, value) in enumerate(zip(names, values, strict=True))
    }
    path = {"h5": "model.h5", "saved_model": "model"}.get(entry.get("saved", ""), "model.keras")
    model.save(folder / path)
    entry["inputs"] = dict(zip(order, entry["inputs"].values(), strict=True))
    for part in parts.values():
        for name, key in zip(order, list(part), strict=True):
            part[name] = part.pop(key)
    for part in ("calibration", "evaluation"):
        np.savez(folder / f"{part}.npz", **{f"in_{key}": value for key, value in parts[part].items()})
    return {"path": path}, found


def flattened(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from flattened(layer) if hasattr(layer, "layers") else [layer]


def cast(arrays: Arrays, order: list[str], name: str) -> Any:
    value = list(arrays.values())[order.index(name)]
    return value.astype(np.int32) if value.dtype.kind == "i" else value


def scale_last_keras(model: Any, given: list[Any]) -> None:
    """The same for the dense or convolutional layer that makes the first output."""
    layer = model.layers[-1]
    if not hasattr(layer, "kernel") or not hasattr(layer, "activation"):
        return
    activation, layer.activation = layer.activation, lambda x: x
    values = (
        np.asarray(model([each[:64] for each in given], training=False)) if len(model.outputs) == 1 else None
    )
    layer.activation = activation
    if values is None:
        return
    values = values.reshape(-1, values.shape[-1])
    factor = 2 / np.maximum(np.maximum(values.std(0), np.abs(values.mean(0)) / 4), 1e-3)
    layer.kernel.assign(np.asarray(layer.kernel) * factor)
    layer.bias.assign((np.asarray(layer.bias) - values.mean(0)) * factor)


def write_recipe(name: str, entry: dict[str, Any], model: Any, folder: Path) -> None:
    def data(part: str) -> dict[str, Any]:
        keys = {key: f"in_{key}" for key in entry["inputs"]}  # made twice: recipes have no aliases
        return {"uses": "npz", "with": {"path": f"{part}.npz", "label": None, "inputs": keys}}

    recipe = {
        "version": 1,
        "name": name,
        "model": model,
        "data": {"calibration": data("calibration"), "evaluation": data("evaluation")},
        "optimize": {
            variant: {} if variant == "float" else {"quantize": variant}
            for variant in entry.get("variants", ["float", "int8"])
        },
        "formats": ["tflite", "onnx", "torchscript", "executorch"],
        "latency": {"min_runs": 2, "min_seconds": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


if __name__ == "__main__":
    for each in sys.argv[2:]:
        main(each, Path(sys.argv[1], each))
