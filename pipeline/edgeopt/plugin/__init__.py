"""The API for plugin authors: a base class for each kind of plugin, and the types that it uses.

A plugin's fields are its options, so the recipe entry *is* the plugin. Class variables declare the rest:
``requires`` lists the distributions (by their pip names) that the methods import, ``extra`` is the pip extra
that installs them, and ``revision`` is incremented when the same options give another result. Frameworks are
imported inside methods only.
"""

from edgeopt.config.references import Code, ExistingPath
from edgeopt.config.units import Bytes, show_bytes
from edgeopt.plugin.base import Plugin, canonical, digest_of
from edgeopt.plugin.connection import Connection, ConnectionCutError, Link
from edgeopt.plugin.contents import LayerSize, Operator, SizeBreakdown, Source
from edgeopt.plugin.dataset import Dataset, Feed, Sample
from edgeopt.plugin.format import FileHead, Format, LayerView
from edgeopt.plugin.metric import Contributions, Metric, NamedMetric, Reading, Score
from edgeopt.plugin.stage import Context, Judging, Stage, Worker
from edgeopt.plugin.task import Decisions, Decoder, Head, Labels, PerSample, Task
from edgeopt.results import Trial

__all__ = [
    "KINDS",
    "Bytes",
    "Code",
    "Connection",
    "ConnectionCutError",
    "Context",
    "Contributions",
    "Dataset",
    "Decisions",
    "Decoder",
    "ExistingPath",
    "Feed",
    "FileHead",
    "Format",
    "Head",
    "Judging",
    "Labels",
    "LayerSize",
    "LayerView",
    "Link",
    "Metric",
    "NamedMetric",
    "Operator",
    "PerSample",
    "Plugin",
    "Reading",
    "Sample",
    "Score",
    "SizeBreakdown",
    "Source",
    "Stage",
    "Task",
    "Trial",
    "Worker",
    "canonical",
    "digest_of",
    "show_bytes",
]

KINDS: tuple[type[Plugin], ...] = (Stage, Format, Dataset, Metric, Task, Decoder, Connection)
"""The base classes of all kinds."""
