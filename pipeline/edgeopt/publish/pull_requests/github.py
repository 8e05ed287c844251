"""The pull request of a GitHub Actions job."""

from collections.abc import Mapping
from pathlib import Path

from edgeopt.config.files import regular
from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.pull_requests.api import PullRequest


def github(environment: Mapping[str, str]) -> PullRequest | None:
    """None for jobs of other events than those of a pull request.

    Raises:
        UsageError: the event cannot be read.
    """
    path = environment.get("GITHUB_EVENT_PATH")
    repository = environment.get("GITHUB_REPOSITORY")
    if not path or not repository:
        return None
    try:
        event = json_value(regular(Path(path)).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"GITHUB_EVENT_PATH: {path} cannot be read: {error}") from error
    # Comments on a pull request are events of an issue that has this key.
    pull = event.get("pull_request") or (event.get("issue") or {}).get("pull_request")
    number = event.get("number") or (event.get("issue") or {}).get("number")
    if not pull or not isinstance(number, int):
        return None
    api = environment.get("GITHUB_API_URL", "https://api.github.com").rstrip("/")
    token = environment.get("GITHUB_TOKEN", "")
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    return PullRequest(
        host="GitHub",
        comments=f"{api}/repos/{repository}/issues/{number}/comments",
        one=f"{api}/repos/{repository}/issues/comments/{{}}",
        update="PATCH",
        headers=headers | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
