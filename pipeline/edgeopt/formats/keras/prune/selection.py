"""Selection of channels to remove: a number per bundle, rounded for runtimes, the least important first."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.prune.channels import Atoms, Bundle
from edgeopt.formats.layer_names import matching


class Choice(NamedTuple):
    """The channels to remove and, for each bundle, its producers with the channels before and after."""

    removed: Atoms
    counts: tuple[tuple[tuple[str, ...], int, int], ...]
    frozen: tuple[tuple[tuple[str, ...], str], ...]


def share_of(
    paths: Sequence[str], names: Mapping[str, str], layers: Mapping[str, float], default: float
) -> float:
    """The share that ``layers`` assigns to layers that are pruned together.

    Raises:
        StageError: it assigns several.
    """
    shares = {layers[names[path]]: names[path] for path in paths if path in names}
    if len(shares) > 1:
        conflict = ", ".join(f"{pattern!r}: {share:g}" for share, pattern in shares.items())
        raise StageError(
            f"layers {', '.join(paths)} have channels in common, but 'layers' assigns different shares: "
            f"{conflict}",
            fix="assign the same share to all of them",
        )
    return next(iter(shares), default)


def remaining_channels(
    bundles: Sequence[Bundle],
    *,
    share: float,
    round_to: int,
    keep: Sequence[str],
    layers: Mapping[str, float],
) -> list[int]:
    """The number of channels to keep of every bundle; a frozen bundle keeps all.

    Of ``n`` channels about ``(1 - share) * n`` are kept: the nearest multiple of ``round_to``, at least one
    ``round_to``; all of them if ``n`` is not larger than that.

    Raises:
        StageError: a pattern matches no layer, or layers with common channels get different shares.
    """
    names = list(dict.fromkeys(path for bundle in bundles for path in bundle.members))
    kept = matching(keep, names, "keep")
    shares = matching(layers, names, "layers")
    counts = []
    for bundle in bundles:
        bundle_share = share_of(bundle.members, shares, layers, share)
        keeps_all = bundle.frozen or any(path in kept for path in bundle.members)
        total = len(bundle.channels)
        counts.append(total if keeps_all else remaining(total, bundle_share, round_to))
    return counts


def choose(
    bundles: Sequence[Bundle],
    counts: Sequence[int],
    importance: Callable[[Bundle], NDArray[np.float64]],
) -> Choice:
    """Choose the channels to remove, so that ``counts`` of every bundle remain."""
    removed: list[int] = []
    for bundle, stay in zip(bundles, counts, strict=True):
        if stay < len(bundle.channels):
            # Stable: among equally important channels the later ones are removed, on every machine.
            ranked = np.argsort(-importance(bundle), kind="stable")
            removed += bundle.channels[np.sort(ranked[stay:])].tolist()
    return Choice(
        np.array(removed, np.int64),
        tuple((b.producers, len(b.channels), stay) for b, stay in zip(bundles, counts, strict=True)),
        tuple((b.producers, b.frozen) for b in bundles if b.frozen),
    )


def remaining(total: int, share: float, round_to: int) -> int:
    """The number of channels left when about ``share`` of ``total`` are removed."""
    if total <= round_to or not share:
        return total
    # Halves are rounded up, in favour of accuracy; Python's round() would round them to even.
    steps = int(np.floor((1 - share) * total / round_to + 0.5))
    return min(total, max(1, steps) * round_to)
