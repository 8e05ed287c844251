"""The variants of a recipe that are found by searching, replaced by what was found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeopt.errors import CannotRunError
from edgeopt.recipe.recipe import Recipe, Variant
from edgeopt.recipe.variants import variant_of
from edgeopt.run.store import Store
from edgeopt.search.search import Watch, search


def with_found(recipe: Recipe, store: Store, device_folders: Sequence[Path], watch: Watch) -> Recipe:
    """The recipe with the best variant of every search, in the format that it was found in.

    The journals are in the store, so that an interrupted run goes on.

    Raises:
        UsageError: as `search`.
        CannotRunError: no candidate meets the limits of a search.
    """
    variants: list[Variant] = []
    notes: list[str] = []
    for variant in recipe.variants:
        if variant.search is None:
            variants.append(variant)
            continue
        result = search(recipe, variant.name, variant.search, None, store, device_folders, watch)
        best = result.best
        if best is None:
            raise CannotRunError(
                f"the search {variant.name} found no variant within its limits: {result.closest}",
                fix="raise a limit or the budget, or search over more with 'over'",
            )
        found = variant_of(recipe, variant.name, best.options)
        variants.append(found._replace(formats=(best.format,)))
        notes.append(
            f"{variant.name} is trial {best.number + 1} of {len(result.trials)} of a search on "
            f"{result.samples} samples ({result.selection}), as {best.format}: {best.options}"
        )
        notes += result.notes
    return replace(recipe, variants=tuple(variants), notes=(*recipe.notes, *notes))
