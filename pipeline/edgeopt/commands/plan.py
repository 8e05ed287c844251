"""What a run would do, without doing it."""

from collections.abc import Sequence
from pathlib import Path

from edgeopt.recipe.planner import Plan, make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.selection import Selection


def plan(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    formats: Sequence[str] = (),
    devices: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> Plan:
    """Plan a recipe without running it; ``plan.impossible`` lists what cannot be produced.

    ``variants``, ``formats`` and ``devices`` select a part of it, as in `edgeopt.optimize`.

    Raises:
        UsageError: the recipe or the model file is invalid.
    """
    loaded = load_recipe(
        recipe,
        overrides=overrides,
        data_root=data_root,
        device_folders=device_folders,
        selection=Selection(tuple(variants), tuple(formats), tuple(devices)),
    )
    return make_plan(loaded)
