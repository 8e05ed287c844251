import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.trust.signing import SIGNATURE, sign, verify


def write_pair(folder: Path, key: PrivateKeyTypes, password: bytes = b"") -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "private.pem", folder / "public.pem"
    closing: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closing))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "golden").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(bytes(range(256)) * 100)
    (folder / "manifest.json").write_text('{"name": "kws"}')
    (folder / "golden" / "vectors.npz").write_bytes(b"golden")
    (folder / ".hidden").write_bytes(b"of the bundle as well")
    return folder


def refused(folder: Path, key: Path) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(folder, key)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_what_was_signed_verifies_wherever_it_lies(bundle: Path, pair: tuple[Path, Path]) -> None:
    sign(bundle, pair[0])
    verify(bundle, pair[1])
    moved = bundle.rename(bundle.with_name("elsewhere"))
    verify(moved, pair[1])
    sign(moved, pair[0])  # again, in the new location
    verify(moved, pair[1])
    assert sorted(path.name for path in moved.iterdir()) == sorted(
        [".hidden", "golden", "manifest.json", SIGNATURE, "model.tflite"]
    )


def test_it_signs_from_a_relative_path_as_well(
    bundle: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    sign(Path("bundle"), pair[0])
    verify(Path("bundle"), pair[1])
    verify(bundle, pair[1])


def _change(folder: Path) -> None:
    (folder / "model.tflite").write_bytes(bytes(range(256)) * 99 + bytes(256))


def _add_git(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"")


def _many(folder: Path) -> None:
    for index in range(7):
        (folder / f"new{index}").touch()


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (_change, "differs from the signed folder: model.tflite was modified\n"),
        (lambda folder: (folder / "golden" / "new.npz").touch(), "golden/new.npz was added"),
        (lambda folder: (folder / ".gitignore").touch(), ".gitignore was added"),
        (_add_git, ".git/config was added"),
        (lambda folder: (folder / "golden" / SIGNATURE).touch(), f"golden/{SIGNATURE} was added"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (
            lambda folder: (folder / "manifest.json").rename(folder / "b.json"),
            "b.json was added, manifest.json is missing",
        ),
        (lambda folder: (folder / "link").symlink_to("manifest.json"), "link is a link or"),
        (lambda folder: (folder / "golden" / "up").symlink_to(".."), "golden/up is a link or"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe is a link or a special file"),
        (_many, "new4 was added and 2 more"),
        (lambda folder: (folder / SIGNATURE).unlink(), f"not signed: it has no {SIGNATURE}"),
    ],
)
def test_whatever_was_done_to_the_folder_is_named(
    bundle: Path, pair: tuple[Path, Path], tamper: Callable[[Path], object], told: str
) -> None:
    sign(bundle, pair[0])
    tamper(bundle)
    assert told in refused(bundle, pair[1])


def test_a_signature_by_another_key_is_refused(bundle: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_pair(tmp_path / "other", ec.generate_private_key(ec.SECP384R1()))
    sign(bundle, other[0])
    verify(bundle, other[1])
    assert "was made with another key" in refused(bundle, pair[1])


def test_a_signature_that_only_claims_to_be_by_the_key_is_refused(
    bundle: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    sign(bundle, pair[0])
    claimed = json.loads((bundle / SIGNATURE).read_text())["verificationMaterial"]
    _change(bundle)
    sign(bundle, write_pair(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))[0])
    forged = json.loads((bundle / SIGNATURE).read_text()) | {"verificationMaterial": claimed}
    (bundle / SIGNATURE).write_text(json.dumps(forged))
    assert "is damaged or was tampered with" in refused(bundle, pair[1])


def test_a_statement_that_was_rewritten_is_refused(bundle: Path, pair: tuple[Path, Path]) -> None:
    sign(bundle, pair[0])
    signature = json.loads((bundle / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    statement["predicate"]["resources"] = statement["predicate"]["resources"][1:]
    signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (bundle / SIGNATURE).write_text(json.dumps(signature))
    assert "is damaged or was tampered with" in refused(bundle, pair[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"dsseEnvelope": 3, "verificationMaterial": {}}',
        b"half",
    ],
)
def test_a_damaged_signature_is_told(bundle: Path, pair: tuple[Path, Path], content: bytes) -> None:
    sign(bundle, pair[0])
    signature = bundle / SIGNATURE
    signature.write_bytes(signature.read_bytes()[:300] if content == b"half" else content)
    assert "is damaged, or not a model signature" in refused(bundle, pair[1])


def test_every_byte_of_the_signed_statement_counts(bundle: Path, pair: tuple[Path, Path]) -> None:
    sign(bundle, pair[0])
    whole = (bundle / SIGNATURE).read_bytes()
    for place in range(40, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (bundle / SIGNATURE).write_bytes(damaged)
        with_material = b"rawBytes" in damaged or b"hint" in damaged
        inside = json.loads(whole)
        try:
            same = json.loads(damaged)["dsseEnvelope"] == inside["dsseEnvelope"]
        except (ValueError, KeyError, TypeError):
            same = False
        if not same or not with_material:
            refused(bundle, pair[1])


def offline(signing: Any) -> Any:
    """The signer of the reference implementation, which else asks Sigstore's servers on creation."""

    class Offline(signing.Config):  # type: ignore[misc]
        def use_sigstore_signer(self, **_: object) -> "Offline":
            return self

    return Offline()


def everything_of(folder: Path, *ignored: Path) -> Any:
    from model_signing import hashing

    config = hashing.Config()
    return config.set_ignored_paths(paths=[folder / SIGNATURE, *ignored], ignore_git_paths=False)


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_the_reference_implementation_verifies_what_was_signed_and_signs_what_verifies(
    bundle: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    from model_signing import signing, verifying

    private, public = write_pair(tmp_path / "keys", ec.generate_private_key(curve))
    sign(bundle, private)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.set_hashing_config(everything_of(bundle)).verify(bundle, bundle / SIGNATURE)
    (bundle / SIGNATURE).unlink()
    signer = offline(signing).use_elliptic_key_signer(private_key=private)
    signer.set_hashing_config(everything_of(bundle)).sign(bundle, bundle / SIGNATURE)
    verify(bundle, public)


def test_a_signature_that_leaves_files_out_does_not_hide_them(bundle: Path, pair: tuple[Path, Path]) -> None:
    from model_signing import signing

    signer = offline(signing).use_elliptic_key_signer(private_key=pair[0])
    signer.set_hashing_config(everything_of(bundle, bundle / "golden")).sign(bundle, bundle / SIGNATURE)
    assert "golden/vectors.npz was added" in refused(bundle, pair[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(_type="other"), "its statement type is 'other'"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "its predicate type is"),
        (lambda s: s["subject"].append(s["subject"][0]), "its number of subjects is 2"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "its serialization is 'shards'"),
        (
            lambda s: s["predicate"]["resources"][0].update(algorithm="blake3"),
            "is 'blake3' instead of 'sha256'",
        ),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "its number of files"),
        (lambda s: s["predicate"]["resources"].pop(), "its digest is"),
        (lambda s: s.pop("predicate"), "KeyError"),
    ],
)
def test_a_signed_statement_about_something_else_is_refused(
    bundle: Path, pair: tuple[Path, Path], change: Callable[[Any], object], reason: str
) -> None:
    sign(bundle, pair[0])
    signature = json.loads((bundle / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    kind = signature["dsseEnvelope"]["payloadType"]
    key = load_pem_private_key(pair[0].read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = key.sign(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload, ec.ECDSA(SHA256()))
    envelope = signature["dsseEnvelope"]
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"] = [{"sig": base64.b64encode(signed).decode()}]
    (bundle / SIGNATURE).write_text(json.dumps(signature))
    assert reason in refused(bundle, pair[1])


def test_signing_refuses_links(bundle: Path, pair: tuple[Path, Path]) -> None:
    (bundle / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="link or a special file"):
        sign(bundle, pair[0])
    assert not (bundle / SIGNATURE).exists()


def test_an_encrypted_key_is_opened_by_its_password(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_pair(tmp_path / "keys", ec.generate_private_key(ec.SECP521R1()), b"secret")
    monkeypatch.delenv("EDGEOPT_KEY_PASSWORD", raising=False)
    with pytest.raises(UsageError, match="encrypted\n  set its password in EDGEOPT_KEY_PASSWORD"):
        sign(bundle, private)
    monkeypatch.setenv("EDGEOPT_KEY_PASSWORD", "wrong")
    with pytest.raises(UsageError, match="the password in EDGEOPT_KEY_PASSWORD is wrong"):
        sign(bundle, private)
    monkeypatch.setenv("EDGEOPT_KEY_PASSWORD", "secret")
    sign(bundle, private)
    verify(bundle, public)


def test_a_key_of_the_wrong_kind_is_refused_with_the_way_to_get_one(
    bundle: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = write_pair(tmp_path / "rsa", rsa.generate_private_key(65537, 2048))
    text = tmp_path / "text.pem"
    text.write_text("-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----\n")
    sign(bundle, pair[0])
    openssl, ask = "openssl genpkey -algorithm EC", "ask the publisher for the public key"
    for use, key, told, fix in (
        (sign, private, "not an elliptic-curve key (P-256", openssl),
        (verify, public, "not an elliptic-curve key (P-256", ask),
        (sign, pair[1], "not a private key in PEM, but the other key", "sign with the private key"),
        (
            verify,
            pair[0],
            "not a public key in PEM, but the other key of the pair",
            f"openssl pkey -in {pair[0]} -pubout",
        ),
        (verify, text, "cannot be read", ask),
        (verify, bundle / "manifest.json", "not a public key in PEM\n", ask),
        (sign, tmp_path / "none.pem", "No such file", openssl),
        (verify, tmp_path / "none.pem", "No such file", ask),
    ):
        with pytest.raises(UsageError) as caught:
            use(bundle, key)
        assert told in str(caught.value) and fix in str(caught.value)


def test_keys_as_openssl_makes_them_are_read(bundle: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    make = [
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        str(private),
    ]
    subprocess.run(make, check=True, capture_output=True)
    half = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(half, check=True, capture_output=True)
    sign(bundle, private)
    verify(bundle, public)


def test_nothing_of_it_is_loaded_before_it_is_needed() -> None:
    program = "import sys, edgeopt.publish.trust.signing\n"
    program += "print({'cryptography'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
