"""What s3fs and botocore are told: endpoint, region, credentials, time-outs, and that neither tries a request again."""

from typing import Any

from bliss_ops import object_store

MAX_CONNECTIONS = 32
CONNECT_SECONDS = 5.0


def options_of_environment() -> dict[str, Any]:
    """Options of s3fs as the environment has them; credentials that botocore finds by itself stay with it."""
    found = object_store.environment()
    style = found.get(object_store.ADDRESSING_STYLE, "auto")
    if style not in ("auto", "path", "virtual"):
        raise ValueError(f"{object_store.ADDRESSING_STYLE} is {style!r}: use auto, path (bucket in the path) or virtual (in the host name)")
    timeout = object_store.seconds_of(object_store.TIMEOUT_SECONDS, object_store.DEFAULT_TIMEOUT_SECONDS)
    options: dict[str, Any] = {
        "use_listings_cache": False,
        "endpoint_url": object_store.endpoint(),
        "config_kwargs": {
            "connect_timeout": min(CONNECT_SECONDS, timeout),
            "read_timeout": timeout,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": MAX_CONNECTIONS,
            "s3": {"addressing_style": style},
        },
    }
    if region := found.get("AWS_REGION") or found.get("AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    if found.get("AWS_ACCESS_KEY_ID"):
        options |= {
            "key": found["AWS_ACCESS_KEY_ID"],
            "secret": found.get("AWS_SECRET_ACCESS_KEY"),
            "token": found.get("AWS_SESSION_TOKEN"),
        }
    return options
