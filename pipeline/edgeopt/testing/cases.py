"""The plug-ins of a distribution as test cases."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from edgeopt.config import registry
from edgeopt.config.registry import Kind
from edgeopt.plugin import Dataset, Decoder, Format, Metric, Plugin, Stage, Task
from edgeopt.testing.conformance.datasets import check_dataset
from edgeopt.testing.conformance.formats import check_format
from edgeopt.testing.conformance.metrics import check_metric
from edgeopt.testing.conformance.runtimes import check_runtime
from edgeopt.testing.conformance.stages import check_stage
from edgeopt.testing.conformance.tasks import check_decoder, check_task
from edgeopt.testing.workshop import Workshop

CHECKS: dict[Kind, Callable[[Any, Workshop], None]] = {
    "stages": check_stage,
    "formats": check_format,
    "runtimes": check_runtime,
    "datasets": check_dataset,
    "metrics": check_metric,
    "tasks": check_task,
    "decoders": check_decoder,
}


class Case(NamedTuple):
    """One plug-in to test."""

    kind: Kind
    name: str
    plugin: Plugin | type[Plugin] | None
    """An instance, or a class to test with its default options; None for a runtime."""

    def __str__(self) -> str:
        options = self.plugin.options() if isinstance(self.plugin, Plugin) else {}
        fields = type(self.plugin).model_fields if isinstance(self.plugin, Plugin) else {}
        changed = [f"{key}={value}" for key, value in options.items() if value != fields[key].default]
        return f"{self.kind}:{self.name}" + (f"({','.join(changed)})"[:60] if changed else "")

    def unavailable(self, workshop: Workshop) -> str:
        """Reason why the plug-in cannot be tested on this machine; empty if it can."""
        if self.plugin is not None:
            missing = self.plugin.missing()
            return f"{self.name} requires {', '.join(missing)}" if missing else ""
        assert workshop.bench.probe is not None
        installed = workshop.bench.probe["runtimes"].get(self.name)
        return "" if installed else f"the runtime {self.name} is not installed on this machine"

    def check(self, workshop: Workshop) -> None:
        """Test the plug-in.

        Raises:
            Nonconformance: it violates the contract of its kind.
            EdgeoptError: a toy model cannot be created, or the plug-in rejects one.
        """
        CHECKS[self.kind](self.plugin if self.plugin is not None else self.name, workshop)


def cases(package: str, instances: Iterable[Plugin] = ()) -> list[Case]:
    """Every stage, format, runtime, dataset, metric, task and decoder that a package provides.

    Args:
        package: the top-level package, such as ``my_package``; ``edgeopt`` for the built-in plug-ins.
        instances: plug-ins with required options, or with further options to test. Plug-ins without an
            instance are tested with their default options.
    """
    given: dict[tuple[Kind, str], list[Plugin]] = {}
    for plugin in instances:
        given.setdefault((plugin.plugin_kind, registry.plugin_name(plugin)), []).append(plugin)
    collected = []
    for base in (Stage, Format, Dataset, Metric, Task, Decoder):
        kind: Kind = base.plugin_kind
        for name in _provided(kind, package):
            plugins: list[Any] = given.get((kind, name), []) or [registry.find(cast(Any, base), name)]
            collected += [Case(kind, name, plugin) for plugin in plugins]
    return collected + [Case("runtimes", name, None) for name in _provided("runtimes", package)]


def _provided(kind: Kind, package: str) -> list[str]:
    if package == "edgeopt":
        return list(registry.shipped(kind))
    points = registry.entry_points().items()
    return [name for (of, name), point in points if of == kind and point.module.split(".")[0] == package]
