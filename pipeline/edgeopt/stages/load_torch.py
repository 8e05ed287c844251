"""A PyTorch model from its factory and a file of weights."""

import re
from collections.abc import Mapping
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
"""Keys under which training programs put the weights, best first."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "ema.", "student.")
"""What wrappers put before each key."""

SHOWN = 8


class LoadTorch(Stage):
    """Call the factory, load the weights, and write both down as a folder.

    The folder holds ``model.json`` (how to build the module again) and ``weights.safetensors``, keyed
    as the module's ``state_dict``.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torch_source"})
    produces: ClassVar[str] = "torch"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 3

    factory: Code = Field(description="function or class that returns the nn.Module, 'module:name'")
    arguments: dict[str, Any] = Field({}, description="keyword arguments of the factory")
    weights: ExistingPath | None = Field(
        None, description=".pt, .pth, .th or .safetensors; none: the factory's"
    )
    inputs: tuple[TensorSpec, ...] = Field(
        description="name, shape (with batch), dtype and layout of each input"
    )
    trust: bool = Field(False, description="load weights from a pickle, which may run any code in it")

    def key_parts(self) -> dict[str, str]:
        """Digests of the code and of the weights."""
        parts = {"factory": self.factory.digest()}
        if self.weights is not None:
            parts["weights"] = file_digest(self.weights)
        return parts

    def options(self) -> dict[str, Any]:
        """The options without the place of code and weights, which are known by their content."""
        options = super().options()
        options["factory"] = self.factory.target
        options["weights"] = None if self.weights is None else self.weights.name
        return options

    def run(self, model: Model, context: Context) -> Model:
        """Build the module and write it down.

        Raises:
            StageError: when the factory fails or returns something else, the weights are a pickle with
                code, do not fit the module, or the inputs do not.
        """
        inputs = tuple(torch_specs.fix_batch(spec) for spec in self.inputs)
        module = self._build()
        if self.weights is not None:
            context.progress(f"loading {self.weights.name}")
            _load_into(module, _read(self.weights, self.trust), self.weights.name)
        module.eval()
        outputs = torch_specs.describe_outputs(_forward(module, inputs))
        described = {
            "factory": self.factory.target,
            "code": self.factory.digest(),  # or other code with the same weights would be the same model
            "arguments": self.arguments,
            "inputs": [spec.model_dump(mode="json") for spec in inputs],
        }
        folder = context.folder / "model"
        folder.mkdir()
        torch_module.write_about(folder, described)
        torch_module.write_weights(module, folder / torch_module.WEIGHTS)
        return Model(format="torch", path=folder, inputs=inputs, outputs=outputs, code=self.factory.folder)

    def _build(self) -> "torch.nn.Module":
        import torch

        factory = self.factory.load()
        torch.manual_seed(0)  # weights that the factory draws itself are the same in every run
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
                fix="let the factory return the model itself",
            )
        return (
            module.float().cpu()
            if any(p.dtype == torch.float64 for p in module.parameters())
            else module.cpu()
        )


def _forward(module: "torch.nn.Module", inputs: tuple[TensorSpec, ...]) -> Any:
    try:
        return torch_engine.run(module, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs)
        raise StageError(
            f"the model does not take {shapes}: {torch_engine.brief(error)}",
            fix="correct 'inputs' in the recipe: the shape with its batch axis, and NCHW for images",
        ) from error


def _read(path: Path, trust: bool) -> "dict[str, torch.Tensor]":
    """The weights of a file, out of whatever the training program wrapped them in."""
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
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise StageError(
            f"{path} is not a file of weights alone: it holds code or objects, and loading it could run "
            f"anything ({_culprit(error)})",
            fix="save the weights alone, with torch.save(model.state_dict(), file) where the model was "
            "trained; or, if you know who wrote the file, set 'trust: true'",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise StageError(
            f"{path} cannot be read as PyTorch weights: {torch_engine.brief(error)}",
            fix="expected is what torch.save(model.state_dict(), file) writes, or safetensors",
        ) from error
    return _state_dict(content, path)


def _culprit(error: Exception) -> str:
    found = re.search(r"(?:GLOBAL|Unsupported (?:class|global|operand):?)\s+(\S+)", str(error))
    return found.group(1) if found else torch_engine.brief(error, 1)


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
        found = f"a dictionary with the keys {', '.join(map(str, list(content)[:SHOWN]))}"
    else:
        found = f"a {type(content).__name__}"
    raise StageError(
        f"{path} holds {found}, and no weights",
        fix="expected is what torch.save(model.state_dict(), file) writes",
    )


def _load_into(module: "torch.nn.Module", weights: "dict[str, torch.Tensor]", name: str) -> None:
    wanted = module.state_dict()
    weights = _without_prefix(weights, set(wanted))
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(weights) - optional)
    unexpected = sorted(set(weights) - set(wanted))
    shapes = [
        f"{key} is {list(weights[key].shape)} in the file and {list(wanted[key].shape)} in the model"
        for key in sorted(set(weights) & set(wanted))
        if weights[key].shape != wanted[key].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{name} does not fit the model:"]
        lines += _listed("missing", [_nearest(key, unexpected) for key in missing])
        lines += _listed("unexpected", [_nearest(key, missing or sorted(wanted)) for key in unexpected])
        lines += _listed("shape", shapes)
        raise StageError(
            "\n".join(lines), fix="correct 'factory' and 'arguments', or give the weights of this model"
        )
    module.load_state_dict(weights, strict=False)


def _listed(what: str, items: list[str]) -> list[str]:
    lines = [f"  {what}: {item}" for item in items[:SHOWN]]
    return [*lines, f"  {what}: and {len(items) - SHOWN} more"] if len(items) > SHOWN else lines


def _nearest(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, 1, 0.7)
    return f"{key} (nearest: {close[0]})" if close else key


def _without_prefix(weights: "dict[str, torch.Tensor]", wanted: set[str]) -> "dict[str, torch.Tensor]":
    """Strip wrappers' prefixes, one after the other, as long as more keys fit."""
    best, pending = weights, [weights]
    seen = {frozenset(weights)}
    while pending:
        current = pending.pop()
        if len(wanted & set(current)) > len(wanted & set(best)):
            best = current
        for prefix in PREFIXES:
            if any(key.startswith(prefix) for key in current):
                # Keys without the prefix stay: optimizers and counters lie beside the model's own.
                stripped = {key.removeprefix(prefix): value for key, value in current.items()}
                if len(stripped) == len(current) and frozenset(stripped) not in seen:
                    seen.add(frozenset(stripped))
                    pending.append(stripped)
    return best
