"""Servers on the loopback: Debian's docker-registry, a token service, and a misbehaving registry."""

import base64
import datetime
import ipaddress
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOCKER_REGISTRY = shutil.which("docker-registry")
SKOPEO = shutil.which("skopeo")
USER, PASSWORD = "builder", "correct horse"
_HTPASSWD = f"{USER}:$2b$04$bKE/VnJ4KOSMosOs46pFJeaCrvgcBkMcURQ/2PNwmMo6YrnMxGAim\n"
"""bcrypt of the password, at its lowest cost."""


class Authority(NamedTuple):
    """Certificates for a test."""

    bundle: Path
    certificate: Path
    key: Path


def make_authority(folder: Path) -> Authority:
    """A certificate authority, and a certificate by it for the loopback."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(ca_name, subject, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
        )

    unused = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    used = dict.fromkeys(["digital_signature", "key_cert_sign", "crl_sign"], True)
    usage = used | dict.fromkeys(unused.split(), False)
    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        builder(name, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    made.bundle.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


@contextmanager
def docker_registry(
    folder: Path, *, password: bool = False, authority: Authority | None = None, tokens: str = ""
) -> Iterator[str]:
    """Start a registry; yields ``127.0.0.1:port``.

    Args:
        folder: its configuration and storage.
        password: require ``USER`` and ``PASSWORD``.
        authority: use TLS with this certificate.
        tokens: address of the token service to trust; its certificate is ``tokens.pem`` in ``folder``.
    """
    assert DOCKER_REGISTRY
    folder.mkdir(exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "storage")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": "127.0.0.1:0", "secret": "of a test"}
        | (
            {"tls": {"certificate": str(authority.certificate), "key": str(authority.key)}}
            if authority
            else {}
        ),
    }
    if password:
        config["auth"] = {"htpasswd": {"realm": "test registry", "path": str(folder / "htpasswd")}}
    if tokens:
        config["auth"] = {
            "token": {
                "realm": tokens,
                "service": "test registry",
                "issuer": "tokens of a test",
                "rootcertbundle": str(folder / "tokens.pem"),
            }
        }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [DOCKER_REGISTRY, "serve", folder / "config.yml"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        for _ in range(400):
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.025)
        else:
            raise AssertionError(log.read_text())
        yield found[1]
    finally:
        process.kill()
        process.wait()


class Request(NamedTuple):
    """A request received by a test server."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    count: int
    """Number of earlier requests with this method and path."""


class Reply(NamedTuple):
    """A response, sent after ``pause`` seconds. ``cut``: bytes of the body before the connection closes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012
    cut: int | None = None
    pause: float = 0.0
    drip: float = 0.0
    """Seconds between two bytes of the body; ``drip_head``: of the status line as well."""
    drip_head: bool = False
    length: bool = True
    """Whether to send Content-Length."""


class Server(NamedTuple):
    """A running server; ``asked`` grows with every request."""

    host: str
    asked: list[Request]


@contextmanager
def server(answer: Callable[[Request], Reply | None]) -> Iterator[Server]:
    """A server of one function; for None, it closes the connection without a response."""
    asked: list[Request] = []
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            count = sum(1 for each in asked if (each.method, each.path) == (self.command, path))
            headers = {key.lower(): value for key, value in self.headers.items()}
            headers["query"] = urlsplit(self.path).query
            request = Request(self.command, path, headers, body, count)
            asked.append(request)
            reply = answer(request)
            if reply is None:
                self.close_connection = True
                return
            closing.wait(reply.pause)
            if reply.drip_head:
                self.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 10_000, reply.drip)
                return
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            if reply.length:
                self.send_header("Content-Length", str(len(reply.body)))
            else:
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD" and reply.drip:
                self.drip(reply.body, reply.drip)
            elif self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def drip(self, data: bytes, seconds: float) -> None:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if closing.wait(seconds):
                    break

        do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            # The client was killed or gave up.
            with suppress(ConnectionError, TimeoutError):
                super().handle()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Server(f"127.0.0.1:{running.server_port}", asked)
    finally:
        closing.set()
        running.shutdown()
        running.server_close()
        thread.join()


def part(request: Request, body: bytes, **more: object) -> Reply:
    """A body, or the requested range of it."""
    requested = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if not requested:
        return Reply(200, body)._replace(**more)
    start = int(requested[1])
    headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    return Reply(206, body[start:], headers)._replace(**more)


class Tokens:
    """A token service as specified by the distribution project (JWT, RS256).

    ``anonymous`` are the actions allowed without a login; with the password, all are allowed.
    """

    def __init__(self, folder: Path, anonymous: tuple[str, ...] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self._key = rsa.generate_private_key(65537, 2048)
        self._anonymous = anonymous
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens of a test")])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = x509.CertificateBuilder(
            name,
            name,
            self._key.public_key(),
            x509.random_serial_number(),
            now - datetime.timedelta(hours=1),
            now + datetime.timedelta(hours=1),
        ).sign(self._key, hashes.SHA256())
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        (folder / "tokens.pem").write_bytes(pem)

    def answer(self, request: Request) -> Reply:
        """Return a token for the requested scope, or refuse."""
        if request.method == "POST":
            asked = parse_qs(request.body.decode())
            known = asked.get("refresh_token") == [PASSWORD] and asked.get("grant_type") == ["refresh_token"]
            login = "Bearer" if known else "wrong"
        else:
            asked = parse_qs(request.headers["query"])
            login = request.headers.get("authorization", "")
            known = login == f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if login and not known:
            return Reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        access = []
        for scope in asked.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = [each for each in actions.split(",") if known or each in self._anonymous]
            access.append({"type": kind, "name": name, "actions": allowed})
        token = self._signed({"access": access})
        return Reply(200, json.dumps({"access_token" if login == "Bearer" else "token": token}).encode())

    def _signed(self, claims: dict[str, object]) -> str:
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        body = {
            "iss": "tokens of a test",
            "sub": USER,
            "aud": "test registry",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": str(now),
        } | claims
        text = ".".join(_url64(json.dumps(each).encode()) for each in (head, body))
        return f"{text}.{_url64(self._key.sign(text.encode(), PKCS1v15(), hashes.SHA256()))}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
