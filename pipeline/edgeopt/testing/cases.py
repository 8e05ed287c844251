"""Every plug-in of a distribution as a test case."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from edgeopt.config import registry
from edgeopt.config.registry import Kind
from edgeopt.plugin import Dataset, Format, Metric, Plugin, Stage
from edgeopt.testing.conformance.datasets import check_dataset
from edgeopt.testing.conformance.formats import check_format
from edgeopt.testing.conformance.metrics import check_metric
from edgeopt.testing.conformance.runtimes import check_runtime
from edgeopt.testing.conformance.stages import check_stage
from edgeopt.testing.workshop import Workshop

CHECKS: dict[Kind, Callable[[Any, Workshop], None]] = {
    "stages": check_stage,
    "formats": check_format,
    "runtimes": check_runtime,
    "datasets": check_dataset,
    "metrics": check_metric,
}


class Case(NamedTuple):
    """One plug-in to be tested."""

    kind: Kind
    name: str
    plugin: Plugin | type[Plugin] | None
    """An instance, or a class that is tested with the options that it has by itself; None for a runtime."""

    def __str__(self) -> str:
        given = self.plugin.options() if isinstance(self.plugin, Plugin) else {}
        usual = type(self.plugin).model_fields if isinstance(self.plugin, Plugin) else {}
        own = [f"{key}={value}" for key, value in given.items() if value != usual[key].default]
        return f"{self.kind}:{self.name}" + (f"({','.join(own)})"[:60] if own else "")

    def unavailable(self, workshop: Workshop) -> str:
        """Why it cannot be tested on this machine; empty if it can."""
        if self.plugin is not None:
            missing = self.plugin.missing()
            return f"{self.name} needs {', '.join(missing)}" if missing else ""
        assert workshop.bench.probe is not None
        found = workshop.bench.probe["runtimes"].get(self.name)
        return "" if found else f"the runtime {self.name} is not installed on this machine"

    def check(self, workshop: Workshop) -> None:
        """Test it.

        Raises:
            Nonconformance: it does not do what its kind promises.
            EdgeoptError: a toy cannot be made, or the plug-in refuses one.
        """
        CHECKS[self.kind](self.plugin if self.plugin is not None else self.name, workshop)


def cases(package: str, instances: Iterable[Plugin] = ()) -> list[Case]:
    """Every stage, format, runtime, dataset and metric that a package brings.

    Args:
        package: the top level package, such as ``my_package``; ``edgeopt`` for the shipped ones.
        instances: plug-ins that need options to exist, or are to be tested with several. A plug-in without
            an instance here is tested with the options that it has by itself.
    """
    given: dict[tuple[Kind, str], list[Plugin]] = {}
    for plugin in instances:
        given.setdefault((plugin.plugin_kind, registry.plugin_name(plugin)), []).append(plugin)
    found = []
    for base in (Stage, Format, Dataset, Metric):
        kind: Kind = base.plugin_kind
        for name in _brought(kind, package):
            several: list[Any] = given.get((kind, name), []) or [registry.find(cast(Any, base), name)]
            found += [Case(kind, name, plugin) for plugin in several]
    return found + [Case("runtimes", name, None) for name in _brought("runtimes", package)]


def _brought(kind: Kind, package: str) -> list[str]:
    if package == "edgeopt":
        return list(registry.shipped(kind))
    points = registry.entry_points().items()
    return [name for (of, name), point in points if of == kind and point.module.split(".")[0] == package]
