"""The container images: the Dockerfile is checked, and built where a container runtime runs."""

import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTIONS = frozenset("FROM COPY RUN USER WORKDIR CMD".split())
DOCKER = shutil.which("docker")
RUNS = (
    DOCKER is not None and not subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode
)


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file from the build: the last pattern that matches decides."""
    last = ""
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and (fnmatch(name, pattern) or name.startswith(f"{pattern}/")):
            last = line
    return bool(last) and not last.startswith("!")


def test_the_dockerfile_is_sound() -> None:
    stages: list[str] = []
    users: dict[str, str] = {}
    for word, arguments in instructions():
        assert word in INSTRUCTIONS
        if word == "FROM":
            base, _, name = arguments.partition(" AS ")
            assert name and (base in stages or re.fullmatch(r"python:3\.\d+-slim-\w+", base)), arguments
            stages.append(name)
            users[name] = users.get(base, "root")
        elif word == "COPY":
            origin = re.match(r"--from=(\w+) ", arguments)
            sources = arguments.split()[:-1]
            assert origin[1] in stages if origin else all((ROOT / name).exists() for name in sources)
        elif word == "RUN":
            assert "pip " not in arguments or "--no-cache-dir" in arguments
            done = subprocess.run(["sh", "-n", "-c", arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        elif word == "USER":
            users[stages[-1]] = arguments
    assert stages == ["wheel", "light", "full"]
    assert users["light"] == users["full"] == "edgeopt"  # not root


def test_the_build_gets_what_the_wheel_needs_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE"]
    assert not [name for name in (*needed, "pyproject.toml", "constraints.txt") if ignored(name)]
    assert all(map(ignored, (".git", ".venv/bin/python", "artifacts/store", "tests", "private.pem")))


@pytest.mark.slow
@pytest.mark.skipif(not RUNS, reason="no container runtime: the daemon of docker does not run")
def test_the_light_image_runs() -> None:
    build = ["docker", "build", "--quiet", "--target", "light", ROOT]
    image = subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip()
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", image]
    listed = subprocess.run(
        [*command, "edgeopt", "devices", "list"], check=True, capture_output=True, text=True
    )
    assert "cortex-m" in listed.stdout
