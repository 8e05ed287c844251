"""Shared fixtures: recipes written in place, and the folder of real models and data."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from in_process import Edgeopt, Said

if TYPE_CHECKING:
    from edgeopt.testing import Workshop
    from kept_workers import Workers

# As in edgeopt's own torch processes: spinning threads would take the cores from the other half of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

collect_ignore = ["distributions"]  # plug-ins of other authors: tests install them first
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: at the end, one of them would keep a single worker busy and the others idle."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "integration", item.path not in long))


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Restore the signals of pytest: the command line expects its process to end, and ignores them then."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in signals}
    hook = sys.unraisablehook
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate tests from the store, the cluster and the environments of the user."""
    for name in ("EDGEOPT_STORE", "EDGEOPT_ON"):
        monkeypatch.delenv(name, raising=False)
    # The agent sets it for its own process; tests that load its runtimes here would leak it to others.
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Workshop]":
    """Toys of every format, built once per test run, and processes for stages."""
    from edgeopt.testing import Workshop

    here = tmp_path_factory.getbasetemp()
    # Each of several test processes has its own folder inside a common one.
    common = here.parent if os.environ.get("PYTEST_XDIST_WORKER") else here
    with Workshop(common / "workshop") as made:
        yield made


@pytest.fixture(scope="session")
def _shared_workers() -> "Iterator[Workers]":
    from kept_workers import Workers

    with Workers() as workers:
        yield workers


@pytest.fixture(scope="module")
def kept_workers(_shared_workers: "Workers") -> Iterator[None]:
    """The commands of a module run in workers that all such modules share: see `kept_workers`."""
    with _shared_workers.in_use():
        yield


@pytest.fixture(scope="module")
def own_workers() -> Iterator[None]:
    """The same with workers for this module alone, whose code has names that others use too: ``nets``."""
    from kept_workers import Workers

    with Workers() as workers, workers.in_use():
        yield


@pytest.fixture(scope="session")
def made_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Run 'edgeopt devices setup' for a shipped device, once per session.

    A test is skipped if the package index is unreachable; any other failure fails it.
    """
    home = tmp_path_factory.getbasetemp() / "home"
    probe = "flatbuffers==25.12.19"  # small, without dependencies

    def make(device: str) -> None:
        from edgeopt.devices.device import load_device
        from edgeopt.devices.environments import HOME_VARIABLE, setup_environment
        from edgeopt.errors import DeviceError

        described = load_device(device)
        assert isinstance(described.connection, dict)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(HOME_VARIABLE, str(home))
            try:
                name = described.connection["with"]["environment"]
                setup_environment(name, described.setup.python, lambda text: None)
            except DeviceError as error:
                command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", probe]
                target = ["--dest", str(home / "probe")]
                if subprocess.run([*command, *target], capture_output=True, check=False).returncode == 0:
                    raise
                pytest.skip(f"the package index cannot be reached: {error.message}")

    return make


@pytest.fixture(scope="session")
def needs_real_data() -> Path:
    """The folder of real models and data; without it, the test is skipped."""
    root = os.environ.get("EDGEOPT_DATA")
    if not root:
        pytest.skip("EDGEOPT_DATA is not set: no real models here")
    return Path(root).resolve()


@pytest.fixture
def real_data(needs_real_data: Path) -> Path:
    """The same, for a single test."""
    return needs_real_data


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe for the shipped digits model; the given lines replace or follow the default ones."""

    def write(text: str = "", **parts: str) -> Path:
        usual = {
            "version": "1",
            "name": "test",
            "model": f"{{path: {RECIPES / 'digits' / 'digits.keras'}, preprocess: {{scale: 1/16}}}}",
            "data": "{calibration: {uses: digits, with: {part: calibration, limit: 50}}, "
            "evaluation: {uses: digits, with: {part: evaluation, limit: 100}}}",
            "metric": "top1",
            "formats": "[tflite]",
        } | parts
        path = tmp_path / "recipe.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in usual.items() if value) + text, "utf-8")
        return path

    return write


@pytest.fixture
def edgeopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Edgeopt:
    """Run the command line in this process, in an empty folder."""
    from edgeopt.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["edgeopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        code = caught.value.code
        return Said(code if isinstance(code, int) else 0, out, err)

    return run
