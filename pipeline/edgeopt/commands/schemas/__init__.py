"""JSON Schemas of what people write and read, and of what the host and a device's agent exchange.

They are made from the types that the program itself reads and writes with, so they cannot disagree
with it. An editor completes and checks YAML by them; scripts hold ``report.json`` against them. The
files beside this module know the shipped plugins; ``schema(name, installed=True)`` also knows those
that other packages bring. In the dialect of draft 7, which every editor and validator understands.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from edgeopt.config import registry
from edgeopt.config.units import BYTES
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.devices.device import Device, known_devices
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import Connection, Dataset, Metric, Plugin, Stage
from edgeopt.publish.contract import Contract
from edgeopt.recipe.document import VERSION, Document, GatePart
from edgeopt.results import ALWAYS, LIMITS, MEASUREMENTS, Report
from edgeopt.run import protocol

Name = Literal["recipe", "device", "report", "bundle", "job", "job_result"]
Schema = dict[str, Any]

NAMES: tuple[Name, ...] = get_args(Name)
DIALECT = "http://json-schema.org/draft-07/schema#"
OWN_CODE = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
FRACTION = {"type": "string", "pattern": "^[-+]?[0-9]+/[1-9][0-9]*$"}
AMOUNT = {
    "type": "string",
    "pattern": rf"^\s*[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?\s*({'|'.join(BYTES)})?\s*$",
}


def schema(name: Name, *, installed: bool = False) -> Schema:
    """The schema called ``name``; with ``installed``, plugins of other packages are known to it too."""
    if name == "recipe":
        return _recipe(installed=installed)
    if name == "device":
        return _device(installed=installed)
    if name in ("job", "job_result"):
        message = protocol.Job if name == "job" else protocol.JobResult
        return {"$schema": DIALECT, "title": f"edgeopt {name}", **protocol.schema(message), "definitions": {}}
    return _written("edgeopt report", Report) if name == "report" else _written("edgeopt bundle", Contract)


def text(name: Name, *, installed: bool = False) -> str:
    """The schema as JSON text: the same types give the same text."""
    return json.dumps(schema(name, installed=installed), indent=2, ensure_ascii=False) + "\n"


def shipped_file(name: Name) -> Path:
    """The file that is shipped with the package."""
    return Path(__file__).with_name(f"{name}.schema.json")


P = TypeVar("P", Connection, Dataset, Metric, Stage)


class Generator(GenerateJsonSchema):
    """Also tells the short forms that validators accept before pydantic looks at a value."""

    schema_dialect = DIALECT

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        usual = super().function_before_schema(schema)
        name = schema["function"]["function"].__name__
        if name in ("_existing", "_bare_name", "_from_text", "_settings_of_protocol"):
            return usual  # a path is text either way; the others stand for whole models, see below
        if name in ("_one_is_written_alone", "with_kinds"):
            return usual
        if name == "_as_words":
            word: Schema = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
            return {"anyOf": [{"type": "array", "items": word}, word]}
        forms = {
            "_number": FRACTION,
            "_as_bytes": AMOUNT,
            "_as_list": usual.get("items"),
            "_as_by_default": {"const": "default"},
        }
        short = forms[name]
        return {"anyOf": [usual, short]}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        usual = super().nullable_schema(schema)
        for form in usual.get("anyOf", ()):
            if "ge" in form:  # pydantic does not see that what stands behind a validator is a number
                form["minimum"] = form.pop("ge")
        return usual

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        usual = super().model_schema(schema)
        usual.pop("title", None)
        if self.mode == "serialization":
            usual.pop("additionalProperties", None)  # a later version may tell more
        if "description" in usual:
            usual["description"] = usual["description"].replace("``", "`")
        inner = schema["schema"]
        if inner["type"] == "function-before" and inner["function"]["function"].__name__ == "_from_text":
            return {**OWN_CODE, "description": usual["description"]}
        return usual

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        usual = super().tuple_schema(schema)
        if "prefixItems" in usual:
            usual["items"] = usual.pop("prefixItems")
        return usual

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        # What the program writes, it writes whole.
        return self.mode == "serialization" or super().field_is_required(field, total)


def _generated(
    models: list[type[BaseModel]], mode: Literal["validation", "serialization"] = "validation"
) -> tuple[dict[type[BaseModel], Schema], Schema]:
    """A reference to each model, and the definitions they refer to."""
    found, whole = models_json_schema(
        [(model, mode) for model in models],
        schema_generator=Generator,
        ref_template="#/definitions/{model}",
    )
    return {model: dict(found[model, mode]) for model in models}, whole["$defs"]


def _document(title: str, root: Schema, definitions: Schema) -> Schema:
    """One schema document: ``root`` at its top, and the definitions that it leads to."""
    used: dict[str, Schema] = {}
    waiting = [_follow(root, definitions)]
    while waiting:
        for name in re.findall(r'"#/definitions/([^"]+)"', json.dumps(waiting.pop())):
            if name not in used:
                used[name] = definitions[name]
                waiting.append(definitions[name])
    top = _follow(root, definitions)
    return {"$schema": DIALECT, "title": title, **top, "definitions": dict(sorted(used.items()))}


def _written(title: str, model: type[BaseModel]) -> Schema:
    """The schema of what the program writes."""
    refs, definitions = _generated([model], "serialization")
    return _document(title, refs[model], definitions)


def _device(*, installed: bool) -> Schema:
    connections = _plugins(Connection, installed=installed)
    refs, definitions = _generated([Device, *connections.values()])
    definitions["connection"] = _entry(connections, refs)
    top = _follow(refs[Device], definitions)
    keys = top["properties"]
    top["required"].remove("name")
    keys["name"]["description"] = "default: the name of the file"
    del keys["connection"]["anyOf"]
    keys["connection"]["allOf"] = [{"$ref": "#/definitions/connection"}]
    runtime = _known(runtime_names())
    keys["runtimes"]["anyOf"][0] |= {
        "properties": dict.fromkeys(artifact_formats(), runtime),
        "additionalProperties": runtime,
    }
    return _document("edgeopt device", refs[Device], definitions)


def _recipe(*, installed: bool) -> Schema:
    datasets, metrics = _plugins(Dataset, installed=installed), _plugins(Metric, installed=installed)
    stages = _plugins(Stage, installed=installed)
    refs, definitions = _generated([Document, *datasets.values(), *metrics.values(), *stages.values()])
    definitions |= {
        "dataset": _entry(datasets, refs),
        "metric": _entry(metrics, refs),
        "stage": _entry(stages, refs),
        "variant": _variant(stages, definitions, refs),
    }
    top = _follow(refs[Document], definitions)
    keys = top["properties"]
    keys["version"] = {"const": VERSION, "description": "of the recipe language"}
    model = _follow(keys["model"], definitions)
    model["oneOf"] = [{"required": ["path"]}, {"required": ["factory", "inputs"]}]
    model["dependencies"] = {"weights": ["factory"], "arguments": ["factory"]}
    for use in _follow(keys["data"], definitions)["properties"].values():
        if "anyOf" in use:  # all but the switches
            use["anyOf"][0] = {"$ref": "#/definitions/dataset"}
    keys["metric"]["anyOf"] = _one_or_more({"$ref": "#/definitions/metric"})
    keys["optimize"] |= {
        "properties": {"float": {"anyOf": [{"type": "object", "maxProperties": 0}, {"type": "null"}]}},
        "additionalProperties": {"$ref": "#/definitions/variant"},
        "propertyNames": {"pattern": "^[A-Za-z0-9._-]+$"},
    }
    formats, devices = _known(artifact_formats()), _open(known_devices())
    keys["formats"]["anyOf"] = _one_or_more(formats, minItems=1)
    keys["devices"]["anyOf"] = _one_or_more(devices)
    gate = _follow(keys["gates"]["items"], definitions)
    gate["properties"]["metric"] |= _open([*metrics, *MEASUREMENTS, *ALWAYS])
    gate["properties"]["formats"]["anyOf"] = _one_or_more(formats)
    gate["properties"]["devices"]["anyOf"] = _one_or_more(devices)
    for one, several in GatePart.ALONE.items():
        gate["properties"][one] = gate["properties"][several]
    gate["oneOf"] = [{"required": [limit]} for limit in LIMITS]
    return _document("edgeopt recipe", refs[Document], definitions)


def _plugins(base: type[P], *, installed: bool) -> dict[str, type[P]]:
    if installed:
        return registry.plugins(base)
    return {name: registry.find(base, name) for name in registry.shipped(base.plugin_kind)}


def _entry(plugins: Mapping[str, type[Plugin]], refs: Mapping[type[BaseModel], Schema]) -> Schema:
    """A plugin as a recipe or device names it: ``name``, or ``{uses: name, with: {options}}``."""
    needy = [name for name, plugin in plugins.items() if _required(plugin)]
    bare = [name for name in plugins if name not in needy]
    cases = [
        {
            "if": {"properties": {"uses": {"const": name}}, "required": ["uses"]},
            "then": {"properties": {"with": refs[plugin]}}
            | ({"required": ["with"]} if name in needy else {}),
        }
        for name, plugin in plugins.items()
    ]
    return {
        "anyOf": [
            *([_known(bare)] if bare else []),  # an empty choice is no schema
            OWN_CODE,
            {
                "type": "object",
                "properties": {
                    "uses": {
                        "description": "name of a plugin, or module:Class of your own",
                        "anyOf": [_known(plugins), OWN_CODE],
                    },
                    "with": {"description": "the plugin's options", "type": "object"},
                },
                "required": ["uses"],
                "additionalProperties": False,
                "allOf": cases,
            },
        ]
    }


def _variant(
    stages: Mapping[str, type[Stage]], definitions: Schema, refs: Mapping[type[BaseModel], Schema]
) -> Schema:
    """What a variant may ask for: every intent that some stage fulfils, or the stages themselves."""
    intents: dict[str, list[type[Stage]]] = {}
    for stage in stages.values():
        for intent in stage.fulfils:
            intents.setdefault(intent, []).append(stage)
    keys: Schema = {
        intent: _intent(intent, fulfilling, definitions, refs)
        for intent, fulfilling in sorted(intents.items())
    }
    keys["stages"] = {
        "description": "the stages themselves, in order, instead of what they are for",
        "type": "array",
        "items": {"$ref": "#/definitions/stage"},
    }
    alone = {"if": {"required": ["stages"]}, "then": {"maxProperties": 1}}
    kind = {"type": "object", "properties": keys, "additionalProperties": False, **alone}
    return {"description": "one way to optimize the model", "anyOf": [kind, {"type": "null"}]}


def _intent(
    intent: str, stages: list[type[Stage]], definitions: Schema, refs: Mapping[type[BaseModel], Schema]
) -> Schema:
    """A scheme by its name, or a mapping with options of the stages that fulfil it."""
    schemes = sorted({scheme for stage in stages for scheme in stage.fulfils[intent]})
    options: dict[str, list[Schema]] = {"scheme": [{"enum": schemes}]}
    for stage in stages:
        for option, value in _follow(refs[stage], definitions)["properties"].items():
            known = options.setdefault(option, [])
            if option != "scheme" and value not in known:
                known.append(value)
    merged = {option: forms[0] if len(forms) == 1 else {"anyOf": forms} for option, forms in options.items()}
    kind: Schema = {"type": "object", "additionalProperties": False}
    alone = {"description": "options for one format alone"}
    definitions[f"{intent}_alone"] = {**alone, **kind, "properties": dict(merged)}
    told = {"$ref": f"#/definitions/{intent}_alone"}
    mapping = {**kind, "properties": merged | dict.fromkeys(artifact_formats(), told), "minProperties": 1}
    switch = len(schemes) == 1 or any(intent in stage.by_default for stage in stages)
    return {"anyOf": [{"enum": schemes}, *([{"type": "boolean"}] if switch else []), mapping]}


def _required(plugin: type[Plugin]) -> list[str]:
    return [name for name, field in plugin.model_fields.items() if field.is_required()]


def _follow(node: Schema, definitions: Schema) -> Schema:
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    return node


def _known(names: Any) -> Schema:
    return {"enum": list(names)}


def _open(names: Any) -> Schema:
    """These names are offered, others are accepted."""
    return {"anyOf": [_known(dict.fromkeys(names)), {"type": "string"}]}


def _one_or_more(item: Schema, **limits: int) -> list[Schema]:
    return [{"type": "array", "items": item, **limits}, item]
