"""Device files that are wrong, and device names that lead nowhere, or to a file that nobody asked for."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]
Refused = Callable[..., None]
RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
LONG = "x" * 300
DEFAULTS = {"connection": "local", "runtimes": "default"}

LINES = [
    (
        "connection: {uses: local, with: {pythn: python3}}",
        "connection.with.pythn: unknown key 'pythn'; did you mean",
    ),
    (
        "connection: {uses: local, with: {python: 3}}",
        "connection.with.python: input should be a valid string (got",
    ),
    (
        "connection: {uses: local, with: {python: python3, environment: x}}",
        "connection.with: give either 'python' or 'environment', not",
    ),
    ("connection: {uses: local, with: [1]}", "connection: expected a name, or {uses: name, with:"),
    ("connection: {uses: locl}", "connection.uses: no connection 'locl'; did you mean 'local'?"),
    ("connection: {uses: ssh}", "connection: 'host' is missing"),
    ('connection: {uses: ssh, with: {host: ""}}', "connection.with.host: string should match pattern"),
    (
        'connection: {uses: ssh, with: {host: "-oProxyCommand=x"}}',
        "connection.with.host: string should match pattern",
    ),
    (
        "connection: {uses: ssh, with: {host: a, port: 99999}}",
        "connection.with.port: input should be less than or equal to",
    ),
    ("connection: {uses: ssh, with: {host: a, port: true}}", "connection.with.port: true is not a number"),
    (
        "connection: {uses: ssh, with: {host: a, connect_timeout: .inf}}",
        "connection.with.connect_timeout: the number is infinite, or",
    ),
    (
        "connection: {uses: ssh, with: {host: a, connect_timeout: 1e20}}",
        "connection.with.connect_timeout: input should be a valid",
    ),
    (
        "connection: {uses: ssh, with: {host: a, connect_timeout: 100000000000000}}",
        "connection.with.connect_timeout: input should be less than",
    ),
    ('connection: {uses: "nomod:Class"}', "connection.uses: no module 'nomod' in the Python path"),
    ('connection: {uses: "json:Nothing"}', "connection.uses:"),
    ("connection: {uses: 3}", "connection: expected a name, or {uses: name, with:"),
    ("connection: {with: {}}", "connection: expected a name, or {uses: name, with:"),
    ("connection: []", "connection: input should be a valid string (got"),
    ("connection: null", "connection: input should be a valid string (got"),
    ('connection: ""', "connection: no connection ''; known: local, qemu_user, ssh"),
    ("connection: {uses: local, nosuch: 1}", "connection: expected a name, or {uses: name, with:"),
    ("connection: {uses: qemu_user}", "connection: 'environment' is missing"),
    (
        'connection: {uses: qemu_user, with: {environment: "../x"}}',
        "connection.with.environment: string should match pattern",
    ),
    (
        'connection: {uses: local, with: {environment: "../x"}}',
        "connection.with.environment: string should match pattern",
    ),
    ("threads: 0", "threads: input should be greater than or equal to 1 (got 0)"),
    ("threads: true", "threads: true is not a number"),
    ("threads: .inf", "threads: the number is infinite, or larger than any setting"),
    ("threads: 1e20", "threads: input should be a valid integer, unable to parse"),
    ("threads: 100000000000000000000", "threads: the number is infinite, or larger than any setting"),
    ('threads: "x"', "threads: input should be a valid integer, unable to parse"),
    ("limits: {flash: .inf}", "limits.flash: the number is infinite, or larger than any"),
    ("limits: {flash: -1}", "limits.flash: input should be greater than or equal to 0"),
    ("limits: {flash: true}", "limits.flash: true is not a number"),
    ('limits: {flash: "1 ms"}', "limits.flash: unit 'ms' is not valid here; expected B, kB,"),
    ("limits: {nosuch: 1}", "limits.nosuch: unknown key 'nosuch'; known: flash, ram"),
    ("limits: {ram: .nan}", "limits.ram: NaN is not a number"),
    ('limits: {ram: "1e400 KiB"}', "limits.ram: the number is infinite, or larger than any"),
    ("limits: 3", "limits: input should be a valid dictionary or instance of"),
    ("runtimes: {}", "no device of the recipe has a runtime for tflite"),
    ("runtimes: {tflite: nosuch}", "runtimes: tflite: no runtime 'nosuch'; known:"),
    ("runtimes: {nosuch: litert}", "no device of the recipe has a runtime for tflite"),
    ("runtimes: [litert]", "runtimes: input should be a valid dictionary (got"),
    ("runtimes: 3", "runtimes: input should be a valid dictionary (got 3)"),
    ("runtimes: null", "runtimes: input should be a valid dictionary (got None)"),
    ("operators: nosuch", "operators: no operator table 'nosuch'; known:"),
    ("operators: ../x", "operators: no operator table '../x'; known: ethos-u55-u65,"),
    ("operators: 3", "operators: input should be a valid string (got 3)"),
    ("needs: [npu]", "needs.0: input should be 'gpu' (got 'npu')"),
    ("needs: gpu", "needs: expected a list (got 'gpu')"),
    ("emulated: maybe", "emulated: input should be a valid boolean, unable to"),
    ("emulated: 3", "emulated: input should be a valid boolean, unable to"),
    ("reference: {nosuch: {}}", "reference: 'nosuch': no runtime 'nosuch'; known:"),
    ("reference: {onnxruntime: 3}", "reference.onnxruntime: input should be a valid dictionary"),
    ("options: {nosuch: {}}", "options: 'nosuch': no runtime 'nosuch'; known:"),
    ("options: {litert: 3}", "options.litert: input should be a valid dictionary (got 3)"),
    ("options: 3", "options: input should be a valid dictionary (got 3)"),
    ("setup: {python: numpy}", "setup.python: expected a list (got 'numpy')"),
    ("setup: {python: [3]}", "setup.python.0: input should be a valid string (got 3)"),
    ("setup: {nosuch: 3}", "setup.nosuch: unknown key 'nosuch'; known: python"),
    ("name: ../../x", "name: the name '../../x' may only contain letters, digits,"),
    ("name: a/b", "name: the name 'a/b' may only contain letters, digits, '-',"),
    ('name: ""', "name: the name '' may only contain letters, digits, '-',"),
    ("name: 3", "name: input should be a valid string (got 3)"),
    ("name: [1]", "name: input should be a valid string (got [1])"),
    ("nosuch: 1", "nosuch: unknown key 'nosuch'; known: base, connection,"),
    ("description: 3", "description: input should be a valid string (got 3)"),
    ("description: [1]", "description: input should be a valid string (got [1])"),
]
TEXTS = [
    ("empty", b"", "the file is empty"),
    ("a list", b"[1, 2]", "a device file must be a mapping of settings"),
    ("not closed", b"a: [", "not valid YAML"),
    ("not UTF-8", b"caf\xe9: 1", "cannot read device file"),
    ("a zero byte", b"\0", "not valid YAML"),
    ("3,000 brackets", b"[" * 3_000, "nested more than 100 levels deep"),
    ("100,000 brackets", b"a: " + b"[" * 100_000, "nested more than 100 levels deep"),
    ("an alias", b"a: &x [1]\nb: *x\n", "aliases are not supported"),
    ("50 unknown keys", b"".join(b"key%d: 1\n" % i for i in range(50)), "further mistakes"),
    ("no runtimes", b"connection: local\n", "'runtimes' is missing"),
]
NAMES = [
    ("nosuch", "no device 'nosuch'"),
    ("hots", "did you mean 'host'?"),
    (LONG, "no device 'xxx"),
    (f"{LONG}.yaml", "no such device file: xxx"),
    ("~nouser/a.yaml", "no such device file: ~nouser/a.yaml"),
    ("/nosuch/x.yaml", "no such device file: /nosuch/x.yaml"),
    ("/dev/null", "no such device file: /dev/null"),
    ("./", "no such device file"),
    ("..", "no device '..'"),
    ("a\nb.yaml", "no such device file"),
    ("*", "no device '*'"),
    ("HOST", "no device 'HOST'"),
    ("", "no device ''"),
]


@pytest.mark.parametrize(("line", "words"), LINES, ids=lambda value: ascii(value[:40]))
def test_a_bad_setting(line: str, words: str, place: Path, refused: Refused) -> None:
    key = line.partition(":")[0]
    rest = "".join(f"{name}: {value}\n" for name, value in DEFAULTS.items() if name != key)
    (place / "bad.yaml").write_text(f"{line}\n{rest}", "utf-8")
    refused(words, "plan", "good.yaml", "--set", "devices=[./bad.yaml]")


@pytest.mark.parametrize(("text", "words"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_file_that_describes_no_device(text: bytes, words: str, place: Path, refused: Refused) -> None:
    (place / "bad.yaml").write_bytes(text)
    refused(words, "plan", "good.yaml", "--set", "devices=[./bad.yaml]")


@pytest.mark.parametrize(("name", "words"), NAMES, ids=lambda value: ascii(value[:40]))
@pytest.mark.parametrize("command", ["plan", "lint", "profile"])
def test_a_name_that_leads_nowhere(command: str, name: str, words: str, refused: Refused) -> None:
    if command == "plan":
        refused(words, "plan", "good.yaml", "--set", f"devices=[{json.dumps(name)}]")
    else:
        refused(words, command, "model.keras", "--device", name)


@pytest.mark.parametrize("folder", ["/nosuch", "good.yaml", LONG, "~nouser"])
def test_a_folder_of_devices_that_is_not_there(folder: str, refused: Refused) -> None:
    for command in (["plan", "good.yaml"], ["devices", "list"], ["lint", "model.keras", "--device", "host"]):
        refused("no such folder", *command, "--device-folder", folder)


def test_the_name_of_a_device_given_as_a_folder(refused: Refused) -> None:
    for option in ("--device-folder", "--devices"):
        refused("name the device with --device cortex-m", "profile", "model.keras", option, "cortex-m")


@pytest.fixture
def own(place: Path) -> Iterator[Path]:
    """The folder ``devices`` of the working folder, with a device that has the name of a shipped one."""
    folder = place / "devices"
    folder.mkdir()
    (folder / "host.yaml").write_text("connection: local\nthreads: 2\nruntimes: default\n", "utf-8")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("own")
def test_a_found_device_never_replaces_a_shipped_one(refused: Refused, edgeopt: Run) -> None:
    words = "devices/host.yaml has the name of a shipped device"
    for command in (
        ["plan", "good.yaml"],
        ["plan", "good.yaml", "--set", "devices=[cortex-m]"],  # host still runs the source model
        ["lint", "model.keras", "--device", "host"],
        ["profile", "model.keras"],
        ["devices", "show", "host"],
    ):
        refused(words, *command)
    code, shown = edgeopt("devices", "show", "host", "--device-folder", "devices")
    assert code == 0 and "threads: 2" in shown
    for former in (("--devices", "devices"), ("--devices=devices",)):  # hidden, and still accepted
        assert edgeopt("devices", "show", "host", *former) == (0, shown)


def test_a_copy_of_the_shipped_folder_replaces_nothing(
    own: Path, edgeopt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(RECIPES.parent / "devices" / "host.yaml", own / "host.yaml")
    for folder in (own.parent, RECIPES.parent):
        monkeypatch.chdir(folder)
        code, _ = edgeopt("devices", "show", "host")
        assert code == 0


def test_the_programs_of_a_found_device_are_named(
    own: Path, edgeopt: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (own / "host.yaml").unlink()
    text = "connection: {uses: local, with: {python: ./mine.sh}}\nruntimes: {tflite: adb_litert}\n"
    (own / "board.yaml").write_text(text + "options: {adb_litert: {adb: ./adb}}\n", "utf-8")
    code, _ = edgeopt("devices", "show", "board")
    assert code == 0
    assert "devices/board.yaml, runs './mine.sh', './adb'" in caplog.text
    caplog.clear()
    edgeopt("devices", "show", "board", "--device-folder", "devices")
    assert not caplog.text  # the user named the folder
