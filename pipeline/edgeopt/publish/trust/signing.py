"""Signatures over a whole folder, in the format of OpenSSF model signing: a Sigstore bundle in ``model.sig``.

The bundle contains an in-toto statement with the sha256 of every file, in a DSSE envelope that is signed with
an elliptic-curve key. The package ``model-signing`` reads and writes the same files. It is not used here: it
brings a client of Sigstore's servers, and accepts statements that leave files out.

Source: https://github.com/ossf/model-signing-spec, https://docs.sigstore.dev/about/bundle/,
https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
"""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgeopt.config.files import file_digest, replacing
from edgeopt.errors import UsageError, VerificationError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.trust.keys import CURVES, fingerprint, read_private, read_public

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurve

SIGNATURE: Final = "model.sig"
LARGEST_SIGNATURE: Final = 16 << 20
"""Bytes; a signature takes about 200 per file."""
MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://model_signing/signature/v1.0"
_NAMED: Final = 5
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


class _Bundle(NamedTuple):
    """The parts of a Sigstore bundle."""

    material: Mapping[str, Any]
    """What identifies the signer, according to the bundle."""
    payload: bytes
    signature: bytes


def sign(folder: Path, key: Path) -> None:
    """Write ``model.sig`` over every other file of a folder, including hidden ones.

    The name of the folder becomes part of the signature, but the folder may be renamed afterwards.

    Args:
        folder: contains files and folders only, no links.
        key: private elliptic-curve key in PEM (P-256, P-384 or P-521); ``EDGEOPT_KEY_PASSWORD`` has the
            password of an encrypted one.

    Raises:
        UsageError: the key is invalid, or a file of the folder cannot be signed.
    """
    private = read_private(key)
    files = _files(folder)
    unsignable = [path for path in files.values() if not _regular(path)]
    if (folder / SIGNATURE).is_dir():
        unsignable.append(folder / SIGNATURE)
    if unsignable:
        raise UsageError(
            f"{unsignable[0]} cannot be signed: it is a link or a special file", fix="replace it with a copy"
        )
    digests = {name: file_digest(path) for name, path in files.items()}
    payload = json.dumps(_statement(folder.resolve().name, digests), indent=2).encode()
    public = private.public_key()
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(private.sign(_encoded(payload), _algorithm(public.curve)))}],
        },
    }
    with replacing(folder / SIGNATURE) as temporary:
        temporary.write_text(json.dumps(bundle))


def verify(folder: Path, key: Path) -> None:
    """Verify every file of a folder against its ``model.sig``.

    No file is left out: files that a signature declares as ignored are checked as well.

    Args:
        folder: the signed folder.
        key: the signer's public key in PEM.

    Raises:
        VerificationError: the signature is missing, damaged or by another key, or files were changed, added
            or removed since; the error names them.
        UsageError: the key is invalid.
    """
    from cryptography.exceptions import InvalidSignature

    public = read_public(key)
    files = _files(folder)
    for name, path in files.items():
        if not _regular(path):
            raise VerificationError(
                f"{folder} differs from the signed folder: {name} is a link or a special file"
            )
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise VerificationError(
            f"{folder} is not signed: it has no {SIGNATURE}",
            fix="ask the publisher for a signed version",
        )
    bundle = _read(signature)
    _check_signer(bundle.material, fingerprint(public), signature, key)
    try:
        public.verify(bundle.signature, _encoded(bundle.payload), _algorithm(public.curve))
    except InvalidSignature as error:
        raise VerificationError(
            f"{signature} is not a signature by the key {key}: it is damaged or was tampered with",
            fix="fetch it again; if that does not help, ask the publisher",
        ) from error
    # Only now is the statement known to be by the signer, and worth reading.
    if changes := list(_changes(_signed_files(bundle.payload, signature), files)):
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise VerificationError(
            f"{folder} differs from the signed folder: {', '.join(changes[:_NAMED])}{more}",
            fix="fetch it again; if that does not help, it was modified in transit",
        )


def _statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto statement about the files of a folder."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(digests.values())}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()
            ],
        },
    }


def _root(digests: Iterable[str]) -> str:
    """The digest of a folder: of the digests of its files, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """The bytes that are signed: the payload and its type, each with its length (DSSE's PAE)."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def _algorithm(curve: "EllipticCurve") -> "ECDSA":
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    sizes = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}
    return ec.ECDSA(sizes[CURVES[curve.name]])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _files(folder: Path) -> dict[str, Path]:
    """All files and links of a folder except the signature, by relative name."""
    files: dict[str, Path] = {}

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    for place, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(place) / name
            files[path.relative_to(folder).as_posix()] = path
    if SIGNATURE in files and _regular(files[SIGNATURE]):
        del files[SIGNATURE]
    return dict(sorted(files.items()))


def _regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _read(signature: Path) -> _Bundle:
    """Read a bundle, without checking it.

    Raises:
        VerificationError: it is invalid, or another kind of signature.
    """
    try:
        with signature.open("rb") as file:
            text = file.read(LARGEST_SIGNATURE + 1)
        if len(text) > LARGEST_SIGNATURE:
            raise ValueError(f"it is larger than {LARGEST_SIGNATURE >> 20} MiB")
        bundle = json_value(text)
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        if not isinstance(material, dict):
            raise ValueError("verificationMaterial is not a mapping")
        _expect("media type", bundle["mediaType"], MEDIA_TYPE)
        _expect("payload type", envelope["payloadType"], PAYLOAD_TYPE)
        payload, value = (
            base64.b64decode(text, validate=True)
            for text in (envelope["payload"], envelope["signatures"][0]["sig"])
        )
    except _MALFORMED as error:
        raise _damaged(signature, error) from error
    return _Bundle(material, payload, value)


def _signed_files(payload: bytes, signature: Path) -> dict[str, str]:
    """The sha256 of each file of a statement, by name.

    Raises:
        VerificationError: it is not a statement about the files of a folder.
    """
    try:
        statement = json_value(payload)
        subjects, predicate = statement["subject"], statement["predicate"]
        resources = predicate["resources"]
        _expect("statement type", statement["_type"], STATEMENT)
        _expect("predicate type", statement["predicateType"], PREDICATE)
        _expect("serialization", predicate["serialization"]["method"], "files")
        _expect("number of subjects", len(subjects), 1)
        for resource in resources:
            _expect("digest algorithm", resource["algorithm"], "sha256")
        files = {str(resource["name"]): str(resource["digest"]) for resource in resources}
        _expect("number of files", len(files), len(resources))
        _expect("digest", _root(files.values()), subjects[0]["digest"]["sha256"])
    except _MALFORMED as error:
        raise _damaged(signature, error) from error
    return files


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"its {what} is {found!r} instead of {expected!r}")


def _damaged(signature: Path, why: Exception) -> VerificationError:
    return VerificationError(
        f"{signature} is damaged, or not a model signature: {type(why).__name__}: {why}", fix="fetch it again"
    )


def _check_signer(material: Mapping[str, Any], expected: str, signature: Path, key: Path) -> None:
    """Refuse a signature that declares another key."""
    if "x509CertificateChain" in material or "certificate" in material:
        raise VerificationError(
            f"{signature} was made with a certificate or a Sigstore identity, not with the key {key}",
            fix="verify it with 'model_signing verify sigstore' or 'certificate'; see docs/trust.md",
        )
    declared = material.get("publicKey")
    if not isinstance(declared, dict):
        return  # without a declared key, only the signature itself identifies the signer
    if "rawBytes" in declared:
        try:
            actual = hashlib.sha256(base64.b64decode(declared["rawBytes"])).hexdigest()
        except (ValueError, TypeError) as error:
            raise _damaged(signature, error) from error
    else:
        actual = str(declared.get("hint") or expected)
    if actual != expected:
        raise VerificationError(
            f"{signature} was made with another key ({actual[:16]}…) than {key} ({expected[:16]}…)",
            fix="use the public key of the publisher, if you trust them",
        )


def _changes(signed: Mapping[str, str], files: Mapping[str, Path]) -> Iterator[str]:
    """Differences between a folder and its signature, as text."""
    for name in files:
        if name not in signed:
            yield f"{name} was added"
    for name, digest in sorted(signed.items()):
        if name not in files:
            yield f"{name} is missing"
        elif file_digest(files[name]) != digest:
            yield f"{name} was modified"
