"""Whatever user code does, it costs its branch: a reason, exit code 3, a report, and no process left."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.commands.optimize import optimize
from edgeopt.commands.plan import plan as make
from edgeopt.config import registry
from edgeopt.config.withheld import whole_environment, withheld
from edgeopt.devices.connections.local import Local
from edgeopt.errors import CannotRunError, DataError, UsageError
from edgeopt.model import Model
from edgeopt.plugin import Stage
from edgeopt.recipe.plan import Branch, Built, Plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Report
from edgeopt.run.build import build
from edgeopt.run.measuring.outcome import read_outcome
from edgeopt.run.measuring.protocol import PROTOCOL
from edgeopt.run.store import Store
from edgeopt.testing import toys
from in_process import Edgeopt

Write = Callable[..., Path]
Build = Callable[..., list[Built]]
LONGEST_REASON = 6000


@pytest.fixture
def built_of(write_recipe: Write, tmp_path: Path) -> Build:
    """Build one branch of each stage, in order, in one worker process."""

    def run(*stages: Stage, limits: str = "{}") -> list[Built]:
        plan: Plan = make(write_recipe(limits=limits))
        branches = tuple(
            Branch(f"b{number}", "tflite", (stage,), plan.recipe.devices)
            for number, stage in enumerate(stages)
        )
        return build(dataclasses.replace(plan, branches=branches), Store(tmp_path / "store"), lambda _: None)

    return run


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process that a test's user code starts is alive after it."""
    yield
    assert not left(), "a process outlived its run"


def left() -> list[psutil.Process]:
    """The processes that toys started and that still run."""
    deadline = time.monotonic() + 2
    while (found := [each for each in psutil.process_iter() if _is_of_toy(each)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return found


def _is_of_toy(process: psutil.Process) -> bool:
    try:
        return process.cmdline() == ["sleep", "971"]
    except psutil.Error:
        return False


FAILURES = {
    "exit": "it exited its process with exit code 0",
    "exit with text": "it exited its process: bye",
    "os exit": "its process died with exit code 0",
    "os exit 3": "its process died with exit code 3",
    "crash": "its process died with SIGSEGV",
    "generator exit": "GeneratorExit",
    "interrupt": "KeyboardInterrupt",
    "unpicklable": "_Unpicklable: 1 and 2",
    "mute": "_Mute",
    "long": "ValueError: zzz",
    "control": "ValueError: ??red",
    "recursion": "RecursionError",
    "close pipes": "",
    "daemon, then os exit": "its process died with exit code 0",
    "children, then os exit": "its process died with exit code 0",
}


def test_a_stage_that_misbehaves_costs_its_branch_alone(built_of: Build) -> None:
    *bad, good = built_of(*(toys.Misbehave(how=how) for how in FAILURES), toys.Toy())
    assert good.complete
    for reason, built in zip(FAILURES.values(), bad, strict=True):
        assert built.failure and reason in built.failure
        assert len(built.failure) < LONGEST_REASON
        assert built.failure.encode() and "\x1b" not in built.failure and "\x00" not in built.failure


HARMLESS = ("fork", "child", "daemon", "forked daemon", "close streams", "threads")


def test_what_a_stage_started_ends_with_it(built_of: Build) -> None:
    begun = time.monotonic()
    builds = built_of(*(toys.Misbehave(how=how) for how in HARMLESS), toys.Toy())
    assert [built.failure for built in builds] == [""] * len(builds)
    assert all(built.complete for built in builds)
    assert time.monotonic() - begun < 60
    assert not left()


@pytest.mark.parametrize("how", ["wait for child", "daemon, then hang"])
def test_what_a_stage_started_ends_at_the_limit(built_of: Build, how: str) -> None:
    bad, good = built_of(toys.Misbehave(how=how), toys.Toy(), limits="{stage_minutes: 0.05}")
    assert "stopped after 0.05 minutes" in bad.failure
    assert good.complete


def test_a_result_that_is_no_model_costs_its_branch(built_of: Build) -> None:
    reasons = {
        "nothing": "it returned NoneType, not a Model",
        "unpicklable": "it returned lock, not a Model",
        "a removed folder": "which is not a file below context.folder",
    }
    *bad, good = built_of(*(toys.Return(what=what) for what in reasons), toys.Toy())
    assert good.complete
    for reason, built in zip(reasons.values(), bad, strict=True):
        assert reason in built.failure


def test_notes_and_progress_are_bounded_and_printable(built_of: Build) -> None:
    (built,) = built_of(toys.Return(what="unprintable notes"))
    (note,) = built.steps[-1].notes
    assert note.startswith("?nnn") and len(note) < LONGEST_REASON


def test_time_limits_do_not_depend_on_the_wall_clock(
    built_of: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400 * (time.monotonic() % 2 > 1))
    (slow,) = built_of(toys.Misbehave(how="pause"), limits="{stage_minutes: 0.5}")
    assert slow.complete


def test_an_interrupt_ends_what_a_stage_started(built_of: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.run.executors.local import LocalExecutor

    wait, begun = LocalExecutor.wait, time.monotonic()

    def interrupted(self: LocalExecutor, seconds: float) -> object:
        if time.monotonic() - begun > 4:
            raise KeyboardInterrupt
        return wait(self, seconds)

    monkeypatch.setattr(LocalExecutor, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built_of(toys.Misbehave(how="daemon, then hang"))
    assert not left()


AGENT = """
import json, os, subprocess, sys
what = sys.argv[1]
if what == "child":
    subprocess.Popen(["sleep", "971"])
print("z" * 6_000_000 if what == "long" else "fine", flush=True)
os._exit(0)
"""


def test_a_job_ends_with_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(AGENT)
    with Local().open() as link:
        link.put(tmp_path / "job.py", "job.py")
        begun = time.monotonic()
        done = link.python(["job.py", "child"], 60)
        assert (done.returncode, done.stdout) == (0, "fine\n")
        assert time.monotonic() - begun < 20
        assert not left()
        assert len(link.python(["job.py", "long"], 60).stdout) == 4 << 20


def test_the_message_of_a_device_is_printable(tmp_path: Path) -> None:
    failure = {"protocol": PROTOCOL, "ok": False, "error": "\udcff\x1b[31mred", "kind": "model", "detail": ""}
    (tmp_path / "result.json").write_text(json.dumps(failure))
    model = Model(format="tflite", path=tmp_path / "model.tflite")
    outcome = read_outcome("litert", folder=tmp_path, model=model, device="host", cached=False)
    assert outcome.error == "?red"


OWN = """
import numpy as np
from edgeopt.testing.toys import MISBEHAVIOURS

def samples(how, after=0):
    for index in range(20):
        if index == after and how:
            MISBEHAVIOURS[how]()
        yield np.full((8, 8, 1), index, np.float32), index % 10
"""


@pytest.fixture
def data_of(write_recipe: Write, tmp_path: Path) -> Callable[..., Path]:
    """A recipe whose calibration data are samples of user code."""
    (tmp_path / "own_samples.py").write_text(OWN)

    def write(**arguments: object) -> Path:
        data = {"uses": "function", "with": {"function": "own_samples:samples", "arguments": arguments}}
        return write_recipe(data=f"{{calibration: {data}}}", metric="", optimize="{int8: {quantize: int8}}")

    return write


@pytest.mark.parametrize("how", [*FAILURES, "wait for child", "close streams"])
def test_data_that_misbehave_have_a_reason(data_of: Callable[..., Path], how: str) -> None:
    dataset = load_recipe(
        data_of(how=how, after=3), overrides=["limits={stage_minutes: 0.05}"] * (how == "wait for child")
    ).calibration
    assert dataset is not None
    if how == "close streams":
        assert len(list(dataset.samples())) == 20
        return
    with pytest.raises(DataError) as caught:
        list(dataset.samples())
    reason = {"wait for child": "no answer for 0.05 minutes", "close pipes": "own_samples:samples: "}
    assert (reason.get(how) or FAILURES[how]) in str(caught.value)
    assert "own_samples:samples: " in caught.value.message
    assert len(str(caught.value)) < LONGEST_REASON and "\x1b" not in str(caught.value)


def test_data_in_another_process_are_the_same(data_of: Callable[..., Path]) -> None:
    import pickle

    dataset = load_recipe(data_of(how="")).calibration
    assert dataset is not None
    itself = pickle.loads(pickle.dumps(dataset))
    assert type(itself).__name__ == "Function"
    assert dataset.digest() == itself.digest()
    pairs = list(zip(dataset.samples(), itself.samples(), strict=True))
    assert len(pairs) == 20
    assert all((one.inputs[0] == other.inputs[0]).all() for one, other in pairs)
    first, second = dataset.samples(), dataset.samples()
    assert next(first).label == next(second).label == 0
    first.close()  # type: ignore[attr-defined]
    assert next(second).label == 1


@pytest.mark.parametrize("how", ["exit", "os exit"])
def test_data_that_misbehave_leave_a_report(data_of: Callable[..., Path], tmp_path: Path, how: str) -> None:
    report = optimize(data_of(how=how), out=tmp_path / "out", store=tmp_path / "store")
    assert report.exit_code == 3
    assert {row.status for row in report.results} == {"failed"}
    assert all(FAILURES[how] in row.reason for row in report.results)
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes()) is not None
    assert FAILURES[how] in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import sys; sys.exit(0)", "it exited its process with exit code 0"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_module_that_fails_on_import_is_a_mistake_of_the_recipe(
    write_recipe: Write, tmp_path: Path, line: str, reason: str
) -> None:
    name = f"own_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(f"{line}\nclass Stage: ...\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(write_recipe(optimize=f"{{own: {{stages: ['{name}:Stage']}}}}"))
    assert reason in str(caught.value) and f"{name}:Stage" in str(caught.value)


VALIDATOR = """
import sys
from pydantic import model_validator
from edgeopt.testing.toys import Toy

class Exits(Toy):
    @model_validator(mode="after")
    def check(self):
        sys.exit(0)

class Undescribed(Toy):
    def key_parts(self):
        sys.exit(0)
"""


@pytest.mark.parametrize("command", ["optimize", "plan"])
def test_code_in_this_process_does_not_decide_the_exit_code(
    write_recipe: Write, tmp_path: Path, command: str
) -> None:
    (tmp_path / "own_validator.py").write_text(VALIDATOR)
    recipe = write_recipe(optimize="{own: {stages: ['own_validator:Exits']}}")
    done = CliRunner().invoke(app, [command, str(recipe)])
    assert isinstance(done.exception, CannotRunError) and done.exception.exit_code == 3
    assert "code of the recipe ended the command" in str(done.exception)


def test_a_stage_that_fails_to_describe_itself_costs_its_branch(
    built_of: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_validator.py").write_text(VALIDATOR)
    monkeypatch.syspath_prepend(tmp_path)
    bad, good = built_of(registry.find(Stage, "own_validator:Undescribed")(), toys.Toy())
    assert bad.failure == "own_validator:Undescribed: it exited its process with exit code 0"
    assert good.complete


def test_code_of_a_recipe_does_not_see_the_tokens_of_its_job(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ("GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN", "CI_JOB_TOKEN", "GITHUB_ENV", "EDGEOPT_KEY_PASSWORD")
    for name in (*tokens, "MY_SETTING"):
        monkeypatch.setenv(name, "secret")
    (tmp_path / "seeing.py").write_text(
        "import os, numpy as np\n"
        f"with open({str(tmp_path / 'seen')!r}, 'a') as file:\n"
        "    file.write('\\n'.join(os.environ) + '\\n')\n"
        "def samples():\n    yield np.zeros((8, 8, 1), np.float32), 1\n"
    )
    recipe = write_recipe(data="{evaluation: {uses: function, with: {function: 'seeing:samples'}}}")
    assert edgeopt("plan", recipe).code == 0
    seen = (tmp_path / "seen").read_text().split()
    assert "MY_SETTING" in seen and not {*tokens} & {*seen}
    # The command itself still has them, and so has what runs after it.
    with withheld():
        assert whole_environment()["GITHUB_TOKEN"] == os.environ["MY_SETTING"] == "secret"
    assert os.environ["GITHUB_TOKEN"] == "secret"


FACTORIES = """
import os, time
from torch import nn

def build(classes=2):
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, classes))

def exits():
    os._exit(0)

def sleeps():
    time.sleep(600)
"""
UNBUILT: dict[str, tuple[str, tuple[str, ...]]] = {
    "exits": ("factory: 'own_nets:exits'", ("its process died with exit code 0",)),
    "sleeps": ("factory: 'own_nets:sleeps'", ("stopped after 0.05 minutes (raise limits.stage_minutes)",)),
    "argument": (
        "factory: 'own_nets:build', arguments: {clases: 3}",
        ("own_nets:build cannot be called with {'clases': 3}", "correct 'arguments' of the model"),
    ),
    "weights": (
        "factory: 'own_nets:build', weights: other.safetensors",
        (
            "other.safetensors does not match the model",
            *(
                "missing: 2.bias",
                "unexpected: 2.bais",
                "0.weight is [5, 1, 3, 3] in the file and [3, 1, 3, 3]",
            ),
        ),
    ),
    "shape": (
        "factory: 'own_nets:build'",
        ("the model does not accept x [1, 3, 8, 8] float32: ", "correct 'inputs' in the recipe"),
    ),
}


@pytest.mark.parametrize("name", UNBUILT)
def test_a_source_that_does_not_load_leaves_a_report_with_the_whole_message(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path, name: str
) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    source, message = UNBUILT[name]
    (tmp_path / "own_nets.py").write_text(FACTORIES)
    shapes = {"0.weight": (5, 1, 3, 3), "0.bias": (3,), "2.weight": (2, 108), "2.bais": (2,)}
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "other.safetensors")
    shape = "[1, 3, 8, 8]" if name == "shape" else "[1, 1, 8, 8]"
    model = f"{{{source}, inputs: [{{name: x, shape: {shape}, layout: NCHW}}]}}"
    limits = "{stage_minutes: 0.05}" if name == "sleeps" else ""
    recipe = write_recipe(model=model, data="", metric="", formats="[onnx]", limits=limits)
    said = edgeopt("optimize", recipe, "--out", "out", "--store", "store")
    assert said.code == 3
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    (row,) = report.results
    assert row.status == "failed" and report.source is not None
    page = (tmp_path / "out" / "report.md").read_text()
    for part in message:
        assert all(part in text for text in (said.out, row.reason, report.source.reason, page)), part


PACKAGE = """
import numpy as np
from own_helper import CLASSES

def samples(seed):
    random = np.random.default_rng(seed)
    for index in range(20):
        yield random.normal(size=(1, 8, 8)).astype(np.float32), index % CLASSES

def error(outputs, target):
    return float((outputs.argmax(-1) != target).mean())

def doubled(outputs):
    return {name: 2 * value for name, value in outputs.items()}

def net():
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, CLASSES))
"""


def test_code_in_a_src_folder_and_on_a_relative_python_path_is_built_measured_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    package = tmp_path / "src" / "own_src_package"
    for folder in (package, tmp_path / "lib", tmp_path / "configs"):
        folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (package / "everything.py").write_text(PACKAGE)
    (tmp_path / "lib" / "own_helper.py").write_text("CLASSES = 10\n")
    own = "uses: function, with: {function: 'own_src_package.everything"
    recipe = tmp_path / "configs" / "recipe.yaml"
    recipe.write_text(
        f"""
version: 1
name: src
model:
  factory: own_src_package.everything:net
  inputs: [{{name: image, shape: [1, 1, 8, 8], layout: NCHW}}]
data: {{evaluation: {{{own}:samples', arguments: {{seed: 1}}}}}}}}
metric: {{{own}:error'}}, name: error}}
postprocess: {{{own}:doubled'}}}}
formats: [torchscript]
devices: [host]
latency: {{min_runs: 2, min_seconds: 0}}
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "lib")
    report = optimize(Path("configs/recipe.yaml"), out=tmp_path / "out", store=tmp_path / "store")
    assert report.source is not None and report.source.reason == ""
    (row,) = report.results
    assert (row.status, report.exit_code) == ("ok", 0), row.reason
    assert row.measurements["error"].value == report.source.measurements["error"].value
    assert row.measurements["fidelity_snr_db"].value > 100
