"""A store behind a server: read through a local folder, written behind, and never trusted."""

import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.plugin import digest_of
from edgeopt.results import Event
from edgeopt.run.shared import web
from edgeopt.run.store import Entry, Store, open_store, store_folder

KEY = "a" * 64
OTHER = "b" * 64


class Server:
    """A server of objects in memory; ``refuse`` answers methods with a status instead."""

    def __init__(self, port: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                name = self.path.removeprefix("/cache/")
                server.asked.append(f"{self.command} {name}")
                if status := server.refuse.get(self.command):
                    return self.answer(status)
                if self.command == "PUT":
                    server.objects[name] = body
                    return self.answer(201)
                if name not in server.objects:
                    return self.answer(404)
                if self.command == "DELETE":
                    del server.objects[name]
                    return self.answer(204)
                return self.answer(200, server.objects[name])

            do_HEAD = do_PUT = do_DELETE = do_GET

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/cache"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setenv("EDGEOPT_STORE", running.url)
    yield running
    running.stop()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens the store as a machine of a name, with a folder of its own."""

    def opened(name: str) -> Store:
        monkeypatch.setenv("EDGEOPT_STORE_CACHE", str(tmp_path / name))
        return open_store(None)

    return opened


def put(store: Store, key: str = KEY, text: str = "weights") -> Entry:
    with store.scratch() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "model.bin").write_text(text)
        (folder / "empty").write_text("")
        entry = store.put(key, folder, {"stage": "toy", "seconds": 1.5})
    store.flush()
    return entry


def contents(entry: Entry | None) -> tuple[str, str, dict[str, Any]]:
    assert entry is not None
    return (entry.folder / "deep" / "model.bin").read_text(), (entry.folder / "empty").read_text(), entry.meta


def travels(machine: Any) -> None:
    """Behaviour of every shared store."""
    first = machine("first")
    made = contents(put(first))
    assert first.get(OTHER) is None
    second = machine("second")
    assert contents(second.get(KEY)) == made
    assert contents(Store(second.root).get(KEY)) == made, "kept in the folder"
    put(first, OTHER, "others")
    assert contents(second.get(OTHER))[0] == "others"
    assert not first.notes and not second.notes and not second.damaged


def test_entries_travel_over_http(server: Server, machine: Any) -> None:
    travels(machine)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert server.objects[f"cas/{digest}"] == b"weights"
    assert json.loads(server.objects[f"ac/{KEY}"])["files"]["deep/model.bin"] == digest
    written = [line for line in server.asked if line.startswith("PUT")]
    assert len(written) == len(set(written)), "bytes that are there are not written again"


def test_entries_travel_through_a_bucket(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"cache-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("EDGEOPT_STORE", f"s3://{bucket}/edgeopt")
    try:
        absent = machine("early")
        assert contents(put(absent))[0] == "weights"
        assert "there is no such bucket" in absent.notes[-1] and "secret" not in absent.notes[-1]
        boto3.client("s3").create_bucket(Bucket=bucket)
        travels(machine)
    finally:
        running.stop()


def changed(server: Server, **fields: Any) -> None:
    """Replace fields of the record on the server, with the check that belongs to them."""
    record = json.loads(server.objects[f"ac/{KEY}"]) | fields
    record["check"] = digest_of([record["files"], record["meta"]])
    server.objects[f"ac/{KEY}"] = json.dumps(record).encode()


@pytest.mark.parametrize(
    "harm",
    [
        lambda server, digest: server.objects.update({f"cas/{digest}": b"other bytes"}),
        lambda server, digest: server.objects.update({f"ac/{KEY}": b"\xff garbage"}),
        lambda server, digest: server.objects.update({f"ac/{KEY}": b"[" * 100_000}),
        lambda server, digest: server.objects.update({f"ac/{KEY}": b"[]"}),
        lambda server, digest: changed(server, key=OTHER),
        lambda server, digest: changed(server, files={"../../outside": digest}),
        lambda server, digest: changed(server, files={"/tmp/outside": digest}),
        lambda server, digest: changed(server, files={"file": "../../secret"}),
        lambda server, digest: changed(server, meta={"model": {"path": "../outside"}}),
        lambda server, digest: changed(server, meta=3),
    ],
)
def test_what_does_not_match_is_dropped_and_built_again(server: Server, machine: Any, harm: Any) -> None:
    put(machine("first"))
    harm(server, hashlib.sha256(b"weights").hexdigest())
    second = machine("second")
    assert second.get(KEY) is None
    assert second.damaged == [KEY]
    assert f"ac/{KEY}" not in server.objects
    assert not (second.root.parent / "outside").exists()
    assert contents(put(second))[0] == "weights"
    assert contents(machine("third").get(KEY))[0] == "weights"


def test_files_that_were_cleaned_up_are_a_miss(server: Server, machine: Any) -> None:
    put(machine("first"))
    del server.objects["cas/" + hashlib.sha256(b"weights").hexdigest()]
    second = machine("second")
    assert second.get(KEY) is None and not second.damaged and not second.notes


@pytest.mark.parametrize("status", [403, 507])
def test_a_store_that_cannot_be_written_still_serves(server: Server, machine: Any, status: int) -> None:
    put(machine("first"))
    server.refuse = {"PUT": status}
    second = machine("second")
    assert contents(put(second, OTHER))[0] == "weights"
    assert contents(second.get(KEY))[0] == "weights"
    (note,) = second.notes
    assert f"with {status}" in note and str(second.root) in note
    asked = len(server.asked)
    put(second, "c" * 64)
    assert len(server.asked) == asked, "it is not asked again"


def test_who_may_not_write_reads(server: Server, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(machine("first"))
    monkeypatch.setenv("EDGEOPT_STORE_WRITE", "0")
    second = machine("second")
    put(second, OTHER)
    assert contents(second.get(KEY))[0] == "weights"
    assert f"ac/{OTHER}" not in server.objects and not second.notes
    monkeypatch.setenv("EDGEOPT_STORE_WRITE", "maybe")
    with pytest.raises(UsageError, match="EDGEOPT_STORE_WRITE is 'maybe'"):
        machine("third")


def test_a_server_that_is_gone_costs_a_note(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("EDGEOPT_STORE", f"http://user:secret@127.0.0.1:{port}/cache")
    store = machine("first")
    assert store.get(KEY) is None
    assert contents(put(store))[0] == "weights"
    assert len(store.notes) == 2
    for note in store.notes:
        assert f"http://127.0.0.1:{port}/cache cannot be reached" in note and "secret" not in note


def test_a_server_that_restarts_is_waited_for(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("EDGEOPT_STORE", f"http://127.0.0.1:{port}/cache")
    started: list[Server] = []
    late = threading.Thread(target=lambda: (time.sleep(0.8), started.append(Server(port))))
    late.start()
    store = machine("first")
    assert store.get(KEY) is None
    put(store)
    late.join()
    assert not store.notes and f"ac/{KEY}" in started[0].objects
    started[0].stop()


def test_urls_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_folder(None) == Path("artifacts/store")
    assert store_folder("mine") == Path("mine")
    assert store_folder(Path("https://host/cache")) == Path("artifacts/store"), "a path merges slashes"
    monkeypatch.setenv("EDGEOPT_STORE_CACHE", "kept")
    assert store_folder("s3://bucket/prefix") == Path("kept")
    assert type(open_store(tmp_path / "mine")) is Store
    with pytest.raises(UsageError, match="the store 'https://ho st' is not one"):
        open_store("https://ho st")


def test_a_run_uses_what_another_machine_made(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4, dtype=np.float32).ravel())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weights])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32))
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: shared\nmodel: {path: net.onnx}\nformats: [onnx]\n"
        "optimize: {small: {quantize: float16}}\n"
        "data: {calibration: {uses: npz, with: {path: data.npz, label: null}}}\n"
        "latency: {min_runs: 2, min_seconds: 0}\n"
    )
    monkeypatch.chdir(tmp_path)
    digests, statuses = [], []
    for name in ("first", "second"):
        monkeypatch.setenv("EDGEOPT_STORE_CACHE", name)
        events: list[Event] = []
        report = edgeopt.optimize("recipe.yaml", out=Path(f"out-{name}"), watch=events.append)
        assert all(row.status == "ok" for row in report.results), report.results
        digests.append([row.artifact and row.artifact.digest for row in report.results])
        statuses.append({event.status for event in events if event.branch == "small.onnx"} - {"planned"})
    assert digests[0] == digests[1]
    assert "done" in statuses[0] and statuses[1] <= {"cached", "started"}
    assert not os.path.exists("artifacts/store")
