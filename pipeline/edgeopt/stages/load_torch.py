"""A PyTorch model from a factory function and a weights file."""

import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.config.files import file_digest
from edgeopt.errors import StageError
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Code, Context, ExistingPath, Stage, Worker

if TYPE_CHECKING:
    import torch

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "model_ema")
"""Keys under which training scripts store the weights, in order of preference."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "ema.", "student.")
"""Prefixes that wrapper modules add to each key."""

SHOWN = 8


class LoadTorch(Stage):
    """Call the factory, load the weights and save both to a folder.

    The folder contains ``model.json`` (how to rebuild the module) and ``weights.safetensors``, with the keys
    of the module's ``state_dict``.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torch_source"})
    produces: ClassVar[str] = "torch"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 4

    factory: Code = Field(description="function or class that returns the nn.Module, 'module:name'")
    arguments: dict[str, Any] = Field({}, description="keyword arguments of the factory")
    weights: ExistingPath | None = Field(
        None, description=".pt, .pth, .th or .safetensors; none: keep the factory's weights"
    )
    weights_key: str | None = Field(
        None, description="key of the weights in a checkpoint that holds several, such as ema"
    )
    inputs: tuple[TensorSpec, ...] = Field(
        description="name, shape (with batch), dtype and layout of each input"
    )
    trust: bool = Field(False, description="allow weights in a pickle with code, which loading executes")

    def key_parts(self) -> dict[str, str]:
        """Digests of the factory's code and of the weights."""
        parts = {"factory": self.factory.digest()}
        if self.weights is not None:
            parts["weights"] = file_digest(self.weights)
        return parts

    def options(self) -> dict[str, Any]:
        """The options without the paths of code and weights, which their digests identify."""
        options = super().options()
        options["factory"] = self.factory.target
        options["weights"] = None if self.weights is None else self.weights.name
        if self.weights_key is None:  # keeps the results of recipes that do not use it
            del options["weights_key"]
        return options

    def run(self, model: Model, context: Context) -> Model:
        """Build the module and save it.

        Raises:
            StageError: the factory fails or does not return a module, the weights are a pickle with code, or
                the weights or the inputs do not match the module.
        """
        inputs = tuple(torch_specs.fix_batch(spec) for spec in self.inputs)
        module = self._build(context)
        if self.weights is not None:
            context.progress(f"loading {self.weights.name}")
            weights = _read(self.weights, self.trust, self.weights_key, context)
            _load_into(module, weights, self.weights.name)
        module.eval()
        outputs = torch_specs.describe_outputs(_forward(module, inputs))
        record = {
            "factory": self.factory.target,
            "code": self.factory.digest(),  # distinguishes other code with the same weights
            "arguments": self.arguments,
            "inputs": [spec.model_dump(mode="json") for spec in inputs],
        }
        folder = context.folder / "model"
        folder.mkdir()
        torch_module.write_about(folder, record)
        torch_module.write_weights(module, folder / torch_module.WEIGHTS)
        return Model(format="torch", path=folder, inputs=inputs, outputs=outputs, code=self.factory.folder)

    def _build(self, context: Context) -> "torch.nn.Module":
        import torch

        factory = self.factory.load()
        torch.manual_seed(0)  # makes the factory's random weights reproducible
        try:
            module = factory(**self.arguments)
        except TypeError as error:
            raise StageError(
                f"{self.factory.target} cannot be called with {self.arguments}: {error}",
                fix="correct 'arguments' of the model in the recipe",
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise StageError(
                f"{self.factory.target} returned a {type(module).__name__}, not a torch.nn.Module",
                fix="return the nn.Module from the factory",
            )
        dtypes = {value.dtype for value in module.state_dict().values() if value.is_floating_point()}
        if others := dtypes - {torch.float32}:
            names = " and ".join(sorted(torch_specs.dtype_name(dtype) for dtype in others))
            context.note(
                f"{self.factory.target} builds a module of {names}, which edge runtimes do not compute on a "
                "CPU: it is converted to float32"
            )
            module = module.float()
        return module.cpu()


def _forward(module: "torch.nn.Module", inputs: tuple[TensorSpec, ...]) -> Any:
    try:
        return torch_engine.run(module, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs)
        raise StageError(
            f"the model does not accept {shapes}: {torch_engine.brief(error)}",
            fix="correct 'inputs' in the recipe: shapes include the batch axis, images are NCHW",
        ) from error


def _read(path: Path, trust: bool, key: str | None, context: Context) -> "dict[str, torch.Tensor]":
    """Read the weights of a file, unwrapping the checkpoint of a training script; ``key`` says which."""
    import pickle

    import torch

    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise StageError(f"{path} is not a safetensors file: {error}", fix="save it again") from error
    try:
        # To the CPU: checkpoints often contain CUDA tensors.
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise StageError(
            f"{path} does not contain weights only: it contains code or objects, and loading it could run "
            f"arbitrary code ({_offender(error)})",
            fix="save only the weights, with torch.save(model.state_dict(), file), where the model was "
            "trained; or, if you trust the origin of the file, set 'trust: true'",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise StageError(
            f"{path} cannot be read as PyTorch weights: {torch_engine.brief(error)}",
            fix="save the weights with torch.save(model.state_dict(), file), or as safetensors",
        ) from error
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            known = ", ".join(map(repr, list(content)[:SHOWN])) if isinstance(content, Mapping) else "none"
            raise StageError(
                f"{path} has no key {key!r}; its keys are {known}", fix="correct model.weights_key"
            )
        return _state_dict(content[key], path)
    several = _keys_of_weights(content, path)
    if len(several) > 1:
        others = " and ".join(map(repr, several[1:]))
        context.note(
            f"{path.name} holds weights under {several[0]!r}, which are used, and under {others}: "
            f"model.weights_key chooses others"
        )
    return _state_dict(content, path)


def _keys_of_weights(content: object, path: Path) -> list[str]:
    """The keys of a checkpoint that hold whole sets of weights, in order of preference."""
    if not isinstance(content, Mapping):
        return []
    found = []
    for key in sorted(set(map(str, content)) & set(NESTS), key=NESTS.index):
        with suppress(StageError):
            _state_dict(content[key], path)
            found.append(key)
    return found


def _offender(error: Exception) -> str:
    match = re.search(r"(?:GLOBAL|Unsupported (?:class|global|operand):?)\s+(\S+)", str(error))
    return match.group(1) if match else torch_engine.brief(error, 1)


def _state_dict(content: object, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict())
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        nested = {
            str(key): value for key, value in content.items() if isinstance(value, Mapping | torch.nn.Module)
        }
        for key in sorted(nested, key=lambda k: NESTS.index(k) if k in NESTS else len(NESTS)):
            if key in NESTS or not tensors:
                try:
                    return _state_dict(nested[key], path)
                except StageError:
                    continue
        if tensors:
            return tensors
        content_type = f"a dictionary with the keys {', '.join(map(str, list(content)[:SHOWN]))}"
    else:
        content_type = f"a {type(content).__name__}"
    raise StageError(
        f"{path} contains {content_type}, but no weights",
        fix="save the weights with torch.save(model.state_dict(), file)",
    )


def _load_into(module: "torch.nn.Module", weights: "dict[str, torch.Tensor]", name: str) -> None:
    expected = module.state_dict()
    weights = _without_prefix(weights, set(expected))
    # Checkpoints from before PyTorch 0.4.1 lack this counter, and inference does not use it.
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(weights) - optional)
    unexpected = sorted(set(weights) - set(expected))
    shapes = [
        f"{key} is {list(weights[key].shape)} in the file and {list(expected[key].shape)} in the model"
        for key in sorted(set(weights) & set(expected))
        if weights[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{name} does not match the model:"]
        lines += _lines("missing", [_nearest(key, unexpected) for key in missing])
        lines += _lines("unexpected", [_nearest(key, missing or sorted(expected)) for key in unexpected])
        lines += _lines("shape", shapes)
        raise StageError(
            "\n".join(lines), fix="correct 'factory' and 'arguments', or use weights of this model"
        )
    # All mismatches but the optional counters were reported above.
    module.load_state_dict(weights, strict=False)


def _lines(what: str, items: list[str]) -> list[str]:
    lines = [f"  {what}: {item}" for item in items[:SHOWN]]
    return [*lines, f"  {what}: and {len(items) - SHOWN} more"] if len(items) > SHOWN else lines


def _nearest(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, 1, 0.7)
    return f"{key} (nearest: {close[0]})" if close else key


def _without_prefix(weights: "dict[str, torch.Tensor]", expected: set[str]) -> "dict[str, torch.Tensor]":
    """Strip combinations of wrapper prefixes; return the one with the most matching keys."""
    best, pending = weights, [weights]
    seen = {frozenset(weights)}
    while pending:
        current = pending.pop()
        if len(expected & set(current)) > len(expected & set(best)):
            best = current
        for prefix in PREFIXES:
            if any(key.startswith(prefix) for key in current):
                # Keys without the prefix stay: wrappers add entries of their own, such as counters.
                stripped = {key.removeprefix(prefix): value for key, value in current.items()}
                if len(stripped) == len(current) and frozenset(stripped) not in seen:
                    seen.add(frozenset(stripped))
                    pending.append(stripped)
    return best
