"""Cache keys of steps: digests of everything that the result of a step depends on, and nothing else."""

from edgeopt.config import registry
from edgeopt.config.text import reason_of
from edgeopt.errors import EdgeoptError, StageError
from edgeopt.formats.known import model_digest
from edgeopt.plugin import Code, Dataset, Feed, Judging, Plugin, Stage, digest_of
from edgeopt.recipe.plan import Built, Plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import CODE_OF


class Keys:
    """The keys of a plan's steps; the digests of its model and data are computed once."""

    def __init__(self, plan: Plan) -> None:
        self.recipe = plan.recipe
        self.source = digest_of(
            [model_digest(plan.source), plan.source.model_dump(mode="json", exclude={"path", "code"})]
        )
        preprocessing = plan.preprocessing
        self.feeds = {
            part: Feed(dataset, preprocessing) for part, dataset in building_data(plan.recipe).items()
        }
        self.data = {
            part: digest_of([feed.dataset.digest(), preprocessing.key(plan.source.inputs)])
            for part, feed in self.feeds.items()
        }

    def of_next(self, built: Built) -> str:
        """The key of the next step of a branch.

        Raises:
            StageError: the stage is user code, and fails to describe itself.
        """
        stage = built.next_stage
        try:
            return self._of(stage, built)
        except EdgeoptError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            if not registry.code_digest(stage):
                raise
            raise StageError(reason_of(error)) from error

    def _of(self, stage: Stage, built: Built) -> str:
        return digest_of(
            {
                "input": built.steps[-1].digest if built.steps else self.source,
                "stage": registry.plugin_name(stage),
                "revision": stage.revision,
                "options": stage.options(),
                "code": registry.code_digest(stage),
                "parts": stage.key_parts(),
                "calibration": self.data.get("calibration", "") if stage.needs_calibration else "",
                "versions": stage.versions(),
                **self._further_parts(built, stage),
            }
        )

    def _further_parts(self, built: Built, stage: Stage) -> dict[str, str]:
        """Additional parts of the key for stages that train, search or use the source model; else empty."""
        parts = {part: self.data[part] for part in data_used(stage) if part in self.data}
        if stage.needs_calibration or stage.needs_training:
            parts.pop("calibration", None)  # already part of the key, or used only for a note
        if stage.extra_minutes > 0 and (judged := _judging_digest(self.recipe)):
            parts["judging"] = judged
        if stage.needs_source:
            source_step = built.source_step
            parts["source"] = source_step.digest if source_step else self.source
        return parts


def judging_of(recipe: Recipe) -> Judging:
    """How a recipe judges outputs: by its first metric against labels."""
    metrics = [named for named in recipe.metrics if named.metric.against == "labels"]
    return Judging(metrics[0] if metrics else None, recipe.heads, recipe.decoder)


def judging_code(recipe: Recipe) -> dict[str, str]:
    """The digest of the code outside edgeopt that decides how outputs are judged, by what it is in words."""
    plugins: list[tuple[str, Plugin]] = [(f"metric {named.name}", named.metric) for named in recipe.metrics]
    plugins += [(f"task {head.name}".rstrip(), head.task) for head in recipe.heads]
    if recipe.decoder is not None:
        plugins.append(("postprocess", getattr(recipe.decoder, "inner", recipe.decoder)))
    parts = {
        title: [*([own] if (own := registry.code_digest(plugin)) else []), *_code_of(plugin).values()]
        for title, plugin in plugins
    }
    return {f"{CODE_OF}{title}": digest_of(digests) for title, digests in parts.items() if digests}


def _code_of(plugin: Plugin) -> dict[str, str]:
    """The digests of the functions of a user that a plugin calls, by the option that names each."""
    return {name: value.digest() for name, value in plugin if isinstance(value, Code)}


def _judging_digest(recipe: Recipe) -> str:
    """A digest of how searches judge candidates; '' for the default, a classification by top-1 accuracy."""
    judging = judging_of(recipe)
    named = [(judging.metric.head, judging.metric.metric)] if judging.metric is not None else []
    plugins = [
        *named,
        *judging.heads,
        *([("", getattr(judging.decoder, "inner", judging.decoder))] if judging.decoder else []),
    ]
    parts = [
        [
            registry.plugin_name(part),
            part.options() | _code_of(part),
            registry.code_digest(part),
            *([head] if head else []),
        ]
        for head, part in plugins
    ]
    return digest_of(parts) if parts not in ([], [["top1", {}, ""]]) else ""


def building_data(recipe: Recipe) -> dict[str, Dataset]:
    """The datasets available to stages: all but the evaluation data."""
    parts = {
        "calibration": recipe.calibration,
        "training": recipe.train,
        "validation": recipe.validation,
    }
    return {part: dataset for part, dataset in parts.items() if dataset is not None}


def data_used(stage: Stage) -> list[str]:
    """The roles of the datasets that a stage receives."""
    searches = stage.extra_minutes > 0
    used = ["calibration"] if stage.needs_calibration or stage.needs_training or searches else []
    used += ["training"] if stage.needs_training else []
    return [*used, "validation"] if stage.needs_training or searches else used
