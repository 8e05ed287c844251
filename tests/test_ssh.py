"""Devices over ssh: a real sshd on the loopback, and all kinds of failures."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from pydantic import ValidationError

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.connections._ssh_link import SshLink
from edgeopt.devices.connections.ssh import Ssh
from edgeopt.devices.device import Device
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Connection, ConnectionCutError
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.probe import fetch_probe
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store
from toy_results import PROBE

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
CUT = (
    "import os, pathlib, signal, psutil\n"
    "sessions = [p for p in psutil.Process().parents() if p.name().startswith('sshd')]\n"
    "note = pathlib.Path({note!r})\n"
    "if not note.exists() or {always}:\n"
    "    note.touch()\n"
    "    sessions[0].kill()\n"  # the nearest: the session, not the server
    "    import time; time.sleep(60)\n"
    "open('out.txt', 'w').write('done')\n"
)


class Server(NamedTuple):
    """A running sshd and its environment."""

    process: psutil.Process
    port: int
    root: Path
    device: Path
    """The temporary folder that the device has."""

    def way(self, **options: object) -> Ssh:
        usual = {"host": "linux-ssh", "config": str(self.root / "ssh_config"), "python": sys.executable}
        return Ssh.model_validate(usual | options)

    def config(self, name: str, **settings: object) -> str:
        usual = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "IdentityFile": self.root / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.root / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
        } | settings
        path = self.root / name
        path.write_text("Host linux-ssh\n" + "".join(f"  {key} {value}\n" for key, value in usual.items()))
        return str(path)

    def script(self, name: str, text: str) -> str:
        path = self.root / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)


def make_key(path: Path) -> str:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path.with_name(path.name + ".pub").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a separate home folder; the user's ~/.ssh is neither read nor written."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no sshd here: install openssh-server")
    root = tmp_path_factory.mktemp("ssh")
    device = root / "device"
    device.mkdir()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # normally created by the sshd service
    host_key = make_key(root / "host_key")
    (root / "authorized_keys").write_text(make_key(root / "user_key"))
    port = free_port()
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": root / "host_key",
        "PidFile": root / "pid",
        "AuthorizedKeysFile": root / "authorized_keys",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "100",
        "SetEnv": f"HOME={root} TMPDIR={device}",
    }
    (root / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    with (root / "sshd.log").open("wb") as log:
        started = subprocess.Popen([SSHD, "-D", "-e", "-f", root / "sshd_config"], stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert started.poll() is None, (root / "sshd.log").read_text()
            time.sleep(0.05)
        server = Server(psutil.Process(started.pid), port, root, device)
        server.config("ssh_config")
        yield server
    finally:
        started.terminate()
        started.wait()


@pytest.fixture
def server(sshd: Server) -> Iterator[Server]:
    """The server; after the test, checks that nothing is left on the device."""
    yield sshd
    for _ in range(100):
        left, running = list(sshd.device.iterdir()), at_work(sshd)
        if not left and not running:
            return
        time.sleep(0.05)
    raise AssertionError(f"left on the device: {left}, {running}")


def at_work(server: Server) -> list[str]:
    """Processes of the device: those in its folders, and sessions of sshd."""
    found = [repr(child) for child in server.process.children(recursive=True)]
    for process in psutil.process_iter(["cwd", "name"]):
        if (process.info["cwd"] or "").startswith(str(server.device)):
            found.append(repr(process))
    return found


def refused(way: Connection) -> DeviceError:
    start = time.monotonic()
    with pytest.raises(DeviceError) as caught, way.open():
        pass
    assert time.monotonic() - start < 10
    assert "\n" not in caught.value.message and caught.value.fix
    return caught.value


# Success.


def test_files_go_there_and_come_back(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(os.urandom(3_000_001))
    (tmp_path / "tree" / "deep" / "empty").mkdir(parents=True)
    odd = "b 'c'\"$(x)\n;é.txt"
    (tmp_path / "tree" / "deep" / odd).write_text("b")
    (tmp_path / "tree" / "link").symlink_to(source)
    with server.way().open() as link:
        link.put(source, "models/a.bin")
        link.put(source, "models/a.bin")
        link.put(tmp_path / "tree", "tree")
        code = (
            f"import os; text = open({'tree/deep/' + odd!r}).read(); open('out.txt', 'w').write(text * 2); "
            "print(os.path.getsize('tree/link'), os.path.islink('tree/link'), os.listdir('tree/deep/empty'))"
        )
        done = link.python(["-c", code], 30)
        assert (done.returncode, done.stdout) == (0, "3000001 False []\n"), done.stderr
        link.get("out.txt", tmp_path / "new" / "out.txt")
        link.get("models/a.bin", tmp_path / "back.bin")
        assert isinstance(link, SshLink)
        assert Path(link.folder).parent == server.device
    assert (tmp_path / "new" / "out.txt").read_text() == "bb"
    assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "back.bin", "new", "tree"]


def test_what_the_job_prints_and_how_it_ends_comes_back(server: Server) -> None:
    with server.way().open() as link:
        code = "import sys; print('o\\x1b[2J'); print('e', file=sys.stderr); sys.exit(7)"
        done = link.python(["-c", code], 30)
        assert (done.returncode, done.stdout, done.stderr) == (7, "o[2J\n", "e\n")  # no control characters
        much = link.python(["-c", "print('x' * 10_000_000); print('end')"], 30)
    assert len(much.stdout) == 1 << 22 and much.stdout.endswith("x\nend\n")


@pytest.mark.parametrize("name", ["", "../x", "/etc/passwd", "a/../../x", "."])
def test_names_stay_in_the_job_folder(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("")
    with server.way().open() as link:
        with pytest.raises(DeviceError, match="is outside the job folder"):
            link.put(tmp_path / "x", name)
        with pytest.raises(DeviceError, match="is outside the job folder"):
            link.get(name, tmp_path / "y")


def test_missing_files_are_named_and_the_link_lives_on(server: Server, tmp_path: Path) -> None:
    with server.way().open() as link:
        with pytest.raises(DeviceError, match=r"no file 'result\.json'"):
            link.get("result.json", tmp_path / "r")
        with pytest.raises(DeviceError, match="gone"):
            link.put(tmp_path / "gone", "gone")
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_a_login_shell_that_talks_is_no_harm(server: Server) -> None:
    talking = server.script(
        "talking", f'echo "Welcome!"; echo "no newline\\c"; echo; exec {sys.executable} "$@"'
    )
    with server.way(python=talking).open() as link:
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"


def test_python_in_the_home_folder(server: Server) -> None:
    home = Path("~").expanduser()  # where a session starts, regardless of HOME
    python = "~/" + os.path.relpath(sys.executable, home)
    with server.way(python=python).open() as link:
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"


def test_a_jump_host_of_the_configuration(server: Server) -> None:
    path = Path(server.config("jump_config", ProxyJump="jump"))
    path.write_text(
        path.read_text()
        + path.read_text()
        .replace("Host linux-ssh", "Host jump", 1)
        .replace("ProxyJump jump", "ProxyJump none")
    )
    with server.way(config=str(path)).open() as link:
        assert len(server.process.children()) == 2
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"


def test_another_folder(server: Server, tmp_path: Path) -> None:
    with server.way(folder=str(tmp_path)).open() as link:
        assert link.python(["-c", "import os; print(os.getcwd())"], 30).stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    error = refused(server.way(folder=str(tmp_path / "gone")))
    assert "cannot create a job folder on linux-ssh: No such file or directory" in error.message


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "a;b", "", "$(x)", "a\nb"])
def test_a_host_cannot_be_an_option_or_a_command(host: str) -> None:
    with pytest.raises(ValidationError):
        Ssh(host=host)


def test_host_keys_are_verified_whatever_the_configuration_says(server: Server) -> None:
    empty = server.root / "nobody_known"
    empty.write_text("")
    loose = {
        "StrictHostKeyChecking": "no",
        "NoHostAuthenticationForLocalhost": "yes",
        "ControlMaster": "auto",
    }
    way = server.way(config=server.config("loose", UserKnownHostsFile=empty, **loose))
    assert "is unknown" in refused(way).message
    assert empty.read_text() == ""


# Unreachable devices.


def test_unknown_host(server: Server) -> None:
    error = refused(server.way(host="no-such-host.invalid"))
    assert "cannot find no-such-host.invalid" in error.message and "Host entry" in error.fix


def test_closed_port(server: Server) -> None:
    port = free_port()
    error = refused(server.way(config=server.config("closed", Port=port)))
    assert error.message == f"linux-ssh (127.0.0.1, port {port}) refused the connection"
    assert f"ssh -F {server.root}/closed linux-ssh" in error.fix


def test_no_answer(server: Server) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        error = refused(server.way(config=server.config("silent", Port=port), connect_timeout=1))
    assert error.message == f"linux-ssh (127.0.0.1, port {port}) does not respond"


def test_refused_key(server: Server) -> None:
    make_key(server.root / "other_key")
    own = server.config("no_key", IdentityFile="none")
    error = refused(server.way(config=own, identity=str(server.root / "other_key")))
    assert "rejected every key" in error.message and "ssh-copy-id" in error.fix
    assert "no such file" in refused(server.way(identity="/gone")).message
    assert "no such file" in refused(server.way(config="/gone")).message


def test_unknown_host_key(server: Server) -> None:
    error = refused(server.way(config=server.config("unknown", UserKnownHostsFile=server.root / "none")))
    assert f"host key of linux-ssh (127.0.0.1, port {server.port}) is unknown" in error.message
    assert "compare the fingerprint" in error.fix
    # The suggested fix works.
    add = error.fix.rpartition("with '")[2].rstrip("'")
    subprocess.run(add, shell=True, check=True, stderr=subprocess.DEVNULL)
    with server.way(config=str(server.root / "unknown")).open():
        pass
    (server.root / "none").unlink()


def test_changed_host_key(server: Server) -> None:
    known = server.root / "changed_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {make_key(server.root / 'old_host_key')}")
    error = refused(server.way(config=server.config("changed", UserKnownHostsFile=known)))
    assert "differs from the known key" in error.message and "intercepted" in error.message
    assert f"ssh-keygen -f {known} -R '[127.0.0.1]:{server.port}'" in error.fix


def test_broken_configuration(server: Server) -> None:
    error = refused(server.way(config=server.config("broken", NoSuchOption="1")))
    assert "ssh rejects its configuration" in error.message and "nosuchoption" in error.message.lower()


def test_no_ssh_client(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "openssh-client" in refused(server.way()).fix


# Missing parts.


def test_no_python(server: Server) -> None:
    error = refused(server.way(python="python9.9"))
    assert error.message.startswith("no Python 'python9.9' on linux-ssh")
    assert "'python'" in error.fix


def test_python_too_old(server: Server) -> None:
    # The real interpreter, which reports another version.
    lie = 'import sys; sys.version_info = (3, 6, 9); sys.version = "3.6.9 (old)"; exec(sys.argv[2])'
    old = server.script("old", f'exec {sys.executable} -c {shlex.quote(lie)} "$@"')
    error = refused(server.way(python=old))
    assert error.message == f"{old} on linux-ssh is Python 3.6.9, but 3.8 or newer is required"


def test_no_numpy(server: Server) -> None:
    error = refused(server.way(python=server.script("bare", f'exec {sys.executable} -S "$@"')))
    assert error.message.endswith("has no numpy") and "-m pip install numpy" in error.fix


# Failures on the way.


def test_full_disk(server: Server, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk can be made by root only")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    (tmp_path / "large").write_bytes(bytes(5_000_000))
    try:
        with server.way(folder=str(small)).open() as link:
            with pytest.raises(DeviceError) as caught:
                link.put(tmp_path / "large", "large")
            assert "disk of linux-ssh is full: no space for 'large' (5,000,000 bytes)" in caught.value.message
            assert "'folder'" in caught.value.fix
            done = link.python(["-c", "open('x', 'wb').write(bytes(1000)); print('room again')"], 30)
            assert done.stdout == "room again\n", done.stderr
            done = link.python(["-c", "open('y', 'wb').write(bytes(1000000))"], 30)
            assert "No space left on device" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_job_that_hangs_is_killed_with_its_children(server: Server) -> None:
    code = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    with server.way().open() as link:
        start = time.monotonic()
        with pytest.raises(DeviceError, match="not finish within 1 s on linux-ssh and was killed") as caught:
            link.python(["-c", code], 1)
        assert time.monotonic() - start < 10 and "time limit" in caught.value.fix
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"


def test_a_job_that_ends_takes_its_children_along(server: Server) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with server.way().open() as link:
        start = time.monotonic()
        assert link.python(["-c", code], 50).returncode == 0
        assert time.monotonic() - start < 10
        # It keeps the output open, and has left the process group.
        escaping = code.replace("])", "], start_new_session=True); print('x')")
        assert link.python(["-c", escaping], 50).stdout == "x\n"
        assert time.monotonic() - start < 20


def test_a_killed_agent(server: Server) -> None:
    with server.way().open() as link:
        done = link.python(["-c", "import os; os.kill(os.getpid(), 9)"], 30)
        assert done.returncode == -signal.SIGKILL
        assert link.python(["-c", "print(1)"], 30).stdout == "1\n"


def test_a_cut_during_a_run(server: Server, tmp_path: Path) -> None:
    code = CUT.format(note=str(tmp_path / "note"), always=True)
    with server.way().open() as link:
        with pytest.raises(
            ConnectionCutError, match="connection to linux-ssh was cut during a job"
        ) as caught:
            link.python(["-c", code], 30)
        assert "power supply of the device" in caught.value.fix
        with pytest.raises(ConnectionCutError):
            link.get("out.txt", tmp_path / "x")


def test_a_cut_during_a_transfer(server: Server, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 30)

    def cut() -> None:
        while not any(path.stat().st_size > 1 << 20 for path in server.device.glob("*/large")):
            time.sleep(0.005)
        session(server).kill()

    cutting = threading.Thread(target=cut)
    with server.way().open() as link:
        cutting.start()
        with pytest.raises(ConnectionCutError, match="cut during sending 'large'"):
            link.put(large, "large")
        cutting.join()


def test_a_cut_while_fetching_leaves_no_half_file(server: Server, tmp_path: Path) -> None:
    with server.way().open() as link:
        link.python(["-c", "open('large', 'wb').truncate(1 << 30)"], 30)

        def cut() -> None:
            while not any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(".*/large")):
                time.sleep(0.005)
            session(server).kill()

        cutting = threading.Thread(target=cut)
        cutting.start()
        with pytest.raises(ConnectionCutError, match="cut during fetching 'large'"):
            link.get("large", tmp_path / "large")
        cutting.join()
    assert list(tmp_path.iterdir()) == []


def session(server: Server) -> psutil.Process:
    """The sshd process of the only connection."""
    found = [p for p in server.process.children(recursive=True) if p.name().startswith("sshd")]
    return found[-1]


def test_a_run_that_is_killed_leaves_nothing(server: Server, tmp_path: Path) -> None:
    options = server.way().model_dump(exclude_defaults=True)
    code = (
        "from edgeopt.devices.connections.ssh import Ssh\n"
        f"with Ssh.model_validate({options!r}).open() as link:\n"
        "    link.python(['-c', 'open(\"begun\", \"w\"); import time; time.sleep(60)'], 60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: any(server.device.glob("*/begun")))
    run.kill()
    run.wait()


def test_a_keeper_that_is_killed_is_cleaned_up_after(server: Server) -> None:
    with server.way().open() as link:
        code = "import os, time; os.kill(os.getppid(), 9); time.sleep(60)"
        with pytest.raises(ConnectionCutError):
            link.python(["-c", code], 30)
    wait_for(lambda: not at_work(server))
    assert len(list(server.device.iterdir())) == 1
    with server.way().open(), server.way().open():  # and not the folder that another one still uses
        assert len(list(server.device.iterdir())) == 2


def wait_for(condition: object) -> None:
    assert callable(condition)
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


# Devices that return malformed or malicious responses.

HELLO = (
    "import json, sys\n"
    "put = sys.stdout.buffer\n"
    "put.write(b'edgeopt-keeper ' + json.dumps({'folder': '/f', 'numpy': True}).encode() + b'\\n')\n"
    "put.flush()\n"
)


def fake(server: Server, code: str) -> Ssh:
    path = server.root / "fake.py"
    path.write_text(code)
    return server.way(python=server.script("fake", f"exec {sys.executable} {path}"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('hello')", "returned no valid response"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "malformed response"),
        ("while True: print('yes')", "malformed response"),
        ("print('edgeopt-keeper {')", "malformed response"),
        ("print('edgeopt-keeper [1]')", "malformed response"),
    ],
)
def test_malformed_response(server: Server, code: str, words: str) -> None:
    assert words in refused(fake(server, code)).message


@pytest.mark.parametrize(
    "answer",
    [
        b"{}\n",
        b"nonsense\n",
        b'{"size": "x"}\n',
        b'{"size": -1}\n',
        b'{"size": 1e99}\n',
        b'{"size": 999999999999999}\n',
        b'{"size": 3}\nabc{"sha256": "00"}\n',
        b'{"size": 3}\nabcdefghijk\n',
        b'{"failure": "\\u001b[2J", "errno": 5}\n',
        b"x" * 3_000_000,
    ],
)
def test_malformed_file(server: Server, tmp_path: Path, answer: bytes) -> None:
    code = HELLO + f"put.write({answer!r} if len({answer!r}) else b''); put.flush(); sys.stdin.read()"
    with fake(server, code).open() as link:
        with pytest.raises(DeviceError) as caught:
            link.get("x", tmp_path / "x")
        assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        b'{"started": 1}\n{}\n',
        b"[]\n",
        b'{"started": 1}\n{"returncode": 0, "stdout": 99999999, "stderr": 0}\n',
    ],
)
def test_malformed_run(server: Server, answer: bytes) -> None:
    code = HELLO + f"put.write({answer!r}); put.flush(); sys.stdin.read()"
    with fake(server, code).open() as link, pytest.raises(DeviceError, match="returned a malformed response"):
        link.python(["-c", ""], 30)


# The bench: a failing device costs only its own rows, and a lost connection is retried once.


def a_device(way: Ssh) -> Device:
    connection = {"uses": "ssh", "with": way.model_dump(exclude_defaults=True)}
    return Device(name="linux-ssh", connection=connection, runtimes={"null": "null"})


def a_bench(way: Ssh, tmp_path: Path) -> Bench:
    return Bench(a_device(way), build_agent(tmp_path / "agent.pyz"), Store(tmp_path / "store"))


def a_model(tmp_path: Path) -> Model:
    path = tmp_path / "model.null"
    path.write_bytes(b"model")
    spec = TensorSpec(name="x", shape=(1, 4), dtype="float32")
    return Model.model_construct(format="null", path=path, inputs=(spec,), outputs=(spec,))


def test_the_agent_answers_through_ssh(server: Server, tmp_path: Path) -> None:
    agent = build_agent(tmp_path / "agent.pyz")
    found = fetch_probe(a_device(server.way()), agent)
    here = fetch_probe(Device(name="host", runtimes={"null": "null"}), agent)
    changing = ("load", "memory_available_bytes", "temperature")
    assert {k: v for k, v in found.items() if k not in changing} == {
        k: v for k, v in here.items() if k not in changing
    }


def test_a_device_that_cannot_be_reached_is_a_failure_not_an_exception(
    server: Server, tmp_path: Path
) -> None:
    bench = a_bench(server.way(config=server.config("closed", Port=free_port())), tmp_path).open()
    assert "refused the connection" in bench.failure


@pytest.mark.parametrize("always", [False, True])
def test_a_cut_is_retried_once(server: Server, tmp_path: Path, always: bool) -> None:
    """The agent of this test cuts its own connection: the first time, or each time."""
    agent = tmp_path / "agent.pyz"
    answer = "import json, sys\nif sys.argv[1] == 'probe': print(json.dumps(" + repr(PROBE) + "))\n"
    agent.write_text(CUT.format(note=str(tmp_path / "note"), always=always) + answer)
    if always:
        with pytest.raises(DeviceError, match=r"was cut during a job.*, and again after a retry"):
            fetch_probe(a_device(server.way()), agent)
    else:
        assert fetch_probe(a_device(server.way()), agent) == PROBE
    assert (tmp_path / "note").exists()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("[]", "returned a malformed response: ok: expected true or false, got []"),
        ("{", "returned a malformed response: message: is not JSON"),
        ('{"ok": true}', "returned a malformed response: protocol: expected 4, got None"),
        ('{"ok": false, "protocol": 4}', "returned a malformed response: error: is missing"),
        (None, "exited without a result"),
    ],
)
def test_a_malformed_result_costs_one_row(
    server: Server, tmp_path: Path, result: str | None, words: str
) -> None:
    bench = a_bench(server.way(), tmp_path)
    write = f"open('result.json', 'w').write({result!r})\n" if result is not None else ""
    bench.agent.write_text("open('outputs.npz', 'w').write('garbage')\n" + write)
    outcome = bench.run(a_model(tmp_path), Evaluation(None, Preprocessing(), tmp_path))
    assert any(word in outcome.error for word in words.split("|")), outcome.error


def test_an_agent_killed_half_way_is_reported(server: Server, tmp_path: Path) -> None:
    bench = a_bench(server.way(), tmp_path)
    bench.agent.write_text("import os\nos.kill(os.getpid(), 9)\n")
    outcome = bench.run(a_model(tmp_path), Evaluation(None, Preprocessing(), tmp_path))
    assert "the agent exited without a result (killed by signal 9)" in outcome.error


# Two processes, one device.


def test_jobs_take_turns_on_the_device(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Even from machines without a common lock: two independent links."""
    spans: list[tuple[float, float]] = []
    code = "import time; a = time.time(); time.sleep(0.7); print(a, time.time())"

    def job() -> None:
        with server.way().open() as link:
            begin, end = map(float, link.python(["-c", code], 30).stdout.split())
            spans.append((begin, end))

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (_, first_end), (second_begin, _) = sorted(spans)
    assert first_end <= second_begin
    said = {record.getMessage() for record in caplog.records}
    assert said == {"linux-ssh is busy with another job: waiting for it to finish"}


HOLD = (
    "import sys, time\n"
    "from edgeopt.devices.locks import device_lock\n"
    "with device_lock('board', {'uses': 'ssh'}, lambda text: print('waits', flush=True)):\n"
    "    print('has', flush=True)\n"
    "    sys.stdin.readline()\n"
)


def test_two_processes_take_turns() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", HOLD], **pipes) as first,  # type: ignore[call-overload]
    ):
        assert first.stdout.readline() == "has\n"
        with subprocess.Popen([sys.executable, "-c", HOLD], **pipes) as second:  # type: ignore[call-overload]
            assert second.stdout.readline() == "waits\n"
            with device_lock("board", {"uses": "local"}):  # another connection: another device
                pass
            first.kill()  # a lock ends with its process
            assert second.stdout.readline() == "has\n"
            said: list[str] = []
            threading.Timer(0.3, lambda: print(file=second.stdin, flush=True)).start()
            with device_lock("board", {"uses": "ssh"}, said.append), device_lock("board", {"uses": "ssh"}):
                assert said == [f"device board is in use by process {second.pid}: waiting for its job to end"]


def test_no_place_for_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="cannot create the lock file"), device_lock("board", {}):
        pass
