"""Where the publishers' files lie: http, https and file URLs as text, and what may be made of them (RFC 3986, 8089).

A location is always an absolute URL; a folder of this host becomes a ``file`` URL when it is read. URLs are kept as
they are on the wire: ``%2B`` stays ``%2B``, because some publishers' stores take a bare ``+`` for a space.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from netbootd.errors import FormatError, UsageError
from netbootd.store.layout import NOT_FINISHED

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = ("http", "https", "file")
_FOREIGN = re.compile(r"[^A-Za-z0-9._+~ -]")
_SAFE = "%/:?#[]@!$&'()*+,;=~-._"  # what may stand in an URL as it is (RFC 3986 section 2)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def location(text: str, option: str) -> str:
    """What the operator wrote, an URL or a path of this host, as an absolute URL without a slash at its end.

    :param option: the option's name, for the message
    :raises UsageError: another scheme, or no host
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        if not text or "\0" in text:
            raise UsageError(f"{option} {text!r} names nothing.", hint="Give an URL (http, https, file) or a path.")
        return Path(text).absolute().as_uri()
    kind = scheme[1].lower()
    if kind not in _SCHEMES:
        raise UsageError(
            f"{option} {public(text)}: {kind} is not spoken here.", hint="Use http, https, file or a path."
        )
    if not _valid(text):
        raise UsageError(f"{option} {public(text)} is not a valid URL.", hint="It looks like https://host/path.")
    return on_wire(text) if "?" in text else on_wire(text).rstrip("/")


def below(base: str, path: str) -> str:
    """The location of the relative `path` (plain text, not quoted) below `base`."""
    return base.rstrip("/") + "/" + "/".join(quote(part, safe="") for part in path.split("/"))


def reference(base: str, text: str) -> str:
    """What a document at `base` means by `text`, which may be relative. A ``+`` in its path is quoted.

    :raises FormatError: another scheme, a file of this host named by a document of another, or no URL at all
    """
    fault = ""
    if _CONTROL.search(text) or len(text) > 4096:
        fault = "it is no URL"
    try:
        joined = urljoin(base, text)
        parts = urlsplit(joined)
        joined = urlunsplit(parts._replace(path=parts.path.replace("+", "%2B")))
    except ValueError:
        joined, fault = base, "it is no URL"
    scheme = urlsplit(joined).scheme.lower()
    if not fault and (scheme not in _SCHEMES or not _valid(joined)):
        fault = "it is not an URL with http or https"
    elif not fault and scheme == "file" and not is_file(base):
        fault = "a document from the network may not name a file of this host"
    if fault:
        raise FormatError(f"Reading {public(base)}: it refers to {text[:200]!r}, but {fault}.")
    return on_wire(joined)


def is_file(url: str) -> bool:
    """Whether it names a file of this host."""
    return url[:5].lower() == "file:"


def is_http(text: str) -> bool:
    """Whether the operator wrote an URL of the network (rather than a path or a ``file`` URL)."""
    scheme = _SCHEME.match(text)
    return scheme is not None and scheme[1].lower() != "file"


def path_of(url: str) -> Path:
    """The file that a ``file`` URL names."""
    return Path(unquote(urlsplit(url).path) or "/")


def origin_of(url: str) -> tuple[str, str]:
    """Scheme, and host with port (without credentials): what must be equal for two URLs to be of one server."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()


def file_name(url: str) -> str:
    """The last part of its path as a file of ours may be called: letters, digits and ``._+~ -``, at most 200."""
    name = _FOREIGN.sub("_", unquote(urlsplit(url).path).rpartition("/")[2])[-200:].lstrip("._+~ -").rstrip(" .")
    return f"{name}_" if name.endswith(NOT_FINISHED) else name or "image"


def public(url: str) -> str:
    """The URL as it may be shown and written down: without a password."""
    if not _SCHEME.match(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/@]*@", "//", url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


def on_wire(url: str) -> str:
    """The URL with what may not stand in one quoted; what is quoted already stays."""
    return quote(url, safe=_SAFE)


def _valid(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where the port is no number
    except ValueError:
        return False
    if _CONTROL.search(url):
        return False
    return parts.netloc in ("", "localhost") if parts.scheme.lower() == "file" else bool(parts.hostname)
