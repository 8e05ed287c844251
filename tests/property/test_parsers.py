"""Whatever bytes a file holds, its reader says what is wrong with it: nothing but `EdgeoptError` comes out.

Every kind of file is first damaged as a whole, then inside: archives are packed anew around a damaged member,
so that their readers get past the checksums.
"""

import base64
import io
import json
import os
import pickle
import signal
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.config.yaml_source import read_yaml
from edgeopt.errors import EdgeoptError, RecipeError
from edgeopt.evaluation.baseline import baseline_of, read_baseline, write_baseline
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.regression import Limits
from edgeopt.evaluation.regression import check as check_baseline
from edgeopt.formats.keras.files import hdf5
from edgeopt.formats.known import format_named
from edgeopt.formats.source import check_weights, inspect, size_breakdown, weight_shapes
from edgeopt.publish.contract import read_contract
from edgeopt.publish.oci import read_index, read_manifest
from edgeopt.publish.unpacking import pack, unpack
from edgeopt.results import Artifact, Measurement, Report, Result, Run, Samples
from edgeopt.testing import Workshop

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
NEW_EXAMPLES = os.environ.get("EDGEOPT_EXAMPLES")
"""Number of examples per test that benchmarks/fuzz.py asks for; unset for the usual ones."""
THOROUGH = settings(
    max_examples=int(NEW_EXAMPLES or 1000),
    deadline=None,
    database=None,
    derandomize=not NEW_EXAMPLES,  # the same examples each time
    suppress_health_check=list(HealthCheck),
)

FORKED = settings(THOROUGH, max_examples=int(NEW_EXAMPLES or 250))
"""For readers that start a process: most of their time is not spent on the bytes."""


class Edit(NamedTuple):
    """Bytes that replace others; ``place`` is a share of the length, so that it fits every file."""

    place: float
    removed: int
    added: bytes


INTERESTING = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff" * 8,
    b"[" * 40,
    b"{",
    b"-1",
    b"1e999",
]
EDITS = st.lists(
    st.builds(
        Edit,
        place=st.floats(0, 1),
        removed=st.integers(0, 16) | st.just(1 << 30),
        added=st.sampled_from(INTERESTING) | st.binary(max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        place = int(edit.place * len(content))
        content = content[:place] + edit.added + content[place + edit.removed :]
    return content


def repacked(archive: bytes, member: int, edits: list[Edit]) -> bytes:
    """The archive with one member damaged, and everything else as it should be."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(target, "w") as made:
        names = source.namelist()
        for name in names:
            content = source.read(name)
            made.writestr(name, edited(content, edits) if name == names[member % len(names)] else content)
    return target.getvalue()


def explained(read: Callable[..., Any], *arguments: Any) -> None:
    try:
        read(*arguments)
    except EdgeoptError as error:
        assert len(error.message) < 2000, "a message is for people to read"


def readers(format: str) -> tuple[Callable[[Path], Any], ...]:
    kind = format_named(format)
    return inspect, check_weights, size_breakdown, weight_shapes, kind.operators, kind.output_steps


@pytest.fixture
def quick_hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 files are read in a process of their own; here it is forked, which takes a tenth of the time."""
    import h5py  # noqa: F401 - for all the processes that follow

    class Done(NamedTuple):
        returncode: int
        stdout: str
        stderr: str

    def run(command: list[str], **_: Any) -> Done:
        program, arguments = command[command.index("-c") + 1], command[command.index("-c") + 1 :]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                signal.alarm(hdf5.SECONDS)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv, code = arguments, 1
                try:
                    with open(1, "w", closefd=False) as sys.stdout:
                        exec(program, {"__name__": "__main__"})
                    code = 0
                except BaseException as error:  # noqa: BLE001 - as the interpreter does
                    os.write(2, f"{type(error).__name__}: {error}".encode())
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            return Done(status, out.read().decode(), err.read().decode())

    monkeypatch.setattr(hdf5.subprocess, "run", run)


FILES = ["tflite", "onnx", "executorch", "safetensors", "legacy_checkpoint", "pickle"]
ARCHIVES = ["keras", "checkpoint", "exported_program", "torchscript_module"]


@pytest.mark.parametrize("format", [*FILES, *ARCHIVES])
def test_damaged_files(
    format: str, workshop: Workshop, tmp_path: Path, examples: settings = THOROUGH
) -> None:
    path = workshop.model(format).path
    content, copy = path.read_bytes(), tmp_path / f"damaged{path.suffix}"

    @examples
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        copy.write_bytes(edited(content, edits))
        for read in readers(format):
            explained(read, copy)

    check()


@pytest.mark.usefixtures("quick_hdf5")
def test_damaged_hdf5_files(workshop: Workshop, tmp_path: Path) -> None:
    test_damaged_files("tf_keras", workshop, tmp_path, FORKED)


@pytest.mark.parametrize("format", ARCHIVES)
def test_archives_with_a_damaged_member(format: str, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.model(format).path
    content, copy = path.read_bytes(), tmp_path / f"damaged{path.suffix}"

    @THOROUGH
    @given(st.integers(0, 200), EDITS)
    def check(member: int, edits: list[Edit]) -> None:
        copy.write_bytes(repacked(content, member, edits))
        for read in readers(format):
            explained(read, copy)

    check()


def test_damaged_saved_models(workshop: Workshop, tmp_path: Path) -> None:
    folder = workshop.model("saved_model").path
    copy = tmp_path / "model"
    format_named("saved_model").copy_to(folder, copy)
    files = sorted(file for file in copy.rglob("*") if file.is_file() and file.suffix == ".pb")
    whole = {file: file.read_bytes() for file in files}

    @THOROUGH
    @given(st.sampled_from(files), EDITS)
    def check(file: Path, edits: list[Edit]) -> None:
        file.write_bytes(edited(whole[file], edits))
        for read in readers("saved_model"):
            explained(read, copy)
        file.write_bytes(whole[file])

    check()


@pytest.mark.parametrize("format", ["pickle", "legacy_checkpoint"])
def test_pickles_of_any_opcodes(format: str, tmp_path: Path) -> None:
    """Streams that are pickles in form, whatever they would do."""
    copy = tmp_path / "any.pkl"
    opcodes = st.sampled_from([bytes([value]) for value in range(0x100)])
    known = st.sampled_from(
        [
            pickle.dumps({"a": [1.5, "b", None, (1, 2)]})[:-1],
            b"cos\nsystem\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"X\xff\xff\xff\x7f",
            b"\x8c\x02ab",
            b"K\x01",
            b"(",
            b"t",
            b"R",
            b"q\x00",
            b"r\xff\xff\xff\xff",
            b"h\x00",
            b".",
        ]
    )

    @THOROUGH
    @given(st.lists(opcodes | known, max_size=30))
    def check(parts: list[bytes]) -> None:
        copy.write_bytes(b"\x80\x02" + b"".join(parts))
        for read in readers(format):
            explained(read, copy)

    check()


def test_damaged_bundles(tmp_path: Path) -> None:
    folder, archive = tmp_path / "kit", tmp_path / "kit.zip"
    (folder / "firmware").mkdir(parents=True)
    for name in ("manifest.json", "labels.txt", "firmware/model.c"):
        (folder / name).write_text(name * 20)
    pack(folder, archive)
    content = archive.read_bytes()
    count = 0

    @THOROUGH
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        nonlocal count
        count += 1
        archive.write_bytes(edited(content, edits))
        target = tmp_path / "out" / str(count)
        explained(unpack, archive, target)
        # Nothing outside, and nothing at all where it was refused.
        assert {path.name for path in tmp_path.iterdir()} <= {"kit", "kit.zip", "out"}

    check()


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(24, dtype=np.float32).reshape(3, 8), y=np.arange(3))
    content = path.read_bytes()

    def read() -> None:
        for sample in Npz(path=path, limit=5).samples():
            assert sample.inputs

    @THOROUGH
    @given(st.booleans(), st.integers(0, 1), EDITS)
    def check(inside: bool, member: int, edits: list[Edit]) -> None:
        path.write_bytes(repacked(content, member, edits) if inside else edited(content, edits))
        explained(read)

    check()


YAML_PARTS = ["- ", "[", "]", "{", "}", ": ", "\n", "  ", "&a ", "*a", "<<: ", "? ", "|", ">", "'", '"', "#"]
YAML_PARTS += ["!!python/object:os.system ", "%YAML 9.9\n", "---\n", "...", "\t", "\0", "\ud800"]
YAML_PARTS += ["9" * 400, "0x", ".inf", "2020-99-99", "[" * 200, "{a: " * 200]
YAML_EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(YAML_PARTS) | st.text(max_size=8)),
    max_size=12,
)


@pytest.mark.parametrize("name", ["digits-keras", "any"])
def test_yaml(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text("utf-8") if name != "any" else ""

    @THOROUGH
    @given(YAML_EDITS)
    def check(edits: list[tuple[float, int, str]]) -> None:
        changed = text
        for share, removed, added in edits:
            place = int(share * len(changed))
            changed = changed[:place] + added + changed[place + removed :]
        explained(read_yaml, changed, "recipe.yaml")

    check()


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 3_000 + "a", "a: " + "[" * 101])
def test_yaml_that_is_nested_too_deep_is_refused_at_once(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "recipe.yaml")
    assert "nested more than 100 levels deep" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "a", "digest": "sha256:" + "0" * 64, "size": 1},
    "layers": [{"mediaType": "a", "digest": "sha256:" + "0" * 64, "size": 1, "annotations": {"a": "b"}}],
}


@pytest.mark.parametrize("read", [read_contract, read_manifest, read_index], ids=lambda read: read.__name__)
def test_documents_of_a_registry(read: Callable[[bytes, str], Any]) -> None:
    content = json.dumps(MANIFEST).encode()

    @THOROUGH
    @given(
        JSON.map(lambda value: json.dumps(value).encode()) | EDITS.map(lambda edits: edited(content, edits))
    )
    def check(text: bytes) -> None:
        explained(read, text, "registry.example/name")

    check()


def baseline_files() -> tuple[str, Report]:
    """A baseline with values of samples and contributions, and the run that it is of."""
    random = np.random.default_rng(0)
    row = Result(
        variant="int8",
        format="tflite",
        device="host",
        status="ok",
        artifact=Artifact(path="m.tflite", digest="0" * 64, size_bytes=100),
        measurements={
            name: Measurement(value=0.9, kind="fraction") for name in ("top1", "map50", "size_bytes")
        },
        samples={
            "top1": Samples.pack((random.random(50) < 0.9).astype(float)),
            "map50": Samples.pack(random.normal(0.8, 0.2, 50), 2.5),
        },
    )
    run = Run(started="", seconds=0, command="", edgeopt="", evaluation_digest="0")
    report = Report(recipe="r", run=run, results=(row,))
    other = row.model_copy(update={"samples": row.samples | {"map50": Samples.pack(random.random(50), 3.0)}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "baseline.json")
        write_baseline(baseline_of(report), path)
        return path.read_text(), report.model_copy(update={"results": (other,)})


def test_damaged_baselines(tmp_path: Path) -> None:
    text, report = baseline_files()
    path = tmp_path / "baseline.json"

    def read() -> None:
        for verdict in check_baseline(report, read_baseline(path), Limits()):
            assert verdict.status in ("pass", "fail", "undecided")

    values = st.binary(max_size=220) | st.binary(min_size=200, max_size=200)
    fields = st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers() | JSON,
            "encoding": st.sampled_from(["bits", "float32", "pickle"]) | JSON,
            "reach": st.floats() | JSON,
            "data": values.map(lambda raw: base64.b64encode(zlib.compress(raw)).decode()) | JSON,
        },
    )

    @THOROUGH
    @given(EDITS)
    def damaged(edits: list[Edit]) -> None:
        path.write_bytes(edited(text.encode(), edits))
        explained(read)

    @THOROUGH
    @given(st.sampled_from(["top1", "map50"]), fields)
    def forged(metric: str, changes: dict[str, Any]) -> None:
        record = json.loads(text)
        record["entries"][0]["samples"][metric] |= changes
        path.write_text(json.dumps(record))
        explained(read)

    damaged()
    forged()
