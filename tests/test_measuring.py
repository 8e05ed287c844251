"""Conditions of a latency measurement: clock, temperature and other programs; protocols; energy."""

import dataclasses
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.commands.optimize import optimize
from edgeopt.commands.plan import plan
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.descendants import mute_resource_tracker, resource_tracker_here
from edgeopt.devices.device import Device, load_device
from edgeopt.errors import RecipeError
from edgeopt.formats.source import inspect
from edgeopt.model import Preprocessing
from edgeopt.recipe.document import Latency
from edgeopt.recipe.plan import Branch, Plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event
from edgeopt.run.measuring import bench
from edgeopt.run.measuring.bench import Bench, Untimed
from edgeopt.run.measuring.jobs import JobFiles
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.protocol import Job
from edgeopt.run.measuring.readings import conditions, latency
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.measuring.session import build_and_measure
from edgeopt.run.store import Store
from edgeopt.testing import toys
from toy_results import spell
from toy_tflite import toy


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The agent's view of a machine simulated with files."""
    monkeypatch.syspath_prepend(str(build_agent(tmp_path / "agent.pyz")))
    module = importlib.import_module("edgeopt_agent.conditions")
    monkeypatch.setattr(module, "SYS", tmp_path / "sys")
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgeopt_agent"]:
        del sys.modules[name]


def tell(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_board_tells_clock_heat_and_throttling(seen: Any, tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    tell(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_governor": "ondemand\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "600000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone1/temp": "-274000\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50004\n",
        },
    )
    found = seen.conditions()
    assert found.pop("load") is not None
    assert found == {
        "governor": "ondemand",
        "frequency_mhz": 1500.0,
        "temperature_c": 48.3,
        "throttled": True,
        "gpus": [],
    }


def test_a_machine_that_tells_nothing(seen: Any) -> None:
    found = seen.conditions()
    assert {name for name, value in found.items() if value not in (None, [])} == {"load"}
    watch = seen.Watch()
    watch.begin()
    watch.end()
    assert watch.intervals[0]["other_cores"] is None
    assert seen.energy_per_run(lambda index: 0.0, 0.01) is None


def test_time_of_others_is_told_from_our_own(seen: Any, tmp_path: Path) -> None:
    def ticks(user: int, idle: int, steal: int) -> None:
        tell(tmp_path, {"proc/stat": f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n"})

    ticks(1000, 1000, 0)
    watch = seen.Watch()
    watch.begin()
    time.sleep(0.3)
    ticks(1060, 1000, 15)  # in hundredths of a second: 2 cores used by others, half a core stolen
    watch.end()
    (spell,) = watch.intervals
    assert spell["other_cores"] == pytest.approx(0.6 / spell["seconds"], rel=0.1)
    assert spell["stolen_cores"] == pytest.approx(0.15 / spell["seconds"], rel=0.1)
    notes = conditions(watch.intervals)
    assert len(notes) == 2 and notes[0].startswith("the machine was busy: other programs used")
    assert f" of its {os.cpu_count()} cores " in notes[0]


def test_energy_counters_begin_again(seen: Any, tmp_path: Path) -> None:
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    files = {"name": "package-0\n", "energy_uj": "999000\n", "max_energy_range_uj": "1000000\n"}
    tell(package, files)
    tell(package.parent / "intel-rapl:0:0", {"name": "core\n", "energy_uj": "5\n"})
    calls = []

    def call(index: int) -> float:
        calls.append(index)
        (package / "energy_uj").write_text("3000")
        time.sleep(0.005)
        return 0.0

    joules = seen.energy_per_run(call, 0.05)
    assert joules == pytest.approx(4000e-6 / len(calls))


def test_what_a_report_says_of_the_machine() -> None:
    quiet = spell({"frequency_mhz": 1500.0}, {"frequency_mhz": 1490.0}, other_cores=0.05)
    slower = spell({"frequency_mhz": 1500.0}, {"frequency_mhz": 600.0})
    throttled = spell({"throttled": False}, {"throttled": True})
    assert conditions([]) == conditions([quiet]) == ()
    assert conditions([quiet, spell(other_cores=1.04)]) == (
        "the machine was busy: other programs used 1.0 cores while latency was measured",
    )
    (note,) = conditions([slower])
    assert "its clock fell from 1500 to 600 MHz" in note
    assert conditions([throttled] * 2) == ("the machine was throttled, as its firmware reports",)


def test_mlperf_tiny_is_ten_seconds_five_times() -> None:
    timing = Latency.model_validate({"protocol": "mlperf-tiny"})
    assert (timing.min_seconds, timing.min_runs, timing.repeats) == (10.0, 10, 5)
    assert Latency.model_validate(timing.model_dump()) == timing
    with pytest.raises(ValidationError, match="protocol mlperf-tiny fixes min_seconds"):
        Latency.model_validate({"protocol": "mlperf-tiny", "min_seconds": 1})
    with pytest.raises(ValidationError):
        Latency.model_validate({"protocol": "mlperf-large"})


def test_a_recipe_takes_the_protocol(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(latency="{min_seconds: 1}")
    assert load_recipe(recipe, overrides=["latency={protocol: mlperf-tiny}"]).latency.repeats == 5
    with pytest.raises(RecipeError, match="mlperf-tiny fixes min_seconds"):
        load_recipe(recipe, overrides=["latency.protocol=mlperf-tiny"])


def test_the_median_of_repetitions() -> None:
    times = {"latency": np.array([1.0, 1.0, 2.0, 4.0, 9.0, 9.0]), "repeats": np.array([2, 3, 1])}
    values = latency(Outcome("null", times=times))
    assert values["latency_median_ms"].value == pytest.approx(5000)  # of 1, 5 and 9
    assert values["latency_median_ms"].n == 3
    assert "latency_median_ms" not in latency(
        Outcome("null", times={"latency": np.ones(4), "repeats": np.array([4])})
    )


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., Any]:
    """Time the toy model on this machine."""
    (tmp_path / "toy.tflite").write_bytes(toy())
    host = Bench(load_device("host"), build_agent(tmp_path / "agent.pyz"), Store(tmp_path / "store")).open()
    model = inspect(tmp_path / "toy.tflite").model
    model = model.model_copy(update={"inputs": model.inputs or host.describe(model)})

    def run(protocol: dict[str, Any], *, twice: bool = False) -> Any:
        evaluation = Evaluation(None, Preprocessing(), tmp_path)
        outcome = host.run(model, evaluation, latency=protocol, baseline=model if twice else None)
        assert outcome.error == ""
        return outcome

    return run


def test_models_that_are_not_timed_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.tflite").write_bytes(toy())
    host = Bench(load_device("host"), build_agent(tmp_path / "agent.pyz"), Store(tmp_path / "store")).open()
    assert host.probe is not None
    host.probe["cores"] = 2
    model = inspect(tmp_path / "toy.tflite").model
    model = model.model_copy(update={"inputs": model.inputs or host.describe(model)})
    evaluation = Evaluation(None, Preprocessing(), tmp_path)
    together, alone = threading.Barrier(2, timeout=60), bench.run_job
    shared: list[bool] = []

    def meeting(*args: Any, **options: Any) -> None:
        shared.append(options["shared"])
        if options["shared"]:
            together.wait()
        alone(*args, **options)

    monkeypatch.setattr(bench, "run_job", meeting)
    jobs = [Untimed(model, limit) for limit in (None, 8, 4, 2)]
    outcomes = host.run_together(jobs, evaluation)
    assert [each.error for each in outcomes] == [""] * 4
    assert [len(each.outputs[0]) for each in outcomes] == [64, 64, 64, 64]
    assert shared == [True] * 4
    assert [each.cached for each in host.run_together(jobs, evaluation)] == [True] * 4
    # A single one is like any other job: it waits for the device.
    assert host.run_together([*jobs, Untimed(model, 1)], evaluation)[-1].error == ""
    assert shared == [True] * 4 + [False]


@pytest.fixture
def waiting(write_recipe: Callable[..., Path], tmp_path: Path) -> Plan:
    """A plan whose stage waits until the file ``begun`` exists."""
    made = plan(write_recipe())
    branch = Branch("float", "tflite", (toys.Await(calls=tmp_path / "begun"),), made.recipe.devices)
    return dataclasses.replace(made, branches=(branch,))


def test_the_source_runs_beside_the_stages(
    waiting: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, formats = bench.run_job, []

    def run_job(device: Device, request: Job, files: JobFiles, folder: Path, **options: Any) -> None:
        formats.append(files.model.format)
        (tmp_path / "begun").touch()
        alone(device, request, files, folder, **options)

    monkeypatch.setattr(bench, "run_job", run_job)
    builds, measured = build_and_measure(waiting, Store(tmp_path / "store"), (), lambda event: None)
    assert [built.failure for built in builds] == [""]
    assert (measured.source.error, measured.samples) == ("", 100)
    assert measured.finals["float.tflite", "host"].error  # the toy is no model
    assert formats == ["keras", "tflite"]


BRANCHING = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -x
"""


def test_the_source_is_run_although_nothing_can_be_built_of_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "branching.py").write_text(BRANCHING)
    torch.save(torch.nn.Linear(4, 4).state_dict(prefix="layer."), tmp_path / "w.pt")
    np.savez(tmp_path / "x.npz", x=np.ones((5, 4), np.float32))
    data = "{uses: npz, with: {path: x.npz, inputs: [x], label: null}}"
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\n"
        "model: {factory: 'branching.py:Net', weights: w.pt, inputs: [{name: x, shape: [1, 4]}]}\n"
        f"data: {{calibration: {data}, evaluation: {data}, allow_leak: true}}\nformats: [tflite, onnx]\n"
    )
    report = optimize(tmp_path / "r.yaml", out=tmp_path / "out", store=tmp_path / "store")
    assert {row.status for row in report.results} == {"failed"}
    assert all("branching.py, line 11" in row.reason for row in report.results)
    assert report.source is not None and report.source.status == "ok" and report.run.samples == 5


def test_an_interrupt_ends_what_runs_beside_the_stages(
    waiting: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def run_job(*_: object, **__: object) -> None:
        started.append(subprocess.Popen(["sleep", "971"]))
        (tmp_path / "begun").touch()
        started[0].wait()

    def interrupt(event: Event) -> None:
        if event.status == "done":
            raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_job", run_job)
    mute_resource_tracker()
    tracker = resource_tracker_here()[0]
    with subprocess.Popen(["sleep", "972"]) as own:
        with pytest.raises(KeyboardInterrupt):
            build_and_measure(waiting, Store(tmp_path / "store"), (), interrupt)
        assert started[0].poll() is not None
        assert own.poll() is None and tracker.is_running()  # those of the program are spared
        own.kill()


def test_a_timed_run_tells_its_conditions(measure: Callable[..., Any]) -> None:
    outcome = measure({"min_runs": 20, "min_seconds": 0.1, "max_seconds": 5.0, "repeats": 3}, twice=True)
    spells = outcome.intervals
    assert len(spells) == 3 and all(spell["before"]["load"] is not None for spell in spells)
    # Two models alternate, and each must run as long as the protocol requires.
    assert all(spell["seconds"] >= 0.2 for spell in spells)
    assert outcome.times["repeats"].sum() == len(outcome.times["latency"])
    assert len(outcome.times["null"]) > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the time of all programs")
def test_another_program_is_noticed(measure: Callable[..., Any]) -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        outcome = measure({"min_runs": 20, "min_seconds": 1.0, "max_seconds": 5.0, "repeats": 1})
    finally:
        other.kill()
        other.wait()
    assert any("the machine was busy" in note for note in conditions(outcome.intervals))


def test_two_models_in_turns_give_a_ratio_with_its_interval(measure: Callable[..., Any]) -> None:
    # Repeatability is measured by benchmarks/measuring.py, because no CI machine is quiet.
    outcome = measure({"min_runs": 50, "min_seconds": 0.1, "max_seconds": 5.0, "repeats": 1}, twice=True)
    ratio = latency(outcome)["latency_ratio"]
    low, high = ratio.ci95
    assert 0 < low <= ratio.value <= high and ratio.n >= 50
