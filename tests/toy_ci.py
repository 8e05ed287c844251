"""A runner that plays a GitHub action in a clean shell, and a server with the comments of a code host."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent


class Host:
    """A code host: comments of one pull request by their number, and how it answers requests."""

    def __init__(self) -> None:
        self.comments: dict[int, str] = {}
        self.others = 0
        """Comments of people, before those of the job."""
        self.read_only = False
        self.failures = 0
        """Requests to answer with 502 first."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and token of each."""
        self.url = ""

    def answer(self, method: str, target: str, token: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        self.requests.append((method, parts.path, token))
        if self.failures:
            self.failures -= 1
            return 502, {"message": "Bad Gateway"}
        if method == "GET":
            query = {key: int(values[0]) for key, values in parse_qs(parts.query).items()}
            first = (query["page"] - 1) * query["per_page"]
            people = [{"id": -number - 1, "body": "LGTM"} for number in range(self.others)]
            every = people + [{"id": number, "body": text} for number, text in self.comments.items()]
            return 200, every[first : first + query["per_page"]]
        if self.read_only:
            return 403, {"message": "Resource not accessible by integration"}
        text = json.loads(body)["body"]
        if len(text) > 65_536:
            return 422, {"message": "Body is too long (maximum is 65536 characters)"}
        number = len(self.comments) + 1 if method == "POST" else int(parts.path.rpartition("/")[2])
        self.comments[number] = text
        return 201 if method == "POST" else 200, {"id": number, "html_url": f"{self.url}/comment-{number}"}


@contextmanager
def serving(host: Host) -> Iterator[Host]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization") or self.headers.get("PRIVATE-TOKEN") or ""
            status, value = host.answer(self.command, self.path, token, body)
            answer = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        host.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield host
        server.shutdown()


class Job(NamedTuple):
    """What a job of the action left behind."""

    codes: dict[str, int]
    """Exit codes of the steps with a script, by id."""
    outputs: dict[str, str]
    """Of the action."""
    annotations: list[str]
    summary: str
    artifacts: dict[str, Path]
    """Copies of the uploaded folders by name."""
    log: str


def play(
    workspace: Path, host: Host | None = None, *, variables: Mapping[str, str] | None = None, **inputs: str
) -> Job:
    """Run the steps of ``action.yml`` as they stand, each script in a clean shell."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    given = {name: str(entry.get("default", "")) for name, entry in action["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    runner = workspace.parent / "runner"
    shutil.rmtree(runner, ignore_errors=True)
    runner.mkdir()
    event = {"number": 7, "pull_request": {"number": 7}} if host else {"ref": "refs/heads/main"}
    (runner / "event.json").write_text(json.dumps(event))
    known: dict[str, str] = {f"inputs.{name}": value for name, value in given.items()}
    known["github.token"] = "secret"
    known["inputs.token"] = "secret"
    codes: dict[str, int] = {}
    log, artifacts, summary, failed = "", dict[str, Path](), "", False
    for step in action["runs"]["steps"]:
        if not _applies(step.get("if", "success()"), known, failed=failed):
            continue
        if "uses" in step:
            assert step["uses"].startswith("actions/upload-artifact@")
            target = runner / "artifacts" / _filled(step["with"]["name"], known)
            shutil.copytree(workspace / _filled(step["with"]["path"], known), target)
            artifacts[target.name] = target
            continue
        assert "${{" not in step["run"]
        output, page = runner / f"output-{step['id']}", runner / f"summary-{step['id']}.md"
        environment = {
            "PATH": f"{workspace.parent}/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(workspace.parent),
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_WORKSPACE": str(workspace),
            "GITHUB_EVENT_PATH": str(runner / "event.json"),
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_SERVER_URL": "https://code.example",
            "GITHUB_RUN_ID": "42",
            "GITHUB_API_URL": host.url if host else "http://127.0.0.1:9",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(page),
            **(variables or {}),
            **{name: _filled(value, known) for name, value in step["env"].items()},
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, env=environment, cwd=workspace, check=False, capture_output=True, text=True
        )
        log += done.stdout + done.stderr
        codes[step["id"]] = done.returncode
        failed = failed or done.returncode != 0
        summary += page.read_text() if page.exists() else ""
        for name, value in _outputs(output.read_text() if output.exists() else "").items():
            known[f"steps.{step['id']}.outputs.{name}"] = value
    assert "Traceback" not in log
    return Job(
        codes,
        {name: _filled(entry["value"], known) for name, entry in action["outputs"].items()},
        [line for line in log.splitlines() if line.startswith("::")],
        summary,
        artifacts,
        log,
    )


def _filled(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: known.get(found[1], ""), text)


def _applies(condition: str, known: Mapping[str, str], *, failed: bool) -> bool:
    """Evaluate the conditions of this action: comparisons joined by &&."""
    parts = condition.split(" && ")
    if "always()" not in parts and failed:
        return False
    for part in parts:
        if part in ("always()", "success()"):
            continue
        name, operator, value = part.split(" ")
        if (known.get(name, "") == value.strip("'")) is not (operator == "=="):
            return False
    return True


def _outputs(text: str) -> dict[str, str]:
    """The outputs of a step, in the form with delimiters."""
    found = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, mark, end = line.partition("<<")
        assert mark
        found[name] = "\n".join(iter(lambda: next(lines), end))
    return found


def play_gitlab(workspace: Path, host: Host, **inputs: str) -> tuple[int, str, dict[str, Any]]:
    """Run the script of the GitLab component in a clean shell: exit code, log, and the job as filled in."""
    text = (ROOT / "templates" / "edgeopt.yml").read_text()
    spec, job = text.split("\n---\n")
    declared = yaml.safe_load(spec)["spec"]["inputs"]
    given = {name: entry.get("default") for name, entry in declared.items()} | inputs
    assert not [name for name, value in given.items() if value is None], "a required input is missing"
    # GitLab fills in inputs before it reads the YAML.
    filled = re.sub(r"\$\[\[ inputs\.(\S+) \]\]", lambda found: str(given[found[1]]).replace('"', '\\"'), job)
    ((_, described),) = yaml.safe_load(filled).items()
    environment = {
        "PATH": f"{workspace.parent}/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(workspace.parent),
        "GITLAB_CI": "true",
        "CI_API_V4_URL": f"{host.url}/api/v4",
        "CI_PROJECT_ID": "9",
        "CI_MERGE_REQUEST_PROJECT_ID": "3",
        "CI_MERGE_REQUEST_IID": "7",
        "CI_JOB_URL": "https://code.example/jobs/42",
        "CI_PROJECT_DIR": str(workspace),
        "GITLAB_TOKEN": "secret",
        **described["variables"],
    }
    # The runner ends a job at the first line that fails.
    script = "\n".join(["set -e", *described["script"]])
    done = subprocess.run(
        ["sh", "-c", script], env=environment, cwd=workspace, check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr, described


def scripts() -> Iterator[tuple[list[str], str]]:
    """Variables and text of every shell script of the action, the workflow and the component."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "model.yml").read_text())
    for step in [
        *action["runs"]["steps"],
        *(step for job in workflow["jobs"].values() for step in job["steps"]),
    ]:
        if "run" in step:
            yield list(step["env"]), step["run"]
    _, job = (ROOT / "templates" / "edgeopt.yml").read_text().split("\n---\n")
    (described,) = yaml.safe_load(re.sub(r"\$\[\[ inputs\.(\S+) \]\]", r"\1", job)).values()
    yield list(described["variables"]), "\n".join(described["script"])
