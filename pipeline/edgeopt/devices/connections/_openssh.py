"""The OpenSSH client as a byte stream to a program on another machine, and its errors explained."""

import contextlib
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from edgeopt.errors import DeviceError
from edgeopt.plugin import ConnectionCutError

CHUNK = 1 << 18
LONGEST_LINE = 1 << 20
STALL_SECONDS = 60.0
"""A transfer without progress for this long is considered dead."""
CLOSE_SECONDS = 10.0
CUT = (
    r"closed by remote host|[Cc]onnection (?:to \S+ )?(?:closed|reset)|[Bb]roken pipe|not responding|"
    r"[Cc]onnection corrupted|client_loop: |Write failed|Read from remote host"
)


class StreamCutError(Exception):
    """The stream ended or stalled."""


class Stream:
    """Standard input and output of a command that this process started."""

    def __init__(self, command: Sequence[str]) -> None:
        # A file, not a pipe: a pipe must be drained while this process waits for something else.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the stream
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                # Without a terminal, neither ssh nor an ssh that it starts for a jump host can prompt.
                start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"cannot start {command[0]}: {error.strerror}",
                fix="install the OpenSSH client; on Debian: apt install openssh-client",
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        self._buffer = b""
        self._stderr = ""

    def send(self, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            StreamCutError: the other side does not read it.
        """
        view = memoryview(data)
        if self._input.closed:
            raise StreamCutError
        while view:
            _, ready, _ = select.select([], [self._input], [], STALL_SECONDS)
            if not ready:
                raise StreamCutError
            try:
                view = view[os.write(self._input.fileno(), view) :]
            except OSError as error:
                raise StreamCutError from error

    def line(self, seconds: float) -> bytes:
        """The next line without its newline; an unterminated last line does not count.

        Raises:
            StreamCutError: no line arrives within ``seconds``.
            ValueError: the line is too long to be a response.
        """
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST_LINE:
                raise ValueError(f"a line of more than {LONGEST_LINE:,} bytes")
            self._buffer += self._more(end - time.monotonic())
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def data(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes, in parts.

        Raises:
            StreamCutError: they do not arrive.
        """
        while size:
            if not self._buffer:
                self._buffer = self._more(STALL_SECONDS)
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(part)
            yield part

    def _more(self, seconds: float) -> bytes:
        if self._output.closed or not select.select([self._output], [], [], max(0.0, seconds))[0]:
            raise StreamCutError
        data = os.read(self._output.fileno(), CHUNK)
        if not data:
            raise StreamCutError
        return data

    def close(self, *, at_once: bool = False) -> tuple[int, str]:
        """Close the input, wait until the other side closes its end, and release everything.

        ``at_once`` does not wait: the other side may never stop writing.

        Returns the exit code and the command's stderr.
        """
        if not self._input.closed:
            if at_once:
                self._process.kill()
            self._input.close()
            end = time.monotonic() + (0 if at_once else CLOSE_SECONDS)
            with contextlib.suppress(StreamCutError):
                while (left := end - time.monotonic()) > 0:
                    self._more(left)
            try:
                self._process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._output.close()
            self._errors.seek(0)
            self._stderr = self._errors.read(1 << 16).decode("utf-8", "replace")
            self._errors.close()
        return self._process.returncode, self._stderr


def settings_of(command: Sequence[str]) -> dict[str, str]:
    """The client's effective settings for these arguments, from ``ssh -G``: ``{"hostname": ...}``."""
    try:
        done = subprocess.run(
            [command[0], "-G", *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def explain(stderr: str, host: str, settings: Mapping[str, str], by_hand: str) -> DeviceError | None:
    """Translate an error of ssh into a DeviceError with a fix; None if it is not an error of ssh.

    Args:
        stderr: the client's stderr.
        host: the name in the device file.
        settings: the result of ``settings_of``.
        by_hand: the command that connects to the device manually.
    """
    where = f"{settings.get('hostname', host)}, port {settings.get('port', '22')}"
    named = f"{host} ({where})"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        offending = re.search(r"Offending .*key in (\S+?):\d+", stderr)
        file = offending[1] if offending else _known_hosts(settings)
        return DeviceError(
            f"the host key of {named} differs from the known key: the connection was refused, because "
            "it may be intercepted",
            fix="ask the machine's administrator; only if its key was replaced, remove the old one with "
            f"'ssh-keygen -f {file} -R {_lookup(host, settings)}', "
            f"then {_how_to_add(host, settings, by_hand)}",
        )
    if "Host key verification failed" in stderr or re.search(r"No \S+ host key is known for", stderr):
        return DeviceError(
            f"the host key of {named} is unknown, so its identity cannot be verified",
            fix=_how_to_add(host, settings, by_hand),
        )
    for pattern, what, fix in (
        (
            r"Could not resolve hostname",
            f"cannot find {host}: the name {settings.get('hostname', host)!r} does not resolve",
            "correct 'host' of the device's connection, or add a Host entry to ~/.ssh/config",
        ),
        (
            r"Connection refused",
            f"{named} refused the connection",
            f"start the ssh server there, or correct the port; try: {by_hand}",
        ),
        (
            r"No route to host|Network is unreachable|timed out",
            f"{named} does not respond",
            f"check that it is on and connected to the network; try: {by_hand}",
        ),
        (
            r"Permission denied|Too many authentication failures|no mutual signature",
            f"{host} rejected every key offered for {settings.get('user', 'this user')}",
            "set the correct 'user' and 'identity' (a key without a passphrase, or one in ssh-agent), and "
            f"install the public key there with ssh-copy-id; try: {by_hand}",
        ),
        (
            r"[Bb]ad (?:configuration|owner)|[Cc]an't open user config|terminating, \d+ bad|line \d+:",
            f"ssh rejects its configuration: {first_line(stderr)}",
            f"correct it; try: {by_hand}",
        ),
        (
            r"banner exchange|[Nn]o matching|kex_exchange_identification: (?:banner|client sent)",
            f"{named} does not speak a compatible ssh protocol: {first_line(stderr)}",
            f"check which service listens on that port; try: {by_hand}",
        ),
    ):
        if re.search(pattern, stderr):
            return DeviceError(what, fix=fix)
    if re.search(CUT, stderr):
        return ConnectionCutError(
            f"{named} closed the connection: {first_line(stderr)}", fix=f"try: {by_hand}"
        )
    return None


def first_line(text: str) -> str:
    """The first line with content, without control characters."""
    lines = [line.strip() for line in printable(text).splitlines() if line.strip(" @")]
    return lines[0][:300] if lines else "no message"


def printable(text: str) -> str:
    """Text from a device without control characters, safe to show on a terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def _known_hosts(settings: Mapping[str, str]) -> str:
    return (settings.get("userknownhostsfile") or "~/.ssh/known_hosts").split()[0]


def _lookup(host: str, settings: Mapping[str, str]) -> str:
    """The name under which known_hosts lists a machine."""
    name, port = settings.get("hostkeyalias") or settings.get("hostname", host), settings.get("port", "22")
    return name if port == "22" or "hostkeyalias" in settings else f"'[{name}]:{port}'"


def _how_to_add(host: str, settings: Mapping[str, str], by_hand: str) -> str:
    if {"proxyjump", "proxycommand", "hostkeyalias"} & set(settings):
        return (
            f"connect manually once, compare the fingerprint with the device's own, and accept it: {by_hand}"
        )
    scan = f"ssh-keyscan -p {settings.get('port', '22')} {settings.get('hostname', host)}"
    return (
        f"compare the fingerprint from '{scan} | ssh-keygen -lf -' with the one that "
        "'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' shows on the device itself; if they match, add "
        f"the key with '{scan} >> {_known_hosts(settings)}'"
    )
