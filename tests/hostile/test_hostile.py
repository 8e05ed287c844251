"""Hostile model files with the default trust: nothing runs, nothing is written, no foreign byte leaves.

Every file is given to every command that takes a model, in this process: it is refused before any framework
is imported, with what was found and the flag that allows it. A second set of tests gives the same files to
the loaders themselves, as if an earlier check had missed them.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeopt.cli import main
from hostile import keras_files, onnx_files, saved_models, torch_files
from hostile.case import SECRET, Case
from needs import needs
from toy_run import write_run

pytestmark = pytest.mark.slow

RECIPE = """
version: 1
name: hostile
model: {{path: {path}, inputs: [{{name: image, shape: [1, 4]}}]}}
formats: [tflite, onnx]
"""
FOREIGN = SECRET.read_bytes()[:48]
"""The first bytes of the file that the models try to read."""


class Files(NamedTuple):
    """The hostile files of one family, and the folder that stays empty."""

    cases: list[Case]
    mark: Path


FAMILIES = {
    "keras": (keras_files.build, ("h5py",)),
    "onnx": (onnx_files.build, ("onnx",)),
    "torch": (torch_files.build, ("torch",)),
    "saved_model": (saved_models.build, ("tensorflow", "tf_keras")),
}


@pytest.fixture(scope="module", params=FAMILIES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    build, packages = FAMILIES[request.param]
    needs(*packages)
    folder, mark = tmp_path_factory.mktemp(request.param), tmp_path_factory.mktemp("mark")
    return Files(list(build(folder, mark)), mark)


@pytest.fixture
def edgeopt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; returns its exit code and everything that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_STORE", str(tmp_path / "store"))
    # What init accepts it also runs once, as optimize does: too slow for every case.
    monkeypatch.setattr("edgeopt.commands.start.tried", lambda draft, *_, **__: draft)

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edgeopt", *map(str, arguments)])
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.raises(SystemExit) as caught,
        ):
            main()
        code = caught.value.code
        return code if isinstance(code, int) else 0, said.getvalue()

    return run


def written(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_there_are_enough_of_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    quick = [keras_files.build(tmp_path, mark), onnx_files.build(tmp_path, mark)]
    assert sum(len(list(cases)) for cases in quick) >= 50


def test_every_command_refuses_and_nothing_happens(
    files: Files, edgeopt: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    wrong = []
    recipe = tmp_path / "recipe.yaml"
    for case in files.cases:
        new = tmp_path / f"{case.path.name}.yaml"
        recipe.write_text(RECIPE.format(path=json.dumps(str(case.path))))
        commands: dict[str, tuple[str | Path, ...]] = {
            "plan": ("plan", recipe),
            "init": ("init", case.path, "--out", new),
        }
        if case.refused:
            # After the refusal of `plan`, the work of these would be the same for every case of a kind.
            commands["optimize"] = ("optimize", recipe, "--out", tmp_path / "out")
            commands["profile"] = ("profile", case.path, "--shape", "1,4")
            commands["optimize it"] = ("optimize", case.path, "--shape", "1,4", "--out", tmp_path / "out")
        for name, arguments in commands.items():
            code, said = edgeopt(*arguments)
            if name == "init" and new.exists():
                said += new.read_text().replace("#", "")  # the notes are comments of the recipe
            text = " ".join(said.replace("│", " ").split())
            names = case.word in text or "".join(case.word.split()) in "".join(text.split())
            flag = not case.allowed_by_trust or "trust" in text
            if (code != 2) is case.refused or not names or not flag:
                wrong.append(f"{case.path.name}: {name}: {code}: {text[-300:]}")
        for arguments in (("inspect", case.path), ("lint", case.path), ("slim", case.path)):
            code, said = edgeopt(*arguments)
            if code == 70 or "Traceback" in said:
                wrong.append(f"{case.path.name}: {arguments[0]}: {code}: {said[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert not list(files.mark.iterdir())
    assert not [path for path in written(tmp_path) if FOREIGN in path.read_bytes()]
    assert SECRET.read_bytes()[:48] == FOREIGN


PUBLISHED = {".onnx": "onnx", ".ptl": "torchscript"}


def test_a_bundle_is_pulled_without_loading_its_model(
    files: Files, edgeopt: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Whoever publishes can name any file; what it would read or write stays undone, before and after."""
    cases = [case for case in files.cases if case.path.suffix in PUBLISHED]
    for number, case in enumerate(cases):
        run, out = tmp_path / f"run{number}", tmp_path / f"pulled{number}"
        kind, content = PUBLISHED[case.path.suffix], case.path.read_bytes()
        write_run(run, format_name=kind, model=content, device="host", runtime="x")
        url = f"file://{tmp_path}/remote/hostile:{number}.0"
        code, said = edgeopt("artifacts", "push", run, "--to", url, "--library", tmp_path / "maker")
        if "which is missing" in said:  # weights beside the file, which were not copied with it
            assert code == 2, said
            continue
        assert code == 0, said
        pull = ("pull", url, "--device", "host", "--out", out, "--library", tmp_path / "board")
        code, said = edgeopt("artifacts", *pull)
        assert code == 0, said
        assert content in [path.read_bytes() for path in written(out)]
    assert not list(files.mark.iterdir())
    assert not [path for path in written(tmp_path) if FOREIGN in path.read_bytes()]


LOADERS = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
agent, kind, *paths = sys.argv[1:]
sys.path.insert(0, agent)
from edgeopt.model import Model
said = {}

def told(name, load):
    try:
        load()
        said[name] = "loaded"
    except BaseException as error:
        said[name] = str(error) or type(error).__name__

if kind == "torch":
    from edgeopt.formats.torch.files import program, script
    from edgeopt_agent.runtimes import torch as programs, torchscript
    for path in map(Path, paths):
        is_program = path.suffix == ".pt2"
        if path.suffix != ".ptl":
            told(path.name + " host", lambda: (program.read if is_program else script.load_script)(path))
        runtime = programs if is_program else torchscript
        runtime.Session.prepare(path, 1, {})
        told(path.name + " device", lambda: runtime.Session(path, 1, {}))
elif kind == "onnx":
    from edgeopt.formats.onnx.files import model_file
    from edgeopt_agent.runtimes import onnxruntime
    for path in map(Path, paths):
        told(path.name + " host", lambda: model_file.load(path))
        told(path.name + " device", lambda: onnxruntime.Session(path, 1, {}))
else:
    from edgeopt.formats.keras.files import loading
    from edgeopt_agent.runtimes import keras
    for path in map(Path, paths):
        told(path.name + " host", lambda: loading.load_tf_keras(path, False))
        if path.suffix == ".keras":
            told(path.name + " keras 3", lambda: loading.load_keras(path, False))
        if path.is_dir():
            model = Model(format="saved_model", path=path)
            told(path.name + " graph", lambda: loading.load_program(model, False))
        keras.Session.prepare(path, 1, {})
        told(path.name + " device", lambda: keras.Session(path, 1, {}))
print(json.dumps(said))
"""


def test_every_loader_refuses_by_itself(files: Files, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from edgeopt.devices.agent_archive import build_agent

    kind = request.node.callspec.params["files"]
    # A link out of the folder is followed when the folder is read; it is not sent to a device.
    cases = {case.path.name: case for case in files.cases if case.path.name != "linked"}
    command = [sys.executable, "-c", LOADERS, str(build_agent(tmp_path / "agent.pyz")), kind]
    done = subprocess.run(
        [*command, *(str(case.path) for case in cases.values())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    wrong = []
    for name, message in said.items():
        case = cases[name.split()[0]]
        graph_only = not case.refused and name.split()[1] in ("graph", "device")
        if graph_only is not (message == "loaded") or (case.refused and case.word not in message):
            wrong.append(f"{name}: {message[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert not list(files.mark.iterdir())
