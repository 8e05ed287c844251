"""What a model file is, found out by reading it: no framework is imported and nothing in it is run.

``inspect`` names the format and, where the file tells, the inputs. ``check_weights`` looks through a
checkpoint for anything that would run code when it is loaded. Both refuse with what is wrong, where,
and how to fix it. This is the early and friendly check; the loaders themselves still run with
``weights_only=True`` and ``safe_mode=True``. How each format is read lies in ``formats/``.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.keras import saved_model
from edgeopt.formats.keras.files import single_file as keras_file
from edgeopt.formats.kinds import BY_SUFFIX, LEGACY, SAFETENSORS, WEIGHTS, identify
from edgeopt.formats.onnx.files import header as onnx_graph
from edgeopt.formats.specs import UNTOLD, Source
from edgeopt.formats.torch import exported_program
from edgeopt.formats.torch import pickle as torch_pickle
from edgeopt.formats.wire import safetensors
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Model

__all__ = ["Source", "check_weights", "inspect", "is_weights"]

_KNOWN = ".keras, .h5, a SavedModel folder, .pt2, a TorchScript .pt, .tflite, .onnx, .ptl, .pte"
_RESAVE = "torch.save(model.state_dict(), 'weights.pt')"
_FIX_WEIGHTS = f"give a file made by {_RESAVE} or by safetensors"


def inspect(path: Path, *, trust: bool = False) -> Source:
    """Find out what the model at ``path`` is, and what goes in, where the file tells.

    ``trust`` allows what would run code from the file: Lambda layers, and custom classes that are
    imported from elsewhere.

    Raises:
        UsageError: when the file is missing, empty, damaged, not what its name says, holds weights
            only, or would run code.
        MissingPackageError: when reading it needs a package that is not installed.
    """
    with _explained(path):
        _present(path)
        if path.is_dir():
            return saved_model.read(path, trust)
        kind = identify(path)
        expected = BY_SUFFIX.get(path.suffix.lower(), kind)
        if kind != expected:
            raise UsageError(
                f"{path} is not {expected.words}: its content is {kind.words}",
                fix="give the right file, or name it after what it holds",
            )
        reader = _READERS.get(kind.name)
        if reader is None:
            raise UsageError(f"{path} is not a model: it is {kind.words}", fix=f"models are: {_KNOWN}")
        return reader(path, trust)


def is_weights(path: Path) -> bool:
    """Whether the file holds weights without a network: a torch checkpoint or safetensors."""
    try:
        return path.is_file() and identify(path) in WEIGHTS
    except (OSError, *MALFORMED):
        return False


def check_weights(path: Path, *, trust: bool = False) -> tuple[str, ...]:
    """Look through a torch checkpoint or safetensors file without loading it.

    Returns notes on what ``trust`` let through.

    Raises:
        UsageError: when it is missing, damaged, no checkpoint, or names anything that
            ``torch.load(weights_only=True)`` would refuse.
    """
    with _explained(path):
        _present(path)
        if path.is_dir():
            raise UsageError(f"{path} is a folder, where a file of weights is expected", fix=_FIX_WEIGHTS)
        kind = identify(path)
        if path.suffix.lower() == ".safetensors" and kind != SAFETENSORS:
            raise UsageError(f"{path} is not {SAFETENSORS.words}: it is {kind.words}", fix=_FIX_WEIGHTS)
        if kind == SAFETENSORS:
            safetensors.check(path)
            return ()
        if kind not in WEIGHTS:
            raise UsageError(f"{path} holds no weights: it is {kind.words}", fix=_FIX_WEIGHTS)
        refused = torch_pickle.refused(path, legacy=kind == LEGACY)
    if not refused:
        return ()
    # Names say more than instructions do, which are refused for what they could bring.
    refused = [name for name in refused if not name.startswith(torch_pickle.INSTRUCTION)] or refused
    names = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
    if any("torch.nn.modules." in name for name in refused):
        raise UsageError(
            f"{path} is a whole pickled module, not weights: loading it would run code ({names})",
            fix=f"where the network's code is at hand: {_RESAVE}, and give that file",
        )
    if trust:
        return (f"{path.name} can run code when it is loaded ({names}); model.trust allows it",)
    raise UsageError(
        f"{path}: loading it could run code: it holds {names}",
        fix=f"save the weights alone, {_RESAVE}; or, if you trust where it comes from, set model.trust: true",
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into what the user is told."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the file") from error
    except MALFORMED as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UsageError(f"{path} is damaged: {why}", fix="copy or save it again") from error


def _present(path: Path) -> None:
    if not path.exists():
        folder = path.parent
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        fix = f"did you mean {near[0]!r}?" if near else "check the path"
        raise UsageError(f"no such model: {path}", fix=fix)
    if path.is_file() and path.stat().st_size == 0:
        raise UsageError(f"{path} is empty", fix="copy or save it again")
    if not path.is_file() and not path.is_dir():
        raise UsageError(f"{path} is neither a file nor a folder", fix=f"models are: {_KNOWN}")


def _torchscript(path: Path, trust: bool) -> Source:
    model = Model(format="torchscript_module", path=path)
    return Source(model=model, framework="torch", notes=(UNTOLD,))


def _weights_only(path: Path, trust: bool) -> Source:
    # A whole module is told apart from weights, which need another answer.
    check_weights(path, trust=True)
    raise UsageError(
        f"{path} holds weights without a network",
        fix=f"say what builds the network: model: {{factory: 'module:function', weights: {path.name}}}",
    )


def _converted(format: str) -> Callable[[Path, bool], Source]:
    return lambda path, trust: Source(model=Model(format=format, path=path))


_READERS: dict[str, Callable[[Path, bool], Source]] = {
    "keras": keras_file.read_archive,
    "hdf5": keras_file.read_hdf5,
    "exported_program": exported_program.read,
    "torchscript_module": _torchscript,
    "checkpoint": _weights_only,
    "legacy": _weights_only,
    "safetensors": _weights_only,
    "onnx": onnx_graph.read,
    "tflite": _converted("tflite"),
    "torchscript": _converted("torchscript"),
    "executorch": _converted("executorch"),
}
