"""The weights in a checkpoint of a training script: which set of them fits a module, and by what names.

Training scripts nest the weights (``{"model": ..., "ema": ...}``), and wrappers such as DataParallel,
Lightning and torch.compile add prefixes to all names. A set fits if exactly the names of the module remain
without a prefix, with the same shapes.
"""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.config.nearest import nearest
from edgeopt.errors import StageError

if TYPE_CHECKING:
    import torch

PREFERRED = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "_orig_mod", "student"),
    "generator",
)
"""Names of the weights that a script trained, in order of preference; others come after them."""
COPIES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "averaged", "teacher")
"""Names of averaged copies, which come last."""
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
"""Parts that torch.compile, DataParallel and others insert into names, in front and inside."""
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Counters that inference does not use: batches (missing before PyTorch 0.4.1), averaged models, and those of
a profiler."""
DEPTH = 4
SHOWN = 8


class Weights(NamedTuple):
    """A set of weights under the names of the module."""

    tensors: "dict[str, torch.Tensor]"
    key: str
    """What ``weights_key`` chooses it by; empty for the whole file."""
    renamed: tuple[str, str] | None
    """A name in the file and that in the module, if they differ."""
    left: tuple[str, ...] = ()
    """Other names in the file: they belong to another part of what was trained."""


def select(
    content: object, expected: "Mapping[str, torch.Tensor]", key: str | None, name: str
) -> list[Weights]:
    """The sets of weights in a checkpoint that fit a module, in order of preference.

    Args:
        content: what the file contains.
        expected: the ``state_dict`` of the module.
        key: keys of the set, separated by dots; the last ones may be a prefix of its names.
        name: name of the file, for messages.

    Raises:
        StageError: no set has the names and shapes of the module, or there is no such key.
    """
    found = list(_sets(content))
    if key is not None:
        found = _of_key(found, key, name)
    if not found:
        what = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            keys = ", ".join(map(str, list(content)[:SHOWN]))
            what = f"a dictionary with the keys {keys}" if keys else "an empty dictionary"
        raise StageError(
            f"{name} contains {what}, but no weights",
            fix="save the weights with torch.save(model.state_dict(), file)",
        )
    fitting = [weights for place, tensors in found for weights in _fits(tensors, expected, place)]
    if not fitting:
        raise _mismatch(found, expected, name)
    return fitting


def with_versions(
    tensors: "Mapping[str, torch.Tensor]", module: "torch.nn.Module"
) -> "Mapping[str, torch.Tensor]":
    """Weights under the names of a module as a ``state_dict`` of its present version.

    Layers compare the version in the metadata of a ``state_dict``, which files of other kinds and selected
    parts lack: without it they translate old names, or refuse (torchvision's MNASNet).
    """
    versioned: dict[str, torch.Tensor] = module.state_dict()
    versioned.clear()  # keeps the metadata
    versioned.update(tensors)
    return versioned


def translated(content: object, module: "torch.nn.Module") -> "Mapping[str, torch.Tensor] | None":
    """Weights of an earlier version of a module, in its present names; None if it does not accept them.

    Layers translate names themselves, by the version in the metadata of a ``state_dict``: those of a vision
    transformer of torchvision have changed, for example.
    """
    for _, tensors in _sets(content):
        copied = copy.deepcopy(module)
        with contextlib.suppress(RuntimeError, ValueError):
            copied.load_state_dict(tensors)
            renamed: dict[str, torch.Tensor] = copied.state_dict()
            return renamed
    return None


def remarks(fitting: list[Weights], name: str) -> list[str]:
    """What a user should know about the first of several sets, which is used."""
    used, *others = fitting
    notes = []
    if used.renamed:
        notes.append(
            "{}: {!r} is taken for the model's {!r}, and other names alike".format(name, *used.renamed)
        )
    if used.left:
        notes.append(f"{name}: not part of the model, and left out: {_listed(used.left)}")
    others = [weights for weights in others if not _same(weights.tensors, used.tensors)]
    if others:
        named = " and ".join(repr(weights.key) for weights in others)
        notes.append(
            f"{name} holds weights under {used.key!r}, which are used, and under {named}: "
            "model.weights_key chooses others"
        )
    return notes


def _sets(
    content: object, place: str = "", depth: int = 0
) -> "Iterator[tuple[str, dict[str, torch.Tensor]]]":
    """All sets of tensors in nested mappings and modules, with the path of keys to each."""
    import torch

    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    tensors = OrderedDict(
        (str(key), value) for key, value in content.items() if isinstance(value, torch.Tensor)
    )
    if tensors:
        if hasattr(content, "_metadata"):
            tensors._metadata = content._metadata  # type: ignore[attr-defined]
        yield place, tensors
    for key in sorted(map(str, content), key=_rank):
        value = content.get(key)
        yield from _sets(value, f"{place}.{key}" if place else key, depth + 1)


def _rank(key: str) -> int:
    name = key.partition(".")[0]
    if name in PREFERRED:
        return PREFERRED.index(name)
    return len(PREFERRED) + (name in COPIES)


def _of_key(
    found: "list[tuple[str, dict[str, torch.Tensor]]]", key: str, name: str
) -> "list[tuple[str, dict[str, torch.Tensor]]]":
    """The sets at or below a path of keys, whose end may be a prefix of names."""
    chosen = [each for each in found if each[0] == key or each[0].startswith(f"{key}.")]
    for place, tensors in found:
        prefix = key.removeprefix(f"{place}.") + "."
        part = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
        if part and (not place or key.startswith(f"{place}.")):
            chosen.append((key, part))
    if not chosen:
        known = [place for place, _ in found if place]
        known += sorted({n.partition(".")[0] for place, tensors in found if not place for n in tensors})
        raise StageError(
            f"{name} has no weights under the key {key!r}{nearest(key, known)}",
            fix=f"correct model.weights_key; the file has {_listed(known) or 'no keys'}",
        )
    return chosen


def _fits(
    tensors: "dict[str, torch.Tensor]", expected: "Mapping[str, torch.Tensor]", place: str
) -> list[Weights]:
    """The parts of a set that fit a module."""
    found = []
    for prefix, names in _candidates(tensors, expected):
        part = {new: tensors[old] for new, old in names.items()}
        if not any(_differences(part, expected)):
            left = tuple(sorted(set(tensors) - set(names.values())))
            key = ".".join(filter(None, (place, prefix.rstrip(".") if left else "")))
            renamed = next(((old, new) for new, old in names.items() if new != old), None)
            weights = {name: value for name, value in part.items() if name in expected}  # no counters
            found.append(Weights(weights, key, renamed, left))
    return found


def _candidates(
    names: Iterable[str], expected: "Mapping[str, torch.Tensor]"
) -> Iterator[tuple[str, dict[str, str]]]:
    """Prefixes, and the names of a set without it, and without wrappers, mapped to those in the file.

    The last one is that with a prefix added which all names of the module have.
    """
    same = {name: name for name in names}
    yield "", same
    drop = WRAPPERS.difference(*(name.split(".") for name in expected))
    plain = {".".join(part for part in name.split(".") if part not in drop): name for name in names}
    if len(plain) < len(same):
        plain = same
    if plain != same:
        yield "", plain
    first = next((name for name in expected if not name.endswith(COUNTERS)), "")
    prefixes = {name.removesuffix(first) for name in plain if first and name.endswith(f".{first}")}
    for prefix in sorted(prefixes, key=lambda each: (_rank(each), each)):
        inside = [name for name in plain if name.startswith(prefix)]
        yield prefix, {name.removeprefix(prefix): plain[name] for name in inside}
    name = next(iter(plain))
    for prefix in {wanted.removesuffix(name) for wanted in expected if wanted.endswith(f".{name}")}:
        yield "", {f"{prefix}{each}": old for each, old in plain.items()}


def _differences(
    tensors: "Mapping[str, torch.Tensor]", expected: "Mapping[str, torch.Tensor]"
) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, names that are unexpected, and descriptions of shapes that differ."""
    given, needed = ({key for key in names if not key.endswith(COUNTERS)} for names in (tensors, expected))
    shapes = [
        f"{key} is {list(tensors[key].shape)} in the file and {list(expected[key].shape)} in the model"
        for key in sorted(set(tensors) & set(expected))
        if tensors[key].shape != expected[key].shape
    ]
    return sorted(needed - given), sorted(given - needed), shapes


def _mismatch(
    found: "list[tuple[str, dict[str, torch.Tensor]]]", expected: "Mapping[str, torch.Tensor]", name: str
) -> StageError:
    """The differences of the set that has most names of the module."""
    place, tensors, names = max(
        ((place, tensors, names) for place, tensors in found for _, names in _candidates(tensors, expected)),
        key=lambda each: (len(expected.keys() & each[2]), -len(each[2].keys() - expected.keys())),
    )
    part = {new: tensors[old] for new, old in names.items()}
    missing, unexpected, shapes = _differences(part, expected)
    lines = [
        f"{name} does not match the model:" if not place else f"{place!r} of {name} does not match the model:"
    ]
    lines += _lines("missing", [_nearest(key, unexpected) for key in missing])
    lines += _lines("unexpected", [_nearest(names[key], missing or sorted(expected)) for key in unexpected])
    lines += _lines("shape", shapes)
    return StageError("\n".join(lines), fix="correct 'factory' and 'arguments', or use weights of this model")


def _lines(what: str, items: list[str]) -> list[str]:
    lines = [f"  {what}: {item}" for item in items[:SHOWN]]
    return [*lines, f"  {what}: and {len(items) - SHOWN} more"] if len(items) > SHOWN else lines


def _nearest(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, 1, 0.7)
    return f"{key} (nearest: {close[0]})" if close else key


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(map(repr, listed[:SHOWN])) + more


def _same(one: "Mapping[str, torch.Tensor]", other: "Mapping[str, torch.Tensor]") -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
