"""Model files of the wrong kind, reports, baselines, bundles and project files that are none; arguments."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]
Refused = Callable[..., None]
LONG = "x" * 300
DEEP = "[" * 100_000
COMMANDS = {
    "inspect": ["inspect"],
    "lint": ["lint", "--device", "host"],
    "profile": ["profile"],
    "init": ["init", "--out", "new.yaml"],
    "slim": ["slim", "--out", "slim.tflite"],
}
SUFFIXES = ["keras", "h5", "pt", "pt2", "onnx", "tflite", "ptl", "pte", "safetensors", "npz", "yaml", "txt"]
MISSING = ["nosuch.tflite", "~nouser/x.tflite", f"{LONG}.tflite", "/dev/zero", "a\nb", "-"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("command", COMMANDS)
def test_text_in_place_of_a_model(command: str, suffix: str, place: Path, edgeopt: Run) -> None:
    file = place / f"bad.{suffix}"
    file.write_bytes(b"hello world, not a model")
    name, *options = COMMANDS[command]
    code, message = edgeopt(name, str(file), *options)
    is_checked = (command, suffix) == ("lint", "yaml")  # a recipe, found to be invalid
    assert code == (1 if is_checked else 2), message
    assert f"bad.{suffix}" in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", MISSING, ids=lambda name: ascii(name[:20]))
@pytest.mark.parametrize("command", [*COMMANDS, "plan", "report", "check", "optimize"])
def test_a_file_that_is_not_there(command: str, name: str, edgeopt: Run) -> None:
    first, *options = COMMANDS.get(command, [command])
    code, message = edgeopt(first, *options, "--", name)
    assert code == 2, message
    assert len(message) < 2000


ARCHIVES = {
    "nested": {"metadata.json": "{}", "config.json": DEEP, "model.weights.h5": "x"},
    "nested metadata": {"metadata.json": DEEP, "config.json": "{}", "model.weights.h5": "x"},
    "lists": {"metadata.json": "[]", "config.json": "[]", "model.weights.h5": "x"},
    "no model": {"metadata.json": "{}", "config.json": "{}", "model.weights.h5": "x"},
    "nothing": {},
}


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_are_no_models(content: dict[str, str], place: Path, refused: Refused) -> None:
    with zipfile.ZipFile(place / "bad.keras", "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    refused("bad.keras", "profile", "bad.keras")
    refused("bad.keras", "plan", "good.yaml", "--set", "model.path=bad.keras")


HEADERS = {"nested": DEEP.encode(), "a list": b"[]", "text": b"hello"}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("length", [None, 1 << 63])
def test_headers_of_safetensors(header: bytes, length: int | None, place: Path, refused: Refused) -> None:
    (place / "bad.safetensors").write_bytes((length or len(header)).to_bytes(8, "little") + header)
    refused("bad.safetensors", "inspect", "bad.safetensors")


DOCUMENTS = {
    "100,000 brackets": DEEP,
    "5,000 braces": '{"a":' * 5_000,
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "no keys": "{}",
    "a later schema": '{"schema": 99}',
    "a boolean schema": '{"schema": true}',
    "another type": '{"schema": 1, "recipe": 3}',
    "an infinite schema": '{"schema": 1e400}',
    "NaN": "NaN",
    "a lone surrogate": '{"recipe": "\\ud800"}',
}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("kind", ["report", "check", "baseline", "compare", "push", "verify", "reproduce"])
def test_documents_that_are_none(kind: str, text: str, place: Path, edgeopt: Run) -> None:
    for name in ("run/report.json", "bundle/manifest.json", "bundle/provenance.intoto.json"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text, "utf-8")
    command, expected = {
        "report": (["report", "run"], 2),
        "check": (["check", "run", "--against", "run/report.json"], 2),
        "baseline": (["baseline", "write", "run"], 2),
        "compare": (["compare", "run", "run"], 2),
        "push": (["artifacts", "push", "run"], 2),
        "verify": (["artifacts", "verify", "bundle"], 1),  # what verify asks for is what fails
        "reproduce": (["artifacts", "reproduce", "bundle"], 1),
    }[kind]
    code, message = edgeopt(*command)
    assert code == expected, message
    assert ".json" in message
    assert len(message) < 2000


PROJECTS = [
    (f"artifacts = {DEEP}", "nested too deeply"),
    ("x = " + "{a = " * 3_000, "nested too deeply"),
    ("a = [", "cannot read"),
    ("\0", "cannot read"),
    ("[x]\n", "unknown table 'x'"),
    ("artifacts = 3", "artifacts: input should be a valid dictionary"),
    ("[artifacts]\nremote = 3", "artifacts.remote: input should be a valid string"),
    ("[artifacts]\nnosuch = 1", "artifacts.nosuch"),
    ("[artifacts]\nremot = ''", "did you mean 'remote'?"),
    ("[artifacts]\nrequire_signature = true", "artifacts.require_signature"),
    ("[artifacts]\nbaselines = 'x'", "artifacts.baselines"),
    ("[artifacts]\nremote = 'nosuch://x'", "nosuch"),
]


@pytest.mark.parametrize(("text", "words"), PROJECTS, ids=lambda value: ascii(value[:30]))
def test_project_files(text: str, words: str, place: Path, refused: Refused) -> None:
    file = place / "edgeopt.toml"
    file.write_text(text, "utf-8")
    try:
        refused(words, "artifacts", "list", "x")
    finally:
        file.unlink()


ARGUMENTS = [
    ("optimise", "No such command"),
    ("--nosuch", "No such option"),
    ("plan", "Missing argument"),
    ("plan good.yaml extra", "unexpected extra argument"),
    ("plan good.yaml --set", "requires an argument"),
    ("plan good.yaml --set [=1", "unknown key '['"),
    ("plan good.yaml --set name=[", "not valid YAML"),
    ("optimize good.yaml --out /dev/null", "cannot write to /dev/null"),
    ("optimize good.yaml --out /dev/null/x", "cannot write to /dev/null/x"),
    (f"optimize good.yaml --out {LONG}", "File name too long"),
    ("optimize good.yaml --out good.yaml", "cannot write to good.yaml"),
    ("optimize good.yaml --protocol nosuch", "should be 'mlperf-tiny'"),
    ("profile model.keras --min-runs 1", "--min-runs"),
    ("profile model.keras --min-runs x", "--min-runs"),
    ("profile model.keras --min-runs 99999999999999999999", "--min-runs"),
    ("profile model.keras --min-seconds nan", "--min-seconds"),
    ("profile model.keras --min-seconds inf", "--min-seconds"),
    ("profile model.keras --min-seconds -1", "--min-seconds"),
    ("profile model.keras --min-seconds 1e20", "--min-seconds"),
    ("profile model.keras --protocol x", "no protocol 'x'"),
    ("profile model.keras --metric nosuch --data good.npz", "no metric 'nosuch'"),
    ("profile model.keras --metric json:x --data good.npz", "json:x"),
    ("profile model.keras --data nosuch.npz", "no such file: nosuch.npz"),
    ("profile model.keras --data good.yaml", "not an .npz file"),
    ("profile model.keras --data .", "no such file"),
    ("profile model.keras --data good.npz --recipe good.yaml", "not both"),
    ("profile model.keras --shape 1,a", "is not a list of integers"),
    ("profile model.keras --shape -1,8,8,1", "sizes of at least 1"),
    ("profile model.keras --shape 0", "sizes of at least 1"),
    ("profile model.keras --shape 99999999999999999999,1", "is not a list of integers"),
    ("profile model.keras --device cortex-m", "no runtime for keras"),
    ("lint model.keras", "name it: --device NAME"),
    ("init model.keras --out /dev/null/x", "cannot write"),
    ("init model.keras --out good.yaml", "already exists"),
    (f"init model.keras --out {LONG}", "cannot write"),
    ("report . --format nosuch", "no report in"),
    ("report --index nosuch", "no such folder"),
    (f"report --index {LONG}", "no such folder"),
    ("check good.yaml --against nosuch.json", "cannot read the baseline"),
    ("check good.yaml --against /dev/zero", "not a regular file"),
    ("check . --max-drop nan", "--max-drop"),
    ("check . --max-drop inf", "--max-drop"),
    ("check . --max-drop -1", "--max-drop"),
    ("check . --max-drop 2", "--max-drop"),
    ("check . --confidence 2", "--confidence"),
    ("check . --confidence nan", "--confidence"),
    ("check . --max-size-increase -1", "--max-size-increase"),
    ("check . --max-size-increase nan", "--max-size-increase"),
    ("check . --max-size-increase inf", "--max-size-increase"),
    ("check . --undecided maybe", "--undecided"),
    ("compare nosuch nosuch", "no report in nosuch"),
    ("baseline write nosuch", "no report in nosuch"),
    ("artifacts push nosuch", "no report in nosuch"),
    ("artifacts pull x", "Missing option"),
    ("artifacts pull ../x --device host --out o", "../x"),
    ("artifacts pull x@ --device host --out o", "is not a valid version"),
    ("artifacts pull x --device nosuch.yaml --out o --offline", "x"),
    ("artifacts pull x --device host --out o --offline", "x"),
    ("artifacts pull file:///nosuch/x --device host --out o", "nosuch"),
    ("artifacts pull s3:// --device host --out o", "s3://"),
    ("artifacts list ../x", "../x"),
    ("artifacts verify nosuch", "nosuch"),
    ("schema nosuch", "nosuch"),
    ("devices show", "Missing argument"),
    ("devices setup nosuch", "no device 'nosuch'"),
    ("devices setup host", "needs no setup"),
    ("parity model.keras", ""),
    ("diagnose good.yaml --variant nosuch --format tflite", "nosuch"),
    ("diagnose good.yaml --variant float --format nosuch", "nosuch"),
    ("inspect", "Missing argument"),
    ("inspect model.keras model.keras", "unexpected extra argument"),
]


@pytest.mark.parametrize(("line", "words"), ARGUMENTS, ids=lambda value: value[:50])
def test_arguments(line: str, words: str, refused: Refused) -> None:
    refused(words, *line.split(" "))


def test_arguments_that_are_not_utf8(edgeopt: Run) -> None:
    name = os.fsdecode(b"caf\xe9")
    for command in (
        ["plan", name],
        ["inspect", name],
        ["report", name],
        ["lint", "model.keras", "--device", name],
    ):
        code, message = edgeopt(*command)
        assert code == 2
        assert r"caf\udce9" in message
