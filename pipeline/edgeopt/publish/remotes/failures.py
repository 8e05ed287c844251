"""Connections that fail: why, in words, and whether another attempt may help."""

import socket
import ssl
from collections.abc import Iterator

from edgeopt.errors import RemoteError
from edgeopt.publish.remotes.patience import Patience
from edgeopt.publish.remotes.transfer import TransientError


def explain_failure(error: Exception, shown: str, patience: Patience, met: bool) -> RemoteError:
    """Why a server, ``shown`` like this, cannot be asked; ``TransientError`` if another attempt may help.

    ``met`` says that it has answered before: then it may be about to start again. No text of the error itself
    is used: it can hold what a header or an address kept secret.
    """
    import requests

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteError(
                f"the certificate of {shown} is not trusted: {cause.verify_message}",
                fix="name the file of the authority's certificate: EDGEOPT_CA_BUNDLE=ca.pem",
            )
        if isinstance(cause, socket.gaierror):
            return RemoteError(f"there is no host {shown}", fix="check the name and the network")
    again = "run it again: what has come is kept"
    if isinstance(error, requests.exceptions.ProxyError):
        return RemoteError(
            f"{shown} cannot be reached through the proxy", fix="check HTTPS_PROXY and NO_PROXY"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return RemoteError(f"{shown} does not speak TLS", fix="for plain http write oci+http://…")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        message = f"{shown} refuses the connection"
        if met:
            return TransientError(message, fix=again)
        return RemoteError(message, fix="check that it runs, and its port")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TransientError(
            f"{shown} cannot be reached within {patience.connect:g} s", fix="check the network"
        )
    if isinstance(error, requests.exceptions.Timeout) or _timed_out(causes):
        return TransientError(
            f"{shown} is silent for {patience.read:g} s",
            fix="try again later, or allow more with EDGEOPT_READ_TIMEOUT",
        )
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return TransientError(f"{shown} breaks off the connection", fix=again)
    return RemoteError(
        f"{shown} gives an answer that makes no sense ({type(error).__name__})",
        fix="check that this is the address of a registry or server",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _timed_out(causes: list[BaseException]) -> bool:
    return any(isinstance(cause, TimeoutError) for cause in causes)
