"""Android through adb, with a stand-in: there is no phone and no adb client.

The stand-in ``adb`` accepts the documented commands of the real one, with a folder as the phone's storage.
The stand-in programs on that phone print the output defined in the sources of the real ones.
"""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.commands.profile import profile
from edgeopt.errors import DeviceError
from edgeopt.results import Result
from toy_operators import operator, write

# Shell protocol 1, before Android 7: the status of a command is lost, lines end in CR LF.
ADB = """#!{python}
import os, subprocess, sys
from pathlib import Path
root = Path({root!r})
with open(root / "calls", "a") as file:
    print(sys.argv[1:], file=file)
given = sys.argv[1:]
if given == ["version"]:
    print("Android Debug Bridge version 1.0.41\\nVersion 34.0.4-debian")
elif given == ["devices"]:
    print("* daemon started successfully", file=sys.stderr)
    print("List of devices attached\\n" + (root / "devices").read_text())
elif given[:1] == ["-s"] and given[2] == "push" and len(given) == 5:
    if (root / "full").exists():
        sys.exit("adb: error: failed to copy: remote couldn't create file: No space left on device")
    (root / given[4].lstrip("/")).write_bytes(Path(given[3]).read_bytes())
elif given[:1] == ["-s"] and given[2] == "shell" and len(given) == 4:
    if (root / "cut").exists():
        sys.exit("error: closed")
    line = given[3].replace("/data/local/tmp", str(root / "data/local/tmp"))
    path = str(root / "bin") + os.pathsep + "/usr/bin:/bin"
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, env={{"PATH": path}})
    sys.stdout.buffer.write(done.stdout.replace(b"\\n", b"\\r\\n"))
else:
    sys.exit("adb: usage: unknown command " + str(given))
"""

GETPROP = """#!/bin/sh
case $1 in ro.product.model) echo Toy Phone;; ro.build.version.release) echo 13;; esac
"""

LITERT = """#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
echo "INFO: STARTING!"
echo "INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds"
echo "INFO: count=31 first=18535 curr=14462 min=14000 max=18535 avg=14462.3 std=700"
echo "INFO: Running benchmark for at least 50 iterations and at least 1 seconds"
echo "INFO: count=68 first=14500 curr=14611 min=14206 max=16101 avg=14575.2 std=310"
echo "INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 14462.3, " \\
  "Inference (avg): 14575.2"
echo "INFO: Memory footprint delta from the start of the tool (MB): init=2.5 overall=5.25"
"""

LITERT_2 = """#!/bin/sh
echo "INFO: count=1054 first=1015 curr=942 min=910 max=1102 avg=947.132 std=23 p5=915 median=942 p95=991"
echo "INFO: [./litert/tools/benchmark_litert_model.h:73] Model initialization: 5.76 ms"
echo "INFO: [./litert/tools/benchmark_litert_model.h:79] Inference (avg):      0.95 ms (1054 runs)"
echo "INFO: [./litert/tools/benchmark_litert_model.h:107] Overall footprint:    7.00 MB"
"""

EXECUTORCH = """#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
echo "I 00:00:00.01 executorch:executor_runner.cpp:360] Model loaded in 1.500000 ms." >&2
echo "I 00:00:00.02 executorch:executor_runner.cpp:487] Iteration 1 of 4: 9.000000 ms" >&2
echo "I 00:00:00.02 executorch:executor_runner.cpp:487] Iteration 2 of 4: 2.000000 ms" >&2
echo "I 00:00:00.02 executorch:executor_runner.cpp:487] Iteration 3 of 4: 3.000000 ms" >&2
echo "I 00:00:00.02 executorch:executor_runner.cpp:487] Iteration 4 of 4: 4.000000 ms" >&2
echo "I 00:00:00 executorch:executor_runner.cpp:497] Model executed successfully 4 time(s) in 18.0 ms." >&2
echo "OutputX 0: tensor(sizes=[1, 2], [0.1, 0.2])"
"""

EXECUTORCH_OLD = """#!/bin/sh
echo "I 00:00:00 executorch:executor_runner.cpp:298] Model executed successfully 4 time(s) in 18.000000 ms."
"""


class ToyPhone:
    """A folder that represents a phone, and the stand-in client for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = root / "data" / "local" / "tmp"
        self.storage.mkdir(parents=True)
        self.client = self.program(root / "adb", ADB.format(python=sys.executable, root=str(root)))
        (root / "bin").mkdir()
        self.program(root / "bin" / "getprop", GETPROP)
        self.attach("emulator-5554\tdevice")

    @staticmethod
    def program(path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def attach(self, *lines: str) -> None:
        (self.root / "devices").write_text("".join(f"{line}\n" for line in lines))

    def install(self, text: str, name: str = "benchmark_model") -> None:
        self.program(self.storage / name, text)

    def left(self) -> list[str]:
        return [path.name for path in self.storage.iterdir() if path.is_dir()]

    def arguments(self) -> list[str]:
        return (self.storage / "arguments").read_text().split()


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyPhone:
    toy = ToyPhone(tmp_path / "phone")
    path = f"{toy.root}:{Path(sys.executable).parent}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return toy


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(
        tmp_path / "it's a model.tflite", operator("RELU"), shape=(1, 4, 4, 2), types=("float32",) * 2
    )


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ``.pte`` file."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ExecuTorch warns about future versions of PyTorch
        exir = pytest.importorskip("executorch.exir")
        exported = torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))
        content = exir.to_edge(exported).to_executorch().buffer
    path = tmp_path_factory.mktemp("program") / "net.pte"
    path.write_bytes(content)
    return path


def device(tmp_path: Path, options: str, runtimes: str = "tflite: adb_litert") -> str:
    path = tmp_path / "devices" / "phone.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"runtimes: {{{runtimes}}}\noptions: {{{options}}}\n")
    return str(path)


def values(result: Result) -> dict[str, float]:
    return {name: value.value for name, value in result.measurements.items()}


def test_the_command_line_measures_on_the_phone(phone: ToyPhone, model: Path) -> None:
    phone.install(LITERT)
    command = [sys.executable, "-m", "edgeopt", "profile", str(model), "--device", "android-adb", "--json"]
    if shutil.which("edgeopt"):
        command[:3] = ["edgeopt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    found = {name: (value["value"], value["unit"]) for name, value in result["measurements"].items()}
    assert found["latency_mean_ms"] == (pytest.approx(14.5752), "ms")
    assert found["latency_min_ms"] == (pytest.approx(14.206), "ms")
    assert found["latency_max_ms"] == (pytest.approx(16.101), "ms")
    assert found["latency_std_ms"] == (pytest.approx(0.31), "ms")
    assert found["load_ms"] == (pytest.approx(5.685), "ms")
    assert found["peak_memory_bytes"] == (5.25 * 2**20, "bytes")
    assert "latency_p50_ms" not in found and "top1" not in found
    assert result["notes"][0] == (
        "measured by benchmark_model on Toy Phone with Android 13 (emulator-5554), "
        "on its own inputs: accuracy is not measured there"
    )
    assert result["runtime"] == "adb_litert adb 1.0.41"
    graph, *flags = phone.arguments()
    assert graph.startswith("--graph=") and graph.endswith("/model.tflite")
    assert flags == ["--num_threads=1", "--num_runs=50", "--min_secs=2", "--warmup_runs=1"]
    assert phone.left() == []


def test_litert_2_tells_the_median_too(phone: ToyPhone, model: Path) -> None:
    phone.install(LITERT_2)
    found = values(profile(model, device="android-adb").results[0])
    assert found["latency_mean_ms"] == pytest.approx(0.947132)
    assert found["latency_p50_ms"] == pytest.approx(0.942)
    assert found["load_ms"] == pytest.approx(5.76)
    assert found["peak_memory_bytes"] == 7 * 2**20


def test_runs_that_all_took_the_same_time(phone: ToyPhone, model: Path) -> None:
    phone.install("#!/bin/sh\necho 'count=50 curr=7(all same)'\necho 'Inference timings in us: Init: 3, '\n")
    found = values(profile(model, device="android-adb").results[0])
    assert found["latency_mean_ms"] == found["latency_max_ms"] == pytest.approx(0.007)
    assert found["latency_std_ms"] == 0
    assert "peak_memory_bytes" not in found


def test_options_reach_the_program(phone: ToyPhone, model: Path, tmp_path: Path) -> None:
    phone.install(LITERT, "bench $(touch owned); x")
    phone.attach("one\tdevice", "two\tdevice")
    text = (
        "adb_litert: {serial: two, benchmark_model: '/data/local/tmp/bench $(touch owned); x', "
        "runs: 7, warmup_runs: 3, min_seconds: 0.5, flags: ['--use_gpu=true']}"
    )
    (result,) = profile(model, device=device(tmp_path, text)).results
    assert "(two)" in result.notes[0]
    assert phone.arguments()[2:] == ["--num_runs=7", "--min_secs=0.5", "--warmup_runs=3", "--use_gpu=true"]
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            EXECUTORCH,
            {"latency_mean_ms": 3.0, "latency_min_ms": 2.0, "latency_max_ms": 4.0, "latency_p50_ms": 3.0},
        ),
        (EXECUTORCH_OLD, {"latency_mean_ms": 4.5}),
    ],
)
def test_executor_runner(
    phone: ToyPhone, program_file: Path, tmp_path: Path, program: str, expected: dict[str, float]
) -> None:
    phone.install(program, "executor_runner")
    options = "adb_executorch: {runs: 3}"
    place = device(tmp_path, options, "executorch: adb_executorch")
    (result,) = profile(program_file, device=place).results
    found = values(result)
    assert {
        name: found[name] for name in found if name.startswith("latency") and "std" not in name
    } == expected
    assert ("the mean includes the warm-up runs" in " ".join(result.notes)) is (program is EXECUTORCH_OLD)
    if program is EXECUTORCH:
        assert found["load_ms"] == 1.5
        assert phone.arguments()[1:] == ["--num_executions=4", "--cpu_threads=1"]
    assert phone.left() == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "adb finds no device: connect one with USB debugging"),
        (["a\tdevice", "b\toffline"], r"adb finds 2 devices, .*'serial': a \(device\), b \(offline\)"),
        (["a\tunauthorized"], "'unauthorized': unlock its screen and allow USB debugging"),
        (["a\toffline"], "'offline': reconnect it"),
        (["a\tno permissions; see [http://developer.android.com]"], "no permissions.*udev rules"),
        (["a\trecovery"], "'recovery': start Android on it"),
    ],
)
def test_devices_that_are_not_ready(phone: ToyPhone, model: Path, lines: Sequence[str], words: str) -> None:
    phone.attach(*lines)
    with pytest.raises(DeviceError, match=words):
        profile(model, device="android-adb")


def test_no_client(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no adb client '/nowhere/adb' on this machine: install Android"):
        profile(model, device=device(tmp_path, "adb_litert: {adb: /nowhere/adb}"))


def test_a_serial_number_that_is_not_there(phone: ToyPhone, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no device 'other'; it finds: emulator-5554 \(device\)"):
        profile(model, device=device(tmp_path, "adb_litert: {serial: other}"))


def test_the_program_is_not_on_the_phone(phone: ToyPhone, model: Path) -> None:
    push = "adb -s emulator-5554 push benchmark_model /data/local/tmp/benchmark_model"
    with pytest.raises(DeviceError, match=push):
        profile(model, device="android-adb")
    phone.install(LITERT)
    (phone.storage / "benchmark_model").chmod(0o644)
    with pytest.raises(DeviceError, match="is not executable; run: adb -s emulator-5554 shell chmod"):
        profile(model, device="android-adb")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "echo 'ERROR: Failed to load model'; exit 1",
            "exit status 1 on emulator-5554: ERROR: Failed",
        ),
        ("kill -9 $$", "was killed by signal 9"),
        ("echo hello", "printed no timings"),
        ("echo count=0; echo Inference timings in us: Init: 3,", "completed no run"),
        ("echo count=5 min=1 max=2 avg=nan; echo Inference timings in us: Init: 3,", "invalid value"),
        ("echo count=5 min=1 max=2 avg=1e; echo Inference timings in us: Init: 3,", "malformed number"),
    ],
)
def test_programs_that_fail_leave_nothing(phone: ToyPhone, model: Path, program: str, words: str) -> None:
    phone.install(f"#!/bin/sh\n{program}\n")
    with pytest.raises(DeviceError, match=words):
        profile(model, device="android-adb")
    assert phone.left() == []


def test_a_full_phone(phone: ToyPhone, model: Path) -> None:
    phone.install(LITERT)
    (phone.root / "full").touch()
    with pytest.raises(DeviceError, match=r"cannot copy the model to emulator-5554: .*No space left"):
        profile(model, device="android-adb")
    assert phone.left() == []


def test_a_connection_that_is_gone(phone: ToyPhone, model: Path) -> None:
    (phone.root / "cut").touch()
    with pytest.raises(DeviceError, match="emulator-5554 did not respond: error: closed"):
        profile(model, device="android-adb")


def test_a_connection_that_is_cut_under_way_names_what_is_left(phone: ToyPhone, model: Path) -> None:
    phone.install(f"#!/bin/sh\ntouch '{phone.root}/cut'\nexit 1\n")
    with pytest.raises(DeviceError, match=r"/data/local/tmp/edgeopt-\w{16} may be left on emulator-5554"):
        profile(model, device="android-adb")
    assert len(phone.left()) == 1


def test_the_time_limit_ends_the_program_on_the_phone(phone: ToyPhone, model: Path, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    phone.install(f"#!/bin/sh\nwhile true; do echo beat >> '{beats}'; sleep 0.1; done\n")
    with pytest.raises(DeviceError, match="'adb shell' did not finish within 1 s: raise the option"):
        profile(model, device=device(tmp_path, "adb_litert: {seconds: 1}"))
    assert phone.left() == []
    size = beats.stat().st_size
    subprocess.run(["sleep", "0.5"], check=True)
    assert beats.stat().st_size == size


def test_a_wrong_option(phone: ToyPhone, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="option 'runs' is 'many', but must be a number >= 1"):
        profile(model, device=device(tmp_path, "adb_litert: {runs: many}"))


@pytest.mark.slow
def test_a_run_measures_on_the_phone_beside_the_host(
    phone: ToyPhone, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    phone.install(LITERT)
    recipe = write_recipe(devices="[host, android-adb]", latency="{min_runs: 2, min_seconds: 0}")
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store")
    results = {result.device: result for result in report.results}
    assert results["host"].status == results["android-adb"].status == "ok"
    assert results["host"].measurements["top1"].value > 0.9
    found = values(results["android-adb"])
    assert found["latency_mean_ms"] == pytest.approx(14.5752)
    assert "top1" not in found
    assert "accuracy is not measured there" in results["android-adb"].notes[0]
    assert phone.left() == []
