"""Inspection of model files: no framework is imported and no code in them is run.

``inspect`` detects the format and, where the file declares them, the inputs. ``check_weights`` searches a
checkpoint for anything that would run code on loading. Errors name the file, the cause and the fix. This is
an early check for the user's benefit; the loaders themselves use ``weights_only=True`` and
``safe_mode=True`` as well. Each format is read by its own package.
"""

import difflib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.known import by_suffix, formats, identify, unknown
from edgeopt.formats.side_car import LayerRecord
from edgeopt.formats.specs import missing_code
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import Format

_FIX_WEIGHTS = "use a file written by torch.save(model.state_dict(), 'weights.pt') or by safetensors"


def inspect(path: Path, *, trust: bool = False, code: Path | None = None) -> Source:
    """Detect the format of the model at ``path`` and, where the file declares them, its inputs.

    ``trust`` allows parts that would run code, or read or write other files: Lambda layers, custom classes
    imported from other modules, operators of graphs. ``code`` is the Python file of custom layers.

    Raises:
        UsageError: the file is missing, empty or damaged, does not match its name, contains weights only, or
            would run code.
        MissingPackageError: reading it requires a package that is not installed.
    """
    with _explained(path):
        known = recognise(path)
        if known.weights_only:
            # Raises for a pickled module, which has the same suffix but needs another fix.
            known.check_weights(path, trust=trust)
            factory = f"model: {{factory: 'module:function', weights: {path.name}}}"
            raise UsageError(
                f"{path} contains weights without a network",
                fix=f"name the function that builds the network: {factory}",
            )
        source = known.read(path, trust=trust)
    if source.needs_code and code is None:
        raise missing_code(path, source.needs_code)
    return source


def inspecting(path: Path, *, trust: bool = False, code: Path | None = None) -> Callable[[], Source]:
    """Begin ``inspect`` in the background; the result waits for its end, and returns or raises what it did.

    Reading a file may wait for a process of its own, while there is other work to do.
    """
    outcome: list[Source | BaseException] = []

    def run() -> None:
        try:
            outcome.append(inspect(path, trust=trust, code=code))
        except BaseException as error:  # noqa: BLE001 - raised to the one who waits
            outcome.append(error)

    formats()  # cached here: two threads would make two sets of instances
    thread = threading.Thread(target=run, daemon=True)  # the process may end without the result
    thread.start()

    def result() -> Source:
        thread.join()
        (found,) = outcome
        if isinstance(found, BaseException):
            raise found
        return found

    return result


def is_weights(path: Path) -> bool:
    """Whether the file contains weights without a network: a torch checkpoint or safetensors."""
    try:
        known = identify(path) if path.is_file() else None
    except (OSError, *MALFORMED):
        return False
    return known is not None and known.weights_only


def check_weights(path: Path, *, trust: bool = False) -> tuple[str, ...]:
    """Check a weights file for executable content without loading it.

    Returns:
        Notes on content that only ``trust`` allows.

    Raises:
        UsageError: the file is missing or damaged, contains no weights, or refers to anything that
            ``torch.load(weights_only=True)`` rejects.
    """
    with _explained(path):
        _present(path)
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a weights file", fix=_FIX_WEIGHTS)
        known, expected = identify(path), by_suffix().get(path.suffix.lower())
        title = known.title if known else unknown(path)
        if expected is not None and expected.weights_only and expected is not known:
            raise UsageError(f"{path} is not {expected.title}: it is {title}", fix=_FIX_WEIGHTS)
        if known is None or not known.weights_only:
            raise UsageError(f"{path} is not a weights file: it is {title}", fix=_FIX_WEIGHTS)
        return known.check_weights(path, trust=trust)


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file of weights, by name; empty if only loading it would tell.

    Raises:
        UsageError: the file is missing or damaged.
    """
    with _explained(path):
        _present(path)
        known = identify(path)
        return known.weight_shapes(path) if known is not None else {}


def size_breakdown(path: Path) -> SizeBreakdown:
    """Size breakdown of a model file or folder, whose format is detected by its content.

    Raises:
        UsageError: the file is missing, empty, damaged or not a model.
        StageError: the file is damaged; the message comes from its format.
        MissingPackageError: reading it requires a package that is not installed.
    """
    with _explained(path):
        _present(path)
        known = identify(path)
        if known is not None:
            return LayerRecord(path, known.digest(path)).named(known.breakdown(path))
        raise UsageError(f"{path} is not a model: it is {unknown(path)}", fix="use a model file")


def recognise(path: Path) -> Format:
    """The format of a model file or folder, whose suffix must match its content.

    Raises:
        UsageError: the file is missing, empty or damaged, has an unknown format, or does not match its name.
    """
    with _explained(path):
        _present(path)
        known = identify(path)
    expected = by_suffix().get(path.suffix.lower()) if path.is_file() else None
    title = known.title if known else unknown(path)
    if expected is not None and known is not expected:
        raise UsageError(
            f"{path} is not {expected.title}: its content is {title}",
            fix="use the right file, or rename it to match its content",
        )
    if known is None:
        raise UsageError(f"{path} is not a model: it is {title}", fix=f"supported models: {_models()}")
    return known


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Convert errors from reading a file into errors for the user."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the file") from error
    except MALFORMED as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
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
        raise UsageError(f"{path} is neither a file nor a folder", fix=f"supported models: {_models()}")


def _models() -> str:
    """The suffixes or titles of all formats that are models, or weights of one."""
    known = formats().values()
    weights = dict.fromkeys(suffix for each in known if each.weights_only for suffix in each.suffixes)
    models = ", ".join(each.suffix or each.title for each in known if each.is_model)
    return f"{models}; with a factory: {', '.join(weights)}"
