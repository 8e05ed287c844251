"""The data on which a search selects: never those of the evaluation, by which its result is judged."""

from dataclasses import replace
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets.split import Split
from edgeopt.evaluation.interpreter import labels_of
from edgeopt.evaluation.samples import collect
from edgeopt.plugin import Dataset, Labels
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.searching import Search

OF_TRAIN, OF_CALIBRATION = 0.2, 0.5
"""Fraction of the samples that are set aside for the selection."""


class Selection(NamedTuple):
    """A recipe whose evaluation data are the samples of the selection, and where these are from."""

    recipe: Recipe
    origin: str


def selection_of(recipe: Recipe) -> Selection:
    """The data of a search: ``data.validation``, or a part of the training or calibration data.

    A sample's content decides its part, so the split is the same in every run. What is set aside is neither
    trained nor calibrated on.

    Raises:
        UsageError: the recipe has none of them.
    """
    if recipe.validation is not None:
        return Selection(replace(recipe, evaluation=recipe.validation), "data.validation")
    if recipe.train is not None:
        aside, rest = _parts(recipe.train, OF_TRAIN)
        changed = replace(recipe, evaluation=aside, train=rest)
        return Selection(changed, f"{OF_TRAIN:.0%} of data.train, set aside by content")
    if recipe.calibration is not None:
        aside, rest = _parts(recipe.calibration, OF_CALIBRATION)
        changed = replace(recipe, evaluation=aside, calibration=rest)
        return Selection(changed, f"{OF_CALIBRATION:.0%} of data.calibration, set aside by content")
    raise UsageError(
        f"{recipe.file}: a search needs samples to select on, other than those of the evaluation",
        fix="add data.validation, data.train or data.calibration",
    )


def _parts(dataset: Dataset, share: float) -> tuple[Split, Split]:
    aside = Split(of=dataset, part="calibration", share=share)
    return aside, aside.model_copy(update={"part": "evaluation"})


def check_labels(plan: Plan, search: Search, origin: str) -> Labels | None:
    """The labels of the selection data.

    Raises:
        UsageError: a limit needs labels, and they have none.
    """
    recipe = plan.recipe
    assert recipe.evaluation is not None  # set by selection_of
    _, labels = collect(recipe.evaluation, plan.preprocessing, plan.source.inputs)
    for name, metric, head in recipe.metrics:
        if name in search.metrics and metric.against == "labels" and labels_of(labels, head) is None:
            raise UsageError(
                f"{recipe.file}: the search limits {name}, which needs labels, and its selection data "
                f"({origin}) have none",
                fix="add data.validation with labels, or limit agreement instead",
            )
    return labels
