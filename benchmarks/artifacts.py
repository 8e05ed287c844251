"""Pulling from a real registry on the loopback: time, memory, and consistency after killed processes.

    python benchmarks/artifacts.py [time memory kills] [--kills 200] [--gigabytes 2]

Needs docker-registry (on Debian: apt install docker-registry). Without arguments, all three parts run.
"""

import argparse
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from edgeopt.publish.channels import history  # noqa: E402
from edgeopt.publish.oci import read_index, read_manifest  # noqa: E402
from edgeopt.publish.remotes import library, open_remote  # noqa: E402
from registry import docker_registry  # noqa: E402
from toy_run import write_run  # noqa: E402

EDGEOPT = [sys.executable, "-m", "edgeopt", "artifacts"]
ROUNDS = 7


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", nargs="*", choices=["time", "memory", "kills", []])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, docker_registry(Path(name, "registry")) as host:
        folder = Path(name)
        keys = key_pair(folder)
        for what in given.what or ("time", "memory", "kills"):
            if what == "time":
                pulling(folder / "time", host, keys)
            elif what == "memory":
                streaming(folder / "memory", host, keys, int(given.gigabytes * (1 << 30)))
            else:
                killing(folder / "kills", host, given.kills)


def pulling(folder: Path, host: str, keys: tuple[Path, Path]) -> None:
    """Time of a signed and verified pull of 5 MB and of a plain HTTP download, alternating."""
    url = push(folder, host, "five", os.urandom(5_000_000), keys[0])
    blobs = layers(url)
    signed, bare, start = [], [], []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        for digest in blobs:
            with urllib.request.urlopen(f"http://{host}/v2/five/blobs/{digest}") as answer:
                (folder / "bare").write_bytes(answer.read())
        bare.append(time.perf_counter() - began)
        signed.append(timed([*pull(url, folder, turn), "--require-signature", str(keys[1])]))
        start.append(timed(["--help"]))
    spent, plain, help_ = (statistics.median(each) for each in (signed, bare, start))
    print(
        f"pull of 5 MB, signed and verified: {spent:.2f} s; plain HTTP download: {plain:.3f} s; "
        f"--help: {help_:.2f} s (goal: at most {1.5 * plain + 1:.2f} s; medians of {ROUNDS})"
    )


def streaming(folder: Path, host: str, keys: tuple[Path, Path], size: int) -> None:
    """Peak memory of pulling a large artifact and a small one."""
    peaks = {}
    for name, length in (("small", 5_000_000), ("large", size)):
        model = folder / f"{name}.bin"
        folder.mkdir(exist_ok=True)
        with model.open("wb") as file:
            for start in range(0, length, 1 << 20):
                file.write(os.urandom(min(1 << 20, length - start)))
        url = push(folder, host, name, model, keys[0])
        command = [*EDGEOPT, *pull(url, folder, 0), "--require-signature", str(keys[1])]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, name
        peaks[name] = usage.ru_maxrss / 1024
    print(
        f"peak memory of a signed pull: {peaks['large']:.0f} MB for {size / 1e9:.1f} GB, "
        f"{peaks['small']:.0f} MB for 5 MB ({peaks['large'] / peaks['small']:.2f}x)"
    )


def killing(folder: Path, host: str, kills: int) -> None:
    """Push, pull, promote and gc, each killed at a random moment; then all content is verified."""
    for version in ("1.1", "1.2"):
        write_run(folder / version, measured={"top1": 0.9 if version == "1.1" else 0.91})
    url, shelf, board = f"oci://{host}/kills", folder / "shelf", folder / "board"
    out, empty = folder / "out", str(folder / "none")
    elsewhere = ["--runs", empty, "--store", empty]
    begin = ["--library", str(shelf), "--channel", "stable"]
    for version in ("1.1", "1.2"):
        run(["push", str(folder / version), "--to", f"{url}:{version}", *begin])
    chance, unsound, reached, turn = random.Random(0), 0, 0, 0
    while reached < kills:
        turn += 1
        fresh = f"2.{turn}"
        write_run(folder / fresh, measured={"top1": 0.9 + turn / 10_000})
        jobs = (
            ["push", str(folder / fresh), "--to", f"{url}:{fresh}", *begin],
            ["pull", url, "--device", "cortex-m", "--out", str(out), "--library", str(board)],
            ["promote", f"{url}@1.{1 + turn % 2}", "--library", str(shelf)],
            ["gc", "--keep-last", "2", "--delete", "--library", str(shelf), *elsewhere],
        )
        job = jobs[turn % len(jobs)]
        process = subprocess.Popen(
            [*EDGEOPT, *job], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0.1, 0.8))
        reached += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        sound = all(
            run(["verify", "--all", "--library", str(each), "--store", empty], check=False) == 0
            for each in (shelf, board)
        )
        sound &= not out.exists() or run(["verify", str(out)], check=False) == 0
        for place in (open_remote(url), library(shelf / "kills")):
            moves = history(place, "stable")
            stands = place.resolve("stable")
            sound &= bool(moves) and place.resolve(moves[-1].release) is not None and stands is not None
        unsound += not sound
    print(f"{kills} of {turn} processes killed at work: {unsound} left an inconsistent state")


@contextmanager
def quiet() -> Iterator[int]:
    """A file descriptor that discards output."""
    with open(os.devnull, "wb") as nothing:
        yield nothing.fileno()


def run(arguments: Sequence[str], *, check: bool = True) -> int:
    with quiet() as nothing:
        return subprocess.run([*EDGEOPT, *arguments], stdout=nothing, stderr=nothing, check=check).returncode


def timed(arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    run(arguments)
    return time.perf_counter() - began


def pull(url: str, folder: Path, turn: int) -> list[str]:
    """Arguments of a pull into a fresh library and a fresh folder."""
    name = url.rpartition("/")[2]
    place = ["--out", str(folder / f"{name}-{turn}"), "--library", str(folder / f"library-{name}-{turn}")]
    return ["pull", f"{url}@1.0", "--device", "host", *place]


def push(folder: Path, host: str, name: str, model: bytes | Path, key: Path) -> str:
    """Publish a run whose artifact has these bytes, which are never parsed."""
    content = model if isinstance(model, bytes) else b"to be replaced"
    report = write_run(folder / name, format_name="onnx", device="host", model=content, golden_of=None)
    if isinstance(model, Path):
        from edgeopt.config.files import file_digest

        target = folder / name / "models" / "int8.onnx"
        model.replace(target)
        (row,) = report.results
        assert row.artifact is not None
        artifact = row.artifact.model_copy(
            update={"digest": file_digest(target), "size_bytes": target.stat().st_size}
        )
        changed = report.model_copy(update={"results": (row.model_copy(update={"artifact": artifact}),)})
        (folder / name / "report.json").write_text(changed.model_dump_json(by_alias=True))
    url = f"oci://{host}/{name}"
    to = ["--to", f"{url}:1.0", "--sign", str(key), "--library", str(folder / "maker")]
    run(["push", str(folder / name), *to])
    return url


def layers(url: str) -> list[str]:
    """Digests of all content of a release with one bundle."""
    remote = open_remote(url)
    release = remote.resolve("1.0")
    assert release is not None
    bundle = read_index(remote.manifest(release.digest), url).manifests[0]
    return [layer.digest for layer in read_manifest(remote.manifest(bundle.digest), url).layers]


def key_pair(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "release.pem", folder / "release.pub"
    generate = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(generate, check=True, capture_output=True)
    export = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(export, check=True, capture_output=True)
    return private, public


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
