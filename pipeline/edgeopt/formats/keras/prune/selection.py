"""Which channels go: so many of every bundle, the least important first, in numbers that runtimes like."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.prune.channels import Atoms, Bundle


class Choice(NamedTuple):
    """The channels to remove, and what happened to each bundle: producers, channels before and after."""

    removed: Atoms
    counts: tuple[tuple[tuple[str, ...], int, int], ...]
    frozen: tuple[tuple[tuple[str, ...], str], ...]


def matching(patterns: Iterable[str], names: Sequence[str], option: str) -> dict[str, str]:
    """For every name that a pattern matches, the last such pattern.

    A pattern is a glob over the whole name, or over a part of it.

    Raises:
        StageError: a pattern matches nothing; the nearest names are told.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        hits = hits or [name for name in names if fnmatchcase(name, f"*{pattern}*")]
        if not hits:
            near = difflib.get_close_matches(pattern.strip("*"), names, 3, 0.3) or list(names)[:5]
            raise StageError(
                f"{option}: {pattern!r} matches no layer that could be pruned",
                fix=f"the nearest names are {', '.join(near)}",
            )
        found |= dict.fromkeys(hits, pattern)
    return found


def share_of(
    paths: Sequence[str], names: Mapping[str, str], layers: Mapping[str, float], default: float
) -> float:
    """The share that ``layers`` gives to layers that are pruned together.

    Raises:
        StageError: it gives them several.
    """
    shares = {layers[names[path]]: names[path] for path in paths if path in names}
    if len(shares) > 1:
        told = ", ".join(f"{pattern!r}: {share:g}" for share, pattern in shares.items())
        raise StageError(
            f"layers {', '.join(paths)} share channels, but 'layers' gives them different shares: {told}",
            fix="give all of them the same share",
        )
    return next(iter(shares), default)


def keeping(
    bundles: Sequence[Bundle],
    *,
    share: float,
    round_to: int,
    keep: Sequence[str],
    layers: Mapping[str, float],
) -> list[int]:
    """How many channels of every bundle stay; all of one that is frozen.

    Of ``n`` channels about ``(1 - share) * n`` stay: the multiple of ``round_to`` next to it, at least
    one ``round_to``, and all where there are no more than that.

    Raises:
        StageError: a pattern matches no layer, or layers that share channels get different shares.
    """
    names = list(dict.fromkeys(path for bundle in bundles for path in bundle.members))
    kept = matching(keep, names, "keep")
    shares = matching(layers, names, "layers")
    counts = []
    for bundle in bundles:
        asked = share_of(bundle.members, shares, layers, share)
        stays = bundle.frozen or any(path in kept for path in bundle.members)
        total = len(bundle.channels)
        counts.append(total if stays else remaining(total, asked, round_to))
    return counts


def choose(
    bundles: Sequence[Bundle],
    counts: Sequence[int],
    importance: Callable[[Bundle], NDArray[np.float64]],
) -> Choice:
    """Choose the channels to remove, so that ``counts`` of every bundle stay."""
    removed: list[int] = []
    for bundle, stay in zip(bundles, counts, strict=True):
        if stay < len(bundle.channels):
            # A stable sort: of equally important channels the later ones go, on every machine.
            ranked = np.argsort(-importance(bundle), kind="stable")
            removed += bundle.channels[np.sort(ranked[stay:])].tolist()
    return Choice(
        np.array(removed, np.int64),
        tuple((b.producers, len(b.channels), stay) for b, stay in zip(bundles, counts, strict=True)),
        tuple((b.producers, b.frozen) for b in bundles if b.frozen),
    )


def remaining(total: int, share: float, round_to: int) -> int:
    """How many of ``total`` channels stay when about ``share`` of them are to go."""
    if total <= round_to or not share:
        return total
    steps = int(np.floor((1 - share) * total / round_to + 0.5))
    return min(total, max(1, steps) * round_to)
