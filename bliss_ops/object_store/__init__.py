"""Object stores: the one place where `s3://` addresses get their file system, its options, its retries and its error messages.

Importing this package makes `ObjectStore` the file system of `s3://` for everything in this process that resolves addresses by fsspec:
UPath, so every path of the lake, pyarrow and DuckDB. Options come from the environment when a file system is made and are in no
path and no pickle, so a path that travels to a Ray worker takes the credentials that it finds there.

    environment()              what is set: the usual AWS_* variables, or the Airflow connection that BLISS_S3_CONNECTION names
    endpoint()                 of these, the store's address: buckets of one name at two endpoints are two buckets
    forwarded_environment()    what of it goes with the commands that Airflow starts and submits
    file_system.ObjectStore    s3fs with our requests (retrying), reads (reading) and uploads (uploading)
    querying.QueriedStore      the same for DuckDB                              failures    what went wrong, in a sentence

Nothing here lists a directory to find out what is in an artifact: its manifest says that.
"""

import os
from collections.abc import Callable, Mapping

import fsspec

CONNECTION = "BLISS_S3_CONNECTION"  # id of an Airflow connection of type `aws`; it counts more than the AWS_* variables
ADDRESSING_STYLE = "BLISS_S3_ADDRESSING_STYLE"  # auto, path or virtual
RETRY_SECONDS = "BLISS_S3_RETRY_SECONDS"  # how long one request is tried again, from its first failure on
TIMEOUT_SECONDS = "BLISS_S3_TIMEOUT_SECONDS"  # how long an answer may take to begin, or to go on

DEFAULT_RETRY_SECONDS = 120.0
DEFAULT_TIMEOUT_SECONDS = 60.0

# Files that are named by a variable (AWS_CA_BUNDLE, AWS_CONFIG_FILE) are on one machine only, so these are not among them.
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "FSSPEC_S3_ANON",
    ADDRESSING_STYLE,
    RETRY_SECONDS,
    TIMEOUT_SECONDS,
)

KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})

Resolver = Callable[[str], Mapping[str, str]]
_resolver: Resolver | None = None

fsspec.register_implementation("s3", "bliss_ops.object_store.file_system.ObjectStore", clobber=True)


def use_connections(resolver: Resolver) -> None:
    """Let `resolver(connection id)` say, as variables, what a connection has: `bliss_ops.airflow` does, nothing below it knows Airflow."""
    global _resolver
    _resolver = resolver


def environment() -> dict[str, str]:
    """What is set for object stores, by the names of the environment variables.

    Raises:
        ValueError: a connection is named that cannot be resolved here.
    """
    found = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    connection = os.environ.get(CONNECTION)
    if not connection:
        return found
    if _resolver is None:
        if "AWS_ACCESS_KEY_ID" in found:  # a command that Airflow has started, and told what the connection has
            return found
        raise ValueError(
            f"{CONNECTION} is {connection!r}, but this process is none of Airflow's and has no connections: unset it and set "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    found.pop("AWS_SESSION_TOKEN", None)  # of other credentials
    return found | dict(_resolver(connection))


def endpoint() -> str | None:
    """The store's address where one is set; else botocore's, which is AWS.

    Raises:
        ValueError: as `environment`.
    """
    found = environment()
    return found.get("AWS_ENDPOINT_URL_S3") or found.get("AWS_ENDPOINT_URL")


def forwarded_environment(*, to_ray: bool = False) -> dict[str, str]:
    """What a command is told to reach the lake and the watched prefix; nothing where both are on disks.

    Args:
        to_ray: without the keys of this process's environment. Ray writes what a job is told into its logs and into its workers' command
            lines, and its nodes have keys of their own. A connection's keys, which the nodes cannot look up, do go along.

    Raises:
        ValueError: as `environment`.
    """
    if not any(os.environ.get(name, "").startswith("s3://") for name in ("BLISS_LAKE", "BLISS_LANDING")):
        return {}
    found = environment()
    if to_ray and not os.environ.get(CONNECTION):
        return {name: value for name, value in found.items() if name not in KEYS}
    return found


def seconds_of(name: str, default: float) -> float:
    """A number of seconds from the environment.

    Raises:
        ValueError: it is none, or not above 0.
    """
    text = environment().get(name)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {text!r}: give a number of seconds above 0, such as {default:g}")
    return seconds
