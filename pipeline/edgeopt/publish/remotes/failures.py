"""Explanations of failed connections, and whether a retry may help."""

import socket
import ssl
from collections.abc import Iterator

from edgeopt.errors import RemoteError
from edgeopt.publish.remotes.patience import Patience
from edgeopt.publish.remotes.transfer import TransientError


def explain_failure(error: Exception, shown: str, patience: Patience, responded: bool) -> RemoteError:
    """The error for a failed request to the server ``shown``; a ``TransientError`` if a retry may help.

    ``responded``: the server has responded before, so it may be restarting. The text of ``error`` is not
    used: it may contain secrets from headers or URLs.
    """
    import requests

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteError(
                f"the certificate of {shown} is not trusted: {cause.verify_message}",
                fix="set EDGEOPT_CA_BUNDLE to the file of the authority's certificate",
            )
        if isinstance(cause, socket.gaierror):
            return RemoteError(
                f"the host name {shown} cannot be resolved", fix="check the name and the network"
            )
    again = "run the command again: received data are kept"
    if isinstance(error, requests.exceptions.ProxyError):
        return RemoteError(
            f"{shown} cannot be reached through the proxy", fix="check HTTPS_PROXY and NO_PROXY"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return RemoteError(f"{shown} does not support TLS", fix="for plain HTTP use oci+http://…")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        message = f"{shown} refused the connection"
        if responded:
            return TransientError(message, fix=again)
        return RemoteError(message, fix="check that the server is running, and its port")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TransientError(
            f"connecting to {shown} timed out after {patience.connect:g} s", fix="check the network"
        )
    if isinstance(error, requests.exceptions.Timeout) or _timed_out(causes):
        return TransientError(
            f"{shown} sent no data for {patience.read:g} s",
            fix="try again later, or raise EDGEOPT_READ_TIMEOUT",
        )
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return TransientError(f"{shown} closed the connection", fix=again)
    return RemoteError(
        f"{shown} returned an invalid response ({type(error).__name__})",
        fix="check that the URL is that of a registry or server",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _timed_out(causes: list[BaseException]) -> bool:
    return any(isinstance(cause, TimeoutError) for cause in causes)
