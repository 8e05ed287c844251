"""Small real models of every format, and warm processes to run plug-ins in."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from edgeopt.config import registry
from edgeopt.config.files import content_digest, files_of, write_text
from edgeopt.config.references import Code
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device, shipped
from edgeopt.errors import CannotRunError, StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.formats.known import factory_format, formats
from edgeopt.formats.source import inspect
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Feed, Stage, Worker
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.planner import find_chain, instance
from edgeopt.run.bench import HOST, Bench, Evaluation
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.executors.worker import StageInputs, run_stage
from edgeopt.run.store import Store

PREPROCESSING = Preprocessing(scale=1 / 16, layout="NHWC")
SAMPLES = 32
MINUTES = 10.0


class Ran(NamedTuple):
    """What became of one call of a stage."""

    model: Model
    digest: str
    outside: tuple[str, ...]
    """What it wrote elsewhere than in its folder."""


class Workshop:
    """Holds toys of every format and two processes per kind of framework; use it as a context manager.

    The toys are a trained network for 8x8 digits, in Keras and in PyTorch, and whatever stages make of it.
    """

    def __init__(self, folder: Path, models: Mapping[str, Model] | None = None) -> None:
        """``models``: by format, for those that no stage makes of a toy."""
        self.folder = folder.resolve()
        self.calibration = Feed(Digits(part="calibration", limit=SAMPLES), PREPROCESSING)
        self.evaluation = Evaluation(self.calibration.dataset, PREPROCESSING, self.folder)
        """The calibration samples once more, to compare outputs on."""
        self.training = Feed(Digits(part="train", limit=SAMPLES), PREPROCESSING)
        self._given = dict(models or {})
        self._made: dict[str, Model] = {}
        self._outputs: dict[str, tuple[Array, ...]] = {}
        self._count = 0
        self._executors: list[LocalExecutor] = []
        self._bench: Bench | None = None

    def __enter__(self) -> Self:
        self._executors = [LocalExecutor(), LocalExecutor()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in self._executors:
            executor.close(at_once=True)

    def model(self, format: str) -> Model:
        """A toy of a format, made once, also where several processes have workshops in the same folder.

        Raises:
            CannotRunError: no stage makes one of the toys that there are.
        """
        if format not in self._made:
            record = self.folder / "toys" / f"{format}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            with record.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not record.is_file():
                    made = self._given.get(format) or self._source(format) or self._derived(format)
                    write_text(record, made.model_dump_json())
            self._made[format] = Model.model_validate_json(record.read_bytes())
        return self._made[format]

    def part(self, format: str) -> ModelPart:
        """What a recipe says of the source model that a toy of this format is, or is made of."""
        if format == factory_format() or format not in SOURCES:
            return self._torch_part()
        return ModelPart(path=self.model(format).path)

    def run(self, stage: Stage, model: Model, *, process: int = 0) -> Ran:
        """Carry a stage out in one of the two processes of its kind of framework.

        Raises:
            StageError: it fails, or takes its process down.
        """
        self._count += 1
        work = self.folder / f"work-{os.getpid()}-{self._count}"
        work.mkdir(parents=True)
        inputs = StageInputs(
            calibration=self.calibration,
            training=self.training if stage.needs_training else None,
            source=model if stage.needs_source else None,
            checkpoints=work / "checkpoints" if stage.needs_training else None,
        )
        if inputs.checkpoints is not None:
            inputs.checkpoints.mkdir()
        (work / "result").mkdir()
        made, outside = self.call(_watched, (stage, model, inputs, work), stage.worker, process)
        found = formats().get(made.format)
        digest = found.digest(made.path) if found is not None else content_digest(made.path)
        return Ran(made, digest, tuple(outside))

    def outputs(self, model: Model) -> tuple[Array, ...] | None:
        """What a model gives for the toys' samples on this machine; None where nothing here runs its format.

        Raises:
            EdgeoptError: the runtime refuses it.
        """
        bench = self.bench
        if model.format not in bench.device.runtimes:
            return None
        key = f"{model.format} {content_digest(model.path)}"
        if key not in self._outputs:
            outcome = bench.run(model, self.evaluation)
            if outcome.error:
                raise StageError(f"{model.path.name} on this machine: {outcome.error}")
            self._outputs[key] = outcome.outputs
        return self._outputs[key]

    @property
    def bench(self) -> Bench:
        """This machine, to run models on."""
        if self._bench is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            agent = build_agent(self.folder / "agent.pyz")
            self._bench = Bench(load_device(HOST), agent, Store(self.folder / "store")).open()
            if self._bench.failure:
                raise CannotRunError(self._bench.failure)
        return self._bench

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], worker: Worker, process: int = 0
    ) -> Any:
        """Call ``function(say, *args)`` in a process of a kind of framework.

        Raises:
            StageError: it raised, or took its process down.
        """
        task = Task("workshop", function, args, worker, MINUTES, "toys take seconds")
        executor = self._executors[process]
        executor.submit(task)
        (ended,) = executor.wait(2 * MINUTES * 60)
        if ended.failure:
            raise StageError(ended.failure)
        return ended.value

    def _torch_part(self) -> ModelPart:
        recipes = shipped("recipes")
        return ModelPart(
            factory=Code.model_validate("models.digits_cnn:digits_cnn", context={"roots": (recipes,)}),
            weights=recipes / "digits" / "digits.safetensors",
            inputs=(TensorSpec(name="image", shape=(1, 1, 8, 8), layout="NCHW"),),
        )

    def _source(self, format: str) -> Model | None:
        """A toy that no stage makes: a trained model, or weights alone."""
        weights = shipped("recipes") / "digits" / "digits.safetensors"
        if format == factory_format():
            part = self._torch_part()
            assert part.factory is not None
            return Model(format=format, path=weights, inputs=part.inputs, code=part.factory.folder)
        name = (SOURCES | WEIGHTS).get(format)
        if name is None:
            return None
        place = self.folder / "sources" / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            network = shipped("recipes") / "digits" / "digits.keras"
            if format in SOURCES:
                self.call(_save_keras, (network, place), "tensorflow")
            else:
                self.call(_save_weights, (weights, place), "torch")
        return inspect(place).model if format in SOURCES else Model(format=format, path=place, inputs=())

    def _derived(self, format: str) -> Model:
        chains = [
            (source, chain)
            for source in (*SOURCES, factory_format())
            if (chain := find_chain(source, format, (), self.part(source))) is not None
        ]
        if not chains:
            return self._by_stage(format)
        source, chain = min(chains, key=lambda pair: len(pair[1]))
        model = self.model(source)
        for stage in chain:
            model = self.run(stage, model).model
        return model

    def _by_stage(self, format: str) -> Model:
        """A format that only a stage with an intent gives, such as that of a quantized program."""
        for stage in registry.plugins(Stage).values():
            if stage.produces == format and format not in stage.accepts:
                before = min(stage.accepts)
                return self.run(instance(stage, (), self.part(before)), self.model(before)).model
        raise CannotRunError(
            f"no toy of the format {format!r}: no stage makes one",
            fix="give one: Workshop(folder, models={...})",
        )


SOURCES = {"keras": "toy.keras", "tf_keras": "toy.h5", "saved_model": "toy"}
"""Formats in which Keras itself writes the toy."""
WEIGHTS = {
    "safetensors": "toy.safetensors",
    "checkpoint": "toy.pt",
    "legacy_checkpoint": "toy.pth",
    "pickle": "toy.pkl",
}
"""Formats of weights alone, and of what only looks like weights."""


def _save_keras(say: Say, network: Path, place: Path) -> None:
    """The network as it is, in the older Keras, or as a SavedModel: by the name of the place."""
    import shutil

    import keras

    if place.suffix == ".keras":
        shutil.copyfile(network, place)
    elif place.suffix == ".h5":
        import tf_keras

        image = tf_keras.Input((8, 8, 1), name="image")
        x = tf_keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
        x = tf_keras.layers.GlobalAveragePooling2D(name="pool")(x)
        tf_keras.utils.set_random_seed(0)
        answers = tf_keras.layers.Dense(10, activation="softmax", name="answers")(x)
        tf_keras.Model(image, answers).save(str(place))
    else:
        keras.models.load_model(network).export(str(place), verbose=False)


def _save_weights(say: Say, weights: Path, place: Path) -> None:
    import pickle
    import shutil

    import torch
    from safetensors.torch import load_file

    if place.suffix == ".safetensors":
        shutil.copyfile(weights, place)
    elif place.suffix == ".pkl":
        place.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    else:
        torch.save(load_file(weights), place, _use_new_zipfile_serialization=place.suffix == ".pt")


def _watched(
    say: Say, stage: Stage, model: Model, inputs: StageInputs, work: Path
) -> tuple[Model, list[str]]:
    """Run a stage while every file that Python code writes is looked at."""
    temporary = work / "tmp"
    temporary.mkdir()
    allowed = [work / "result", temporary, *([inputs.checkpoints] if inputs.checkpoints else [])]
    before, was = dict(os.environ), tempfile.tempdir
    source = _state(model.path)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    try:
        with _writes(allowed) as outside:
            result = run_stage(say, stage, model, inputs, work / "result")
    finally:
        tempfile.tempdir = was
        os.environ.clear()
        os.environ.update(before)
    if _state(model.path) != source:
        outside.append(f"{model.path} (its input)")
    left = [path for path in files_of(temporary) if not path.name.startswith(TENSORFLOW)]
    outside += [f"{path} (left behind)" for path in left]
    return result.model, outside


def _state(path: Path) -> list[tuple[str, int, int]]:
    found = [(str(file), file.stat()) for file in files_of(path)]
    return [(name, about.st_size, about.st_mtime_ns) for name, about in found]


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/", "/proc/", "/sys/")
PLACES = {
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
}
"""Events of Python that change a folder: which argument is the path, which the folder it starts from."""
TENSORFLOW = "__autograph_generated"
"""Begins the names of temporary files that TensorFlow removes when its process ends."""
_watchers: list[Callable[[str], None]] = []
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextmanager
def _writes(allowed: list[Path]) -> Iterator[list[str]]:
    """Collect the paths that Python code writes outside of some folders."""
    folders = tuple(str(path.resolve()) for path in allowed)
    found: list[str] = []

    def see(path: str) -> None:
        whole = os.path.realpath(path)
        if whole.startswith(HARMLESS) or "__pycache__" in whole or path in found:
            return
        if not any(whole == folder or whole.startswith(folder + os.sep) for folder in folders):
            found.append(path)

    if not _hooks:  # one for all time: a hook cannot be taken out again
        _hooks.append(_hook)
        sys.addaudithook(_hook)
    _watchers.append(see)
    try:
        yield found
    finally:
        _watchers.remove(see)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    path: object = None
    folder = ""
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        path = args[0]
    elif event in PLACES:
        place, number = PLACES[event]
        path = args[place]
        folder = os.readlink(f"/proc/self/fd/{args[number]}") if args[number] >= 0 else ""
    if isinstance(path, bytes | str | os.PathLike):
        for see in _watchers:
            see(os.path.join(folder, os.fsdecode(path)))
