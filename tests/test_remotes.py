"""Layouts in folders, in buckets and on the web: content, concurrent readers, and killed writers."""

import fcntl
import functools
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import (
    EdgeoptError,
    MissingPackageError,
    RemoteError,
    StoreError,
    UsageError,
    VerificationError,
)
from edgeopt.publish.oci import (
    BUNDLE,
    CONFIG,
    INDEX,
    MANIFEST,
    MODEL,
    RELEASE,
    Descriptor,
    Index,
    Manifest,
    describe,
    digest_of_bytes,
)
from edgeopt.publish.remote import Remote
from edgeopt.publish.remotes import library, open_remote
from edgeopt.publish.remotes.bucket import Bucket
from edgeopt.publish.remotes.layout import Layout
from edgeopt.publish.remotes.patience import Patience
from edgeopt.publish.remotes.transfer import explained
from edgeopt.publish.remotes.web import Web
from registry import SKOPEO, Authority, Reply, Request, make_authority, part, server

needs_skopeo = pytest.mark.skipif(SKOPEO is None, reason="no skopeo here: install it")
MODEL_BYTES = bytes(range(256)) * 5_000
BLOB = describe(MODEL_BYTES, MODEL)
CONFIG_BYTES = b'{"device": "host"}'
QUICK = Patience(connect=2.0, read=0.4, attempts=5, backoff=0.01, longest=0.2)


def release(text: str = "") -> tuple[Manifest, Index]:
    config = describe(CONFIG_BYTES, CONFIG)
    manifest = Manifest(artifact_type=BUNDLE, config=config, layers=(BLOB,), annotations={"text": text})
    bundle = describe(manifest.encode(), MANIFEST, artifact_type=BUNDLE)
    return manifest, Index(artifact_type=RELEASE, manifests=(bundle,))


def push(remote: Remote, *tags: str, text: str = "") -> Descriptor:
    manifest, index = release(text)
    remote.push_blob(manifest.config, CONFIG_BYTES)
    remote.push_blob(BLOB, MODEL_BYTES)
    remote.push_manifest(manifest.encode(), MANIFEST)
    return remote.push_manifest(index.encode(), INDEX, tags)


def files(root: Path) -> set[str]:
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}


def blob_file(root: Path, digest: str = BLOB.digest) -> Path:
    return root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def refused(error: EdgeoptError, *words: str, code: int = 3) -> None:
    assert error.exit_code == code
    assert error.fix
    for word in words:
        assert word in str(error)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket, reachable through environment variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    name = f"models-{uuid.uuid4().hex[:8]}"
    objects().create_bucket(Bucket=name)
    return name


def quick(bucket: str) -> Layout:
    return Layout(Bucket(bucket, "kws", QUICK._replace(attempts=2)), f"s3://{bucket}/kws")


def objects() -> Any:
    import boto3

    return boto3.client("s3")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def travels(remote: Remote, tmp_path: Path) -> None:
    """Behaviour of every writable remote."""
    assert remote.tags() == []
    assert remote.resolve("1.0.0") is None
    assert not remote.has(BLOB.digest)
    pushed = push(remote, "1.0.0", "stable")
    manifest, index = release()
    assert push(remote) == pushed
    assert remote.tags() == ["1.0.0", "stable"]
    assert remote.resolve("1.0.0") == remote.resolve(pushed.digest) == pushed
    assert remote.manifest(pushed.digest) == index.encode()
    assert remote.manifest(index.manifests[0].digest) == manifest.encode()
    assert remote.has(BLOB.digest)

    moved = push(remote, "stable", text="second")
    assert remote.resolve("stable") == moved != pushed
    assert remote.resolve("1.0.0") == pushed

    target, steps = tmp_path / "came", []
    target.write_bytes(MODEL_BYTES[:600_000])
    remote.fetch(BLOB, target, steps.append)
    assert target.read_bytes() == MODEL_BYTES
    assert sum(steps) == len(MODEL_BYTES)
    source, steps = tmp_path / "source", []
    source.write_bytes(b"other" * 3_500_000)  # more than one part of a multipart upload
    other = describe(source.read_bytes(), MODEL)
    remote.push_blob(other, source, steps.append)
    assert sum(steps) == 17_500_000
    remote.fetch(other, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == source.read_bytes()

    with pytest.raises(VerificationError) as caught:
        remote.push_blob(describe(b"this", MODEL), b"that")
    refused(caught.value, digest_of_bytes(b"this"), code=1)
    assert not remote.has(digest_of_bytes(b"this"))
    lost = describe(b"lost", MODEL)
    with pytest.raises(RemoteError) as caught:
        remote.fetch(lost, tmp_path / "lost")
    refused(caught.value, lost.digest, remote.url)
    assert not (tmp_path / "lost").exists()
    with pytest.raises(RemoteError) as caught:
        remote.manifest(lost.digest)
    refused(caught.value, lost.digest, remote.url)
    incomplete = Manifest(artifact_type=BUNDLE, config=lost).encode()
    with pytest.raises(RemoteError) as caught:
        remote.push_manifest(incomplete, MANIFEST, ["2.0.0"])
    refused(caught.value, lost.digest)
    assert remote.tags() == ["1.0.0", "stable"]
    for tag in ("", "../x", "a b", "-a", "x" * 129, "ü", "a/b", "a\n"):
        with pytest.raises(UsageError):
            remote.resolve(tag)
        with pytest.raises(UsageError):
            remote.push_manifest(incomplete, MANIFEST, [tag])


def test_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "kws models"
    remote = open_remote(root.as_uri())
    assert remote.url == root.as_uri()
    travels(remote, tmp_path)
    names = files(root)
    assert {name for name in names if not name.startswith("blobs/")} == {
        "oci-layout",
        "index.json",
        ".index.lock",
        "refs/1.0.0.json",
        "refs/stable.json",
    }
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    entries = json.loads((root / "index.json").read_text())["manifests"]
    assert [each["annotations"]["org.opencontainers.image.ref.name"] for each in entries] == [
        "1.0.0",
        "stable",
    ]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    remote = library(tmp_path / "none")
    with remote.locked(exclusive=False):
        assert remote.tags() == []
        assert remote.resolve("stable") is None
        assert list(remote.blobs()) == []
    assert not (tmp_path / "none").exists()


@needs_skopeo
def test_skopeo_reads_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "kws"
    pushed = push(library(root), "1.0.0")
    push(library(root), "stable", text="second")
    manifest, index = release()
    for tag, text in {"1.0.0": "", "stable": "second"}.items():
        command = [SKOPEO, "inspect", "--raw", f"oci:{root}:{tag}"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert done.stdout == release(text)[1].encode()
    library(root).push_manifest(manifest.encode(), MANIFEST, ["bundle"])
    out = tmp_path / "out"
    copy = [SKOPEO, "--insecure-policy", "copy", "--preserve-digests", f"oci:{root}:bundle", f"dir:{out}"]
    subprocess.run(copy, capture_output=True, check=True)
    assert (out / BLOB.digest.removeprefix("sha256:")).read_bytes() == MODEL_BYTES
    assert (out / "manifest.json").read_bytes() == manifest.encode()
    assert pushed.digest == digest_of_bytes(index.encode())


def test_tags_and_content_can_be_taken_away(tmp_path: Path) -> None:
    remote = library(tmp_path)
    push(remote, "1.0.0", "1.1.0")
    manifest, index = release()
    expected = {describe(each, "").digest for each in (CONFIG_BYTES, manifest.encode(), index.encode())}
    assert set(remote.blobs()) == expected | {BLOB.digest}
    assert remote.size(BLOB.digest) == len(MODEL_BYTES)
    remote.check(BLOB.digest)
    remote.delete_ref("1.0.0")
    remote.delete_ref("1.0.0")
    assert remote.tags() == ["1.1.0"]
    assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 1
    remote.delete_blob(BLOB.digest)
    remote.delete_blob(BLOB.digest)
    assert set(remote.blobs()) == expected
    with pytest.raises(RemoteError, match=BLOB.digest):
        remote.check(BLOB.digest)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage_is_named_and_a_push_mends_it(damage: str, tmp_path: Path) -> None:
    root, target = tmp_path / "kws", tmp_path / "came"
    remote = library(root)
    pushed = push(remote, "1.0.0")
    for digest in (BLOB.digest, pushed.digest):
        file = blob_file(root, digest)
        good = file.read_bytes()
        file.write_bytes(good[:-5] if damage == "cut" else good[:-5] + b"?" + good[-4:])
    with pytest.raises(VerificationError) as caught:
        remote.fetch(BLOB, target)
    refused(caught.value, BLOB.digest, remote.url.removeprefix("file://"), code=1)
    assert not target.exists()
    for ask in (remote.manifest, remote.resolve, remote.check):
        with pytest.raises(VerificationError) as caught:
            ask(pushed.digest)
        refused(caught.value, pushed.digest, code=1)
    assert push(remote) == pushed
    remote.fetch(BLOB, target)
    assert target.read_bytes() == MODEL_BYTES
    (root / "refs" / "1.0.0.json").write_bytes(b'{"mediaType')
    with pytest.raises(VerificationError) as caught:
        remote.resolve("1.0.0")
    refused(caught.value, "tag 1.0.0", "push it again", code=1)
    push(remote, "1.0.1")  # is not blocked by it
    assert [
        each["annotations"]["org.opencontainers.image.ref.name"]
        for each in json.loads((root / "index.json").read_text())["manifests"]
    ] == ["1.0.1"]


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        push(library(tmp_path / "file" / "kws"), "1.0.0")
    refused(caught.value, str(tmp_path / "file"))


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError) as caught,
        explained(tmp_path / "came"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    refused(caught.value, f"no space left for {tmp_path / 'came'}", "free some space")

    remote, target = library(tmp_path / "kws"), tmp_path / "came"
    push(remote, "1.0.0")
    before, old = files(tmp_path / "kws"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_100_000, old[1]))
    try:
        for write in (
            functools.partial(remote.fetch, BLOB, target),
            functools.partial(remote.push_blob, describe(MODEL_BYTES * 2, MODEL), MODEL_BYTES * 2),
        ):
            with pytest.raises(StoreError) as caught:
                write()
            refused(caught.value, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert files(tmp_path / "kws") == before
    remote.fetch(BLOB, target)
    assert target.read_bytes() == MODEL_BYTES


PUSHING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_remotes import library, push
remote, name = library(Path(sys.argv[2])), sys.argv[3]
for number in range(int(sys.argv[4])):
    print(number, flush=True)
    with remote.locked(exclusive=False):
        push(remote, f"{name}.{number}", "shared", text=f"{name} {number}")
"""


def pushing(root: Path, name: str, times: int) -> "subprocess.Popen[bytes]":
    arguments = [str(Path(__file__).parent), str(root), name, str(times)]
    return subprocess.Popen([sys.executable, "-c", PUSHING, *arguments], stdout=subprocess.PIPE)


def sound(root: Path) -> list[str]:
    """All tags, after reading everything that they refer to."""
    remote = library(root)
    for digest in remote.blobs():
        remote.check(digest)
    tags = remote.tags()
    for tag in tags:
        found = remote.resolve(tag)
        assert found is not None
        index = Index.model_validate_json(remote.manifest(found.digest))
        manifest = Manifest.model_validate_json(remote.manifest(index.manifests[0].digest))
        assert remote.has(manifest.layers[0].digest)
    return tags


def listed(root: Path) -> list[str]:
    entries = json.loads((root / "index.json").read_text())["manifests"]
    return [each["annotations"]["org.opencontainers.image.ref.name"] for each in entries]


def test_two_processes_that_push_at_once_lose_nothing(tmp_path: Path) -> None:
    both = [pushing(tmp_path, name, 15) for name in ("a", "b")]
    for process in both:
        with process:
            process.communicate()
        assert process.returncode == 0
    expected = sorted([f"{name}.{number}" for name in ("a", "b") for number in range(15)] + ["shared"])
    assert sound(tmp_path) == listed(tmp_path) == expected
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_killed_writer_leaves_nothing_half(tmp_path: Path) -> None:
    begun = 0
    for turn in range(6):
        with pushing(tmp_path, f"t{turn}", 1000) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(0.011 * turn)
            process.send_signal(signal.SIGKILL)
            # A number is printed before each push; the last push may or may not have completed.
            begun += 1 + len(process.stdout.read().split())
        tags = sound(tmp_path)
        assert begun - turn - 1 <= len([tag for tag in tags if tag != "shared"]) <= begun
    push(library(tmp_path), "last")
    assert sound(tmp_path) == listed(tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_only_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    push(library(tmp_path), "1.0.0")
    dead, living = tmp_path / "scratch" / "1-dead", tmp_path / "scratch" / "2-living"
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        push(library(tmp_path), "1.0.1")
        assert living.exists()
    assert not dead.exists()


def test_locks_end_with_their_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgeopt.publish.remotes import library\n"
        "with library(Path(sys.argv[1])).locked(exclusive=True):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with library(tmp_path).locked(exclusive=False), library(tmp_path).locked(exclusive=False):
        pass  # shared
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        killer = threading.Timer(0.3, process.kill)
        killer.start()
        began = time.monotonic()
        with library(tmp_path).locked(exclusive=False):
            assert 0.2 < time.monotonic() - began < 5
        killer.join()
    assert "waiting for another process that is using" in caplog.text


def test_a_bucket(bucket: str, tmp_path: Path) -> None:
    remote = open_remote(f"s3://{bucket}/team/kws")
    assert remote.url == f"s3://{bucket}/team/kws"
    travels(remote, tmp_path)
    assert isinstance(remote, Layout)
    remote.check(BLOB.digest)
    remote.delete_ref("1.0.0")
    assert remote.tags() == ["stable"]
    with pytest.raises(UsageError, match="buckets have no locks"), remote.locked(exclusive=True):
        pass
    with remote.locked(exclusive=False):
        assert open_remote(f"s3://{bucket}").tags() == []


def test_what_a_bucket_holds_wrongly_is_refused(bucket: str, tmp_path: Path) -> None:
    remote = open_remote(f"s3://{bucket}/kws")
    push(remote, "1.0.0")
    key = f"kws/blobs/sha256/{BLOB.digest.removeprefix('sha256:')}"
    for body in (MODEL_BYTES[:-1], MODEL_BYTES[:-1] + b"?"):
        objects().put_object(Bucket=bucket, Key=key, Body=body)
        with pytest.raises(VerificationError) as caught:
            remote.fetch(BLOB, tmp_path / "came")
        refused(caught.value, BLOB.digest, f"s3://{bucket}/kws", code=1)
        assert not (tmp_path / "came").exists()


def test_writers_of_one_bucket_lose_nothing(bucket: str) -> None:
    push(open_remote(f"s3://{bucket}/kws"), "first")
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            remote = open_remote(f"s3://{bucket}/kws")
            for number in range(4):
                push(remote, f"{name}.{number}", text=f"{name} {number}")
        except EdgeoptError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = sorted([f"{name}.{number}" for name in ("a", "b") for number in range(4)] + ["first"])
    assert open_remote(f"s3://{bucket}/kws").tags() == expected
    body = objects().get_object(Bucket=bucket, Key="kws/index.json")["Body"].read()
    assert len(json.loads(body)["manifests"]) == 9


def test_a_bucket_that_is_not_there_or_down(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = open_remote("s3://no-such-bucket/kws")
    assert absent.tags() == []
    with pytest.raises(RemoteError) as caught:
        absent.push_blob(BLOB, MODEL_BYTES)
    refused(caught.value, "bucket 'no-such-bucket' does not exist")
    with server(lambda request: Reply(403, b"")) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{running.host}")
        with pytest.raises(RemoteError) as caught:
            quick(bucket).tags()
        refused(caught.value, f"s3://{bucket}/kws", "403", "AWS_PROFILE")
    with pytest.raises(RemoteError) as caught:
        quick(bucket).fetch(BLOB, tmp_path / "came")
    refused(caught.value, "cannot be reached", "AWS_ENDPOINT_URL")
    assert not (tmp_path / "came").exists()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RemoteError) as caught:
        open_remote(f"s3://{bucket}/kws").tags()
    refused(caught.value, f"no credentials for s3://{bucket}/kws")
    assert "secret-of-a-test" not in str(caught.value)


def test_a_bucket_that_cuts_off_goes_on_where_it_was(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(200, MODEL_BYTES)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"])
        assert wanted
        body = MODEL_BYTES[int(wanted[1]) : int(wanted[2]) + 1]
        return Reply(206, body, cut=1000 if request.count < 2 else None)

    with server(answer) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{running.host}")
        quick(bucket).fetch(BLOB, tmp_path / "came")
        # Twice cut off; then the rest, in pieces.
        assert [each.method for each in running.asked].count("GET") == 5
    assert (tmp_path / "came").read_bytes() == MODEL_BYTES
    with server(lambda request: answer(request._replace(count=0))) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{running.host}")
        with pytest.raises(RemoteError) as caught:
            quick(bucket).fetch(BLOB, tmp_path / "none")
        refused(caught.value, f"s3://{bucket}/kws: the transfer was interrupted", "2 attempts")
    assert not (tmp_path / "none").exists()


def test_a_bucket_that_drips_is_given_up(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> Reply:
        return Reply(200, MODEL_BYTES, drip=0.0 if request.method == "HEAD" else 0.05)

    with server(answer) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{running.host}")
        begun = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            quick(bucket).fetch(BLOB, tmp_path / "came")
        assert time.monotonic() - begun < 20
        refused(caught.value, "the transfer was interrupted", "2 attempts")


def test_a_bucket_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackageError) as caught:
        open_remote("s3://models/kws")
    refused(caught.value, "s3fs", "pip install '.[publish]'")


@pytest.mark.parametrize("tls", [False, True])
def test_a_folder_on_the_web(
    tls: bool, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    pushed = push(library(tmp_path / "site" / "kws"), "1.0.0", "stable")
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority.certificate, authority.key)
            running.socket = context.wrap_socket(running.socket, server_side=True)
            monkeypatch.setenv("EDGEOPT_CA_BUNDLE", str(authority.bundle))
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http{'s' if tls else ''}://127.0.0.1:{running.server_port}/kws"
            remote = open_remote(url)
            assert remote.url == url
            assert remote.tags() == ["1.0.0", "stable"]
            assert remote.resolve("stable") == remote.resolve(pushed.digest) == pushed
            assert remote.resolve("2.0.0") is None
            assert remote.manifest(pushed.digest) == release()[1].encode()
            assert remote.has(BLOB.digest)
            assert not remote.has(digest_of_bytes(b"other"))
            remote.fetch(BLOB, tmp_path / "came")
            assert (tmp_path / "came").read_bytes() == MODEL_BYTES
            assert open_remote(f"{url}/none").tags() == []
            with pytest.raises(UsageError) as caught:
                remote.push_blob(describe(b"new", MODEL), b"new")
            refused(caught.value, "is read-only", code=2)
        finally:
            running.shutdown()
            thread.join()


def test_a_web_server_that_cuts_off_and_one_that_refuses(tmp_path: Path) -> None:
    def cutting(request: Request) -> Reply:
        reply = part(request, MODEL_BYTES)
        return reply._replace(cut=1_000_000) if len(reply.body) > 1_000_000 else reply

    def at(host: str) -> Layout:
        url = f"http://{host}/kws"
        return Layout(Web(url, loopback=True, patience=QUICK), url)

    with server(cutting) as running:
        at(running.host).fetch(BLOB, tmp_path / "came")
        assert [each.headers.get("range") for each in running.asked] == [None, "bytes=1000000-"]
    assert (tmp_path / "came").read_bytes() == MODEL_BYTES
    for status, words in {403: "denies access to", 500: "5 attempts", 418: "returned 418"}.items():
        replies = functools.partial(Reply, status)
        with server(lambda request, replies=replies: replies()) as running:  # type: ignore[misc]
            for ask in (Layout.tags, functools.partial(Layout.fetch, blob=BLOB, target=tmp_path / "none")):
                with pytest.raises(RemoteError) as caught:
                    ask(at(running.host))
                refused(caught.value, str(status), words)
    with server(lambda request: part(request, MODEL_BYTES[:-1] + b"?")) as running:
        with pytest.raises(VerificationError) as caught:
            at(running.host).fetch(BLOB, tmp_path / "none")
        refused(caught.value, BLOB.digest, code=1)
        with pytest.raises(VerificationError) as caught:
            at(running.host).tags()
        refused(caught.value, "index.json", code=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "is not a remote URL"),
        ("kws", "is not a remote URL"),
        ("/some/folder", "is not a remote URL"),
        ("ftp://host/kws", "'ftp' is not a supported URL scheme"),
        ("oci://", "is not a valid host"),
        ("oci://host", "is not a valid repository name"),
        ("oci://host/", "is not a valid repository name"),
        ("oci://host/Kws", "lowercase"),
        ("oci://host/a//b", "is not a valid repository name"),
        ("oci://host/../etc", "is not a valid repository name"),
        ("oci://host/kws%2f", "is not a valid repository name"),
        ("oci://host/kws ", "is not a valid repository name"),
        ("oci://host/ключ", "is not a valid repository name"),
        ("oci://host/" + "a" * 260, "is not a valid repository name"),
        ("oci://host/team/kws:1.0.0", "use oci://host/team/kws"),
        ("oci://host:99999/kws", "is not a valid host"),
        ("oci://ho_st/kws", "is not a valid host"),
        ("oci://-/kws", "is not a valid host"),
        ("oci://[::1/kws", "is not a valid host"),
        ("oci://host\n/kws", "contains unprintable characters"),
        ("oci://host/kws\0", "contains unprintable characters"),
        ("oci://host/\ud800", "contains unprintable characters"),
        ("oci://host/kws?x=1", "is not a valid repository name"),
        ("oci://user:pass-word@host/kws", "must not contain a user name or password"),
        ("https://user:pass-word@host/kws", "must not contain a user name or password"),
        ("file://relative/folder", "three slashes"),
        ("file:///folder%00", "is not an absolute path"),
        ("s3://", "is not a valid bucket name"),
        ("s3://UPPER/kws", "is not a valid bucket name"),
        ("s3://models/*", "is not a valid bucket prefix"),
        ("s3://models/a/../b", "is not a valid bucket prefix"),
        ("s3://models/a b", "is not a valid bucket prefix"),
        ("https://", "is not a valid host"),
        ("https://host/kws?x", "is not a valid URL path"),
        ("https://host/a b", "is not a valid URL path"),
        ("http://host/kws", "use https://host/"),
    ],
)
def test_an_address_that_cannot_be_is_explained(url: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote(url)
    refused(caught.value, word, code=2)
    assert "pass-word" not in str(caught.value)
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("oci://registry.example.com/team/kws", "https://registry.example.com"),
        ("oci://registry.example.com:5000/kws", "https://registry.example.com:5000"),
        ("oci+http://registry.example.com:5000/kws", "http://registry.example.com:5000"),
        ("oci://localhost:5000/kws", "http://localhost:5000"),
        ("oci://127.0.0.1/kws", "http://127.0.0.1"),
        ("oci://[::1]:5000/kws", "http://[::1]:5000"),
        ("oci+https://localhost:5000/kws", "https://localhost:5000"),
        ("oci://docker.io/team/kws", "https://registry-1.docker.io"),
        ("oci://localhost.example.com/kws", "https://localhost.example.com"),
        ("oci://127.0.0.1.example.com/kws", "https://127.0.0.1.example.com"),
    ],
)
def test_tls_is_spoken_but_with_the_loopback(url: str, origin: str) -> None:
    remote = open_remote(url)
    assert remote._origin == origin  # type: ignore[attr-defined]
    assert remote.url == re.sub(r"^oci\+https?", "oci", url)


def test_opening_a_remote_imports_no_framework(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from edgeopt.publish.remotes import open_remote\n"
        "from edgeopt.publish.remotes import bucket, registry, web\n"
        "heavy = {'requests', 'fsspec', 's3fs', 'botocore', 'aiohttp'} & set(sys.modules)\n"
        "open_remote('file:///none').tags()\n"
        "print(heavy, {'requests', 'fsspec'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set() set()\n"
