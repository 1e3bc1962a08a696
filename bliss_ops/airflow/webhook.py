"""Delivers one JSON message to a webhook: signed, in a few seconds or not at all, and never an error for the caller.

A task whose webhook is down ends as it would have ended: everything, name look-up included, happens in a thread that is waited for no
longer than BUDGET_SECONDS. Redirects are not followed, so a message reaches the address that was set and no other.

The receiver checks `X-Bliss-Signature: sha256=<hex>`, the HMAC-SHA256 of `<X-Bliss-Timestamp>.<body>` by the shared secret, and
that the timestamp is not old.
"""

import hashlib
import hmac
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

CONNECTION = "bliss_webhook"
URL, SECRET, FORMAT = "BLISS_WEBHOOK_URL", "BLISS_WEBHOOK_SECRET", "BLISS_WEBHOOK_FORMAT"  # where there is no connection
GENERIC, SLACK = "generic", "slack"
ATTEMPTS = 2
ATTEMPT_SECONDS = 2.0
PAUSE_SECONDS = 0.5
BUDGET_SECONDS = 5.0
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


@dataclass(frozen=True)
class Webhook:
    """An address, and how messages to it are written and signed."""

    url: str
    secret: str = field(default="", repr=False)
    format: str = GENERIC

    @property
    def shown(self) -> str:
        """Its host: the rest of a webhook's address is a secret itself."""
        return urlsplit(self.url).hostname or "?"


def configured() -> Webhook | None:
    """From the connection `bliss_webhook`, else from BLISS_WEBHOOK_URL; None where neither is set.

    The connection's address is its host, port and schema with `path` of the extra behind them, or `url` of the extra; its password is the
    secret, `format` of the extra is `generic` or `slack`.
    """
    if url := os.environ.get(URL):
        return _checked(url, os.environ.get(SECRET, ""), os.environ.get(FORMAT, ""))
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(CONNECTION)
    except AirflowNotFoundException:
        return None
    extra = connection.extra_dejson
    port = f":{connection.port}" if connection.port else ""
    url = extra.get("url") or f"{connection.schema or 'https'}://{connection.host}{port}{extra.get('path', '')}"
    return _checked(url, connection.password or "", extra.get("format", ""))


def deliver(webhook: Webhook, message: Mapping[str, Any]) -> bool:
    """Whether the message was accepted; what went wrong is in the log."""
    body = json.dumps({"text": message["text"]} if webhook.format == SLACK else message, ensure_ascii=False, default=str).encode()
    accepted = threading.Event()

    def attempt_until_accepted() -> None:
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                time.sleep(PAUSE_SECONDS)
            problem, is_final = _post(webhook, body)
            if not problem:
                accepted.set()
                return
            log.warning("the webhook at %s did not take a message (attempt %d of %d): %s", webhook.shown, attempt, ATTEMPTS, problem)
            if is_final:
                return

    thread = threading.Thread(target=attempt_until_accepted, name="webhook", daemon=True)
    thread.start()
    thread.join(BUDGET_SECONDS)
    if thread.is_alive():
        log.warning("the webhook at %s did not answer in %.0f s: going on without it", webhook.shown, BUDGET_SECONDS)
    return accepted.is_set()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of X-Bliss-Signature."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _post(webhook: Webhook, body: bytes) -> tuple[str, bool]:
    """(what went wrong, whether another attempt is of no use); nothing went wrong where the first is empty."""
    headers = {"Content-Type": "application/json", "User-Agent": "bliss-ops"}
    if webhook.secret:
        timestamp = str(int(time.time()))
        headers |= {"X-Bliss-Timestamp": timestamp, "X-Bliss-Signature": signature(webhook.secret, timestamp, body)}
    request = urllib.request.Request(webhook.url, data=body, headers=headers, method="POST")  # noqa: S310 - checked: http or https
    try:
        with _opener.open(request, timeout=ATTEMPT_SECONDS):
            return "", True
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}", error.code < SERVER_ERROR and error.code != TOO_MANY_REQUESTS
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}", False


def _checked(url: str, secret: str, form: str) -> Webhook | None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        log.warning("%s or the connection %s is not an http:// or https:// address: nobody is told", URL, CONNECTION)
        return None
    if form not in ("", GENERIC, SLACK):
        log.warning("%s is %r, neither %s nor %s: taking %s", FORMAT, form, GENERIC, SLACK, GENERIC)
        form = GENERIC
    is_slack = parts.hostname == "hooks.slack.com"
    return Webhook(url, secret, form or (SLACK if is_slack else GENERIC))
