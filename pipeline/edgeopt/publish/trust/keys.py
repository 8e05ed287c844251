"""The elliptic keys of signatures: files in PEM, and what to say when they are something else."""

import hashlib
import os
from pathlib import Path
from typing import Final

from edgeopt.errors import UsageError

PASSWORD: Final = "EDGEOPT_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""
MAKE_KEYS: Final = (
    "make a pair with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out private.pem "
    "&& openssl pkey -in private.pem -pubout -out public.pem"
)
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")


def check_private(key: Path) -> bytes | None:
    """See that a private key can be used; gives the password that opens it, None where it needs none.

    Raises:
        UsageError: there is no such file, it is no such key, or its password is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key(
        key, "PRIVATE KEY", "a private key", "sign with the private key, and give others the public one"
    )
    password: bytes | None = None
    try:
        try:
            found = load_pem_private_key(content, None)
        except TypeError as error:
            given = os.environ.get(PASSWORD)
            if not given:
                raise UsageError(
                    f"the private key {key} is encrypted", fix=f"give its password in {PASSWORD}"
                ) from error
            password = given.encode()
            found = load_pem_private_key(content, password)
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = f"{PASSWORD} does not open it" if password else f"cannot be read: {error}"
        raise UsageError(f"the private key {key}: {wrong}", fix=MAKE_KEYS) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name not in CURVES:
        raise _wrong_kind(key)
    return password


def fingerprint(key: Path) -> str:
    """sha256 of a public key: how signatures call their signer.

    Raises:
        UsageError: there is no such file, or it is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    other = f"take its public half: openssl pkey -in {key} -pubout -out public.pem"
    content = _read_key(key, "PUBLIC KEY", "a public key", other)
    try:
        found = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the public key {key} cannot be read: {error}", fix=MAKE_KEYS) from error
    if not isinstance(found, ec.EllipticCurvePublicKey) or found.curve.name not in CURVES:
        raise _wrong_kind(key)
    return hashlib.sha256(found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_key(key: Path, header: str, what: str, otherwise: str) -> bytes:
    """The content of a PEM file with the expected header; ``otherwise`` is what to do with its other half."""
    try:
        with key.open("rb") as file:
            content = file.read(1 << 20)
    except OSError as error:
        raise UsageError(f"cannot read the key {key}: {error.strerror}", fix=MAKE_KEYS) from error
    if f"{header}-----".encode() in content:
        return content
    half = b" PRIVATE KEY-----" in content or b" PUBLIC KEY-----" in content
    raise UsageError(
        f"{key} is not {what} in PEM" + (", but its other half" if half else ""),
        fix=otherwise if half else MAKE_KEYS,
    )


def _wrong_kind(key: Path) -> UsageError:
    return UsageError(f"{key} is not an elliptic key of P-256, P-384 or P-521", fix=MAKE_KEYS)
