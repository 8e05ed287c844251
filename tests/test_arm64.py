"""arm64 without arm64 hardware: the system created by the setup, and real kernels under qemu."""

import io
import json
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.commands.parity import parity
from edgeopt.commands.profile import profile
from edgeopt.devices.connections._sysroot import KEYRING, MIRROR, RELEASE, unpack
from edgeopt.devices.connections.qemu_user import QemuUser
from edgeopt.devices.device import Device, connection_of, load_device
from edgeopt.devices.environments import environment_folder
from edgeopt.errors import DeviceError, UsageError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.run.measuring.probe import probe_device
from toy_tflite import toy

NAME = "arm64-emulated"


def archive(*members: tuple[str, dict[str, Any], bytes]) -> io.BytesIO:
    """A tar stream with arbitrary entries."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as writer:
        for name, fields, content in members:
            info = tarfile.TarInfo(name)
            for field, value in {"size": len(content), **fields}.items():
                setattr(info, field, value)
            writer.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> dict[str, Any]:
    return {"type": kind, "linkname": target}


def test_packages_are_unpacked_below_their_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    unpack(
        archive(
            ("./", {"type": tarfile.DIRTYPE}, b""),
            ("./usr/bin/tool", {"mode": 0o4755}, b"run me"),
            ("./etc/settings", {"mode": 0o644}, b"a=1"),
            ("./usr/lib/settings", link("/etc/settings"), b""),
            ("./lib", link("usr/lib"), b""),
            ("./lib/late", {}, b"through a link"),
            ("./usr/bin/same", link("./usr/bin/tool", tarfile.LNKTYPE), b""),
        ),
        root,
    )
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755  # no setuid bit
    assert (root / "usr/bin/same").read_bytes() == b"run me"
    assert (root / "usr/lib/settings").read_bytes() == b"a=1"  # not this machine's file
    assert (root / "usr/lib/late").read_bytes() == b"through a link"


@pytest.mark.parametrize(
    "members",
    [
        [("../out", {}, b"x")],
        [("a/../../out", {}, b"x")],
        [("a", link("../.."), b"")],
        [("a", link("../out"), b"")],
        [("a", link("../out", tarfile.LNKTYPE), b"")],
        [("a", {"type": tarfile.CHRTYPE}, b"")],
        [("a", {"type": tarfile.FIFOTYPE}, b"")],
    ],
)
def test_nothing_is_unpacked_elsewhere(
    tmp_path: Path, members: list[tuple[str, dict[str, Any], bytes]]
) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    (tmp_path / "deep" / "out").write_bytes(b"mine")
    with pytest.raises(DeviceError):
        unpack(archive(*members), root)
    assert (tmp_path / "deep" / "out").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "out", "root"]


def test_links_that_are_there_already_lead_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "away").symlink_to(tmp_path)
    with pytest.raises(DeviceError, match="outside"):
        unpack(archive(("away/file", {}, b"x")), root)
    assert not (tmp_path / "file").exists()


def test_system_that_is_not_there() -> None:
    with pytest.raises(DeviceError) as caught:
        QemuUser(environment="never-made").open()
    assert caught.value.fix == "run: edgeopt devices setup never-made"


def test_setup_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="is not an address of a Debian mirror"):
        QemuUser(environment="x", mirror='http://a] evil "').setup([], print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt-get, apt-config, dpkg-deb not found on this machine"):
        QemuUser(environment="x").setup([], print)
    assert not (tmp_path / "environments").exists()


def test_a_device_that_needs_no_setting_up() -> None:
    with pytest.raises(UsageError, match="needs no setup"):
        connection_of(load_device("host")).setup([], print)


# The following tests use Debian's packages, qemu and wheels for arm64.


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """The shipped device, set up once; skipped if Debian's packages are unavailable."""
    device = load_device(NAME)
    if shutil.which("apt-get") is None or not KEYRING.is_file():
        pytest.skip("this machine has no apt, or not Debian's keys")
    try:
        with urllib.request.urlopen(f"{MIRROR}/dists/{RELEASE}/InRelease", timeout=20) as answer:
            answer.read(1)
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"{MIRROR} cannot be reached: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        try:
            connection_of(device).setup(device.setup.python, print)
        except DeviceError as error:
            if "No matching distribution" in error.message or "Could not find a version" in error.message:
                pytest.skip(f"the package index has no wheels for arm64: {error.message}")
            raise
    return device


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    return path


@pytest.mark.slow
def test_set_up_once_and_recorded(system: Device) -> None:
    folder = environment_folder(NAME)
    record = json.loads((folder / "complete.json").read_text())
    assert record["python"]["tflite-runtime"] == "2.14.0" and record["python"]["numpy"] == "1.26.4"
    assert record["debian"]["libc6"].startswith("2.36") and "qemu-user-static" in record["debian"]
    assert not list(folder.glob("download-*"))
    said: list[str] = []
    connection_of(system).setup(system.setup.python, said.append)
    assert said == [f"{NAME}: already set up in {folder}"]


@pytest.mark.slow
def test_it_is_another_processor(system: Device, tmp_path: Path) -> None:
    found = probe_device(system, tmp_path)
    assert found["machine"] == "aarch64"
    assert found["cpu"].startswith("cortex-a72, emulated on")
    assert found["cpu_flags"] == []
    assert found["runtimes"]["tflite_runtime"] == "2.14.0"
    with connection_of(system).open() as session:
        told = session.python(["-c", "import sys; print([p for p in sys.path if p.startswith('/usr')])"], 60)
    assert told.stdout == "[]\n"  # no path of this machine's Python


@pytest.mark.slow
def test_a_job_that_hangs_is_killed(system: Device) -> None:
    start = time.monotonic()
    with connection_of(system).open() as session, pytest.raises(DeviceError, match="not finish within 2 s"):
        session.python(["-c", "import time; time.sleep(60)"], 2)
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_no_latency_of_an_emulator(system: Device, toy_file: Path) -> None:
    (result,) = profile(toy_file, device=NAME).results
    assert result.status == "ok" and result.runtime == "tflite_runtime 2.14.0"
    assert set(result.measurements) == {"size_bytes", "gzip_bytes"}
    assert "latency: emulated, not measured" in result.notes


@pytest.mark.slow
def test_integer_kernels_agree_with_the_host(system: Device, toy_file: Path) -> None:
    row = parity(toy_file, ["host", NAME]).devices[1]
    assert row.status == "ok" and row.emulated
    # XNNPACK and TensorFlow Lite's own kernels round differently; the second layer accumulates this.
    assert row.layer is None or row.layer.max_steps == 1
    assert row.max_steps is not None and row.max_steps <= 5


@pytest.mark.slow
def test_published_kws_on_arm64_kernels(system: Device, real_data: Path, tmp_path: Path) -> None:
    with np.load(real_data / "kws" / "evaluation400.npz") as file:
        x, y = file["x"], file["y"]
    np.savez(tmp_path / "part.npz", x=x[:100], y=y[:100])
    model = real_data / "mlperf-tiny" / "kws_reference_int8.tflite"
    data = tmp_path / "part.npz"
    there, here = (
        profile(model, device=name, dataset=Npz(path=data), metrics=(Top1(),)).results[0].measurements["top1"]
        for name in (NAME, "host")
    )
    assert there.value == pytest.approx(here.value, abs=0.02) and there.value >= 0.85
    row = parity(model, ["host", NAME], dataset=Npz(path=data, label=None)).devices[1]
    assert row.differing is not None and row.differing < 60
    assert row.layer is not None and row.layer.max_steps == 1  # XNNPACK rounds differently


@pytest.mark.slow
def test_a_run_tells_how_far_the_device_is_from_the_host(
    system: Device, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from edgeopt.commands.optimize import optimize

    recipe = write_recipe(optimize="{int8: {quantize: int8}}", devices=f"[host, {NAME}]")
    report = optimize(
        recipe, out=tmp_path / "out", store=tmp_path / "store", overrides=["latency.min_seconds=0"]
    )
    rows = {(row.variant, row.device): row for row in report.results}
    int8, plain = rows["int8", NAME], rows["float", NAME]
    assert int8.status == plain.status == "ok", (int8.reason, plain.reason)
    assert "latency: emulated, not measured" in int8.notes
    assert not [name for name in int8.measurements if "latency" in name or name == "peak_memory_bytes"]
    assert int8.measurements["parity_flips"].value <= 2
    assert plain.measurements["parity_flips"].value == 0
    assert plain.measurements["parity_max_error"].value < 1e-5
    assert "parity_flips" not in rows["int8", "host"].measurements
