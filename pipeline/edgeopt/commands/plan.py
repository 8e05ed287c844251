"""What a run would do, without doing it."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgeopt.commands.start import Given, paths_of, recipe_of
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.planner import make_plan
from edgeopt.run.store import Store


def plan(
    recipe: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    int8: bool = False,
    goal: str | None = None,
    factory: str | None = None,
    shapes: Sequence[Sequence[int]] = (),
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    formats: Sequence[str] = (),
    devices: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> Plan:
    """Plan a recipe without running it; ``plan.impossible`` lists what cannot be produced.

    The arguments are those of `edgeopt.optimize`. Of a model, the first samples are run, to know its outputs.

    Raises:
        UsageError: the recipe or the model file is invalid.
    """
    given = Given(
        Path(recipe),
        paths_of(data),
        int8,
        goal,
        factory,
        shapes,
        variants,
        formats,
        devices,
        overrides,
    )
    return plan_of(given, data_root=data_root, device_folders=device_folders)


def plan_of(given: Given, *, data_root: Path | None = None, device_folders: Sequence[Path] = ()) -> Plan:
    """The plan of a recipe or model, with what a user says about it.

    Raises:
        UsageError: the recipe or the model file is invalid.
    """
    with ExitStack() as cleanup:

        def store() -> Store:  # planning leaves nothing behind
            folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-"))
            return Store(Path(folder) / "store")

        ready = recipe_of(
            given, lambda name: Path(), store=store, data_root=data_root, device_folders=device_folders
        )
        return make_plan(ready.recipe)
