"""User code in ``src`` layouts, in the project around a recipe, on PYTHONPATH and in editable installs."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgeopt.config.code_folders import code_folders, user_folder
from edgeopt.config.references import Code
from edgeopt.errors import UsageError


def found(target: str, *roots: Path) -> Code:
    return Code.model_validate(target, context={"roots": roots})


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package in ``src``, recipes in ``configs``, and a helper outside of both."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pyproject.toml", "")
    write(tmp_path / "src" / "own_package_a" / "__init__.py", "")
    write(tmp_path / "src" / "own_package_a" / "nets.py", "from own_blocks_a import three\nNet = three\n")
    write(tmp_path / "lib" / "own_blocks_a.py", "def three(): return 3\n")
    (tmp_path / "configs").mkdir()
    return tmp_path


@pytest.mark.parametrize("configs", ["configs", ".", "configs/deeper"])
def test_a_package_in_the_src_folder_of_the_project_is_found(project: Path, configs: str) -> None:
    (project / configs).mkdir(exist_ok=True, parents=True)
    code = found("own_package_a.nets:Net", project / configs)
    assert code.folder == project / "src"
    assert code.source() == project / "src" / "own_package_a" / "nets.py"


def test_without_a_project_the_src_folder_beside_the_recipe_is_searched(project: Path) -> None:
    (project / "pyproject.toml").unlink()
    assert found("own_package_a.nets:Net", project).folder == project / "src"


def test_what_stands_beside_the_recipe_comes_first(project: Path) -> None:
    write(project / "configs" / "own_package_a" / "nets.py", "Net = 1\n")
    assert found("own_package_a.nets:Net", project / "configs").folder == project / "configs"


def test_what_python_path_names_is_imported_and_part_of_the_digest(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "lib")  # relative: as users set it
    code = found("own_package_a.nets:Net", project / "configs")
    assert code_folders((project / "configs",))[-1] == project / "lib"
    before = code.digest()
    assert code.load()() == 3
    write(project / "lib" / "own_blocks_a.py", "def three(): return 4\n")
    assert code.digest() != before
    assert found("own_blocks_a:three", project / "configs").folder == project / "lib"


def test_installed_distributions_on_python_path_are_no_code_of_the_user(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(project / "lib"))
    (project / "lib" / "thing-1.0.dist-info").mkdir()
    assert project / "lib" not in code_folders((project / "configs",))
    assert user_folder(project / "lib" / "own_blocks_a.py", 1) is None


def test_the_code_of_an_editable_install_is_part_of_the_digest(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project / "src")
    code = found("own_package_a.nets:Net", project.parent)
    assert code.folder == project / "src"
    before = code.digest()
    write(project / "src" / "own_package_a" / "nets.py", "Net = 5\n")
    assert code.digest() != before
    assert found("json:loads").folder is None and found("edgeopt.model:Model").folder is None


def test_a_missing_module_says_where_was_looked(project: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        found("own_missing.nets:Net", project / "configs")
    searched = ", ".join(map(str, (project / "configs", project, project / "src")))
    assert f"no module 'own_missing.nets' in {searched}, nor among the installed" in str(caught.value)
    assert "PYTHONPATH" in str(caught.value)


def test_a_missing_import_says_where_was_looked(project: Path) -> None:
    write(project / "own_lonely.py", "import own_nowhere\nnet = 1\n")
    with pytest.raises(UsageError, match="No module named 'own_nowhere': neither in ") as caught:
        found("own_lonely:net", project).load()
    assert str(project / "src") in caught.value.message and "PYTHONPATH" in caught.value.fix
