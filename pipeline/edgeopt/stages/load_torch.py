"""A PyTorch model from a factory function and a weights file."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.config.files import file_digest
from edgeopt.errors import StageError
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.files import state_dicts as torch_state_dicts
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Code, Context, ExistingPath, Stage, Worker

if TYPE_CHECKING:
    import torch

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
        None, description="key of the weights in a checkpoint that holds several, such as ema or ema.module"
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
            self._load(module, self.weights, context)
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

    def _load(self, module: "torch.nn.Module", path: Path, context: Context) -> None:
        """Load the weights of a file that fit the module."""
        content = _read(path, self.trust)
        try:
            fitting = torch_state_dicts.select(content, module.state_dict(), self.weights_key, path.name)
        except StageError:
            translated = torch_state_dicts.translated(content, module) if not self.weights_key else None
            if translated is None:
                raise
            context.note(
                f"{path.name} has the names of an earlier version of the model, which translates them"
            )
            module.load_state_dict(translated)
            return
        for remark in torch_state_dicts.remarks(fitting, path.name):
            context.note(remark)
        weights = torch_state_dicts.with_versions(fitting[0].tensors, module)
        module.load_state_dict(weights, strict=False)  # what it lacks are counters

    def _build(self, context: Context) -> "torch.nn.Module":
        import torch

        factory = self.factory.load()
        torch.manual_seed(0)  # makes the factory's random weights reproducible
        try:
            module = factory(**self.arguments)
        except TypeError as error:
            raise StageError(
                f"{self.factory.target} cannot be called with {self.arguments}: {error}",
                fix=_fix_arguments(factory, self.arguments),
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


def _fix_arguments(factory: Any, given: Mapping[str, Any]) -> str:
    """How to state the arguments that a factory requires, and that are not given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # not callable, or written in C
        parameters = {}.values()
    required = [each for each in parameters if each.default is each.empty and each.kind not in _COLLECTING]
    missing = [each.name for each in required if each.name not in given]
    words = " ".join(f"--set model.arguments.{name}=..." for name in missing)
    return f"add {words}" if missing else "correct 'arguments' of the model in the recipe"


def _forward(module: "torch.nn.Module", inputs: tuple[TensorSpec, ...]) -> Any:
    try:
        return torch_engine.run(module, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs)
        raise StageError(
            f"the model does not accept {shapes}: {torch_engine.brief(error)}",
            fix="correct 'inputs' in the recipe: shapes include the batch axis, images are NCHW",
        ) from error


def _read(path: Path, trust: bool) -> object:
    """The content of a file with weights."""
    import pickle

    import torch

    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            content: object = safetensors.torch.load_file(path)
            return content
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
    except (AttributeError, ImportError) as error:
        raise StageError(
            f"{path} refers to code that cannot be imported: {torch_engine.brief(error)}",
            fix="save only the weights, with torch.save(model.state_dict(), file), where that code is; or "
            "put it beside the recipe under the same module name",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path} cannot be read as PyTorch weights: {torch_engine.brief(error)}",
            fix="save the weights with torch.save(model.state_dict(), file), or as safetensors",
        ) from error
    return content


def _offender(error: Exception) -> str:
    match = re.search(r"(?:GLOBAL|Unsupported (?:class|operand):?)\s+(\S+)", str(error))
    return match.group(1) if match else torch_engine.brief(error, 1)
