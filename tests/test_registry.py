"""A real registry, with passwords, tokens and TLS: other clients read the pushed data; and a faulty one."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.errors import EdgeoptError, RemoteError, UsageError, VerificationError
from edgeopt.publish.oci import (
    BUNDLE,
    CONFIG,
    INDEX,
    KIT,
    MANIFEST,
    MODEL,
    RELEASE,
    TITLE,
    Descriptor,
    Index,
    Manifest,
    describe,
    digest_of_bytes,
    read_index,
)
from edgeopt.publish.remotes import open_remote
from edgeopt.publish.remotes.credentials import Credentials, credentials_for
from edgeopt.publish.remotes.patience import Patience
from edgeopt.publish.remotes.registry import Registry
from registry import (
    DOCKER_REGISTRY,
    PASSWORD,
    SKOPEO,
    USER,
    Authority,
    Reply,
    Request,
    Tokens,
    docker_registry,
    make_authority,
    part,
    server,
)

needs_registry = pytest.mark.skipif(DOCKER_REGISTRY is None, reason="no docker-registry here: install it")
needs_skopeo = pytest.mark.skipif(SKOPEO is None, reason="no skopeo here: install it")
MODEL_BYTES = bytes(range(256)) * 400
KIT_BYTES = b"PK" + bytes(1000)
QUICK = Patience(connect=2.0, read=0.4, attempts=5, backoff=0.01, longest=0.2)
BLOB = describe(MODEL_BYTES, MODEL)
BLOB_PATH = f"/v2/team/kws/blobs/{BLOB.digest}"


@pytest.fixture(autouse=True)
def nobodys_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate tests from the user's stored logins; returns the folder of docker's configuration."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for variable in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "EDGEOPT_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if DOCKER_REGISTRY is None:
        pytest.skip("no docker-registry here: install it")
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def log_in(folder: Path, host: str, password: str = PASSWORD) -> None:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def release() -> tuple[Manifest, Index]:
    config = describe(b'{"device": "cortex-m"}', CONFIG)
    manifest = Manifest(
        artifact_type=BUNDLE,
        config=config,
        layers=(
            describe(MODEL_BYTES, MODEL, annotations={TITLE: "kws.tflite"}),
            describe(KIT_BYTES, KIT, annotations={TITLE: "kit.zip"}),
        ),
        annotations={"org.edgeopt.device": "cortex-m"},
    )
    bundle = describe(
        manifest.encode(), MANIFEST, artifact_type=BUNDLE, annotations={"org.edgeopt.format": "tflite"}
    )
    index = Index(artifact_type=RELEASE, manifests=(bundle,), annotations={"org.edgeopt.name": "kws – ü"})
    return manifest, index


def push(remote: Registry, source: Path, *tags: str) -> Descriptor:
    manifest, index = release()
    source.write_bytes(MODEL_BYTES)
    remote.push_blob(manifest.config, b'{"device": "cortex-m"}')
    remote.push_blob(manifest.layers[0], source)
    remote.push_blob(manifest.layers[1], KIT_BYTES)
    remote.push_manifest(manifest.encode(), MANIFEST)
    return remote.push_manifest(index.encode(), INDEX, tags)


def at(host: str, repository: str = "team/kws", *, secure: bool | None = None) -> Registry:
    return Registry(host, repository, secure=secure, patience=QUICK)


def refused(error: EdgeoptError, *words: str, code: int = 3) -> None:
    assert error.exit_code == code
    assert error.fix
    for word in words:
        assert word in str(error)
    assert PASSWORD not in str(error)


def test_a_release_comes_back_byte_for_byte(registry: str, tmp_path: Path) -> None:
    remote = open_remote(f"oci://{registry}/team/kws")
    assert isinstance(remote, Registry)
    assert remote.url == f"oci://{registry}/team/kws"
    assert remote.tags() == []
    assert remote.resolve("1.0.0") is None
    pushed = push(remote, tmp_path / "model", "1.0.0", "stable")
    again = push(remote, tmp_path / "model", "1.0.1")

    fresh = at(registry)
    assert fresh.tags() == ["1.0.0", "1.0.1", "stable"]
    assert (
        fresh.resolve("stable") == fresh.resolve("1.0.0") == fresh.resolve(pushed.digest) == pushed == again
    )
    manifest, index = release()
    assert fresh.manifest(pushed.digest) == index.encode()
    assert fresh.manifest(index.manifests[0].digest) == manifest.encode()
    assert read_index(fresh.manifest(pushed.digest), "").artifact_type == RELEASE
    assert fresh.has(BLOB.digest)
    assert not fresh.has(digest_of_bytes(b"other"))

    target, steps = tmp_path / "came", []
    fresh.fetch(BLOB, target, steps.append)
    assert target.read_bytes() == MODEL_BYTES
    assert sum(steps) == len(MODEL_BYTES)


def test_progress_of_a_push_is_the_size_once(registry: str, tmp_path: Path) -> None:
    remote, steps = at(registry, "progress"), []
    data = os.urandom(3 << 20)
    remote.push_blob(describe(data, MODEL), data, steps.append)
    assert sum(steps) == len(data)
    remote.push_blob(describe(data, MODEL), data, steps.append)
    assert sum(steps) == 2 * len(data)


def test_empty_content_travels_too(registry: str, tmp_path: Path) -> None:
    remote, blob = at(registry, "empty"), describe(b"", MODEL)
    remote.push_blob(blob, b"")
    remote.fetch(blob, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == b""


def test_content_that_is_not_its_digest_is_not_pushed(registry: str, tmp_path: Path) -> None:
    remote = at(registry, "wrong")
    with pytest.raises(VerificationError) as caught:
        remote.push_blob(BLOB, MODEL_BYTES[:-1] + b"?")
    refused(caught.value, BLOB.digest, code=1)
    with pytest.raises(VerificationError) as caught:
        remote.push_blob(BLOB, MODEL_BYTES[:-1])
    refused(caught.value, BLOB.digest, code=1)
    assert not remote.has(BLOB.digest)


def test_a_manifest_without_its_content_is_refused(registry: str) -> None:
    manifest, _ = release()
    with pytest.raises(RemoteError) as caught:
        at(registry, "incomplete").push_manifest(manifest.encode(), MANIFEST, ["1.0.0"])
    refused(caught.value, "400", "MANIFEST_BLOB_UNKNOWN")
    assert at(registry, "incomplete").tags() == []


@needs_skopeo
def test_skopeo_reads_and_copies_what_was_pushed(registry: str, tmp_path: Path) -> None:
    pushed = push(at(registry, "skopeo"), tmp_path / "model", "1.0.0")
    manifest, index = release()

    def skopeo(*arguments: str) -> bytes:
        policy = ["--insecure-policy"]
        done = subprocess.run([SKOPEO, *policy, *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    source = f"docker://{registry}/skopeo"
    assert skopeo("inspect", "--tls-verify=false", "--raw", f"{source}:1.0.0") == index.encode()
    bundle = index.manifests[0].digest
    assert skopeo("inspect", "--tls-verify=false", "--raw", f"{source}@{bundle}") == manifest.encode()
    config = skopeo("inspect", "--tls-verify=false", "--raw", "--config", f"{source}@{bundle}")
    assert json.loads(config) == {"device": "cortex-m"}
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", source))
    assert listed["Tags"] == ["1.0.0"]
    # It copies a bundle byte for byte, but rewrites an index from the fields that it knows.
    copy = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    skopeo(*copy, "--preserve-digests", f"{source}@{bundle}", f"docker://{registry}/copied:bundle")
    skopeo(*copy, "--all", f"{source}:1.0.0", f"docker://{registry}/copied:1.0.0")
    copied = at(registry, "copied")
    found = copied.resolve("bundle")
    assert found is not None
    assert found.digest == bundle
    found = copied.resolve("1.0.0")
    assert found is not None
    assert found.digest != pushed.digest
    assert [each.digest for each in read_index(copied.manifest(found.digest), "").manifests] == [bundle]
    copied.fetch(BLOB, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == MODEL_BYTES


def test_oras_pulls_the_files_by_their_names(registry: str, tmp_path: Path) -> None:
    import oras.provider

    push(at(registry, "oras"), tmp_path / "model", "1.0.0")
    manifest, index = release()
    client = oras.provider.Registry(hostname=registry, insecure=True)
    assert client.get_tags(f"{registry}/oras") == ["1.0.0"]
    assert client.get_manifest(f"{registry}/oras:1.0.0")["artifactType"] == RELEASE
    bundle = f"{registry}/oras@{index.manifests[0].digest}"
    assert client.get_manifest(bundle) == json.loads(manifest.encode())
    files = client.pull(target=bundle, outdir=str(tmp_path / "out"))
    assert [Path(file).name for file in files] == ["kws.tflite", "kit.zip"]
    assert Path(files[0]).read_bytes() == MODEL_BYTES
    assert Path(files[1]).read_bytes() == KIT_BYTES


@needs_registry
def test_basic_authentication_as_docker_login_stores_it(tmp_path: Path, nobodys_login: Path) -> None:
    with docker_registry(tmp_path / "registry", password=True) as host:
        with pytest.raises(RemoteError) as caught:
            at(host).tags()
        refused(caught.value, "401", f"docker login {host}")
        log_in(nobodys_login, host, "wrong horse")
        with pytest.raises(RemoteError) as caught:
            at(host).push_blob(BLOB, MODEL_BYTES)
        refused(caught.value, "401", f"docker login {host}")
        assert "wrong horse" not in str(caught.value)

        log_in(nobodys_login, host)
        push(at(host), tmp_path / "model", "1.0.0")
        assert at(host).tags() == ["1.0.0"]

        # The same with a credential helper, which alone has the password.
        helper = tmp_path / "bin" / "docker-credential-test"
        helper.parent.mkdir()
        asked = tmp_path / "asked"
        answer = json.dumps({"ServerURL": host, "Username": USER, "Secret": PASSWORD})
        helper.write_text(f"#!/bin/sh\n[ $1 = get ] || exit 2\ncat > {asked}\necho '{answer}'\n")
        helper.chmod(0o755)
        (nobodys_login / "config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(helper.parent), prepend=os.pathsep)
            at(host).fetch(BLOB, tmp_path / "came")
        assert asked.read_text() == host
        assert (tmp_path / "came").read_bytes() == MODEL_BYTES


@needs_registry
def test_tokens_are_asked_for_and_widened(tmp_path: Path, nobodys_login: Path) -> None:
    folder = tmp_path / "registry"
    tokens = Tokens(folder, anonymous=("pull",))
    with (
        server(tokens.answer) as service,
        docker_registry(folder, tokens=f"http://{service.host}/token") as host,
    ):
        with pytest.raises(RemoteError) as caught:
            at(host).push_blob(BLOB, MODEL_BYTES)
        refused(caught.value, "401", f"docker login {host}")

        log_in(nobodys_login, host)
        remote = at(host)
        assert remote.tags() == []  # a read token, too narrow for the push that follows
        push(remote, tmp_path / "model", "1.0.0")
        assert remote.tags() == ["1.0.0"]

        (nobodys_login / "config.json").unlink()
        at(host).fetch(BLOB, tmp_path / "came")  # anonymously, as the service allows
        assert (tmp_path / "came").read_bytes() == MODEL_BYTES

        identity = {"auths": {host: {"identitytoken": PASSWORD}}}
        (nobodys_login / "config.json").write_text(json.dumps(identity))
        push(at(host, "other"), tmp_path / "model", "2.0.0")
        assert [each.method for each in service.asked].count("POST") >= 1

        log_in(nobodys_login, host, "wrong horse")
        with pytest.raises(RemoteError) as caught:
            at(host).tags()
        refused(caught.value, "401", f"docker login {host}")


def test_a_service_of_tokens_that_fails_is_named(tmp_path: Path) -> None:
    replies = iter([Reply(503), Reply(200, b"<html>"), Reply(200, b'{"token": "a\\nb"}')])

    def answer(request: Request) -> Reply:
        if request.path == "/token":
            return next(replies)
        realm = f'Bearer realm="http://{request.headers["host"]}/token",service="s",scope="repository:a:pull"'
        return Reply(401, headers={"Www-Authenticate": realm})

    with server(answer) as running:
        for _ in range(2):
            with pytest.raises(RemoteError) as caught:
                at(running.host).tags()
            refused(caught.value, "a response without a valid token")


@pytest.mark.parametrize("realm", ["http://elsewhere.example/token", "ftp://elsewhere.example", ""])
def test_a_password_never_leaves_tls(realm: str, tmp_path: Path, authority: Authority) -> None:
    from edgeopt.publish.remotes.authority import _checked_realm

    with pytest.raises(RemoteError, match="insecure token service"):
        _checked_realm(realm, "https://registry.example", "registry.example")


@pytest.mark.parametrize(
    ("registry", "realm", "fits"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token", True),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", True),
        ("https://ghcr.io", "https://ghcr.io/token", True),
        ("https://gitlab.example.co.uk:5050", "https://gitlab.example.co.uk/jwt/auth", True),
        ("https://registry.example.co.uk", "https://auth.example.co.uk/token", True),
        ("http://127.0.0.1:5000", "http://127.0.0.1:6000/token", True),
        ("https://registry.example.com", "https://tokens.listed.net/token", True),
        ("https://registry.example.com", "https://example.com.attacker.net/token", False),
        ("https://registry.example.com", "https://auth-example.com/token", False),
        ("https://registry.example.com", "https://registry.example.com@attacker.net/token", False),
        ("https://registry.example.com", "https://x@registry.example.com/token", False),
        ("https://example.co.uk", "https://attacker.co.uk/token", False),
        ("https://mine.azurecr.io", "https://other.azurecr.io/token", False),
        ("https://mine.azurecr.io", "https://mine.azurecr.io/oauth2/token", True),
        ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token", False),
        ("http://10.1.0.1:5000", "http://10.2.0.1:5000/token", False),
        ("http://localhost:5000", "http://attacker:5000/token", False),
        ("http://[::1]:5000", "http://[::2]:5000/token", False),
        ("https://registry.example.com", "https:///token", False),
    ],
)
def test_a_password_goes_to_token_services_of_the_same_owner(
    monkeypatch: pytest.MonkeyPatch, registry: str, realm: str, fits: bool
) -> None:
    from edgeopt.publish.remotes.authority import may_log_in

    monkeypatch.setenv("EDGEOPT_TOKEN_HOSTS", "other.net, tokens.listed.net")
    assert may_log_in(realm, registry) is fits


@pytest.mark.parametrize("identity", [False, True])
def test_a_token_service_elsewhere_gets_no_password(
    nobodys_login: Path, monkeypatch: pytest.MonkeyPatch, identity: bool
) -> None:
    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer fine":
            return Reply(200, b'{"tags": []}')
        return Reply(401, headers={"Www-Authenticate": f'Bearer realm="{realm}",service="s"'})

    def elsewhere(request: Request) -> Reply:
        return Reply(200, b'{"token": "fine"}')

    with server(elsewhere) as service, server(registry) as running:
        realm = f"http://localhost:{service.host.partition(':')[2]}/token"
        assert at(running.host).tags() == []  # anonymously, anywhere
        if identity:
            entry = {"auths": {running.host: {"identitytoken": PASSWORD}}}
            (nobodys_login / "config.json").write_text(json.dumps(entry))
        else:
            log_in(nobodys_login, running.host)
        with pytest.raises(RemoteError) as caught:
            at(running.host).tags()
        refused(
            caught.value, "another host: no password is sent to localhost", "EDGEOPT_TOKEN_HOSTS=localhost"
        )
        assert [each.headers.get("authorization") for each in service.asked] == [None]
        monkeypatch.setenv("EDGEOPT_TOKEN_HOSTS", "localhost")
        assert at(running.host).tags() == []


def test_a_redirected_token_service_gets_no_identity_token(nobodys_login: Path) -> None:
    def elsewhere(request: Request) -> Reply:
        return Reply(200, b'{"token": "fine"}')

    def registry(request: Request) -> Reply:
        if request.path == "/token":
            return Reply(307, headers={"Location": f"http://{service.host}/token"})
        realm = f'Bearer realm="http://{request.headers["host"]}/token",service="s"'
        return Reply(401, headers={"Www-Authenticate": realm})

    with server(elsewhere) as service, server(registry) as running:
        entry = {"auths": {running.host: {"identitytoken": PASSWORD}}}
        (nobodys_login / "config.json").write_text(json.dumps(entry))
        with pytest.raises(RemoteError):
            at(running.host).tags()
        assert service.asked == []


@pytest.mark.parametrize("head", [False, True])
def test_a_registry_that_drips_is_given_up(tmp_path: Path, head: bool) -> None:
    def answer(request: Request) -> Reply:
        return Reply(200, MODEL_BYTES, drip=0.05, drip_head=head)

    with server(answer) as running:
        begun = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            at(running.host).fetch(BLOB, tmp_path / "came")
        assert time.monotonic() - begun < 20
        refused(caught.value, "5 attempts", "sent no data for 0.4 s" if head else "sent only")


def test_no_login_goes_to_another_server(tmp_path: Path, nobodys_login: Path) -> None:
    def elsewhere(request: Request) -> Reply:
        return part(request, MODEL_BYTES)

    with server(elsewhere) as store:

        def answer(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, headers={"Www-Authenticate": 'Basic realm="here"'})
            return Reply(307, headers={"Location": f"http://localhost:{store.host.rpartition(':')[2]}/blob"})

        with server(answer) as running:
            log_in(nobodys_login, running.host)
            at(running.host).fetch(BLOB, tmp_path / "came")
        assert (tmp_path / "came").read_bytes() == MODEL_BYTES
        assert len(store.asked) == 1
        assert "authorization" not in store.asked[0].headers


def test_a_registry_that_repeats_the_password_is_not_quoted(nobodys_login: Path) -> None:
    def answer(request: Request) -> Reply:
        login = request.headers.get("authorization", "")
        if not login:
            return Reply(401, headers={"Www-Authenticate": 'Basic realm="here"'})
        said = base64.b64decode(login.removeprefix("Basic ")).decode()
        return Reply(418, json.dumps({"errors": [{"code": "TEAPOT", "message": f"{said} {login}"}]}).encode())

    with server(answer) as running:
        log_in(nobodys_login, running.host)
        with pytest.raises(RemoteError) as caught:
            at(running.host).tags()
    refused(caught.value, "418", "TEAPOT")
    assert base64.b64encode(PASSWORD.encode()).decode()[:-4] not in str(caught.value)
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in str(caught.value)


@needs_registry
def test_tls_with_an_authority_of_our_own(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, nobodys_login: Path
) -> None:
    with docker_registry(tmp_path / "registry", authority=authority, password=True) as host:
        log_in(nobodys_login, host)
        with pytest.raises(RemoteError) as caught:
            at(host, secure=True).tags()
        refused(caught.value, "is not trusted", "EDGEOPT_CA_BUNDLE")
        with pytest.raises(RemoteError) as caught:
            at(host).tags()
        refused(caught.value, "requires TLS", "oci+https://")

        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "EDGEOPT_CA_BUNDLE"):
            with monkeypatch.context() as patch:
                for other in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                    patch.delenv(other, raising=False)
                patch.setenv(variable, str(authority.bundle))
                push(at(host, secure=True), tmp_path / "model", variable.lower())
        monkeypatch.setenv("EDGEOPT_CA_BUNDLE", str(authority.bundle))
        remote = open_remote(f"oci+https://{host}/team/kws")
        assert remote.tags() == ["edgeopt_ca_bundle", "requests_ca_bundle", "ssl_cert_file"]
        remote.fetch(BLOB, tmp_path / "came")
        assert (tmp_path / "came").read_bytes() == MODEL_BYTES

    monkeypatch.setenv("EDGEOPT_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(UsageError, match=r"EDGEOPT_CA_BUNDLE names .*gone\.pem, which does not exist"):
        at(host)


def test_a_registry_without_tls_is_told_apart(registry: str) -> None:
    with pytest.raises(RemoteError) as caught:
        at(registry, secure=True).tags()
    refused(caught.value, "does not support TLS", "oci+http://")


def test_a_registry_that_is_down_is_told_at_once() -> None:
    with server(lambda request: Reply()) as running:
        host = running.host
    with pytest.raises(RemoteError) as caught:
        Registry(host, "kws").tags()  # with the default timeouts
    refused(caught.value, host, "refused the connection", "check that the server is running")
    with pytest.raises(RemoteError) as caught:
        Registry("no-such-host.invalid", "kws", patience=QUICK).tags()
    refused(caught.value, "no-such-host.invalid")


def test_a_silent_registry_is_given_up(tmp_path: Path) -> None:
    with server(lambda request: Reply(pause=2.0)) as running:
        with pytest.raises(RemoteError) as caught:
            at(running.host).fetch(BLOB, tmp_path / "came")
        assert len(running.asked) == 5
    refused(caught.value, "sent no data for 0.4 s", "5 attempts", "EDGEOPT_READ_TIMEOUT")
    assert not (tmp_path / "came").exists()


def test_timeouts_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_READ_TIMEOUT", "0.2")
    with server(lambda request: Reply(pause=2.0)) as running:
        remote = Registry(running.host, "kws")
        remote._http.patience = remote._http.patience._replace(attempts=1)
        with pytest.raises(RemoteError, match=r"sent no data for 0\.2 s"):
            remote.tags()
    monkeypatch.setenv("EDGEOPT_CONNECT_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="EDGEOPT_CONNECT_TIMEOUT is 'soon', not a time"):
        Registry("localhost", "kws")


def test_a_blob_that_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        reply = part(request, MODEL_BYTES)
        return reply._replace(cut=30_000) if len(reply.body) > 30_000 else reply

    target, steps = tmp_path / "came", []
    with server(answer) as running:
        at(running.host).fetch(BLOB, target, steps.append)
    assert [each.headers.get("range") for each in running.asked] == [
        None,
        "bytes=30000-",
        "bytes=60000-",
        "bytes=90000-",
    ]
    assert target.read_bytes() == MODEL_BYTES
    assert sum(steps) == len(MODEL_BYTES)


def test_what_an_earlier_process_left_is_its_beginning(tmp_path: Path) -> None:
    target = tmp_path / "came"
    target.write_bytes(MODEL_BYTES[:50_000])
    with server(lambda request: part(request, MODEL_BYTES)) as running:
        at(running.host).fetch(BLOB, target)
        assert running.asked[0].headers["range"] == "bytes=50000-"
        at(running.host).fetch(BLOB, target)  # complete: no request
        assert len(running.asked) == 1
        target.write_bytes(b"?" * 50_000)  # different content
        at(running.host).fetch(BLOB, target)
        target.write_bytes(MODEL_BYTES + b"?")
        at(running.host).fetch(BLOB, target)
    assert target.read_bytes() == MODEL_BYTES


def test_a_registry_that_knows_no_ranges_begins_again(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply(200, MODEL_BYTES, cut=None if request.count else 30_000)

    target, steps = tmp_path / "came", []
    with server(answer) as running:
        at(running.host).fetch(BLOB, target, steps.append)
    assert target.read_bytes() == MODEL_BYTES
    assert sum(steps) == len(MODEL_BYTES)


def test_a_registry_that_always_cuts_is_given_up_and_what_came_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "came"
    with server(lambda request: part(request, MODEL_BYTES, cut=1000)) as running:
        with pytest.raises(RemoteError) as caught:
            at(running.host).fetch(BLOB, target)
        assert len(running.asked) == 5
    refused(caught.value, "the transfer was interrupted", "5 attempts", "resumes where it stopped")
    assert target.read_bytes() == MODEL_BYTES[:5000]
    with server(lambda request: None) as running, pytest.raises(RemoteError) as caught:
        at(running.host).fetch(BLOB, tmp_path / "other")
    refused(caught.value, "closed the connection", "5 attempts")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(
    "body",
    [MODEL_BYTES[:-1] + b"?", MODEL_BYTES + b"?", MODEL_BYTES[:-1], b""],
    ids=lambda body: str(len(body)),
)
def test_wrong_bytes_are_refused_and_removed(body: bytes, length: bool, tmp_path: Path) -> None:
    target = tmp_path / "came"
    with server(lambda request: part(request, body, length=length)) as running:
        if not length and len(body) < len(MODEL_BYTES):
            # It is indistinguishable from an interrupted connection.
            with pytest.raises((RemoteError, VerificationError)):
                at(running.host).fetch(BLOB, target)
            return
        with pytest.raises(VerificationError) as caught:
            at(running.host).fetch(BLOB, target)
    refused(caught.value, BLOB.digest, running.host, code=1)
    assert not target.exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ("401", "docker login")),
        (403, ("403", "docker login")),
        (404, ("404", BLOB.digest)),
        (429, ("429", "5 attempts")),
        (500, ("500", "5 attempts")),
        (502, ("502", "5 attempts")),
        (503, ("503", "5 attempts")),
        (418, ("418", "TEAPOT short and stout")),
    ],
)
def test_a_status_says_what_to_do(status: int, words: tuple[str, ...], tmp_path: Path) -> None:
    body = json.dumps({"errors": [{"code": "TEAPOT", "message": "short and\x1b[31m\nstout"}]}).encode()
    body = body.replace(b"\\u001b[31m", b"")
    with server(lambda request: Reply(status, body)) as running:
        with pytest.raises(RemoteError) as caught:
            at(running.host).fetch(BLOB, tmp_path / "came")
        assert len(running.asked) == (5 if "5 attempts" in words else 1)
    refused(caught.value, *words)
    assert str(caught.value).isascii()
    assert not (tmp_path / "came").exists()


def test_retry_after_is_honoured_up_to_a_limit(tmp_path: Path) -> None:
    import time

    def answer(request: Request) -> Reply:
        told = ["1", "86400", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"]
        if request.count < len(told):
            return Reply(429, headers={"Retry-After": told[request.count]})
        return Reply(200, MODEL_BYTES)

    with server(answer) as running:
        began = time.monotonic()
        at(running.host).fetch(BLOB, tmp_path / "came")
        assert 0.6 <= time.monotonic() - began < 5  # three times the longest wait, which is 0.2 s
    assert len(running.asked) == 5


def test_an_upload_is_sent_again_as_a_whole(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(MODEL_BYTES)
    uploads: list[bytes] = []

    def answer(request: Request) -> Reply | None:
        if request.method == "HEAD":
            return Reply(404)
        if request.method == "POST":
            return Reply(202, headers={"Location": "/v2/team/kws/blobs/uploads/1?state=a%2Bb"})
        uploads.append(request.body)
        assert request.headers["query"] == f"state=a%2Bb&digest=sha256%3A{BLOB.digest[7:]}"
        return [None, Reply(503), Reply(201)][request.count]

    steps: list[int] = []
    with server(answer) as running:
        at(running.host).push_blob(BLOB, source, steps.append)
    assert uploads == [MODEL_BYTES] * 3
    assert sum(steps) == len(MODEL_BYTES)


def test_all_pages_of_tags_are_read() -> None:
    def answer(request: Request) -> Reply:
        last = request.headers["query"].partition("last=")[2]
        pages = {"": (["c", "a"], "c"), "c": (["b"], "b"), "b": (None, "")}
        names, following = pages[last]
        link = {"Link": f'</v2/team/kws/tags/list?last={following}>; rel="next"'} if following else {}
        return Reply(200, json.dumps({"name": "team/kws", "tags": names}).encode(), link)

    with server(answer) as running:
        assert at(running.host).tags() == ["a", "b", "c"]
        assert len(running.asked) == 3
    circle = Reply(200, b'{"tags": ["a"]}', {"Link": '<?n=1000>; rel="next"'})
    with server(lambda request: circle) as running:
        assert at(running.host).tags() == ["a"]
    page = Reply(200, b"<html>a login page</html>")
    with server(lambda request: page) as running, pytest.raises(RemoteError) as caught:
        at(running.host).tags()
    refused(caught.value, "malformed list of tags", "address of a registry")


def test_a_manifest_is_what_its_digest_says() -> None:
    data = release()[1].encode()
    digest = digest_of_bytes(data)

    def wrong(request: Request) -> Reply:
        return Reply(200, data + b" ", {"Content-Type": INDEX})

    with server(wrong) as running:
        with pytest.raises(VerificationError) as caught:
            at(running.host).manifest(digest)
        refused(caught.value, digest, "another digest", code=1)
    lying = Reply(200, data, {"Content-Type": INDEX, "Docker-Content-Digest": digest_of_bytes(b"other")})
    with server(lambda request: lying) as running:
        with pytest.raises(VerificationError) as caught:
            at(running.host).resolve("stable")
        refused(caught.value, digest, "stable", code=1)
    huge = Reply(200, b" " * ((4 << 20) + 1), {"Content-Type": INDEX})
    with server(lambda request: huge) as running:
        with pytest.raises(VerificationError) as caught:
            at(running.host).resolve("stable")
        refused(caught.value, "longer than 4194304 bytes", code=1)
    with server(lambda request: Reply(404)) as running:
        with pytest.raises(RemoteError) as caught:
            at(running.host).manifest(digest)
        refused(caught.value, digest, "404")


def test_memory_does_not_grow_with_a_blob(tmp_path: Path) -> None:
    """Push and fetch a sparse file of 300 MB; the process reports its own growth."""
    if DOCKER_REGISTRY is None:
        pytest.skip("no docker-registry here: install it")
    program = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from edgeopt.publish.oci import Descriptor\n"
        "from edgeopt.publish.remotes import library\n"
        "from edgeopt.publish.remotes.registry import Registry\n"
        "host, folder = sys.argv[1], Path(sys.argv[2])\n"
        "source, size = folder / 'hole', 300 << 20\n"
        "with source.open('wb') as file: file.truncate(size)\n"
        "with source.open('rb') as file: digest = hashlib.file_digest(file, 'sha256').hexdigest()\n"
        "remote, shelf = Registry(host, 'big'), library(folder / 'shelf')\n"
        "remote.tags()\n"
        "blob = Descriptor(media_type='a/b', digest=f'sha256:{digest}', size=size)\n"
        # Not ru_maxrss, which starts at the value of the parent process.
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "remote.push_blob(blob, source)\n"
        "remote.fetch(blob, folder / 'came')\n"
        "shelf.push_blob(blob, folder / 'came')\n"
        "print(peak() - before)\n"
    )
    with docker_registry(tmp_path / "registry") as host:
        done = subprocess.run(
            [sys.executable, "-c", program, host, tmp_path], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 30_000  # KiB


def test_credentials_are_found_where_docker_and_podman_keep_them(
    tmp_path: Path, nobodys_login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = nobodys_login / "config.json"
    auth = base64.b64encode(f"{USER}:a:b".encode()).decode()
    config.write_text(json.dumps({"auths": {"https://one.example/v1/": {"auth": auth}, "two.example": {}}}))
    assert credentials_for("one.example") == Credentials(USER, "a:b")
    assert "a:b" not in repr(credentials_for("one.example"))
    assert credentials_for("two.example") is None
    assert credentials_for("example") is None
    podman = tmp_path / "auth.json"
    podman.write_text(json.dumps({"auths": {"two.example": {"auth": auth}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(podman))
    assert credentials_for("two.example") == Credentials(USER, "a:b")

    config.write_text(json.dumps({"auths": {"docker.io": {}, "one.example": {"auth": "c2VjcmV0"}}}))
    with pytest.raises(UsageError) as caught:
        credentials_for("one.example")
    refused(caught.value, "one.example is damaged", "docker login one.example", code=2)
    config.write_text("{")
    with pytest.raises(UsageError) as caught:
        credentials_for("one.example")
    refused(caught.value, "it is not JSON", code=2)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ('echo \'{"Username": "<token>", "Secret": "t"}\'', Credentials("<token>", "t", identity=True)),
        ("echo credentials not found in native keychain; exit 1", None),
        (f"echo {PASSWORD}; exit 1", "docker-credential-test failed for one.example"),
        (f"echo '{PASSWORD}'", "docker-credential-test returned no credentials"),
        (None, "docker-credential-test cannot be started"),
    ],
)
def test_credential_helpers(
    script: str | None,
    outcome: object,
    tmp_path: Path,
    nobodys_login: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (nobodys_login / "config.json").write_text(json.dumps({"credsStore": "test"}))
    if script:
        helper = tmp_path / "docker-credential-test"
        helper.write_text(f"#!/bin/sh\n{script}\n")
        helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if isinstance(outcome, str):
        with pytest.raises(RemoteError) as caught:
            credentials_for("one.example")
        refused(caught.value, outcome, "docker login one.example")
    else:
        assert credentials_for("one.example") == outcome
    (nobodys_login / "config.json").write_text(json.dumps({"credsStore": "../bad"}))
    with pytest.raises(UsageError, match="not a valid credential helper name"):
        credentials_for("one.example")
