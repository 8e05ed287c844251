"""The files to deploy a cluster: their commands exist, telemetry is off, and a token is required."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from edgeopt.cli import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def pods() -> Iterator[dict[str, object]]:
    cluster, driver = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text("utf-8"))
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"], driver["spec"]]
    yield from (group["template"]["spec"]["containers"][0] for group in groups)


def commands() -> Iterator[list[str]]:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    yield from (shlex.split(service["command"]) for service in services.values())
    yield from (pod["command"] for pod in pods() if "command" in pod)  # type: ignore[misc]
    unit = (DEPLOY / "edgeopt-node.service").read_text("utf-8")
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    for options in re.findall("OPTIONS=(.*?)[.\n]", unit):  # as its comments give them
        yield shlex.split(line.removeprefix("ExecStart=").replace("$OPTIONS", options))


def test_all_commands_of_nodes_parse() -> None:
    node = typer.main.get_command(app).commands["node"]  # type: ignore[attr-defined]
    found = list(commands())
    assert len(found) == 5
    for program, command, *arguments in found:
        assert (Path(program).name, command) == ("edgeopt", "node")
        context = node.make_context("node", arguments)
        assert context.params["head"] != bool(context.params["join"])


def test_pods_that_ray_starts_have_the_settings_of_a_node() -> None:
    from edgeopt.run.cluster.ray_settings import SETTINGS

    for pod in pods():
        if "command" not in pod:
            variables = {each["name"]: each["value"] for each in pod["env"]}  # type: ignore[attr-defined]
            assert variables.items() >= SETTINGS.items()


@pytest.mark.parametrize("name", ["compose.yaml", "kuberay.yaml", "edgeopt-node.service"])
def test_a_token_is_required(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    assert {"compose.yaml": "${RAY_AUTH_TOKEN:?", "kuberay.yaml": "mode: token"}.get(
        name, "RAY_AUTH_TOKEN=…"
    ) in text
