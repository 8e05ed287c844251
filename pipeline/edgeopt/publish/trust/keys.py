"""Elliptic-curve signing keys in PEM files, with explanations for any other file."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeopt.config.withheld import whole_environment
from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PASSWORD: Final = "EDGEOPT_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""
MAKE_KEYS: Final = (
    "create a key pair: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out private.pem "
    "&& openssl pkey -in private.pem -pubout -out public.pem"
)
GET_KEY: Final = "check the path, or ask the publisher for the public key, over a channel that you trust"
"""The fix for whoever verifies: a key of one's own would verify nothing."""
CURVES: Final = {"secp256r1": 256, "secp384r1": 384, "secp521r1": 512}
"""The curves, and the bits of the SHA-2 that Sigstore uses with each."""


def read_private(key: Path) -> "EllipticCurvePrivateKey":
    """Read a private key; ``EDGEOPT_KEY_PASSWORD`` has the password of an encrypted one.

    Raises:
        UsageError: the file is missing, the key is invalid, or its password is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    swap = "sign with the private key, and distribute the public one"
    content = _read_key(key, "PRIVATE KEY", "a private key", swap, MAKE_KEYS)
    password: bytes | None = None
    try:
        try:
            private = load_pem_private_key(content, None)
        except TypeError as error:
            variable = whole_environment().get(PASSWORD)
            if not variable:
                raise UsageError(
                    f"the private key {key} is encrypted", fix=f"set its password in {PASSWORD}"
                ) from error
            password = variable.encode()
            private = load_pem_private_key(content, password)
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = f"the password in {PASSWORD} is wrong" if password else f"it cannot be read: {error}"
        raise UsageError(f"the private key {key}: {reason}", fix=MAKE_KEYS) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in CURVES:
        raise _wrong_kind(key, MAKE_KEYS)
    return private


def read_public(key: Path) -> "EllipticCurvePublicKey":
    """Read a public key.

    Raises:
        UsageError: the file is missing, or the key is invalid.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    extract = f"extract the public key: openssl pkey -in {key} -pubout -out public.pem"
    content = _read_key(key, "PUBLIC KEY", "a public key", extract, GET_KEY)
    try:
        public = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the public key {key} cannot be read: {error}", fix=GET_KEY) from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in CURVES:
        raise _wrong_kind(key, GET_KEY)
    return public


def fingerprint(public: "EllipticCurvePublicKey") -> str:
    """sha256 of a public key in PEM, by which signatures identify their signer."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_key(key: Path, header: str, what: str, swap: str, fix: str) -> bytes:
    """The content of a PEM file with the expected header; ``swap`` is the fix for the other key of a pair."""
    try:
        with key.open("rb") as file:
            content = file.read(1 << 20)
    except OSError as error:
        raise UsageError(f"cannot read the key {key}: {error.strerror}", fix=fix) from error
    if f"{header}-----".encode() in content:
        return content
    other = b" PRIVATE KEY-----" in content or b" PUBLIC KEY-----" in content
    raise UsageError(
        f"{key} is not {what} in PEM" + (", but the other key of the pair" if other else ""),
        fix=swap if other else fix,
    )


def _wrong_kind(key: Path, fix: str) -> UsageError:
    return UsageError(f"{key} is not an elliptic-curve key (P-256, P-384 or P-521)", fix=fix)
