"""What may come in from outside as a name, an address or an SQL identifier: checked here and nowhere else.

Names become directories, addresses are opened by Ray's workers, identifiers become part of SQL text. Whoever takes one of them from a
command line, a trigger form, a recipe, a list or a web page calls a function of this file; a test looks through the source tree
for checks that were written elsewhere. docs/security.md has the reasons, and what is not defended.
"""

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

ALLOWED = "a local path or glob, s3://bucket/key, https://host/path, http://host/path, hf://datasets/owner/name/path"
ROOTS = "BLISS_SOURCE_ROOTS"  # where sources may be: directories and URIs, separated by spaces; unset: anywhere
PRIVATE_HOSTS = "BLISS_PRIVATE_HOSTS"  # hosts and networks that redirects may lead to although they are not public
MAX_ADDRESS_CHARACTERS = 4096  # the longest path of Linux

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TOKEN = re.compile(r"[0-9a-f]{32}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://|/|$)|([a-z0-9+-]+)::")
_READABLE = re.compile(r"(s3|https|http)://[^/].*|(hf)://(datasets/|spaces/)?[^/]+/[^/]+/.+", re.DOTALL)
_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")
# query parameters that open a door by themselves: signed addresses of S3, Google and Azure, and tokens
_SECRET = re.compile(r"sig|signature|(x-amz-|x-goog-).*|awsaccesskeyid|[\w.-]*(token|secret|password|passwd|api[-_]?key)", re.IGNORECASE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedHostError(OSError):
    """A redirect leads to an address that is not public."""


def check_name(name: str) -> str:
    """Return `name` when it is safe as one directory name, else raise ValueError saying what is allowed."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{_shown(name)} is not a valid name: use 1-80 of a-z 0-9 . _ - beginning with a letter or digit, without '..'")
    return name


def check_token(text: str) -> str:
    """Return an identifier that a page made up for its own request: 32 hexadecimal digits.

    Raises:
        ValueError: it is anything else.
    """
    if not _TOKEN.fullmatch(text):
        raise ValueError("the id of a statement is 32 hexadecimal digits")
    return text


def check_address(uri: str) -> str:
    """The scheme of an address of source data, "" for a local path.

    Raises:
        ValueError: it is of a kind that is not read, carries a credential, or leads out of where it says it is.
    """
    if not uri or len(uri) > MAX_ADDRESS_CHARACTERS:
        raise ValueError(f"an address has 1 to {MAX_ADDRESS_CHARACTERS} characters, not {len(uri)}")
    if unprintable := next((c for c in uri if ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000), None):
        raise ValueError(f"{_shown(uri)} contains the character {unprintable!r}, which no address does: take it out")
    found = _SCHEME.match(uri)
    if found is None:
        return ""
    scheme = found[1] or found[2]
    if not _READABLE.fullmatch(uri):
        plain = " (give a local file by its plain path)" if scheme.lower() == "file" else ""
        raise ValueError(f"{_shown(uri)} is not an address that can be read{plain}: use {ALLOWED}")
    if redacted(uri) != uri:
        raise ValueError(
            f"{redacted(uri)} carries a credential: addresses are logged and kept in the lake, so give keys by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, HF_TOKEN for hf://)"
        )
    if scheme in ("http", "https"):
        _check_host(uri)
    if ".." in unquote(uri.partition("?")[0]).split("/"):
        raise ValueError(f"{_shown(uri)} has a '..' in its path: write out where it leads")
    return scheme


def check_line(uri: str) -> str:
    """Return an address that is one line of a list file: U+2028 and the like end a line, too.

    Raises:
        ValueError: it is more than one, or none that `check_address` takes.
    """
    check_address(uri)
    if uri.splitlines() != [uri]:
        raise ValueError(f"{_shown(uri)} contains a character that ends a line, so in a list it would be several addresses: take it out")
    return uri


def check_stored(uri: str) -> str:
    """Return the address of a folder or file that is listed and read without the guards of sources: a local path, or s3://.

    Raises:
        ValueError: it is another one.
    """
    if check_address(uri) not in ("", "s3"):
        raise ValueError(f"{_shown(uri)} is not read from there: give a local path or s3://bucket/key")
    return uri


def redacted(uri: str) -> str:
    """An address without the credentials in it, fit for a message."""
    address, mark, query = (_CREDENTIALS.sub("***@", uri) if "@" in uri else uri).partition("?")
    names = (part.partition("=")[0] for part in query.split("&"))
    shown = (f"{name}=***" if _SECRET.fullmatch(unquote(name)) else part for name, part in zip(names, query.split("&"), strict=True))
    return address + mark + "&".join(shown)


def check_allowed(path: str, *, also: Iterable[str] = ()) -> str:
    """Return a checked address when it lies in one of the places of BLISS_SOURCE_ROOTS, or when that is not set.

    Symbolic links are followed first, so that a link inside does not lead outside.

    Raises:
        ValueError: it lies elsewhere.
    """
    roots = [*os.environ.get(ROOTS, "").split(), *also]
    if not os.environ.get(ROOTS, "").strip() or any(_is_below(path, root) for root in roots):
        return path
    raise ValueError(f"{redacted(path)} is outside of the places that sources may be in ({ROOTS}): use one of {' '.join(roots)}")


def check_reachable(host: str, addresses: Iterable[str]) -> None:
    """Return when a host that nobody typed, because a redirect or a remote list named it, has public addresses only.

    Raises:
        RefusedHostError: one of them is private, loopback, link-local or reserved, and BLISS_PRIVATE_HOSTS does not have it.
    """
    allowed = os.environ.get(PRIVATE_HOSTS, "").split()
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not _is_public(address) and host not in allowed and not any(_is_in(address, network) for network in allowed):
            raise RefusedHostError(
                f"a redirect or list leads to {host} ({text}), which is not a public address: give the address itself as the source, "
                f"or put the host into {PRIVATE_HOSTS}"
            )


def is_ip_address(host: str) -> bool:
    """Whether a host is written as numbers, so that no name is looked up."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def quoted_identifier(name: str) -> str:
    """A table or column name for SQL text, where none can be bound.

    Raises:
        ValueError: it is not letters, digits and underscores.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"{_shown(name)} is not the name of a table or column: use letters, digits and _")
    return f'"{name}"'


def quoted_text(value: object) -> str:
    """A text for SQL where none can be bound (`attach` takes no parameters): single quotes are doubled, and nothing else is special."""
    text = str(value)
    if "\0" in text:
        raise ValueError(f"{_shown(text)} contains a NUL, which ends a text in SQL: take it out")
    return "'" + text.replace("'", "''") + "'"


def _check_host(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises when it is no number
    except ValueError as error:
        raise ValueError(f"{_shown(uri)} is not an address that can be read ({error}): use {ALLOWED}") from None
    if not parts.hostname or any(c.isspace() or c in '\\<>^`{|}"' for c in parts.netloc):
        raise ValueError(f"{_shown(uri)} is not an address that can be read (its host is {parts.netloc!r}): use {ALLOWED}")


def _is_below(path: str, root: str) -> bool:
    if "://" in path or "://" in root:
        return path == root or path.startswith(root.rstrip("/") + "/")
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(Path(root).expanduser()))


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _is_in(address: IPAddress, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:  # a host's name
        return False


def _shown(text: str) -> str:
    """A wrong value in a message: quoted, cut, without credentials."""
    shown = redacted(text)
    return repr(shown if len(shown) <= 200 else shown[:200] + "...")
