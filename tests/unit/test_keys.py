"""Keys of the store: they must not change, so that finished work is reused after an update.

``data/cache_keys.json`` was recorded with placeholder package versions, and with "step 0", "step 1" ... in
place of the digests of earlier results. A change to the output of a stage requires a new ``revision`` of the
stage, and new recorded keys.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.commands.plan import plan as make_plan
from edgeopt.config import registry
from edgeopt.plugin import Plugin
from edgeopt.recipe.plan import Built, Step
from edgeopt.run.keys import Keys

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "cache_keys.json").read_text("utf-8")
)
WITHOUT_DATA = ("digits-keras", "digits-torch")


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_every_stage_of_the_shipped_recipes_keeps_its_key(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name not in WITHOUT_DATA:
        request.getfixturevalue("real_data")
    monkeypatch.setattr(Plugin, "versions", classmethod(lambda cls: dict.fromkeys(cls.requires, "any")))
    plan = make_plan(RECIPES / f"{name}.yaml")
    keys = Keys(plan)
    found: dict[str, Any] = {"source": keys.source}
    for branch in plan.branches:
        built = Built(branch)
        found[branch.name] = []
        for number, stage in enumerate(branch.stages):
            found[branch.name].append([registry.plugin_name(stage), keys.of_next(built)])
            built.steps.append(Step(stage, plan.source, f"step {number}", cached=False))
    assert found == RECORDED[name]
