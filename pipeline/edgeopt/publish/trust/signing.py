"""Signatures over a whole folder, in the format of OpenSSF model signing: a Sigstore bundle in ``model.sig``.

The bundle contains an in-toto statement with the sha256 of every file. The package ``model-signing`` writes
and verifies it; this module makes it cover every file and explains failed verifications.

Source: https://github.com/sigstore/model-transparency, https://github.com/ossf/model-signing-spec
"""

import base64
import contextlib
import hashlib
import importlib
import io
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgeopt.config.files import file_digest, replacing
from edgeopt.errors import UsageError, VerificationError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.trust.keys import check_private, fingerprint

SIGNATURE: Final = "model.sig"
LARGEST_SIGNATURE: Final = 16 << 20
"""Bytes; a signature takes about 200 per file."""
_NAMED: Final = 5


def prepare() -> None:
    """Import the packages of `verify` in the background: the import takes half a second."""
    threading.Thread(target=importlib.import_module, args=("model_signing",), daemon=True).start()


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
    password = check_private(key)
    unsignable = [path for path in _files(folder).values() if not _regular(path)]
    if (folder / SIGNATURE).is_dir():
        unsignable.append(folder / SIGNATURE)
    if unsignable:
        raise UsageError(
            f"{unsignable[0]} cannot be signed: it is a link or a special file", fix="replace it with a copy"
        )
    from model_signing import signing

    class Offline(signing.Config):
        """A configuration that does not access the network; some versions do so on creation."""

        def use_sigstore_signer(self, **_: Any) -> Any:
            return self

    make: Any = Offline  # the library's annotations are incomplete
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / SIGNATURE
        config = make().use_elliptic_key_signer(private_key=key, password=password)
        config.set_hashing_config(_everything_of(folder)).sign(folder, output)
        content = output.read_bytes()
    with replacing(folder / SIGNATURE) as temporary:
        temporary.write_bytes(content)


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
    expected = fingerprint(key)
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
    bundle = _bundle(signature)
    _check_signer(bundle, expected, signature, key)
    _verify_with_library(folder, key, bundle, files)


def _verify_with_library(folder: Path, key: Path, bundle: Mapping[str, Any], files: dict[str, Path]) -> None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    absolute = folder.resolve()
    make: Any = verifying.Config  # the library's annotations are incomplete
    config = make().use_elliptic_key_verifier(public_key=key).set_hashing_config(_everything_of(absolute))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints notes on older signatures
            config.verify(absolute, absolute / SIGNATURE)
    except InvalidSignature as error:
        raise VerificationError(
            f"{folder / SIGNATURE} is not a signature by the key {key}: it is damaged or was tampered with",
            fix="fetch it again; if that does not help, ask the publisher",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # The library checks the signature before the files: it is valid, so the files differ.
        changes = list(_changes(bundle, files))
        if not changes:
            raise _damaged(folder / SIGNATURE, str(error)) from error
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise VerificationError(
            f"{folder} differs from the signed folder: {', '.join(changes[:_NAMED])}{more}",
            fix="fetch it again; if that does not help, it was modified in transit",
        ) from error


def _everything_of(folder: Path) -> Any:
    """The hashing configuration: sha256 of every file except the signature itself."""
    from model_signing import hashing

    class Everything(hashing.Config):
        def add_ignored_paths(self, **_: Any) -> None:
            """Do nothing: files that a signature declares as ignored are checked as well."""

    make: Any = Everything
    return make().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


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


def _bundle(signature: Path) -> dict[str, Any]:
    """The parts of a Sigstore bundle that messages refer to; the library validates it again.

    Raises:
        VerificationError: it is invalid.
    """
    try:
        with signature.open("rb") as file:
            text = file.read(LARGEST_SIGNATURE + 1)
        if len(text) > LARGEST_SIGNATURE:
            raise ValueError(f"it is larger than {LARGEST_SIGNATURE >> 20} MiB")
        bundle: dict[str, Any] = json_value(text)
        if not isinstance(bundle["verificationMaterial"], dict):
            raise ValueError("verificationMaterial is not a mapping")
        envelope = bundle["dsseEnvelope"]
        bundle["statement"] = json_value(base64.b64decode(envelope["payload"], validate=True))
        resources = bundle["statement"]["predicate"]["resources"]
        bundle["resources"] = {str(entry["name"]): str(entry["digest"]) for entry in resources}
        base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(signature, f"{type(error).__name__}: {error}") from error
    return bundle


def _damaged(signature: Path, why: str) -> VerificationError:
    return VerificationError(f"{signature} is damaged, or not a model signature: {why}", fix="fetch it again")


def _check_signer(bundle: Mapping[str, Any], expected: str, signature: Path, key: Path) -> None:
    """Refuse a signature that declares another key."""
    material = bundle["verificationMaterial"]
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
            raise _damaged(signature, str(error)) from error
    else:
        actual = str(declared.get("hint") or expected)
    if actual != expected:
        raise VerificationError(
            f"{signature} was made with another key ({actual[:16]}…) than {key} ({expected[:16]}…)",
            fix="use the public key of the publisher, if you trust them",
        )


def _changes(bundle: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[str]:
    """Differences between a folder and its signature, as text."""
    signed = dict(bundle["resources"])
    for name in files:
        if name not in signed:
            yield f"{name} was added"
    for name, digest in sorted(signed.items()):
        if name not in files:
            yield f"{name} is missing"
        elif file_digest(files[name]) != digest:
            yield f"{name} was modified"
