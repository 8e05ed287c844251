"""Generate the JSON Schemas, and the parts of the documents that come from code.

A generated part is delimited by ``<!-- generated: name -->`` and ``<!-- end -->``. Run it as ``make docs``;
with ``--check`` nothing is written, and the exit code is 1 if a file is stale.
"""

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import typer

from edgeopt.cli import app
from edgeopt.commands import schemas
from edgeopt.config import registry
from edgeopt.config.units import FACTORS
from edgeopt.devices.device import known_devices, load_device
from edgeopt.evaluation import hops as limits
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import KINDS, Metric, Plugin, Stage, Task
from edgeopt.recipe.chains import reachable
from edgeopt.recipe.recipe import Intent
from edgeopt.results import MEASUREMENTS

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "pipeline" / "edgeopt"
MARK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

TYPERS_OWN = ("help", "install_completion", "show_completion")
SOURCES = {
    "keras": ("Keras 3", "`.keras`"),
    "tf_keras": ("Keras 2", "`.h5`, or SavedModel with a Keras configuration"),
    "saved_model": ("SavedModel", "without a Keras configuration"),
    "torch_source": ("PyTorch", "`factory` and `weights`"),
    "exported_program": ("pt2", "`.pt2` of `torch.export`"),
    "torchscript_module": ("TorchScript", "`.pt` of `torch.jit.save`"),
}
"""Format of the source model -> its short name, and what it is."""
FORMAT_NAMES = {
    "tflite": "TFLite `.tflite`",
    "onnx": "ONNX `.onnx`",
    "torchscript": "TorchScript-mobile `.ptl`",
    "executorch": "ExecuTorch `.pte`",
}


def documents() -> dict[Path, str]:
    """The expected text of each file with generated parts."""
    expected = {schemas.shipped_file(name): schemas.text(name) for name in schemas.NAMES}
    for path in (*sorted(HERE.rglob("*.md")), HERE.parent / "CONTRIBUTING.md"):
        text = path.read_text("utf-8")
        if MARK.search(text):
            expected[path] = MARK.sub(lambda m: f"{m[1]}\n{_part(m[2]).strip()}\n\n{m[3]}", text)
    return expected


def stale(expected: dict[Path, str]) -> list[Path]:
    """Files that differ from their expected text."""
    return [path for path, text in expected.items() if not path.is_file() or path.read_text("utf-8") != text]


def _part(name: str) -> str:
    kind, _, argument = name.partition(":")
    return {
        "commands": lambda: commands(),
        "keys": lambda: keys(cast(schemas.Name, argument)),
        "plugins": lambda: plugins(argument),
        "matrix": lambda: matrix(),
        "measurements": lambda: measurements(),
        "units": lambda: units(),
        "devices": lambda: devices(),
        "extras": lambda: extras(),
        "hops": lambda: hops(),
        "rooms": lambda: rooms(),
        "decisions": lambda: decisions(),
    }[kind]()


def decisions() -> str:
    """Every decision record by its title."""
    titles = {
        path.name: path.read_text("utf-8").partition("\n")[0] for path in sorted((HERE / "adr").glob("0*.md"))
    }
    rows = [(name, *title.removeprefix("# ").split(". ", 1)) for name, title in titles.items()]
    lines = [f"| {number} | [{title}]({name}) |" for name, number, title in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


# The rooms, from the import contract


def rooms() -> str:
    """Every room, from the top layer to the bottom, with the first line of its docstring."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    lines = []
    for layer in layers:
        for name in re.split(r"\s*[:|]\s*", layer):
            lines += _room(PACKAGE / name, 0)
    return "\n".join(["```", *lines, "```"])


def _room(path: Path, depth: int) -> Iterator[str]:
    is_folder = path.is_dir()
    file = path / "__init__.py" if is_folder else path.with_suffix(".py")
    summary = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
    inner = sorted(each for each in path.iterdir() if (each / "__init__.py").is_file()) if is_folder else []
    label = "  " * depth + (f"{path.name}/" if is_folder else file.name)
    yield f"{label:<16} {summary}"
    if not depth:
        for each in inner:
            yield from _room(each, 1)


# Tables of keys, from the schemas


def keys(name: schemas.Name) -> str:
    """One table per mapping of a schema, from the outermost inwards."""
    schema = schemas.schema(name)
    definitions = schema["definitions"]
    read_only = name == "report"  # written by edgeopt alone, so defaults do not matter
    lines: list[str] = []
    mappings = list(_mappings("", schema, definitions))
    for form, mapping in _all_forms(schema | {"definitions": definitions}, definitions).items():
        mappings += _mappings(form, mapping, definitions)
    above: tuple[str, dict[str, Any]] = ("", {})
    for path, mapping in mappings:
        if path == f"{above[0]}.<name>" and mapping is above[1]:
            continue  # one for all, or one for each: the same keys
        above = path, mapping
        if path:
            lines += [f"### `{path}`", "", _prose(mapping.get("description", "")), ""]
        lines += (
            ["| key | type | |", "|---|---|---|"]
            if read_only
            else ["| key | type | default | |", "|---|---|---|---|"]
        )
        for key, value in mapping["properties"].items():
            default = "**required**" if key in mapping.get("required", []) else _default(value, definitions)
            kind, about = _cell(_type(value, definitions)), _cell(_description(value, definitions))
            if read_only:
                kind += " or null" if {"type": "null"} in value.get("anyOf", []) else ""
            cells = (f"`{key}`", kind, about) if read_only else (f"`{key}`", kind, default, about)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _mappings(
    path: str, node: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, value in node["properties"].items():
        for suffix, inner in _inside(value, definitions):
            if inner.get("properties"):
                yield from _mappings(f"{path}.{key}{suffix}".lstrip("."), inner, definitions)


def _inside(value: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings in a value: the value itself, items of a list, or values under arbitrary names."""
    name = value.get("$ref", "").rpartition("/")[2]
    if name:
        if name[0].isupper():  # lower case: a kind of plugin, which has its own chapter
            yield "", definitions[name]
        return
    for form in value.get("anyOf", []):
        yield from _inside(form, definitions)
    if isinstance(value.get("items"), dict):
        yield from (("[]" + suffix, inner) for suffix, inner in _inside(value["items"], definitions))
    if isinstance(value.get("additionalProperties"), dict):
        yield from (
            (".<name>" + suffix, inner)
            for suffix, inner in _inside(value["additionalProperties"], definitions)
        )


def _forms(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The mappings that a value may be, by their ``kind``."""
    forms = [definitions[form["$ref"].rpartition("/")[2]] for form in value["oneOf"]]
    return {str(form["properties"]["kind"]["const"]): form for form in forms}


def _all_forms(node: object, definitions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The forms of all values in a schema that have several, in order."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(node, dict):
        found |= _forms(node, definitions) if "discriminator" in node else {}
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found |= _all_forms(inner, definitions)
    return found


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if name := value.get("$ref", "").rpartition("/")[2]:
        if name[0].islower():
            return name if name == "variant" else f"[{name}](#{name}s)"
        return _type(definitions[name], definitions)
    if "allOf" in value:
        return _type(value["allOf"][0], definitions)
    if "anyOf" in value:
        if {"type": "string"} in value["anyOf"] and any("enum" in form for form in value["anyOf"]):
            return "name"
        forms = [_type(form, definitions) for form in value["anyOf"] if form != {"type": "null"}]
        plain = [form for form in forms if f"list of {form}" not in forms]
        return " or ".join(dict.fromkeys([*plain, *(["a single item"] if len(plain) < len(forms) else [])]))
    if "discriminator" in value:
        return " or ".join(f"[{kind}](#{kind})" for kind in _forms(value, definitions))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("pattern") == schemas.OWN_CODE["pattern"]:
        return "`module:name`"
    if value.get("pattern") == schemas.FRACTION["pattern"]:
        return "fraction such as `1/255`"
    if value.get("pattern") == schemas.AMOUNT["pattern"]:
        return "bytes with a unit, such as `64 KiB`"
    if value.get("type") == "array":
        items = value.get("items", {})
        if isinstance(items, list):
            return f"{len(items)} × {_type(items[0], definitions)}"
        return f"list of {_type(items, definitions)}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"mapping of name to {_type(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    names = {"string": "string", "boolean": "true or false", "integer": "integer", "number": "number"}
    text = "path" if value.get("format") == "path" else names.get(value.get("type", ""), "any")
    for limit, sign in (("minimum", "≥"), ("maximum", "≤"), ("exclusiveMinimum", ">")):
        if limit in value:
            text += f" {sign} {value[limit]:g}"
    return text


def _description(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The description of a key, or else of the mapping in it."""
    if "description" in value:
        return str(value["description"])
    first = next((inner for _, inner in _inside(value, definitions)), {})
    return str(first.get("description", "")).partition("\n")[0]


def _default(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or default in ([], {}, ""):
        return "–"
    if isinstance(default, dict):
        return "see below" if any(True for _ in _inside(value, definitions)) else "–"
    return f"`{_yaml(default)}`"


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Plugins


def plugins(kind: str) -> str:
    """One chapter per shipped plugin of a kind."""
    lines: list[str] = []
    base = next(base for base in KINDS if base.plugin_kind == kind)
    for name, plugin in registry.plugins(base).items():
        lines += [f"### `{name}`", "", _prose(inspect.cleandoc(plugin.__doc__ or "")), ""]
        lines += [f"- {fact}" for fact in _facts(plugin)]
        lines += ["", *_options(plugin)]
    return "\n".join(lines)


def _facts(plugin: type[Plugin]) -> Iterator[str]:
    if issubclass(plugin, Stage):
        yield f"from {_code(sorted(plugin.accepts))} to `{plugin.produces}`"
        for intent, schemes in plugin.fulfils.items():
            yield f"implements {_code(f'{intent}: {scheme}' for scheme in sorted(schemes))}"
        if plugin.needs_calibration:
            yield "uses `data.calibration`"
    if issubclass(plugin, Metric) and plugin.tasks:
        yield f"of the tasks {_code(plugin.tasks)}" if len(plugin.tasks) > 1 else f"of {_code(plugin.tasks)}"
    if issubclass(plugin, Task):
        fitting = [
            name for name, metric in registry.plugins(Metric).items() if _named(plugin) in metric.tasks
        ]
        if fitting:
            yield f"metrics: {_code(fitting)}"
        if plugin.broken_agreement is not None:
            yield f"a step that leaves less than {plugin.broken_agreement:.0%} agreement broke the model"
    if issubclass(plugin, Metric) and isinstance(plugin.against, str):
        labels = plugin.against == "labels"
        source = "the decisions" if plugin.reads == "decisions" else "the outputs"
        yield f"compared with {'the labels' if labels else f'{source} of the source model'}"
        if isinstance(plugin.higher_is_better, bool):
            yield f"{'higher' if plugin.higher_is_better else 'lower'} is better"
    if plugin.requires:
        extras = f" (extra `{plugin.extra}`)" if plugin.extra else ""
        yield f"needs {', '.join(plugin.requires)}{extras}"


def _named(plugin: type[Plugin]) -> str:
    """The name of a shipped plugin: that of its file."""
    return plugin.__module__.rpartition(".")[2]


def _options(plugin: type[Plugin]) -> list[str]:
    schema = plugin.model_json_schema(
        schema_generator=schemas.Generator, ref_template="#/definitions/{model}"
    )
    definitions = schema.get("$defs", {})
    if not schema.get("properties"):
        return []
    required = schema.get("required", [])
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for name, value in schema["properties"].items():
        default = "**required**" if name in required else _default(value, definitions)
        about = _cell(value.get("description", ""))
        lines.append(f"| `{name}` | {_cell(_type(value, definitions))} | {default} | {about} |")
    return [*lines, ""]


# Formats


def matrix() -> str:
    """For each variant and format, the kinds of source models from which the planner finds a way."""
    variants: list[tuple[str, tuple[Intent, ...]]] = [("float", ())]
    schemes = {
        (intent, scheme)
        for stage in registry.plugins(Stage).values()
        for intent, implemented in stage.fulfils.items()
        for scheme in implemented
    }
    variants += [(f"{intent}: {scheme}", (Intent(intent, scheme, {}),)) for intent, scheme in sorted(schemes)]
    lines = [
        f"| variant | {' | '.join(FORMAT_NAMES.get(name, name) for name in artifact_formats())} |",
        "|---|" + "---|" * len(artifact_formats()),
    ]
    for name, intents in variants:
        found = [reachable(source, intents) for source in SOURCES]
        cells = [_sources([target in each for each in found]) for target in artifact_formats()]
        lines.append(f"| {_code([name])} | {' | '.join(cells)} |")
    kinds = [f"- {short}: {title}" for short, title in SOURCES.values()]
    return "\n".join([*lines, "", "✓ is from every kind of source model; these are:", "", *kinds])


def _sources(available: list[bool]) -> str:
    """The sources that a variant is available from, as the shorter of what is in and what is out."""
    inside, outside = (
        [short for (short, _), yes in zip(SOURCES.values(), available, strict=True) if yes is side]
        for side in (True, False)
    )
    if not inside:
        return "–"
    if not outside:
        return "✓"
    return ", ".join(inside) if len(inside) <= len(outside) else f"✓ except {', '.join(outside)}"


def measurements() -> str:
    lines = ["| measurement | unit | |", "|---|---|---|"]
    lines += [f"| `{name}` | {each.unit or '–'} | {each.meaning} |" for name, each in MEASUREMENTS.items()]
    return "\n".join(lines)


def units() -> str:
    lines = ["| quantity | units | default unit |", "|---|---|---|"]
    quantities = {"bytes": "sizes and memory", "ms": "times", "": "fractions and ratios"}
    for unit, factors in FACTORS.items():
        lines.append(f"| {quantities.get(unit, unit)} | {_code(factors)} | {unit or 'none'} |")
    return "\n".join(lines)


def devices() -> str:
    lines = ["| device | description | formats |", "|---|---|---|"]
    for name in known_devices():
        device = load_device(name)
        formats = _code(target for target in artifact_formats() if target in device.runtimes)
        lines.append(f"| `{name}` | {_cell(device.description)} | {formats} |")
    return "\n".join(lines)


def hops() -> str:
    lines = ["| step | broken when an output has |", "|---|---|"]
    lines.append(
        f"| converts | SNR below {limits.LOSSLESS_SNR_DB:g} dB, and a largest error above "
        f"{limits.LOSSLESS_MAX_ERROR:g} |"
    )
    lines.append(
        f"| quantizes or prunes | SNR below {limits.BROKEN_SNR_DB:g} dB; or, below "
        f"{limits.ALIKE_SNR_DB:g} dB, an agreement of decisions below that of the task |"
    )
    lines.append(
        "| any | another shape, values that are NaN or infinite, or a constant value in all of it or in a "
        f"part whose range was {limits.APART:g} times smaller than that of the rest |"
    )
    return "\n".join(lines)


def extras() -> str:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    lines = ["| extra | packages |", "|---|---|"]
    for name, requirements in project["optional-dependencies"].items():
        if name not in ("test", "docs"):  # for work on edgeopt itself
            packages = [re.split(r"[<>=~! ]", requirement)[0] for requirement in requirements]
            others = [re.fullmatch(r"edgeopt\[(.+)\]", package) for package in packages]
            cells = [
                _code(other[1].split(",")) if other else package
                for package, other in zip(packages, others, strict=True)
            ]
            lines.append(f"| `{name}` | {', '.join(cells)} |")
    return "\n".join(lines)


# Commands


def commands() -> str:
    """Every command with its arguments and options, from the source of ``--help``."""
    return "\n".join(_command("edgeopt", typer.main.get_command(app)))


def _command(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    shown = [p for p in command.params if not p.hidden and p.name not in TYPERS_OWN]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = [
        name,
        *(["[OPTIONS]"] if options else []),
        *map(_argument, arguments),
        *(["COMMAND"] if inner else []),
    ]
    yield from [
        f"## {name}",
        "",
        f"    {' '.join(usage)}",
        "",
        _prose(inspect.cleandoc(command.help or "")),
        "",
    ]
    if arguments:
        yield from ["| argument | |", "|---|---|"]
        yield from (f"| `{_argument(p).strip('[]')}` | {_about(p)} |" for p in arguments)
        yield ""
    if options:
        yield from ["| option | |", "|---|---|"]
        yield from (f"| {_option(p)} | {_about(p)} |" for p in options)
        yield ""
    for word, child in inner.items():
        yield from _command(f"{name} {word}", child)


def _argument(parameter: Any) -> str:
    word = (parameter.metavar or parameter.name).upper()
    return word if parameter.required else f"[{word}]"


def _option(parameter: Any) -> str:
    words = _code(sorted(parameter.opts, key=len, reverse=True))
    if parameter.is_flag:
        return words
    return f"{words} *{parameter.metavar or parameter.name.split('_')[-1].upper()}*"


def _about(parameter: Any) -> str:
    text = _cell(parameter.help or "")
    if parameter.multiple:
        text += " May be given several times."
    if parameter.default not in (None, False) and not parameter.required and "[default" not in text:
        text += f" Default: `{parameter.default}`."
    if parameter.envvar:
        text += f" Environment: `{parameter.envvar}`."
    return text


# Text


def _prose(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(_prose(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _code(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def main() -> int:
    """Update or check the files; prints the names of the stale ones."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.stderr.write("usage: generate.py [--check]\n")
        return 2
    check = "--check" in sys.argv
    expected = documents()
    stale_files = stale(expected)
    for path in stale_files:
        sys.stdout.write(f"{'stale' if check else 'written'}: {path.name}\n")
        if not check:
            path.write_text(expected[path], "utf-8")
    return 1 if stale_files and check else 0


if __name__ == "__main__":
    sys.exit(main())
