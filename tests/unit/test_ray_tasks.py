"""The driver of a Ray cluster when an interrupt is lost, which a real cluster shows once in a while."""

from pathlib import Path
from typing import Any

import pytest

from edgeopt.run.cluster import ray_tasks
from edgeopt.run.cluster.messages import Cancel, Close, Request
from edgeopt.run.cluster.ray_settings import access_problem

REQUEST = Request("key", "title", b"", "plain", 1.0, "", None, {}, "store", {}, None, 0.0, gpu=False)


class DeafRay:
    """Its tasks go on however often they are cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[object] = []

    def cancel(self, generator: object) -> None:
        self.cancelled.append(generator)

    def wait(self, generators: list[object], **_: object) -> tuple[list[object], list[object]]:
        return [], generators


class Pipe:
    """Receives the command to cancel, nothing for some turns, and the command to close."""

    def __init__(self, turns: int) -> None:
        self.commands: list[Any] = [Cancel("key"), *[None] * turns, Close()]

    def poll(self, _: float) -> bool:
        if self.commands[0] is None:
            self.commands.pop(0)
            return False
        return True

    def recv(self) -> Any:
        return self.commands.pop(0)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 4), (60.0, 1)])
def test_a_task_that_goes_on_is_interrupted_again(
    seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks, "CANCEL_SECONDS", seconds)
    driver = object.__new__(ray_tasks.Driver)
    driver.ray, driver.pipe, driver.waiting = DeafRay(), Pipe(turns=3), []
    driver.running = {"key": ray_tasks._Running(REQUEST, "generator")}
    driver.serve()
    assert driver.ray.cancelled == ["generator"] * times


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Connecting to existing Ray cluster at address: 127.0.0.2:6379...", ""),
        ("gcs_client.cc:210: RPC error: Unauthenticated: InvalidAuthToken", "the token is wrong"),
        (
            "ssl_transport_security.cc:1432] Handshake failed with fatal error SSL_ERROR_SSL: "
            "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED.",
            "its certificate is not of the authority in RAY_TLS_CA_CERT",
        ),
    ],
)
def test_a_log_says_who_is_refused(line: str, problem: str, tmp_path: Path) -> None:
    """Lines that Ray 2.60 writes."""
    (tmp_path / "driver.log").write_text(f"a line before\n{line}\n")
    assert access_problem(tmp_path / "driver.log") == problem
