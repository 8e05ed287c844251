"""Comments on pull requests: one per recipe, which every run replaces. GitHub and GitLab."""

import hashlib
from collections.abc import Mapping

from edgeopt.errors import RemoteError
from edgeopt.publish.pull_requests.api import Api, Forbidden, PullRequest
from edgeopt.publish.pull_requests.github import github
from edgeopt.publish.pull_requests.gitlab import gitlab
from edgeopt.publish.remotes.patience import Attempts
from edgeopt.publish.remotes.transfer import TransientError

__all__ = ["Forbidden", "PullRequest", "marked", "pull_request", "put_comment"]


def pull_request(environment: Mapping[str, str]) -> PullRequest | None:
    """The pull request that this CI job runs for; None outside of CI, and for other jobs.

    Raises:
        UsageError: a variable of the CI system is malformed.
    """
    if environment.get("GITHUB_ACTIONS") == "true":
        return github(environment)
    return gitlab(environment) if environment.get("GITLAB_CI") == "true" else None


def marked(body: str, identity: str) -> str:
    """A comment that starts with an invisible mark of the recipe it is about."""
    return f"{_mark(identity)}\n{body}"


def _mark(identity: str) -> str:
    # A digest: a name could end the HTML comment.
    return f"<!-- edgeopt {hashlib.sha256(identity.encode('utf-8', 'backslashreplace')).hexdigest()[:16]} -->"


def put_comment(where: PullRequest, body: str, identity: str) -> str:
    """Replace the comment of an earlier run for the same ``identity``, or add one; return its address.

    Raises:
        Forbidden: the token may not comment, such as that of a pull request from a fork.
        RemoteError: the server cannot be reached or rejects the comment.
    """
    api = Api(where)
    text = marked(body, identity)
    attempts = Attempts(api.patience)
    while True:
        # Looked up before each attempt: one whose response was lost may have succeeded.
        try:
            found = api.find(_mark(identity))
            if found is not None:
                try:
                    return api.replace(found, text)
                except (Forbidden, RemoteError) as error:
                    if isinstance(error, TransientError):
                        raise
                    # Somebody else's comment, or one that was just deleted.
            return api.add(text)
        except TransientError as failure:
            attempts.again(failure)
