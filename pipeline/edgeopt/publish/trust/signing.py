"""Signatures over a whole folder, in the form of OpenSSF model signing: a Sigstore bundle in ``model.sig``.

The bundle holds an in-toto statement with the sha256 of every file. The package ``model-signing`` writes
and verifies it; here is said what is covered (everything), and what is wrong when it does not verify.

Source: https://github.com/sigstore/model-transparency, https://github.com/ossf/model-signing-spec
"""

import base64
import contextlib
import hashlib
import importlib
import io
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgeopt.errors import UsageError, VerificationError
from edgeopt.model import file_digest
from edgeopt.publish.trust.keys import check_private, fingerprint

SIGNATURE: Final = "model.sig"
LARGEST_SIGNATURE: Final = 16 << 20
"""Bytes; a signature takes about 200 per file."""
_NAMED: Final = 5


def prepare() -> None:
    """Begin to load what `verify` needs, beside whatever goes on: half a second of work."""
    threading.Thread(target=importlib.import_module, args=("model_signing",), daemon=True).start()


def sign(folder: Path, key: Path) -> None:
    """Write ``model.sig`` over every other file of a folder, hidden ones too.

    The name of the folder becomes part of the signature; it may be renamed afterwards.

    Args:
        folder: holds files and folders only, no links.
        key: private elliptic key in PEM (P-256, P-384 or P-521); ``EDGEOPT_KEY_PASSWORD`` opens it where
            it is encrypted.

    Raises:
        UsageError: the key is none, or the folder holds what cannot be signed.
    """
    password = check_private(key)
    strange = [path for path in _files(folder).values() if not _regular(path)]
    if (folder / SIGNATURE).is_dir():
        strange.append(folder / SIGNATURE)
    if strange:
        raise UsageError(
            f"{strange[0]} cannot be signed: it is a link or no plain file", fix="put a copy in its place"
        )
    from model_signing import signing

    class Offline(signing.Config):
        """Some versions go to the internet as soon as a configuration is made."""

        def use_sigstore_signer(self, **_: Any) -> Any:
            return self

    make: Any = Offline  # its annotations are incomplete
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE
        config = make().use_elliptic_key_signer(private_key=key, password=password)
        config.set_hashing_config(_everything_of(folder)).sign(folder, written)
        content = written.read_bytes()
    beside = folder / f".{SIGNATURE}.{os.getpid()}"
    beside.write_bytes(content)
    beside.replace(folder / SIGNATURE)


def verify(folder: Path, key: Path) -> None:
    """Hold every file of a folder against its ``model.sig``.

    Nothing is left out: what a signature says should be ignored counts as any other file.

    Args:
        folder: what was signed.
        key: the signer's public key in PEM.

    Raises:
        VerificationError: there is no signature, it is damaged or by another key, or files were changed,
            added or lost since, which are named.
        UsageError: the key is none.
    """
    wanted = fingerprint(key)
    files = _files(folder)
    for name, path in files.items():
        if not _regular(path):
            raise VerificationError(f"{folder} is not what was signed: {name} is a link or no plain file")
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise VerificationError(
            f"{folder} is not signed: there is no {SIGNATURE}",
            fix="ask whoever published it for a signed version",
        )
    bundle = _bundle(signature)
    _demand_signer(bundle, wanted, signature, key)
    _verify_with_library(folder, key, bundle, files)


def _verify_with_library(folder: Path, key: Path, bundle: Mapping[str, Any], files: dict[str, Path]) -> None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    absolute = folder.resolve()
    make: Any = verifying.Config  # its annotations are incomplete
    config = make().use_elliptic_key_verifier(public_key=key).set_hashing_config(_everything_of(absolute))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints remarks on older signatures
            config.verify(absolute, absolute / SIGNATURE)
    except InvalidSignature as error:
        raise VerificationError(
            f"{folder / SIGNATURE} is not a signature by the key {key}: it was tampered with or damaged",
            fix="fetch it again; if that does not help, ask whoever published it",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # The signature itself is checked before any file is.
        changes = list(_changes(bundle, files))
        if not changes:
            raise _damaged(folder / SIGNATURE, str(error)) from error
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise VerificationError(
            f"{folder} is not what was signed: {', '.join(changes[:_NAMED])}{more}",
            fix="fetch it again; if that does not help, somebody changed it on the way",
        ) from error


def _everything_of(folder: Path) -> Any:
    """How files are hashed: sha256 of each, whatever it is called, but for the signature itself."""
    from model_signing import hashing

    class Everything(hashing.Config):
        def add_ignored_paths(self, **_: Any) -> None:
            """What a signature wants to have ignored is looked at all the same."""

    make: Any = Everything
    return make().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _files(folder: Path) -> dict[str, Path]:
    """Everything in a folder but other folders and the signature, by its relative name."""
    found: dict[str, Path] = {}

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error

    if not folder.is_dir():
        raise UsageError(f"no folder {folder}")
    for place, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(place) / name
            found[path.relative_to(folder).as_posix()] = path
    if SIGNATURE in found and _regular(found[SIGNATURE]):
        del found[SIGNATURE]
    return dict(sorted(found.items()))


def _regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _bundle(signature: Path) -> dict[str, Any]:
    """The Sigstore bundle, as far as messages need it; the library checks it again.

    Raises:
        VerificationError: it is none.
    """
    try:
        with signature.open("rb") as file:
            text = file.read(LARGEST_SIGNATURE + 1)
        if len(text) > LARGEST_SIGNATURE:
            raise ValueError(f"it is larger than {LARGEST_SIGNATURE >> 20} MiB")
        bundle: dict[str, Any] = json.loads(text)
        if not isinstance(bundle["verificationMaterial"], dict):
            raise ValueError("its material is no mapping")
        envelope = bundle["dsseEnvelope"]
        bundle["statement"] = json.loads(base64.b64decode(envelope["payload"], validate=True))
        resources = bundle["statement"]["predicate"]["resources"]
        bundle["resources"] = {str(entry["name"]): str(entry["digest"]) for entry in resources}
        base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(signature, f"{type(error).__name__}: {error}") from error
    return bundle


def _damaged(signature: Path, why: str) -> VerificationError:
    return VerificationError(
        f"{signature} is damaged, or no signature of a model: {why}", fix="fetch it again"
    )


def _demand_signer(bundle: Mapping[str, Any], wanted: str, signature: Path, key: Path) -> None:
    """Refuse a signature that says itself that it is by another key."""
    material = bundle["verificationMaterial"]
    if "x509CertificateChain" in material or "certificate" in material:
        raise VerificationError(
            f"{signature} is by a certificate or a Sigstore identity, not by the key {key}",
            fix="verify it with: model_signing verify sigstore, or certificate; docs/trust.md tells how",
        )
    told = material.get("publicKey")
    if not isinstance(told, dict):
        return  # then the signature itself decides
    if "rawBytes" in told:
        try:
            found = hashlib.sha256(base64.b64decode(told["rawBytes"])).hexdigest()
        except (ValueError, TypeError) as error:
            raise _damaged(signature, str(error)) from error
    else:
        found = str(told.get("hint") or wanted)
    if found != wanted:
        raise VerificationError(
            f"{signature} is by another key ({found[:16]}…) than {key} ({wanted[:16]}…)",
            fix="give the public key of whoever published it, if you trust them",
        )


def _changes(bundle: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[str]:
    """What differs between a folder and what its signature covers, in words."""
    signed = dict(bundle["resources"])
    for name in files:
        if name not in signed:
            yield f"{name} was added"
    for name, digest in sorted(signed.items()):
        if name not in files:
            yield f"{name} is missing"
        elif file_digest(files[name]) != digest:
            yield f"{name} was changed"
