"""Device files: found by name, and parsed with all mistakes reported."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from edgeopt.config.registry import find
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.devices.device import Device, known_devices, load_device, read_device, shipped
from edgeopt.errors import RecipeError, UsageError
from edgeopt.plugin import Connection

GOOD = """
description: a board
connection: {uses: local, with: {python: python3}}
runtimes: {tflite: litert}
limits: {flash: 1 MiB, ram: 256 KiB}
"""


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_shipped_devices_are_valid() -> None:
    names = known_devices()
    assert {"host", "host-tflite-runtime"} <= set(names)
    for name in names:
        device = load_device(name)
        assert device.name == name and device.description
        assert set(device.runtimes.values()) <= set(runtime_names())
        connection = device.connection
        uses = connection if isinstance(connection, str) else connection["uses"]
        options = {} if isinstance(connection, str) else connection.get("with", {})
        assert isinstance(find(Connection, uses).model_validate(options), Connection)


def test_the_host_runs_every_runtime_that_it_can_share() -> None:
    elsewhere = {"null", "tflite_runtime", "tflm", "vela", "torch_cuda", "onnxruntime_cuda"}
    elsewhere |= {"adb_litert", "adb_executorch"}
    assert set(load_device("host").runtimes.values()) == set(runtime_names()) - elsewhere


def test_limits_are_read_with_units(tmp_path: Path) -> None:
    device = read_device(write(tmp_path, "board", GOOD))
    assert device.limits.flash == 2**20 and device.limits.ram == 256 * 2**10
    assert device.threads == 1 and not device.emulated and device.setup.python == ()


def test_the_users_folder_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "devices", "host", GOOD)
    assert load_device("host", [tmp_path / "devices"]).description == "a board"
    assert load_device("host", [tmp_path / "gone"]).description != "a board"
    write(tmp_path / "devices", "mine", GOOD)
    assert {"mine", "host"} <= set(known_devices([tmp_path / "devices"]))


def test_a_path_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, "board", GOOD)
    assert load_device(str(path)).name == "board"
    with pytest.raises(UsageError, match=r"no such device file: .*gone\.yaml"):
        load_device(str(tmp_path / "gone.yaml"))


def test_unknown_device_gives_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no device 'hots'; did you mean 'host'\?") as caught:
        load_device("hots")
    assert caught.value.exit_code == 2 and str(shipped("devices")) in caught.value.fix


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("stm32f407", "stm32f4"),
        ("STM32F746NG", "stm32f7"),
        ("stm32f446re", "stm32f4"),
        ("STM32F4", "stm32f4"),
        ("NRF52840", "nrf52840"),
        ("Samsung", "galaxy"),
    ],
)
def test_a_part_is_found_by_its_family_and_its_description(name: str, device: str) -> None:
    with pytest.raises(UsageError, match=f"no device '{name}'; did you mean '{device}'"):
        load_device(name)


def test_a_name_like_none_lists_every_device() -> None:
    with pytest.raises(UsageError) as caught:
        load_device("zzz")
    assert all(name in caught.value.message for name in known_devices())


def test_all_mistakes_are_reported_with_their_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "board",
        "runtime: {tflite: litert}\n"
        "runtimes: {tflite: litrt}\n"
        "threads: 0\n"
        "limits:\n  rma: 1 KiB\n  flash: 3 parsecs\n"
        "connection: {use: local}\n",
    )
    with pytest.raises(RecipeError) as caught:
        read_device(path)
    text = str(caught.value)
    assert f"{path}:1:1" in text and "unknown key 'runtime'; did you mean 'runtimes'?" in text
    assert f"{path}:2:1" in text and "no runtime 'litrt'; did you mean 'litert'?" in text
    assert f"{path}:3:1" in text
    assert f"{path}:5:3" in text and "unknown key 'rma'; did you mean 'ram'?" in text
    assert f"{path}:6:3" in text and "'parsecs' is not valid here" in text
    assert f"{path}:7:1" in text and "{uses: name, with: {options}}" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), ("- a\n", "mapping"), ("a: [", "not valid YAML"), ("name: x\n", "runtimes")],
)
def test_files_that_are_no_devices(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, "board", text)
    with pytest.raises(UsageError, match=words) as caught:
        load_device("board", [tmp_path])
    assert str(path) in str(caught.value)


def test_devices_cannot_be_changed(tmp_path: Path) -> None:
    device = Device(name="x", runtimes={"tflite": "litert"})
    with pytest.raises(ValidationError):
        device.threads = 2  # type: ignore[misc]


PRESETS = (
    *("stm32f4", "stm32f7", "stm32h7", "stm32u5", "esp32-s3", "nrf52840", "nrf5340", "rp2040", "rp2350"),
    *("arduino-nano-33-ble", "coral-dev-board-micro", "corstone-300", "raspberry-pi-3", "raspberry-pi-4"),
    *("raspberry-pi-5", "raspberry-pi-zero-2", "jetson-nano", "pixel", "galaxy"),
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_the_sources_of_its_figures(name: str) -> None:
    device = load_device(name)
    limited = device.limits.model_dump(exclude_none=True) or device.estimate
    assert device.sources or not limited
    assert device.description != load_device(device.base).description if device.base else True


def test_a_file_starts_from_a_shipped_device(tmp_path: Path) -> None:
    estimate = "estimate: {kernels: cortex-m4, clock: 32 MHz}\n"
    board = f"base: nrf52840\ndescription: ours\nlimits: {{ram: 64 KiB}}\n{estimate}"
    device, base = read_device(write(tmp_path, "board", board)), load_device("nrf52840")
    assert (device.limits.ram, device.limits.flash) == (64 * 2**10, None)
    assert device.estimate is not None and device.estimate.clock == 32e6
    for key in ("connection", "runtimes", "emulated", "operators", "setup"):
        assert getattr(device, key) == getattr(base, key) == getattr(load_device("cortex-m"), key)
    assert (device.name, device.description, device.sources) == ("board", "ours", ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nrf5240\n", "board.yaml:1:1: base: no shipped device 'nrf5240'; did you mean 'nrf52840'?"),
        ("base: [host]\n", "no shipped device \"['host']\""),
        (
            "base: host\nestimate: {kernels: cortex-m5, clock: 1 MHz}\n",
            "no speed table 'cortex-m5'; did you mean",
        ),
        (
            "base: host\nestimate: {kernels: cortex-m4, clock: 1 MiB}\n",
            "unit 'MiB' is not valid here; expected Hz",
        ),
        ("base: host\nestimate: {kernels: cortex-m4, clock: 0 Hz}\n", "greater than 0"),
        ("base: host\nestimate: {kernels: cortex-m4}\n", "'clock' is missing"),
        ("base: host\nsource: [x]\n", "unknown key 'source'; did you mean 'sources'?"),
    ],
)
def test_mistakes_in_the_keys_of_a_preset_are_located(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_device(write(tmp_path, "board", text))
    assert words in str(caught.value)


def test_readiness_without_connecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.devices.readiness import readiness

    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert readiness(load_device("host")) == ("ready", "")
    assert str(readiness(load_device("cortex-m"))) == "not ready: run: edgeopt devices setup cortex-m"
    assert readiness(load_device("arm64-emulated")).state == "not ready"
    assert readiness(load_device("android-adb")) == ("not ready", "needs adb on the PATH")
    assert readiness(load_device("gpu-host")) == ("not ready", "needs nvidia-smi on the PATH")
    assert readiness(load_device("linux-ssh")) == ("unknown", "edgeopt devices check linux-ssh")
    (tmp_path / "adb").touch(0o755)
    assert readiness(load_device("android-adb")).state == "unknown"
    environment = tmp_path / "environments" / "cortex-m"
    (environment / "bin").mkdir(parents=True)
    for name in ("complete.json", "bin/python"):
        (environment / name).touch()
    assert readiness(load_device("cortex-m")).state == "ready"
