"""The merge request of a GitLab CI job."""

from collections.abc import Mapping
from urllib.parse import quote

from edgeopt.publish.pull_requests.api import PullRequest


def gitlab(environment: Mapping[str, str]) -> PullRequest | None:
    """None for pipelines that do not belong to a merge request.

    The token of the job itself may not comment: ``GITLAB_TOKEN`` is a project access token with scope api.
    """
    api = environment.get("CI_API_V4_URL")
    # A pipeline of a fork runs in the fork, but the merge request is of the target project.
    project = environment.get("CI_MERGE_REQUEST_PROJECT_ID") or environment.get("CI_PROJECT_ID")
    number = environment.get("CI_MERGE_REQUEST_IID")
    if not api or not project or not number:
        return None
    notes = f"{api.rstrip('/')}/projects/{quote(project, '')}/merge_requests/{quote(number, '')}/notes"
    token = environment.get("GITLAB_TOKEN", "")
    return PullRequest(
        host="GitLab",
        comments=notes,
        one=f"{notes}/{{}}",
        update="PUT",
        headers={"PRIVATE-TOKEN": token} if token else {},
    )
