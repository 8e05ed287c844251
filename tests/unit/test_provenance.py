import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeopt.errors import VerificationError
from edgeopt.publish.trust.bom import bom
from edgeopt.publish.trust.portable import portable
from edgeopt.publish.trust.provenance import Statement, read_statement, statement
from edgeopt.results import Artifact, Report, Result, Run, SourceResult, Verdict

MODEL, CARD = "ab" * 32, "cd" * 32
RECIPE = """version: 1
name: kws
model:
  path: /home/somebody/secret/kws.keras
  labels: ["/m/0dgw9r", "yes"]
data:
  calibration: {uses: npz, with: {path: kws/calibration.npz}}
  evaluation: {uses: npz, with: {path: 'C:\\Users\\Somebody\\evaluation.npz'}}
optimize: {int8: {quantize: int8}}
formats: [tflite]
"""
RECORD = {
    "digest": MODEL,
    "versions": {"tensorflow": "2.21.0", "numpy": importlib.metadata.version("numpy")},
    "inputs": [{"name": "x", "shape": [1, 49, 10, 1], "dtype": "int8", "layout": "NHWC",
                "scale": 0.5, "zero_point": 83}],
    "outputs": [{"name": "y", "shape": [None, 12], "dtype": "int8"}],
}  # fmt: skip


@pytest.fixture
def report() -> Report:
    row = Result(
        variant="int8",
        format="tflite",
        device="cortex-m",
        status="ok",
        artifact=Artifact(path="models/int8.tflite", digest=MODEL, size_bytes=53936),
        measurements={
            "top1": {"value": 0.895, "n": 400, "ci95": (0.861, 0.922)},
            "arena_bytes": {"value": 24272.0, "unit": "bytes"},
        },
        chain=("keras_to_tflite", "quantize_tflite"),
        runtime="tflm 0.dev20261023",
    )
    gate = Verdict(
        gate="top1 max_drop 0.01",
        variant="int8",
        format="tflite",
        device="cortex-m",
        status="pass",
        measured=0.005,
        limit=0.01,
        reason="on the machine /home/somebody",
    )
    return Report(
        recipe="kws",
        run=Run(
            started="2026-11-23T01:02:03+02:00",
            seconds=61.4,
            command="edgeopt optimize /home/somebody/kws.yaml",
            edgeopt="0.1.0",
            recipe_digest="11" * 32,
            calibration_digest="22" * 32,
            evaluation_digest="33" * 32,
            samples=400,
            document=RECIPE,
        ),
        environment={"cortex-m": {"hostname": "somebodys-machine"}},
        source=SourceResult(format="keras", path="kws.keras", digest="44" * 32, size_bytes=1),
        results=(row,),
        gates=(gate, gate.model_copy(update={"device": "host"})),
    )


def made(report: Report, **more: Any) -> dict[str, Any]:
    files, models = {"MODEL_CARD.md": CARD, "kws.tflite": MODEL}, ["kws.tflite"]
    return statement(
        report,
        report.results[0],
        **{"name": "kws", "version": "1.2.0", "models": models, "files": files, "record": RECORD} | more,
    )


def test_it_says_what_was_made_from_what_by_what(report: Report) -> None:
    told = made(report)
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    assert told["subject"] == [
        {"name": "kws.tflite", "digest": {"sha256": MODEL}},
        {"name": "MODEL_CARD.md", "digest": {"sha256": CARD}},
    ]
    definition = told["predicate"]["buildDefinition"]
    asked = definition["externalParameters"]
    assert [asked[key] for key in ("name", "version", "variant", "format", "device")] == [
        "kws", "1.2.0", "int8", "tflite", "cortex-m"
    ]  # fmt: skip
    assert asked["recipe"]["settings"] == "11" * 32
    assert definition["internalParameters"] == {"chain": ["keras_to_tflite", "quantize_tflite"]}
    assert definition["resolvedDependencies"] == [
        {
            "name": "source",
            "digest": {"sha256": "44" * 32},
            "annotations": {"format": "keras", "file": "kws.keras"},
        },
        {"name": "calibration", "digest": {"edgeoptContent": "22" * 32}},
        {"name": "evaluation", "digest": {"edgeoptContent": "33" * 32}},
        {"name": "numpy", "uri": f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}"},
        {"name": "tensorflow", "uri": "pkg:pypi/tensorflow@2.21.0"},
    ]
    assert told["predicate"]["runDetails"] == {
        "builder": {"id": "pkg:generic/edgeopt@0.1.0", "version": {"edgeopt": "0.1.0"}},
        "metadata": {"startedOn": "2026-11-22T23:02:03Z", "finishedOn": "2026-11-22T23:03:04Z"},
        "byproducts": [],
    }
    assert told["predicate"]["edgeopt_gates"] == [
        {"gate": "top1 max_drop 0.01", "status": "pass", "measured": 0.005, "limit": 0.01}
    ]


def test_nothing_of_the_machine_or_its_user_is_told(report: Report) -> None:
    text = json.dumps(made(report)).lower()
    assert "somebody" not in text and "/home" not in text and "hostname" not in text
    assert "edgeopt_publishedby" not in text
    assert made(report, who="Team Audio")["predicate"]["edgeopt_publishedBy"] == "Team Audio"


def test_what_a_compiler_was_given_is_told_beside_what_it_made(report: Report) -> None:
    built = RECORD | {"digest": "55" * 32}
    told = Statement.model_validate(made(report, record=built))
    assert told.built == "55" * 32
    assert Statement.model_validate(made(report)).built == MODEL


def test_the_model_must_be_among_the_files(report: Report) -> None:
    with pytest.raises(ValueError, match="not among the files"):
        made(report, files={"MODEL_CARD.md": CARD})


def test_a_folder_is_not_said_to_be_a_file(report: Report) -> None:
    source = SourceResult(format="saved_model", path="kws", is_folder=True, digest="44" * 32)
    told = made(report.model_copy(update={"source": source}))
    digest = told["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]
    assert digest == {"edgeoptContent": "44" * 32}


def test_it_is_read_again(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "provenance.intoto.json"
    foreign = made(report) | {"added": "by others"}
    file.write_text(json.dumps(foreign))
    read = read_statement(file)
    assert read.parameters.device == "cortex-m"
    assert read.packages["tensorflow"] == "2.21.0"
    assert read.ingredients == {"source": "44" * 32, "calibration": "22" * 32, "evaluation": "33" * 32}
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == made(report)


def _no_subject(told: dict[str, Any]) -> None:
    told["subject"] = []


def _no_recipe(told: dict[str, Any]) -> None:
    del told["predicate"]["buildDefinition"]["externalParameters"]["recipe"]


def _other_build(told: dict[str, Any]) -> None:
    told["predicate"]["buildDefinition"]["buildType"] = "https://actions.github.io/buildtypes/workflow/v1"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda told: told.update(_type="https://in-toto.io/Statement/v0.1"), "_type: Input should be"),
        (_no_subject, "subject: Tuple should have at least 1 item"),
        (_no_recipe, "externalParameters.recipe: Field required"),
        (_other_build, "buildDefinition.buildType: Input should be 'urn:edgeopt:build:recipe:v1'"),
    ],
)
def test_another_statement_is_refused(
    report: Report, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], why: str
) -> None:
    told = made(report)
    spoil(told)
    file = tmp_path / "provenance.intoto.json"
    file.write_text(json.dumps(told))
    with pytest.raises(VerificationError) as caught:
        read_statement(file)
    assert "is not a provenance record of edgeopt" in str(caught.value) and why in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"_type": '])
def test_what_is_no_statement_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "provenance.intoto.json"
    file.write_bytes(content)
    with pytest.raises(VerificationError, match="is not a provenance record of edgeopt"):
        read_statement(file)
    with pytest.raises(VerificationError, match="cannot read the provenance"):
        read_statement(tmp_path / "none.json")


def test_a_recipe_keeps_only_the_last_part_of_absolute_paths() -> None:
    kept = yaml.safe_load(portable(RECIPE))
    assert kept["model"] == {"path": "kws.keras", "labels": ["/m/0dgw9r", "yes"]}
    assert kept["data"]["calibration"]["with"]["path"] == "kws/calibration.npz"
    assert kept["data"]["evaluation"]["with"]["path"] == "evaluation.npz"
    assert list(kept) == ["version", "name", "model", "data", "optimize", "formats"]
    relative = "model: {path: kws.keras}  # a remark\n"
    assert portable(relative) == relative


def test_paths_that_would_become_the_same_stay_apart() -> None:
    kept = yaml.safe_load(portable("a: /d/train/x.npz\nb: [/d/test/x.npz, /d/y.npz]\nc: ~/z.npz\nd: /\n"))
    assert kept == {"a": "train/x.npz", "b": ["test/x.npz", "y.npz"], "c": "z.npz", "d": "/"}


def test_the_bill_of_materials_is_valid_and_the_same_every_time(report: Report) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bom(report, report.results[0], name="kws", version="1.2.0", record=RECORD)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == bom(report, report.results[0], name="kws", version="1.2.0", record=RECORD)
    other = bom(report, report.results[0], name="kws", version="1.2.1", record=RECORD)
    told = json.loads(text)
    assert told["serialNumber"] != json.loads(other)["serialNumber"]
    assert "somebody" not in text.lower()


def test_the_bill_of_materials_names_model_data_and_packages(report: Report) -> None:
    told = json.loads(bom(report, report.results[0], name="kws", version="1.2.0", record=RECORD))
    model = told["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "kws", "1.2.0")
    assert model["hashes"] == [{"alg": "SHA-256", "content": MODEL}]
    assert told["metadata"]["timestamp"] == "2026-11-23T01:02:03+02:00"
    parts = {part["bom-ref"]: part for part in told["components"]}
    numpy = f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}"
    assert set(parts) == {
        "source",
        "data:calibration",
        "data:evaluation",
        "pkg:pypi/tensorflow@2.21.0",
        numpy,
    }
    assert parts["data:evaluation"]["type"] == "data"
    assert parts["data:evaluation"]["properties"] == [{"name": "edgeopt:content_digest", "value": "33" * 32}]
    assert parts[numpy]["scope"] == "excluded" and parts[numpy]["purl"] == numpy
    assert "BSD-3-Clause" in json.dumps(parts[numpy]["licenses"])
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "data:calibration"}, {"ref": "data:evaluation"}]
    assert card["modelParameters"]["inputs"] == [
        {"format": "int8 [1, 49, 10, 1] NHWC scale 0.5 zero point 83"}
    ]
    assert card["modelParameters"]["outputs"] == [{"format": "int8 [?, 12]"}]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "arena_bytes", "value": "24272.0 bytes", "slice": "on cortex-m"},
        {
            "type": "top1",
            "value": "0.895",
            "slice": "on cortex-m",
            "confidenceInterval": {"lowerBound": "0.861", "upperBound": "0.922"},
        },
    ]
    (links,) = [each for each in told["dependencies"] if each["ref"] == "model"]
    assert set(links["dependsOn"]) == set(parts)


def test_a_bill_of_materials_needs_nothing_that_the_run_did_not_record(report: Report) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bare = report.model_copy(
        update={
            "source": None,
            "run": Run(**report.run.model_dump() | {"calibration_digest": "", "evaluation_digest": ""}),
        }
    )
    text = bom(bare, bare.results[0], name="kws", version="1")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert "components" not in json.loads(text) or json.loads(text)["components"] == []
