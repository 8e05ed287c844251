"""What a model file is, found out by reading it: no framework is imported and nothing in it is run.

``inspect`` names the format and, where the file tells, the inputs. ``check_weights`` looks through a
checkpoint for anything that would run code when it is loaded. Both refuse with what is wrong, where,
and how to fix it. This is the early and friendly check; the loaders themselves still run with
``weights_only=True`` and ``safe_mode=True``. How each format is read lies in its own room.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.known import by_suffix, formats, identify, unknown
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import Format

_FIX_WEIGHTS = "give a file made by torch.save(model.state_dict(), 'weights.pt') or by safetensors"


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
        found = recognise(path)
        if found.weights_only:
            # A whole module is told apart from weights, which need another answer.
            found.check_weights(path, trust=True)
            factory = f"model: {{factory: 'module:function', weights: {path.name}}}"
            raise UsageError(
                f"{path} holds weights without a network", fix=f"say what builds the network: {factory}"
            )
        return found.read(path, trust=trust)


def is_weights(path: Path) -> bool:
    """Whether the file holds weights without a network: a torch checkpoint or safetensors."""
    try:
        found = identify(path) if path.is_file() else None
    except (OSError, *MALFORMED):
        return False
    return found is not None and found.weights_only


def check_weights(path: Path, *, trust: bool = False) -> tuple[str, ...]:
    """Look through a file of weights without loading it.

    Returns notes on what ``trust`` let through.

    Raises:
        UsageError: when it is missing, damaged, holds no weights, or names anything that
            ``torch.load(weights_only=True)`` would refuse.
    """
    with _explained(path):
        _present(path)
        if path.is_dir():
            raise UsageError(f"{path} is a folder, where a file of weights is expected", fix=_FIX_WEIGHTS)
        found, named = identify(path), by_suffix().get(path.suffix.lower())
        title = found.title if found else unknown(path)
        if named is not None and named.weights_only and named is not found:
            raise UsageError(f"{path} is not {named.title}: it is {title}", fix=_FIX_WEIGHTS)
        if found is None or not found.weights_only:
            raise UsageError(f"{path} holds no weights: it is {title}", fix=_FIX_WEIGHTS)
        return found.check_weights(path, trust=trust)


def size_breakdown(path: Path) -> SizeBreakdown:
    """Where the bytes of a file or folder go, found out by its content.

    Raises:
        UsageError: it is missing, empty, damaged or no model.
        StageError: a file is damaged, in the words of its format.
        MissingPackageError: reading it needs a package that is not installed.
    """
    with _explained(path):
        _present(path)
        found = identify(path)
        if found is not None:
            return found.breakdown(path)
        raise UsageError(f"{path} is not a model: it is {unknown(path)}", fix="give a model file")


def recognise(path: Path) -> Format:
    """The format of a model file or folder, which must be named after what it holds.

    Raises:
        UsageError: it is missing, empty, damaged, of no known format, or not what its name says.
    """
    with _explained(path):
        _present(path)
        found = identify(path)
    expected = by_suffix().get(path.suffix.lower()) if path.is_file() else None
    title = found.title if found else unknown(path)
    if expected is not None and found is not expected:
        raise UsageError(
            f"{path} is not {expected.title}: its content is {title}",
            fix="give the right file, or name it after what it holds",
        )
    if found is None:
        raise UsageError(f"{path} is not a model: it is {title}", fix=f"models are: {_models()}")
    return found


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
        raise UsageError(f"{path} is neither a file nor a folder", fix=f"models are: {_models()}")


def _models() -> str:
    """The files that may be given as a model."""
    return ", ".join(each.suffix or each.title for each in formats().values() if each.is_model)
