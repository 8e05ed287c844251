"""The documents: generated parts are fresh, links resolve, and the examples work."""

import importlib.util
import re
import struct
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeopt.config import registry
from edgeopt.devices.device import load_device
from edgeopt.errors import StageError
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Result

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "artifacts" / "README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TRACKED = tuple("pipeline/ docs/ tests/ recipes/ devices/ benchmarks/ constraints.txt pyproject.toml".split())
"""A path in backticks with one of these prefixes is a file of the repository."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_fresh(generate: ModuleType) -> None:
    assert [path.name for path in generate.stale(generate.documents())] == [], "run: make docs"


def test_every_plugin_and_command_is_told(generate: ModuleType) -> None:
    reference = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    for kind in ("datasets", "metrics", "stages", "connections"):
        for name in registry.names(kind):
            assert f"### `{name}`\n" in reference
    commands = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for command in ("optimize", "plan", "profile", "init", "report", "doctor", "schema", "devices check"):
        assert f"## edgeopt {command}\n" in commands


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = 0
        while (plain if count == 0 else f"{plain}-{count}") in found:
            count += 1
        found.add(plain if count == 0 else f"{plain}-{count}")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: no such file"
        assert target == ROOT or ROOT in target.parents
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    for word in re.findall(r"`([^`\s]+)`", prose(path)):
        made_up = any(sign in word for sign in "<>*{}…") or ":" in word
        if word.startswith(TRACKED) and not made_up:
            where = ROOT / word
            assert where.exists() or (path.parent / word).exists() or word in EXAMPLES, f"no {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_line_of_prose_is_endless(path: Path) -> None:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"line {number} has {len(line)} characters"


def examples() -> dict[str, str]:
    """File name -> text: every block of extending.md that begins with its name."""
    found = {}
    for _, text in FENCE.findall((ROOT / "docs" / "extending.md").read_text("utf-8")):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            found[named[1]] = text
    return found


EXAMPLES = {"pipeline/edgeopt/stages/fold_constants.py"} | set(examples())
"""Files that exist only in the documents."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the examples, and their data."""
    for name, text in examples().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "digits.keras").write_bytes((ROOT / "recipes" / "digits" / "digits.keras").read_bytes())
    np.savez(tmp_path / "evaluation.npz", x=np.zeros((4, 8, 8, 1), np.uint8), y=np.array([0, 1, 0, 1]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in examples():
        sys.modules.pop(Path(name).stem, None)


def test_nothing_is_installed_by_a_name_that_may_belong_to_others() -> None:
    by_name = re.compile(r"""(?:pip3? install|uv add|pipx|install:)\b[^\n`]*[\s'"]edgeopt(?![-\w/.])""")
    places = ("pipeline", "docs", "recipes", "devices", "benchmarks")
    files = [file for place in places for file in (ROOT / place).rglob("*") if file.is_file()]
    texts = [file for file in files if file.suffix in (".py", ".md", ".yaml", ".j2", ".h")]
    texts.remove(ROOT / "pipeline/edgeopt/errors.py")  # repeats where an installed edgeopt came from
    for file in (*texts, *ROOT.glob("*.md"), ROOT / "action.yml", ROOT / "Makefile"):
        assert not (found := by_name.search(file.read_text("utf-8"))), f"{file}: {found[0]}"


def test_the_former_module_of_units_can_be_imported() -> None:
    program = "import edgeopt.plugin; from edgeopt.units import Bytes, show_bytes; print(show_bytes(4096))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "4.0 KiB\n"


def test_all_examples_are_there() -> None:
    assert sorted(examples()) == [
        "devices/two-threads.yaml",
        "my_data.py",
        "my_metrics.py",
        "my_stages.py",
        "with_data.yaml",
        "with_metric.yaml",
        "with_stage.yaml",
    ]


def loaded(project: Path, name: str) -> Recipe:
    return load_recipe(project / name)


def test_the_stage_of_the_example(project: Path) -> None:
    (_, small) = loaded(project, "with_stage.yaml").variants
    assert small.stages is not None
    stage = small.stages[1]
    assert isinstance(stage, Stage)
    assert stage.options() == {"flash": 65536}
    (project / "model.tflite").write_bytes(b"x" * 1000)
    (project / "work").mkdir()
    context = Context(project / "work", None, lambda message: None)
    made = stage.run(Model(format="tflite", path=project / "model.tflite"), context)
    assert made.path.parent == project / "work"
    assert made.path.read_bytes() == b"x" * 1000
    (project / "model.tflite").write_bytes(b"x" * 65537)
    with pytest.raises(StageError, match=r"64\.0 KiB do not fit into 64\.0 KiB of flash"):
        stage.run(Model(format="tflite", path=project / "model.tflite"), context)


def test_the_dataset_of_the_example(project: Path) -> None:
    for label, word in enumerate(("no", "yes")):
        folder = project / "recordings" / word
        folder.mkdir(parents=True)
        with wave.open(str(folder / "a.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            # 10 periods per window for "no", 20 for "yes": these bins are the largest.
            turn = 2 * np.pi * 10 * (label + 1) / 256
            sound = (16000 * np.sin(turn * np.arange(600))).astype(int)
            file.writeframes(struct.pack("<600h", *sound))
    evaluation = loaded(project, "with_data.yaml").evaluation
    assert evaluation is not None
    samples = list(evaluation.samples())
    assert [sample.label for sample in samples] == [0, 0, 1, 1]
    assert [int(sample.inputs[0].argmax()) + 1 for sample in samples] == [10, 10, 20, 20]
    assert samples[0].inputs[0].shape == (128,)
    assert evaluation.digest() == evaluation.digest()


def test_the_metric_of_the_example(project: Path) -> None:
    recipe = loaded(project, "with_metric.yaml")
    metric = recipe.metrics[0].metric
    outputs = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    score = metric.score(outputs, np.array([0, 1, 0, 1]))
    assert score.per_sample is not None
    assert score.per_sample.tolist() == [0, 5, 1, 0]
    assert score.value == 1.5
    assert not metric.higher_is_better
    (gate,) = recipe.gates
    assert gate.concerns(Result(variant="float", format="tflite", device="host", status="ok"))


def test_the_device_of_the_example(project: Path) -> None:
    device = load_device("two-threads", (project / "devices",))
    assert device.threads == 2
    assert device.limits.flash == 16 * 2**20
    assert device.connection == {"uses": "local", "with": {"python": "python3"}}


YAML_BLOCKS = [
    text
    for language, text in FENCE.findall((ROOT / "docs" / "guide.md").read_text("utf-8"))
    if language == "yaml"
]


def test_the_recipe_of_the_guide_is_whole(project: Path) -> None:
    (text,) = [block for block in YAML_BLOCKS if block.startswith("version: 1")]
    (project / "model.keras").write_bytes((project / "digits.keras").read_bytes())
    (project / "calibration.npz").write_bytes((project / "evaluation.npz").read_bytes())
    (project / "guide.yaml").write_text(text, "utf-8")
    recipe = loaded(project, "guide.yaml")
    assert [variant.name for variant in recipe.variants] == ["float", "int8"]
    (gates,) = [block for block in YAML_BLOCKS if block.startswith("gates:") and "max_ratio" in block]
    text = text[: text.index("gates:")] + gates.replace("devices: [board]", "devices: [host]")
    (project / "guide.yaml").write_text(text, "utf-8")
    assert [gate.limit for gate in loaded(project, "guide.yaml").gates] == [
        ("max_drop", 0.01),
        ("min", 0.99),
        ("max", 65536.0),
        ("max_ratio", 1.0),
    ]


def test_python_in_the_documents_compiles() -> None:
    for path in DOCUMENTS:
        for language, text in FENCE.findall(path.read_text("utf-8")):
            if language == "python":
                compile(text, name_of(path), "exec")
