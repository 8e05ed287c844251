"""Small real models of every format, and worker processes to run plug-ins in."""

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from edgeopt.config import registry
from edgeopt.config.files import content_digest, write_text
from edgeopt.config.references import Code
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, load_device, shipped
from edgeopt.errors import CannotRunError, StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.formats.known import factory_format, formats
from edgeopt.formats.source import inspect
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Feed, Stage, Worker
from edgeopt.recipe.chains import find_chain, instance
from edgeopt.recipe.document import ModelPart
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.executors.worker import StageInputs
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store
from edgeopt.testing.watching import run_watched

PREPROCESSING = Preprocessing(scale=1 / 16, layout="NHWC")
SAMPLES = 32
MINUTES = 10.0


class Ran(NamedTuple):
    """Result of one call of a stage."""

    model: Model
    digest: str
    outside: tuple[str, ...]
    """Paths that it wrote outside its folder."""


class Workshop:
    """Toy models of every format, and two processes per worker kind; a context manager.

    The toys are a trained network for 8x8 digits, in Keras and in PyTorch, and the results of stages on it.
    """

    def __init__(self, folder: Path, models: Mapping[str, Model] | None = None) -> None:
        """``models``: models by format, for formats that no stage produces from a toy."""
        self.folder = folder.resolve()
        self.calibration = Feed(Digits(part="calibration", limit=SAMPLES), PREPROCESSING)
        self.evaluation = Evaluation(self.calibration.dataset, PREPROCESSING, self.folder)
        """The calibration samples, on which outputs are compared."""
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
        """The toy of a format, created once, even if several processes share the folder.

        Raises:
            CannotRunError: no stage produces this format from a toy.
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
        """The model section of a recipe for the toy of this format, or for its source."""
        if format == factory_format() or format not in SOURCES:
            return self._torch_part()
        return ModelPart(path=self.model(format).path)

    def run(self, stage: Stage, model: Model, *, process: int = 0) -> Ran:
        """Run a stage in one of the two processes of its worker kind.

        Raises:
            StageError: the stage fails, or terminates its process.
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
        result, outside = self.call(run_watched, (stage, model, inputs, work), stage.worker, process)
        format = formats().get(result.format)
        digest = format.digest(result.path) if format is not None else content_digest(result.path)
        return Ran(result, digest, tuple(outside))

    def outputs(self, model: Model) -> tuple[Array, ...] | None:
        """The outputs of a model for the toys' samples, or None if this machine has no runtime for it.

        Raises:
            EdgeoptError: the runtime rejects the model.
        """
        bench = self.bench
        runtime, kind = bench.device.runtimes.get(model.format), formats().get(model.format)
        only = kind.runtimes(model.path) if kind is not None else frozenset()
        if runtime is None or (only and runtime not in only):
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
        """This machine as a device, to run models on."""
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
        """Call ``function(say, *args)`` in a process of a worker kind.

        Raises:
            StageError: the function raised, or terminated its process.
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
        """A toy that no stage produces: a trained model, or a weights file."""
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
        """A toy of a format that only a stage with an intent produces, such as a quantized program."""
        for stage in registry.plugins(Stage).values():
            if stage.produces == format and format not in stage.accepts:
                before = min(stage.accepts)
                return self.run(instance(stage, (), self.part(before)), self.model(before)).model
        raise CannotRunError(
            f"no toy model of the format {format!r}: no stage produces one",
            fix="provide one: Workshop(folder, models={...})",
        )


SOURCES = {"keras": "toy.keras", "tf_keras": "toy.h5", "saved_model": "toy"}
"""Formats that Keras itself writes, and the file names of their toys."""
WEIGHTS = {
    "safetensors": "toy.safetensors",
    "checkpoint": "toy.pt",
    "legacy_checkpoint": "toy.pth",
    "pickle": "toy.pkl",
}
"""Formats of weights files, and of one that only looks like them."""


def _save_keras(say: Say, network: Path, place: Path) -> None:
    """Save a network as Keras 3, Keras 2 or SavedModel, depending on the suffix of ``place``."""
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
