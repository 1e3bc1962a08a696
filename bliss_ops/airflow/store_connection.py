"""The Airflow connection that BLISS_S3_CONNECTION names, as the variables that everything else reads.

Of type `aws`, with the fields of Airflow's own provider, which need not be installed: login and password are the keys; the extra may
have `region_name`, `endpoint_url`, `aws_session_token` and `{"config_kwargs": {"s3": {"addressing_style": "path"}}}`. It is looked up once
in each process of Airflow. Ray jobs get its values as environment variables, which Ray's own logs show: nodes that have keys of their own
need no connection.
"""

from functools import cache
from typing import Any

from bliss_ops import object_store

FIELDS = {
    "region_name": "AWS_DEFAULT_REGION",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "aws_session_token": "AWS_SESSION_TOKEN",
}


@cache
def variables_of(connection_id: str) -> dict[str, str]:
    """What the connection has.

    Raises:
        ValueError: it does not exist, or is not one to an object store.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(connection_id)
    except AirflowNotFoundException:
        raise ValueError(
            f"there is no Airflow connection {connection_id!r}, which {object_store.CONNECTION} names: add it (`airflow connections add "
            f"{connection_id} --conn-type aws --conn-login KEY --conn-password SECRET`), or unset the variable and set AWS_*"
        ) from None
    if connection.conn_type not in ("aws", "s3", "generic", ""):
        raise ValueError(
            f"the Airflow connection {connection_id!r}, which {object_store.CONNECTION} names, is of type {connection.conn_type!r}: "
            "make it `aws`"
        )
    return _variables(connection.login, connection.password, connection.extra_dejson)


def _variables(login: str | None, password: str | None, extra: dict[str, Any]) -> dict[str, str]:
    found = {
        "AWS_ACCESS_KEY_ID": login or extra.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": password or extra.get("aws_secret_access_key"),
        object_store.ADDRESSING_STYLE: extra.get("config_kwargs", {}).get("s3", {}).get("addressing_style"),
    } | {name: extra.get(field) for field, name in FIELDS.items()}
    return {name: str(value) for name, value in found.items() if value}
