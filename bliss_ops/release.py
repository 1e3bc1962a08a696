"""Which release of this package works here, and whether it is the one that was asked.

Airflow and Ray have environments of their own, so one may be upgraded before the other: settings would be read by other code than the
code that wrote them. Airflow sends its release along with every job, and `bliss` refuses to work for another one.
"""

import os

from bliss_ops import __version__

COMMIT = "BLISS_GIT_COMMIT"  # of the code in an image; a checkout has none
REQUIRED = "BLISS_REQUIRED_RELEASE"


def release() -> str:
    """`0.1.0`, or `0.1.0+<commit>` where the code's commit is known."""
    commit = os.environ.get(COMMIT)
    return f"{__version__}+{commit[:12]}" if commit else __version__


def required_environment() -> dict[str, str]:
    """What makes a job refuse to run with another release than this one."""
    return {REQUIRED: release()}


def check() -> None:
    """Return when this is the release that is required here, or none is. Commits count where both sides know theirs.

    Raises:
        ValueError: it is another one.
    """
    required = os.environ.get(REQUIRED, "")
    (version, _, commit), (our_version, _, our_commit) = required.partition("+"), release().partition("+")
    if required and (version != our_version or (commit and our_commit and commit != our_commit)):
        raise ValueError(
            f"this node has bliss-ops {release()}, and whoever sent the work {required}: nothing was done. Give Airflow and Ray images of "
            "the same build (docs/deployment.md, Upgrading), then clear the task"
        )
