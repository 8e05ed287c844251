"""What every plugin keeps to. They are found by looking: a new file is tested without an edit here."""

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt.config import registry
from edgeopt.config.yaml_source import read_yaml
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.devices.device import known_devices, load_device, shipped
from edgeopt.plugin import KINDS, Dataset, Metric, Plugin, Stage
from edgeopt.recipe.resolve import find_recipe

PACKAGE = Path(edgeopt.__file__).parent
PLUGINS = [(base, name) for base in KINDS for name in registry.names(base.plugin_kind)]
FRAMEWORKS = (
    "tensorflow keras tf_keras torch onnx onnxruntime tf2onnx onnxscript litert_torch ai_edge_litert "
    "ai_edge_quantizer torchao executorch sklearn PIL h5py safetensors tflite_runtime scipy pandas"
).split()


@pytest.mark.parametrize(("base", "name"), PLUGINS)
def test_a_plugin_file_holds_one_plugin_of_its_name(base: type[Plugin], name: str) -> None:
    found = registry.find(base, name)
    tree = ast.parse(Path(str(inspect.getsourcefile(found))).read_text())
    public = [
        node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    plugins = [cls for cls in public if issubclass(getattr(sys.modules[found.__module__], cls), base)]
    assert plugins == [registry.class_name(name)]
    assert found.__doc__
    assert found.model_config["frozen"]
    assert found.model_config["extra"] == "forbid"


@pytest.mark.parametrize(("base", "name"), PLUGINS)
def test_every_option_explains_itself(base: type[Plugin], name: str) -> None:
    for option, field in registry.find(base, name).model_fields.items():
        assert field.description, f"{base.plugin_kind}.{name}.{option} has no description"


@pytest.mark.parametrize(("base", "name"), PLUGINS)
def test_required_distributions_exist_under_an_extra(base: type[Plugin], name: str) -> None:
    plugin = registry.find(base, name)
    if not plugin.requires:
        return
    known = importlib.metadata.requires("edgeopt") or []
    assert plugin.extra is not None
    brought = {
        _plain(line)
        for line in known
        for extra in plugin.extra.split(",")
        if f'extra == "{extra}"' in line.replace("'", '"')
    }
    base = {_plain(line) for line in known if "extra ==" not in line}
    assert {_plain(name) for name in plugin.requires} <= brought | base


def _plain(requirement: str) -> str:
    name = requirement
    for sign in "<>=~!;[ ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("name", registry.names("stages"))
def test_a_stage_tells_its_formats_and_intents(name: str) -> None:
    stage: Any = registry.find(Stage, name)
    assert issubclass(stage, Stage)
    assert stage.accepts
    assert stage.produces
    assert stage.worker in ("tensorflow", "torch", "plain")
    for intent, schemes in stage.fulfils.items():
        assert intent.isidentifier()
        assert schemes


@pytest.mark.parametrize("name", registry.names("datasets"))
def test_a_dataset_has_samples_and_a_digest(name: str) -> None:
    dataset: Any = registry.find(Dataset, name)
    assert issubclass(dataset, Dataset)
    assert not dataset.__abstractmethods__


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_a_metric_tells_its_direction(name: str) -> None:
    metric: Any = registry.find(Metric, name)
    assert issubclass(metric, Metric)
    assert not metric.__abstractmethods__


@pytest.mark.parametrize("name", known_devices())
def test_a_device_file_is_valid_and_names_runtimes_that_exist(name: str) -> None:
    device = load_device(name)
    assert device.description
    assert set(device.runtimes.values()) <= set(runtime_names())


@pytest.mark.parametrize("path", sorted(shipped("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_carries_the_name_of_its_file(path: Path) -> None:
    document, _ = read_yaml(path.read_text(), str(path))
    assert document["name"] == path.stem
    assert find_recipe(path.stem).name == path.name
    assert path.read_text().startswith("#")


def test_no_module_imports_a_framework() -> None:
    """Every module is imported in a process of its own kind, and no framework comes with it."""
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if "agent" not in path.relative_to(PACKAGE).parts and "_data" not in path.parts
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        f"print([name for name in {FRAMEWORKS!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_public_surface_is_pinned() -> None:
    assert edgeopt.__all__ == [
        "EdgeoptError",
        "RecipeError",
        "Report",
        "UsageError",
        "optimize",
        "plan",
        "profile",
    ]
    for name in edgeopt.__all__:
        assert getattr(edgeopt, name).__doc__
