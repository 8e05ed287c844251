"""JSON Schemas of recipes, device files, reports, searches, bundles, and the agent's messages.

They are generated from the types that parse and write these files, so they cannot disagree with the program.
Editors use them to complete and check YAML, scripts to validate ``report.json``. The files beside this
module cover the shipped plugins; ``schema(name, installed=True)`` adds those of other installed packages.
The dialect is draft 7, the one that most editors and validators support.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from edgeopt.config import registry
from edgeopt.config.units import BYTES, HERTZ
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.devices.device import Device, known_devices
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import Connection, Dataset, Decoder, Metric, Plugin, Stage, Task
from edgeopt.publish.contract import Contract
from edgeopt.recipe.document import VERSION, Document, GatePart
from edgeopt.recipe.searching import DIMENSIONS, OBJECTIVES, SearchPart
from edgeopt.results import ALWAYS, LIMITS, MEASUREMENTS, Report
from edgeopt.results.search import SearchResult
from edgeopt.run.measuring import protocol

Name = Literal["recipe", "device", "report", "search", "bundle", "job", "job_result"]
Schema = dict[str, Any]

NAMES: tuple[Name, ...] = get_args(Name)
DIALECT = "http://json-schema.org/draft-07/schema#"
OWN_CODE = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
FRACTION = {"type": "string", "pattern": "^[-+]?[0-9]+/[1-9][0-9]*$"}


def _amount(units: Iterable[str]) -> Schema:
    """A number with one of these units, as text."""
    number = r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?"
    return {"type": "string", "pattern": rf"^\s*{number}\s*({'|'.join(units)})?\s*$"}


AMOUNT = _amount(BYTES)
CLOCK = _amount(HERTZ)


def schema(name: Name, *, installed: bool = False) -> Schema:
    """The schema called ``name``; ``installed`` includes the plugins of other packages."""
    if name == "recipe":
        return _recipe(installed=installed)
    if name == "device":
        return _device(installed=installed)
    if name in ("job", "job_result"):
        message = protocol.Job if name == "job" else protocol.JobResult
        return {"$schema": DIALECT, "title": f"edgeopt {name}", **protocol.schema(message), "definitions": {}}
    written: dict[Name, type[BaseModel]] = {"report": Report, "search": SearchResult, "bundle": Contract}
    return _output(f"edgeopt {name}", written[name])


def text(name: Name, *, installed: bool = False) -> str:
    """The schema as JSON text, deterministic for the same types."""
    return json.dumps(schema(name, installed=installed), indent=2, ensure_ascii=False) + "\n"


def shipped_file(name: Name) -> Path:
    """The schema file shipped with the package."""
    return Path(__file__).with_name(f"{name}.schema.json")


P = TypeVar("P", Connection, Dataset, Decoder, Metric, Stage, Task)


class Generator(GenerateJsonSchema):
    """Adds the short forms that ``before`` validators accept, which pydantic cannot see.

    It recognizes these validators by their names.
    """

    schema_dialect = DIALECT

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        default = super().function_before_schema(schema)
        name = schema["function"]["function"].__name__
        if name == "_as_words":
            word: Schema = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
            return {"anyOf": [{"type": "array", "items": word}, word]}
        forms = {
            "_number": FRACTION,
            "_as_bytes": AMOUNT,
            "_as_hertz": CLOCK,
            "_as_list": default.get("items"),
            "_default_runtimes": {"const": "default"},
        }
        # Others accept no further form; short forms of whole models are added below.
        return {"anyOf": [default, forms[name]]} if name in forms else default

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        default = super().nullable_schema(schema)
        for form in default.get("anyOf", ()):
            if "ge" in form:  # pydantic does not know that the type behind a validator is a number
                form["minimum"] = form.pop("ge")
        return default

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        default = super().model_schema(schema)
        default.pop("title", None)
        if self.mode == "serialization":
            default.pop("additionalProperties", None)  # later versions may add fields
        if "description" in default:
            default["description"] = default["description"].replace("``", "`")
        inner = schema["schema"]
        if inner["type"] == "function-before" and inner["function"]["function"].__name__ == "_from_text":
            return {**OWN_CODE, "description": default["description"]}
        return default

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        default = super().tuple_schema(schema)
        if "prefixItems" in default:  # a keyword of draft 2020-12
            default["items"] = default.pop("prefixItems")
        return default

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        # Output always contains every field.
        return self.mode == "serialization" or super().field_is_required(field, total)


def _generated(
    models: list[type[BaseModel]], mode: Literal["validation", "serialization"] = "validation"
) -> tuple[dict[type[BaseModel], Schema], Schema]:
    """A reference to each model, and the shared definitions."""
    refs, generated = models_json_schema(
        [(model, mode) for model in models],
        schema_generator=Generator,
        ref_template="#/definitions/{model}",
    )
    return {model: dict(refs[model, mode]) for model in models}, generated["$defs"]


def _document(title: str, root: Schema, definitions: Schema) -> Schema:
    """One schema document: ``root`` at the top level, with the definitions it refers to."""
    used: dict[str, Schema] = {}
    waiting = [_follow(root, definitions)]
    while waiting:
        for name in re.findall(r'"#/definitions/([^"]+)"', json.dumps(waiting.pop())):
            if name not in used:
                used[name] = definitions[name]
                waiting.append(definitions[name])
    top = _follow(root, definitions)
    return {"$schema": DIALECT, "title": title, **top, "definitions": dict(sorted(used.items()))}


def _output(title: str, model: type[BaseModel]) -> Schema:
    """The schema of a document that the program writes."""
    refs, definitions = _generated([model], "serialization")
    return _document(title, refs[model], definitions)


def _device(*, installed: bool) -> Schema:
    connections = _plugins(Connection, installed=installed)
    refs, definitions = _generated([Device, *connections.values()])
    definitions["connection"] = _entry(connections, refs)
    top = _follow(refs[Device], definitions)
    keys = top["properties"]
    del top["required"]
    top["anyOf"] = [{"required": ["runtimes"]}, {"required": ["base"]}]
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
    tasks, decoders = _plugins(Task, installed=installed), _plugins(Decoder, installed=installed)
    stages = _plugins(Stage, installed=installed)
    known = (datasets, metrics, tasks, decoders, stages)
    models = (each for kind in known for each in kind.values())
    refs, definitions = _generated([Document, SearchPart, *models])
    definitions |= {
        "task": _entry(tasks, refs),
        "decoder": _entry(decoders, refs),
        "dataset": _entry(datasets, refs),
        "Dataset": {"$ref": "#/definitions/dataset"},  # of a dataset that contains another one
        "metric": _entry(metrics, refs),
        "stage": _entry(stages, refs),
        "variant": _variant(stages, definitions, refs),
    }
    top = _follow(refs[Document], definitions)
    keys = top["properties"]
    keys["version"] = {"const": VERSION, "description": "version of the recipe language"}
    model = _follow(keys["model"], definitions)
    model["oneOf"] = [{"required": ["path"]}, {"required": ["factory", "inputs"]}]
    model["dependencies"] = {"weights": ["factory"], "arguments": ["factory"]}
    for use in _follow(keys["data"], definitions)["properties"].values():
        if "anyOf" in use:  # all fields but the booleans
            use["anyOf"][0] = {"$ref": "#/definitions/dataset"}
    for key, kind in (("task", "task"), ("postprocess", "decoder")):
        keys[key]["anyOf"][0] = {"$ref": f"#/definitions/{kind}"}
    keys["tasks"]["additionalProperties"] = {"$ref": "#/definitions/task"}
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
    for one, several in GatePart.SINGULAR.items():
        gate["properties"][one] = gate["properties"][several]
    gate["oneOf"] = [{"required": [limit]} for limit in LIMITS]
    return _document("edgeopt recipe", refs[Document], definitions)


def _plugins(base: type[P], *, installed: bool) -> dict[str, type[P]]:
    if installed:
        return registry.plugins(base)
    return {name: registry.find(base, name) for name in registry.shipped(base.plugin_kind)}


def _entry(plugins: Mapping[str, type[Plugin]], refs: Mapping[type[BaseModel], Schema]) -> Schema:
    """A plugin in a recipe or device file: ``name``, or ``{uses: name, with: {options}}``."""
    with_required = [name for name, plugin in plugins.items() if _required(plugin)]
    bare = [name for name in plugins if name not in with_required]
    cases = [
        {
            "if": {"properties": {"uses": {"const": name}}, "required": ["uses"]},
            "then": {"properties": {"with": refs[plugin]}}
            | ({"required": ["with"]} if name in with_required else {}),
        }
        for name, plugin in plugins.items()
    ]
    return {
        "anyOf": [
            *([_known(bare)] if bare else []),  # an empty enum is not valid
            OWN_CODE,
            {
                "type": "object",
                "properties": {
                    "uses": {
                        "description": "name of a plugin, or module:Class of your own code",
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
    """A variant: the intents that stages fulfil, or a list of stages."""
    intents: dict[str, list[type[Stage]]] = {}
    for stage in stages.values():
        for intent in stage.fulfils:
            intents.setdefault(intent, []).append(stage)
    keys: Schema = {
        intent: _intent(intent, fulfilling, definitions, refs)
        for intent, fulfilling in sorted(intents.items())
    }
    keys["stages"] = {
        "description": "stages in order, instead of intents",
        "type": "array",
        "items": {"$ref": "#/definitions/stage"},
    }
    search = _follow(refs[SearchPart], definitions)
    search["properties"]["minimize"]["anyOf"] = _one_or_more({"enum": list(OBJECTIVES)})
    search["properties"]["over"] = {
        "description": search["properties"]["over"]["description"],
        "type": "object",
        "properties": {key: {} for key in DIMENSIONS},
        "additionalProperties": False,
    }
    keys["search"] = {"anyOf": [dict(refs[SearchPart]), {"type": "null"}]}
    alone = {
        "if": {"anyOf": [{"required": ["stages"]}, {"required": ["search"]}]},
        "then": {"maxProperties": 1},
    }
    kind = {"type": "object", "properties": keys, "additionalProperties": False, **alone}
    return {"description": "one way to optimize the model", "anyOf": [kind, {"type": "null"}]}


def _intent(
    intent: str, stages: list[type[Stage]], definitions: Schema, refs: Mapping[type[BaseModel], Schema]
) -> Schema:
    """An intent: the name of a scheme, or a mapping with the options of the stages that fulfil it."""
    schemes = sorted({scheme for stage in stages for scheme in stage.fulfils[intent]})
    options: dict[str, list[Schema]] = {"scheme": [{"enum": schemes}]}
    for stage in stages:
        for option, value in _follow(refs[stage], definitions)["properties"].items():
            known = options.setdefault(option, [])
            if option != "scheme" and value not in known:
                known.append(value)
    merged = {option: forms[0] if len(forms) == 1 else {"anyOf": forms} for option, forms in options.items()}
    kind: Schema = {"type": "object", "additionalProperties": False}
    alone = {"description": "options for one format only"}
    definitions[f"{intent}_alone"] = {**alone, **kind, "properties": dict(merged)}
    per_format = {"$ref": f"#/definitions/{intent}_alone"}
    mapping = {
        **kind,
        "properties": merged | dict.fromkeys(artifact_formats(), per_format),
        "minProperties": 1,
    }
    switch = len(schemes) == 1 or any(intent in stage.by_default for stage in stages)
    return {"anyOf": [{"enum": schemes}, *([{"type": "boolean"}] if switch else []), mapping]}


def _required(plugin: type[Plugin]) -> list[str]:
    return [name for name, field in plugin.model_fields.items() if field.is_required()]


def _follow(node: Schema, definitions: Schema) -> Schema:
    """Resolve a chain of references."""
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    return node


def _known(names: Any) -> Schema:
    return {"enum": list(names)}


def _open(names: Any) -> Schema:
    """Names offered for completion; any other string is valid."""
    return {"anyOf": [_known(dict.fromkeys(names)), {"type": "string"}]}


def _one_or_more(item: Schema, **limits: int) -> list[Schema]:
    return [{"type": "array", "items": item, **limits}, item]
