"""Publishing and pulling from the command line: selection, refusals, and the state after a failure."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeopt.cli import main
from edgeopt.config.files import file_digest
from edgeopt.devices.device import Device, load_device
from edgeopt.publish.channels import history, promote
from edgeopt.publish.oci import FACTS, MANIFEST, Descriptor, Index, describe, read_index, read_manifest
from edgeopt.publish.remotes import library
from edgeopt.publish.selecting import Facts, choose
from edgeopt.publish.transfer import partial
from edgeopt.results import Artifact, Report, Verdict
from toy_operators import operator, write
from toy_run import write_run

pytestmark = pytest.mark.filterwarnings("ignore")

Cli = Callable[..., "Told"]


class Told(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run ``edgeopt artifacts`` in an empty working directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str | Path) -> Told:
        monkeypatch.setattr(sys, "argv", ["edgeopt", "artifacts", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Told(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def a_run(folder: Path, day: int = 1, *, failing: bool = False, **options: object) -> Path:
    """A run folder; ``day`` distinguishes runs, ``failing`` adds a failed gate."""
    options = {"measured": {"top1": 0.9 - day / 1000}} | options
    report = write_run(folder, **options)  # type: ignore[arg-type]
    row = report.results[0]
    verdict = Verdict(
        gate="top1 max_drop 0.01",
        variant=row.variant,
        format=row.format,
        device=row.device,
        status="fail" if failing else "pass",
        limit=0.01,
        measured=0.05 if failing else 0.0,
        blocks=failing,
    )
    run = report.run.model_copy(update={"started": f"2026-03-{day:02d}T10:00:00+00:00"})
    changed: Report = report.model_copy(update={"gates": (verdict,), "run": run})
    (folder / "report.json").write_text(changed.model_dump_json(by_alias=True))
    return folder


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    tell = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(tell, check=True, capture_output=True)
    return private, public


def published(cli: Cli, tmp_path: Path, day: int = 1, *more: str | Path, failing: bool = False) -> str:
    """Push a fresh run as version 1.<day>; the URL of its name."""
    url = f"file://{tmp_path}/remote/toy"
    run = a_run(tmp_path / f"run{day}", day, failing=failing)
    told = cli("push", run, "--to", f"{url}:1.{day}", "--library", tmp_path / "maker", *more)
    assert told.code == 0, told.err
    return url


def pull(cli: Cli, url: str, tmp_path: Path, *more: str | Path, device: str = "cortex-m") -> Told:
    place = tmp_path / "firmware" / "model"
    return cli("pull", url, "--device", device, "--out", place, "--library", tmp_path / "board", *more)


def test_what_is_pushed_is_pulled_and_verified(cli: Cli, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "release")
    url = published(cli, tmp_path, 1, "--sign", private, "--channel", "stable")
    told = pull(cli, url, tmp_path, "--require-signature", public)
    assert told.code == 0, told.err
    assert "measured on cortex-m" in told.out and "signature verified" in told.out
    folder = tmp_path / "firmware" / "model"
    assert f"the firmware kit: {folder}/firmware" in told.out and "example" not in told.out
    contract = json.loads((folder / "manifest.json").read_text())
    assert (contract["name"], contract["version"], contract["device"]) == ("toy", "1.1", "cortex-m")
    model = folder / contract["file"]["name"]
    assert file_digest(model) == file_digest(tmp_path / "run1" / "models" / "int8.tflite")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MODEL_CARD.md", "provenance.intoto.json", "bom.cdx.json", "recipe.yaml", "model.sig"} <= names
    assert "firmware/self_test.c" in names
    assert os.listdir(folder.parent) == ["model"]  # no temporary files are left
    assert cli("verify", folder, "--require-signature", public).code == 0
    assert cli("verify", "--all", "--library", tmp_path / "board").code == 0
    listed = json.loads(cli("list", url, "--json").out)[0]["versions"]
    assert [(row["version"], row["gates"], row["signed"], row["channels"]) for row in listed] == [
        ("1.1", "pass", True, ["stable"])
    ]


def test_a_version_is_shown_in_words_and_units(cli: Cli, tmp_path: Path) -> None:
    measured = {"top1": 0.9, "top1_drop": 0.0025, "latency_p50_ms": 0.25, "arena_bytes": 24_576.0}
    run = a_run(tmp_path / "run", measured=measured)
    assert cli("push", run, "--version", "1").code == 0
    shown = cli("show", "toy@1").out
    assert "top1 90.00 %, top1 drop +0.25 pt, latency p50 250 µs, arena 24.0 KiB" in shown


def test_a_version_never_changes(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path)
    again = cli("push", tmp_path / "run1", "--to", f"{url}:1.1", "--library", tmp_path / "maker")
    assert again.code == 0  # the same run: nothing to do
    other = a_run(tmp_path / "other", 2)
    for shelf in ("maker", "another maker"):
        told = cli("push", other, "--to", f"{url}:1.1", "--library", tmp_path / shelf)
        assert told.code == 2 and "versions are immutable" in told.err
    index = library(tmp_path / "remote" / "toy").resolve("1.1")
    assert index == library(tmp_path / "maker" / "toy").resolve("1.1")


def test_a_part_of_a_run_is_a_version_of_its_own(cli: Cli, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", failing=True)
    report = Report.model_validate_json((run / "report.json").read_bytes())
    (row,) = report.results
    rows = (row, *(row.model_copy(update={"variant": name}) for name in ("float", "int4")))
    changed = report.model_copy(update={"results": rows})
    (run / "report.json").write_text(changed.model_dump_json(by_alias=True))
    for file in [*(run / "models").iterdir()]:
        for name in ("float", "int4"):
            shutil.copy(file, file.with_name(file.name.replace("int8", name)))

    def pushed(*options: str) -> list[tuple[str, str]]:
        told = cli("push", run, "--library", tmp_path / "maker", "--json", *options)
        assert told.code == 0, told
        name = f"toy@{json.loads(told.out)['version']}"
        shown = json.loads(cli("show", name, "--library", tmp_path / "maker", "--json").out)
        assert len(shown["bundles"]) == json.loads(told.out)["bundles"]
        gates = shown["annotations"]["dev.edgeopt.gates"]
        return [(bundle["variant"], gates) for bundle in shown["bundles"]]

    # Other parts of the same run are other versions, with the gates of their artifacts.
    assert pushed("--variant", "int4") == [("int4", "none")]
    assert pushed("--variant", "int8", "--format", "tflite") == [("int8", "fail")]
    assert {variant for variant, _ in pushed("--device", "cortex-m")} == {"int8", "float", "int4"}
    told = cli("push", run, "--variant", "int5", "--library", tmp_path / "maker")
    assert told.code == 2 and "--variant int5: the run has no such variant; did you mean 'int" in told.err
    told = cli("push", run, "--variant", "int4", "--library", tmp_path / "maker", "--version", "1")
    told = cli("push", run, "--variant", "int8", "--library", tmp_path / "maker", "--version", "1")
    assert told.code == 2 and "versions are immutable" in told.err


def test_a_run_that_cannot_be_published_is_told(cli: Cli, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    for change, message in (
        ({"run": report["run"] | {"document": ""}}, "did not store the recipe"),
        ({"results": [report["results"][0] | {"status": "failed"}]}, "contains no finished artifact"),
    ):
        (run / "report.json").write_text(json.dumps(report | change))
        told = cli("push", run, "--library", tmp_path / "maker")
        assert told.code == 2 and message in told.err, told
    (run / "report.json").write_text(json.dumps(report)[:500])
    assert "not a complete report" in cli("push", run, "--library", tmp_path / "maker").err
    (run / "report.json").write_text(json.dumps(report))
    told = cli("push", run, "--to", "https://example.com/toy", "--library", tmp_path / "maker")
    assert told.code in (2, 3) and "https" in told.err, told
    told = cli("push", run, "--to", "toy", "--library", tmp_path / "maker")
    assert told.code == 2 and "give a URL" in told.err


def test_the_bundle_that_suits_the_device_is_taken(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    devices = tmp_path / "devices"
    devices.mkdir()
    described = "runtimes: {tflite: tflm}\noperators: tflite-micro\nlimits: {flash: %s, ram: %s}\n"
    (devices / "roomy.yaml").write_text(described % ("1 MiB", "64 KiB"))
    (devices / "tight.yaml").write_text(described % ("512", "64 KiB"))
    (devices / "poor.yaml").write_text(described % ("1 MiB", "8 KiB"))
    (devices / "torch.yaml").write_text("runtimes: {torchscript: torchscript}\n")
    told = pull(cli, url, tmp_path, "--device-folder", devices, device="roomy")
    assert told.code == 0 and "not measured on roomy, but it meets the limits" in told.out
    folder = tmp_path / "firmware" / "model"
    assert f"the firmware kit: {folder}/firmware (compile, link, test: README.md there)" in told.out
    assert "kit and golden vectors of cortex-m are valid for roomy: same kernels (tflm)" in told.out
    assert f"next: edgeopt lint {folder}/toy.tflite --device roomy" in told.out
    # Of a bundle for another runtime, there is no kit to speak of.
    host = a_run(tmp_path / "host", 2, device="host", runtime="litert 2.3.0")
    words = ("--to", f"{url}:2", "--library", tmp_path / "maker", "--channel", "stable")
    assert cli("push", host, *words).code == 0
    told = pull(cli, url, tmp_path, "--device-folder", devices, device="roomy")
    assert "made for host, without a firmware kit: to get one for roomy, with its golden" in told.out
    told = pull(cli, url, tmp_path, device="stm32f44")
    assert told.code == 2 and "did you mean 'stm32f4'?" in told.err
    refusals = {
        "tight": "512 bytes of flash",
        "poor": "needs 9,000 bytes, and poor has 8,192 bytes of RAM",
        "torch": "torch has no runtime for tflite",
        "roomie": "no device file describes 'roomie', and no bundle of this release was measured on it;",
    }
    for device, reason in refusals.items():
        told = pull(cli, url, tmp_path, "--device-folder", devices, device=device)
        assert told.code == 2 and reason in told.err, (device, told.err)
    told = pull(cli, url, tmp_path, "--format", "onnx")
    assert told.code == 2 and "it has int8.tflite" in told.err


def test_of_the_same_file_the_bundle_for_the_same_runtime_is_taken() -> None:
    def bundle(device: str, runtime: str) -> Descriptor:
        facts = Facts(variant="int8", format="tflite", device=device, size_bytes=9, runtime=runtime)
        return describe(device.encode(), MANIFEST, annotations={FACTS: facts.model_dump_json()})

    index = Index(manifests=(bundle("cortex-m", "tflm 1.0"), bundle("host", "litert 2.3.0")))
    for name, runtime, taken in (("pi", "litert", "host"), ("board", "tflm", "cortex-m")):
        chosen = choose(index, name, Device(name=name, runtimes={"tflite": runtime}))
        assert (chosen.facts.device, chosen.others) == (taken, ())


def test_of_the_same_file_the_bundle_for_the_same_kind_of_device_is_taken() -> None:
    """A phone gets the bundle of the host, not that of a microcontroller, although its name comes first."""

    def bundle(device: str, runtime: str, arena: int | None) -> Descriptor:
        facts = Facts(
            variant="int8", format="tflite", device=device, size_bytes=9, runtime=runtime, arena_bytes=arena
        )
        return describe(device.encode(), MANIFEST, annotations={FACTS: facts.model_dump_json()})

    index = Index(manifests=(bundle("cortex-m", "tflm 1.0", 9), bundle("host", "litert 2.3.0", None)))
    for name, taken in (("android-adb", "host"), ("arm64-emulated", "host"), ("stm32h7", "cortex-m")):
        assert choose(index, name, load_device(name)).facts.device == taken


@pytest.mark.parametrize(
    ("device", "runtime", "program"),
    [
        ("android-adb", "adb_litert", "RunTflite.kt"),
        ("arm64-emulated", "tflite_runtime", "run_model.py"),
        ("raspberry-pi-5", "litert", "run_model.py"),
    ],
)
def test_a_device_gets_its_own_example(
    cli: Cli, tmp_path: Path, device: str, runtime: str, program: str
) -> None:
    """Only a microcontroller was measured: the pulled bundle names, and has, the example of the device."""
    url = published(cli, tmp_path, 1, "--channel", "stable")
    told = pull(cli, url, tmp_path, device=device)
    example = tmp_path / "firmware" / "model" / "example" / runtime
    assert told.code == 0 and f"the example for {device}: {example}" in told.out
    assert f"  the golden vectors were made for cortex-m: to get those for {device}, add it" in told.out
    assert "firmware kit" not in told.out
    text = (example / program).read_text()
    if program.endswith(".py"):
        compile(text, program, "exec")
        assert "parents[2]" in text  # of the bundle's folder, where the model is
    assert cli("verify", example.parent.parent).code == 0


def test_a_device_that_compiles_its_files_gets_its_own(cli: Cli, tmp_path: Path) -> None:
    """The compiled file, not the smaller one that was measured on a microcontroller."""
    run = a_run(tmp_path / "run", device="ethos-u55-128", runtime="vela 5.2.0", golden_of="cortex-m")
    models = run / "models"
    compiled = models / "int8.ethos-u55-128.tflite"
    nodes = (operator("QUANTIZE"), operator("ethos-u"))
    write(compiled, *nodes, shape=(1, 4, 4, 2), types=("int8", "int8"))
    compiled.with_name(f"{compiled.name}.json").write_text((models / "int8.tflite.json").read_text())
    report = Report.model_validate_json((run / "report.json").read_text())
    (row,) = report.results
    assert row.artifact is not None
    micro = row.model_copy(update={"device": "cortex-m", "runtime": "tflm 1.0"})
    path, size = f"models/{compiled.name}", compiled.stat().st_size
    artifact = Artifact(path=path, digest=file_digest(compiled), size_bytes=size)
    npu = row.model_copy(update={"artifact": artifact})
    both = report.model_copy(update={"results": (micro, npu)})
    (run / "report.json").write_text(both.model_dump_json(by_alias=True))
    url = f"file://{tmp_path}/remote/toy"
    told = cli("push", run, "--to", f"{url}:1", "--library", tmp_path / "maker", "--channel", "stable")
    assert told.code == 0, told.err
    told = pull(cli, url, tmp_path, device="ethos-u55-128")
    folder = tmp_path / "firmware" / "model"
    assert told.code == 0, told.err
    assert (folder / "toy.tflite").read_bytes() == compiled.read_bytes()
    assert json.loads((folder / "manifest.json").read_text())["compiled"] is True
    assert not (folder / "example").exists()  # it runs nowhere else
    told = pull(cli, url, tmp_path, device="corstone-300")
    assert told.code == 2 and "compiled for ethos-u55-128" in told.err
    assert pull(cli, url, tmp_path, device="stm32f4").code == 0
    assert (folder / "toy.tflite").read_bytes() == (models / "int8.tflite").read_bytes()


def test_a_device_that_compiles_its_files_gets_no_other(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    for device in ("ethos-u55-128", "corstone-300"):
        told = pull(cli, url, tmp_path, device=device)
        assert told.code == 2
        assert f"not compiled for {device}: add it to the recipe's devices, and publish again" in told.err


def test_a_kit_can_be_compiled_in_place(cli: Cli, tmp_path: Path) -> None:
    """What a compiler leaves is neither a change of the bundle, nor in the way of a pull; other files are."""
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    folder = tmp_path / "firmware" / "model"
    outputs = {
        "model_data.o": b"object",
        "libtoy.a": b"!<arch>",
        "build/check": b"\x7fELF\x01",
        "build/check.bin": b"flash",
        "build/Makefile": b"# CMAKE generated file: DO NOT EDIT!",
        "build/CMakeCache.txt": b"# This is the CMakeCache file.",
        "build/cmake_install.cmake": b"# Install script for directory: /",
        "build/CMakeFiles/3.28/CompilerIdC/CMakeCCompilerId.c": b"int main;",
    }
    for name, content in outputs.items():
        path = folder / "firmware" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert cli("verify", folder).code == 0
    published(cli, tmp_path, 2, "--channel", "stable")
    told = pull(cli, url, tmp_path)
    assert told.code == 0 and "outputs (files): firmware (2), firmware/build (6)" in told.out
    assert not any((folder / "firmware" / name).exists() for name in outputs)
    told = pull(cli, url, tmp_path)
    assert told.code == 0 and "removed" not in told.out
    (folder / "firmware" / "build").mkdir()
    mine = ("model_data.o", "firmware/mine.c", "golden/x.o", "firmware/src/build", "firmware/data.bin")
    for name in (*mine, "firmware/build/my_board.c", "firmware/build/Makefile"):
        (folder / name).write_bytes(b"mine")
        assert cli("verify", folder).code == 1, name
        told = pull(cli, url, tmp_path)
        assert told.code == 2 and name in told.err, told
        (folder / name).unlink()


def test_a_pull_replaces_the_earlier_one_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    folder = tmp_path / "firmware" / "model"
    assert pull(cli, url, tmp_path).code == 0
    published(cli, tmp_path, 2, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    assert json.loads((folder / "manifest.json").read_text())["version"] == "1.2"
    mine = tmp_path / "firmware" / "sources"
    mine.mkdir()
    (mine / "main.c").write_text("int main(void) { return 0; }")
    told = cli("pull", url, "--device", "cortex-m", "--out", mine, "--library", tmp_path / "board")
    assert told.code == 2 and "was not pulled" in told.err
    assert os.listdir(mine) == ["main.c"]
    # Neither are files added next to it, or changes in it.
    note = folder / "NOTES.txt"
    note.write_text("wire the sensor to pin 4")
    told = pull(cli, url, tmp_path)
    assert told.code == 2 and "modified since: NOTES.txt" in told.err and note.exists()
    note.unlink()
    header = folder / "firmware" / "model_contract.h"
    header.write_text(header.read_text() + "// mine")
    told = pull(cli, url, tmp_path)
    assert told.code == 2 and "modified since: firmware/model_contract.h" in told.err
    assert header.read_text().endswith("// mine")
    assert pull(cli, url, tmp_path, "--replace").code == 0
    assert not header.read_text().endswith("// mine")


def test_what_was_added_to_a_pulled_folder_is_named(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    folder = tmp_path / "firmware" / "model"
    (folder / "firmware" / "backdoor.c").write_text("int x;")
    told = cli("verify", folder)
    assert told.code == 1 and "firmware/backdoor.c is not part of the bundle" in told.err


def test_a_replacement_that_was_cut_off_brings_back_what_was_there(cli: Cli, tmp_path: Path) -> None:
    """If folders cannot be exchanged atomically, two renames do it; a process died between them."""
    url = published(cli, tmp_path, 1, "--channel", "stable")
    folder = tmp_path / "firmware" / "model"
    assert pull(cli, url, tmp_path).code == 0
    folder.with_name(".model.0123abcd").mkdir()
    folder.rename(folder.with_name(".model.0123abcd") / "old")
    _, other = keys(tmp_path, "other")
    assert pull(cli, url, tmp_path, "--require-signature", other).code == 1
    assert cli("verify", folder).code == 0
    assert os.listdir(folder.parent) == ["model"]


def test_a_second_download_of_the_same_leaves_the_first_alone(tmp_path: Path) -> None:
    blob = describe(b"content", MANIFEST)
    with partial(tmp_path, blob) as first:
        first.write_bytes(b"con")
        with partial(tmp_path, blob) as second:
            second.write_bytes(b"other")
        assert first != second and first.read_bytes() == b"con" and not second.exists()
        with partial(tmp_path, blob) as third:  # the first is still running, and known to be
            assert third != first
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_move_that_was_cut_off_is_finished_by_the_next(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    published(cli, tmp_path, 2, "--channel", "stable")
    remote = tmp_path / "remote" / "toy"
    (remote / "refs" / "stable.json").write_bytes((remote / "refs" / "1.1.json").read_bytes())
    assert cli("promote", f"{url}@1.2", "--library", tmp_path / "maker").code == 0
    layout = library(remote)
    assert layout.resolve("stable") == layout.resolve("1.2")
    assert len(history(layout, "stable")) == 2


def test_downloads_that_nobody_goes_on_with_are_collected(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    left, fresh = (tmp_path / "board" / "toy" / "partial" / name for name in ("0a", "0b"))
    for file in (left, fresh):
        file.write_bytes(b"0" * 1000)
    os.utime(left, (0, 0))
    options = ("--library", tmp_path / "board", "--runs", tmp_path / "no", "--store", tmp_path / "no")
    assert "1 files of interrupted downloads" in cli("gc", *options).out and left.exists()
    assert cli("gc", *options, "--delete").code == 0
    assert fresh.exists() and not left.exists()


def test_offline_what_was_pulled_once_is_there(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    (tmp_path / "remote").rename(tmp_path / "away")
    gone = pull(cli, url, tmp_path)
    assert gone.code in (2, 3)
    told = pull(cli, "toy@1.1", tmp_path, "--offline")
    assert told.code == 0, told.err
    assert pull(cli, "toy", tmp_path, "--offline").code == 0  # and the target of the channel


def test_what_is_damaged_here_is_fetched_again(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    shelf = library(tmp_path / "board" / "toy")
    blobs = tmp_path / "board" / "toy" / "blobs" / "sha256"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[7] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(data)
    told = cli("verify", "--all", "--library", tmp_path / "board")
    assert told.code == 1 and largest.name[:8] in told.out
    assert pull(cli, url, tmp_path).code == 0
    shelf.check(f"sha256:{largest.name}")


@pytest.mark.parametrize("what", ["model", "kit", "manifest", "index", "tag", "moved"])
def test_what_was_tampered_with_never_lands(cli: Cli, tmp_path: Path, what: str) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    published(cli, tmp_path, 2)
    remote = tmp_path / "remote" / "toy"
    layout = library(remote)
    release = layout.resolve("1.1")
    assert release is not None
    index = read_index(layout.manifest(release.digest), "")
    manifest = read_manifest(layout.manifest(index.manifests[0].digest), "")
    blobs = {
        "model": manifest.layers[0].digest,
        "kit": manifest.layers[1].digest,
        "manifest": index.manifests[0].digest,
        "index": release.digest,
    }
    if what in blobs:
        path = remote / "blobs" / "sha256" / blobs[what].removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    elif what == "tag":
        (remote / "refs" / "1.1.json").write_bytes((remote / "refs" / "1.2.json").read_bytes())
    else:
        for move in remote.glob("refs/stable.*.json"):
            move.write_bytes((remote / "refs" / "1.2.json").read_bytes())
    told = pull(cli, url if what == "moved" else f"{url}@1.1", tmp_path)
    assert told.code == 1, told
    assert not (tmp_path / "firmware" / "model").exists()
    assert cli("verify", "--all", "--library", tmp_path / "board").code == 0


def test_a_signature_that_is_asked_for_must_be_there_and_right(cli: Cli, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "release")
    _, other = keys(tmp_path, "other")
    url = published(cli, tmp_path, 1, "--sign", private)
    published(cli, tmp_path, 2)
    folder = tmp_path / "firmware" / "model"
    assert pull(cli, f"{url}@1.1", tmp_path, "--require-signature", public).code == 0
    before = file_digest(folder / "manifest.json")
    (folder / "firmware" / "model_data.o").write_bytes(b"object")
    told = cli("verify", folder, "--require-signature", public)
    assert told.code == 1 and "build outputs, such as firmware/model_data.o" in told.err
    assert pull(cli, f"{url}@1.1", tmp_path, "--require-signature", public).code == 0
    for version, key in (("1.1", other), ("1.2", public)):
        told = pull(cli, f"{url}@{version}", tmp_path, "--require-signature", key)
        assert told.code == 1 and "sign" in told.err, told
        assert file_digest(folder / "manifest.json") == before
    assert os.listdir(folder.parent) == ["model"]
    # Declared in the project file, it applies to every pull.
    Path("edgeopt.toml").write_text(
        f'[artifacts]\nremote = "file://{tmp_path}/remote"\nrequire_signature = "../release.pub"\n'
    )
    told = pull(cli, "toy@1.2", tmp_path)
    assert told.code == 1, told
    told = pull(cli, "toy@1.1", tmp_path)
    assert told.code == 0 and "signature verified" in told.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[artifacts]\nremot = 'x'", "artifacts.remot: .*did you mean 'remote'"),
        ("[artifact]\nremote = 'x'", "unknown table 'artifact'"),
        ("[artifacts", "cannot read"),
    ],
)
def test_a_wrong_project_file_is_told(cli: Cli, text: str, message: str) -> None:
    Path("edgeopt.toml").write_text(text)
    told = cli("list")
    assert told.code == 2 and "edgeopt.toml" in told.err
    import re

    assert re.search(message, told.err), told.err


@pytest.mark.parametrize(
    "name",
    [
        "../toy",
        "Toy",
        "a b",
        "toy@",
        "toy:",
        "toy@../1",
        "toy:UP",
        "töy",
        "x" * 10_000,
        "oci://host",
        "a/../b",
        "\0",
    ],
)
def test_a_strange_name_is_refused_with_one_that_is_not(cli: Cli, name: str, tmp_path: Path) -> None:
    told = cli("pull", name, "--device", "cortex-m", "--out", tmp_path / "out")
    assert told.code == 2 and len(told.err) < 1000, told.err
    assert "Traceback" not in told.err and not (tmp_path / "out").exists()


def test_a_path_is_answered_with_its_url(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path)
    shelf = tmp_path / "remote"
    told = cli("show", f"{shelf}/toy@1.1")
    assert told.code == 2 and f"give a URL: {url}@1.1" in told.err
    assert f"give a URL: {url}" in cli("list", "../remote/toy").err
    assert "give a URL: oci://HOST/NAME, or file:" in cli("list", "registry.example.com/team/toy").err
    told = cli("list", f"file://{shelf}")
    assert told.code == 2 and f"give one of its names: {url}" in told.err


def test_a_run_whose_gates_failed_is_published_and_not_promoted(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    published(cli, tmp_path, 2, failing=True)
    told = cli("promote", f"{url}@1.2", "--library", tmp_path / "maker")
    assert told.code == 1 and "top1 max_drop 0.01 on int8.tflite on cortex-m" in told.err
    told = pull(cli, f"{url}@1.2", tmp_path)
    assert told.code == 0 and "warning: 1 gates" in told.err
    published(cli, tmp_path, 3)
    assert cli("promote", f"{url}@1.3", "--library", tmp_path / "maker").code == 0
    assert cli("promote", f"{url}@1.3", "--library", tmp_path / "maker").code == 0  # already there
    moves = history(library(tmp_path / "remote" / "toy"), "stable")
    assert [(move.version, move.action) for move in moves] == [("1.1", "promote"), ("1.3", "promote")]
    told = cli("rollback", url, "--library", tmp_path / "maker", "--who", "release team")
    assert told.code == 0 and "is 1.1 again" in told.out
    told = cli("rollback", url, "--library", tmp_path / "maker")
    assert told.code == 2 and "its first version" in told.err
    moves = history(library(tmp_path / "remote" / "toy"), "stable")
    assert [move.version for move in moves] == ["1.1", "1.3", "1.1"] and moves[-1].who == "release team"
    assert moves[-1] == history(library(tmp_path / "maker" / "toy"), "stable")[-1]
    assert pull(cli, url, tmp_path).code == 0
    contract = json.loads((tmp_path / "firmware" / "model" / "manifest.json").read_text())
    assert contract["version"] == "1.1"


MOVER = """
import sys, time
from pathlib import Path
from edgeopt.errors import VerificationError
from edgeopt.publish import channels
from edgeopt.publish.channels import promote
from edgeopt.publish.remotes import library
channels.current = lambda *_: None  # move it even if it is already there
time.sleep(max(0, float(sys.argv[3]) - time.time()))
for _ in range(10):
    try:
        promote(library(Path(sys.argv[1])), "stable", sys.argv[2])
    except VerificationError as error:
        assert "at the same time" in str(error), error
"""


def test_two_processes_move_a_channel_and_no_move_is_lost(cli: Cli, tmp_path: Path) -> None:
    published(cli, tmp_path)
    published(cli, tmp_path, 2)
    remote = tmp_path / "remote" / "toy"
    start = str(time.time() + 1.5)
    movers = [
        subprocess.Popen([sys.executable, "-c", MOVER, str(remote), version, start])
        for version in ("1.1", "1.2")
    ]
    assert [mover.wait(60) for mover in movers] == [0, 0]
    layout = library(remote)
    moves = history(layout, "stable")
    assert sorted(move.version for move in moves) == ["1.1"] * 10 + ["1.2"] * 10
    plain = layout.resolve("stable")
    assert plain is not None and plain.digest == moves[-1].release


def test_collecting_keeps_what_channels_and_baselines_refer_to(cli: Cli, tmp_path: Path) -> None:
    shelf, runs = tmp_path / "maker", tmp_path / "runs"
    runs.mkdir()
    for day in range(1, 7):
        operators = ("CONV_2D", *["SOFTMAX"] * day)
        run = a_run(runs / f"run{day}", day, operators=operators)
        channel = ["--channel", "stable"] if day in (2, 3) else []
        told = cli("push", run, "--name", "toy", "--version", f"1.{day}", "--library", shelf, *channel)
        assert told.code == 0, told.err
    baseline = {
        "schema": 1,
        "recipe": "toy",
        "evaluation_digest": "x",
        "entries": [
            {
                "variant": "int8",
                "format": "tflite",
                "device": "cortex-m",
                "digest": file_digest(runs / "run4" / "models" / "int8.tflite"),
            }
        ],
    }
    Path("baseline.json").write_text(json.dumps(baseline))
    options = ("--keep-last", "1", "--library", shelf, "--runs", runs, "--store", tmp_path / "none")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    shown = cli("gc", *options)
    assert shown.code == 0 and "toy@1.5" in shown.out and "can be removed" in shown.out
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before  # only listed
    assert cli("gc", *options, "--delete").code == 0
    layout = library(shelf / "toy")
    versions = [tag for tag in layout.tags() if tag[0].isdigit()]
    # The newest, the channel's current and rollback targets, and the baseline's.
    assert versions == ["1.2", "1.3", "1.4", "1.6"]
    assert sorted(os.listdir(runs)) == ["run4", "run6"]
    assert cli("verify", "--all", "--library", shelf, "--store", tmp_path / "none").code == 0
    assert cli("gc", *options, "--channels-now", "--delete").code == 0
    assert [tag for tag in layout.tags() if tag[0].isdigit()] == ["1.3", "1.4", "1.6"]
    assert cli("gc", *options).out == "nothing to remove\n" or "toy" not in cli("gc", *options).out


def test_a_full_disk_leaves_what_was_there(cli: Cli, tmp_path: Path) -> None:
    url = published(cli, tmp_path, 1, "--channel", "stable")
    assert pull(cli, url, tmp_path).code == 0
    folder = tmp_path / "firmware" / "model"
    before = {path: file_digest(path) for path in folder.rglob("*") if path.is_file()}
    published(cli, tmp_path, 2, "--channel", "stable")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        told = pull(cli, url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert told.code == 3 and "too large" in told.err.lower(), told
    assert {path: file_digest(path) for path in folder.rglob("*") if path.is_file()} == before
    assert os.listdir(folder.parent) == ["model"]
    assert pull(cli, url, tmp_path).code == 0
    assert cli("verify", "--all", "--library", tmp_path / "board").code == 0


def test_killed_at_any_moment_nothing_is_half_done(cli: Cli, tmp_path: Path) -> None:
    """``benchmarks/artifacts.py`` does this two hundred times."""
    url = published(cli, tmp_path, 1, "--channel", "stable")
    run = a_run(tmp_path / "next", 2)
    board, maker, remote = tmp_path / "board", tmp_path / "maker", tmp_path / "remote" / "toy"
    place = tmp_path / "firmware" / "model"
    commands = [
        ["push", str(run), "--to", f"{url}:1.2", "--library", str(maker), "--channel", "stable"],
        ["pull", url, "--device", "cortex-m", "--out", str(place), "--library", str(board)],
        ["gc", "--keep-last", "1", "--delete", "--library", str(maker), "--runs", str(tmp_path / "none")],
    ]
    chance = random.Random(4)
    for turn in range(9):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt", "artifacts", *commands[turn % 3]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.3, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for shelf in (maker, board):
            told = cli("verify", "--all", "--library", shelf, "--store", tmp_path / "none")
            assert told.code == 0, told
        layout = library(remote)
        moves = history(layout, "stable")
        assert all(layout.resolve(move.release) for move in moves)
        if place.exists():
            assert cli("verify", place).code == 0
    for command in commands[:2]:
        assert cli(*command).code == 0
    assert promote(library(remote), "stable", "1.2").version == "1.2"
    assert json.loads((place / "manifest.json").read_text())["version"] == "1.2"
