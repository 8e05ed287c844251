"""Build models of the zoo with seeds, and write what their cells need: ``prepare.py FOLDER NAME...``.

The folder of each name gets the model (``weights.pt`` and its code, ``model.keras``, ``model.h5`` or a
SavedModel), the samples ``calibration.npz`` and ``evaluation.npz``, the outputs of the framework itself in
``reference.npz``, and ``recipe.yaml``. Weights are random, with what a trained model has: batch norms hold
the statistics of inputs, and the last layer reads what differs most among inputs, so decisions vary.
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
            norm.weight.uniform_(0.4, 1.0)
            norm.bias.normal_(0.4, 0.3)
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for each in module.modules():
            if isinstance(each, torch.nn.PReLU):
                each.weight.uniform_(0.05, 0.4)
        batches = list(torch_batches(parts["settle"], 1 if single else 32))
        for settled in (False, True):
            for batch in batches:
                module(*batch)
            for norm in norms:
                if not settled:
                    # Channels of little variance stay weak, as weight decay makes them.
                    spread = norm.running_var / norm.running_var.median()
                    norm.weight.mul_(spread.sqrt().clamp(max=1))
                    norm.reset_running_stats()
        if steps := entry.get("train", 0):
            train(module, batches, steps)
            for norm in norms:
                norm.reset_running_stats()
            for batch in batches:
                module(*batch)
        for norm in norms:
            norm.eval()
            norm.momentum = 0.1
        if not steps:
            replace_last_layer(module, batches)
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


def train(module: Any, batches: list[Any], steps: int) -> None:
    """Teach a network for images the colours of the parts of an image and their contrast.

    Each random layer of a deep network passes on the rounding of those before it in full. Training is what
    makes the directions that carry the answer large against the others, and a short one is enough for it.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, mse_loss

    images = torch.cat([batch[0] for batch in batches])
    coarse = adaptive_avg_pool2d(images, 3)
    spread = (adaptive_avg_pool2d(images.square(), 3) - coarse.square()).clamp(min=0).sqrt()
    seen = torch.cat([coarse, spread], 1).flatten(1)
    outputs = module(images[:2]).shape[1]
    wanted = seen @ torch.randn(seen.shape[1], outputs)
    wanted = 2 * (wanted - wanted.mean(0)) / wanted.std(0)
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(images), (32,))
            loss = mse_loss(module(images[chosen]), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def replace_last_layer(module: Any, batches: list[Any]) -> None:
    """Let the layer that runs last read the main components of its input: see ``head``."""
    import torch

    seen: list[tuple[Any, Any]] = []
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d)
    hooks = [
        each.register_forward_hook(lambda layer, given, _: seen.append((layer, given[0])))
        for each in module.modules()
        if isinstance(each, kinds)
    ]
    for batch in batches:
        module(*batch)
    for hook in hooks:
        hook.remove()
    last = seen[-1][0]
    axis = -1 if isinstance(last, torch.nn.Linear) else 1
    if last.weight[0].numel() != last.weight.shape[1]:
        return  # not one product per place
    features = [given.movedim(axis, -1).flatten(0, -2).numpy() for layer, given in seen if layer is last]
    kernel, bias = head(np.concatenate(features), len(last.weight), last.bias is not None)
    last.weight.copy_(torch.from_numpy(kernel.T.reshape(last.weight.shape)))
    if last.bias is not None:
        last.bias.copy_(torch.from_numpy(bias))


def head(features: Any, outputs: int, biased: bool) -> tuple[Any, Any]:
    """Kernel ``[channels, outputs]`` and bias of a last layer, for features ``[n, channels]``.

    As those of a trained layer, its outputs depend on what differs most among inputs: they are random
    mixtures of the first principal components, of mean 0 and standard deviation 2. Random weights would
    read the small differences that 8 bits do not keep.
    """
    random = np.random.default_rng(len(features))
    rows = features[random.permutation(len(features))[:4096]].astype(np.float64)
    mean = rows.mean(0) if biased else np.zeros(rows.shape[1])
    _, sizes, axes = np.linalg.svd(rows - mean, full_matrices=False)
    kept = int((sizes > 0.05 * sizes[0]).sum())
    kernel = axes[:kept].T @ random.normal(0, 1, (kept, outputs))
    kernel *= 2 / ((rows - mean) @ kernel).std(0)
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)


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
            layer.gamma.assign(random.uniform(0.4, 1.0, layer.gamma.shape))
            layer.beta.assign(random.normal(0.4, 0.3, layer.beta.shape))
            layer.momentum = 0.8
        if type(layer).__name__ == "PReLU":
            layer.alpha.assign(random.uniform(0.05, 0.4, layer.alpha.shape))
    order = [_input_name(each) for each in model.inputs]
    given = {part: [cast(parts[part], order, name) for name in order] for part in parts}
    for layer in model.layers:
        if type(layer).__name__ == "Normalization" and layer.input_mean is None:
            layer.adapt(np.asarray(keras.Model(model.inputs, layer.input)(given["settle"])))
    norms = [layer for layer in layers if type(layer).__name__ == "BatchNormalization"]
    settle(model, given["settle"])
    for norm in norms:
        # As in PyTorch: channels of little variance stay weak.
        variance = np.asarray(norm.moving_variance)
        norm.gamma.assign(norm.gamma * np.sqrt(variance / np.median(variance)).clip(max=1))
    settle(model, given["settle"])
    if steps := entry.get("train", 0):
        train_keras(keras, model, given["settle"][0], steps)
        settle(model, given["settle"])
    else:
        replace_last_keras(keras, model, given["settle"])
    for norm in norms:
        norm.momentum = 0.99
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


def settle(model: Any, given: list[Any]) -> None:
    """Let the batch norms of a Keras model record the statistics of samples."""
    for start in range(0, PARTS["settle"], 32):
        model([each[start : start + 32] for each in given], training=True)


def train_keras(keras: Any, model: Any, images: Any, steps: int) -> None:
    """The same as `train` for a Keras model that ends in a softmax."""
    count, height, width, channels = images.shape
    parts = images[:, : height // 3 * 3, : width // 3 * 3].reshape(
        count, 3, height // 3, 3, width // 3, channels
    )
    seen = np.concatenate([parts.mean((2, 4)), parts.std((2, 4))], -1).reshape(count, -1)
    wanted = seen @ np.random.default_rng(0).normal(0, 1, (seen.shape[1], model.output_shape[-1]))
    powers = np.exp(2 * (wanted - wanted.mean(0)) / wanted.std(0))
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.AdamW(rate), "kl_divergence")
    epochs = -(-steps * 32 // count)
    model.fit(images, powers / powers.sum(1, keepdims=True), batch_size=32, epochs=epochs, verbose=0)


def flattened(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from flattened(layer) if hasattr(layer, "layers") else [layer]


def _input_name(tensor: Any) -> str:
    """The name of an input layer, as files have it; a tensor of Keras 3 may be called ``keras_tensor``."""
    operation = getattr(tensor._keras_history, "operation", None)
    return str(tensor.name.split(":")[0] if operation is None else operation.name)


def cast(arrays: Arrays, order: list[str], name: str) -> Any:
    value = list(arrays.values())[order.index(name)]
    return value.astype(np.int32) if value.dtype.kind == "i" else value


def replace_last_keras(keras: Any, model: Any, given: list[Any]) -> None:
    """The same for the last layer of a Keras model of one output."""
    layer = model.layers[-1]
    if not hasattr(layer, "kernel") or np.prod(layer.kernel.shape[:-2]) > 1 or len(model.outputs) > 1:
        return
    features = np.asarray(keras.Model(model.inputs, layer.input)(given, training=False))
    kernel, bias = head(features.reshape(-1, features.shape[-1]), layer.kernel.shape[-1], True)
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    layer.bias.assign(bias)


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
