"""What a run would do, without doing it."""

from collections.abc import Sequence
from pathlib import Path

from edgeopt.recipe.planner import Plan, make_plan
from edgeopt.recipe.resolve import load_recipe


def plan(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> Plan:
    """Plan a recipe without running it; ``plan.impossible`` lists what cannot be produced.

    Raises:
        UsageError: the recipe or the model file is invalid.
    """
    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root, device_folders=device_folders)
    return make_plan(loaded)
