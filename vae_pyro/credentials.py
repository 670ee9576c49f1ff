"""Refuses addresses that hold a password or token, before they are written anywhere."""

import re
from collections.abc import Iterable
from itertools import pairwise

from vae_pyro.errors import ConfigError

_SCHEME = re.compile(r"(?:^|(?<=[\s,='\"\[({]))[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = r"([\w.%,-]*|\[[\da-fA-F:.]+\])(:\d+)?"
_OPTIONS = (  # of databases; every other option of a query may be a secret
    "application_name|charset|client_encoding|connect_timeout|dbname|driver|host|keepalives|port|"
    "read_default_file|sslcert|sslkey|sslmode|sslrootcert|ssl_ca|ssl_cert|ssl_key|"
    "target_session_attrs|user"
)
_QUERY = rf"(\?({_OPTIONS})=[^&@#?\s]*(&({_OPTIONS})=[^&@#?\s]*)*)?"
_PATH = r"(/[^@?#\s]*)?"
_SERVER = re.compile(rf"https?://{_HOST}{_PATH}", re.IGNORECASE)
_DATABASE = re.compile(rf"[\w+.-]+://([\w.~%-]+@)?{_HOST}{_PATH}{_QUERY}")
_OBVIOUS = re.compile(r":.*@|[?&]\w*(password|passwd|pwd|token|secret|key)\w*=", re.IGNORECASE)


def refuse_credentials(texts: Iterable[str]) -> None:
    """Refuse addresses that hold, or may hold, a password or token.

    The address of a tracking store may have a host, port and path, the user name of a database, and
    options that are known to hold no secret. In other values, only an obvious password or token is
    refused. The message does not repeat the address.

    Args:
        texts: as typed (``key=value``) or as configured; each may hold several addresses.

    Raises:
        ConfigError: with the key, and where credentials belong.
    """
    for text in texts:
        starts = [found.start() for found in _SCHEME.finditer(text)]
        key = text[: starts[0]].partition("=")[0].strip(" +~'\"[{(") if starts else ""
        is_strict = key in ("", "uri", "tracking", "tracking.uri")
        is_plain = not set(text) & set("@?#")
        for start, end in pairwise([*starts, len(text)]):
            address = text[start:end].rstrip(" ,'\"]})")
            if not is_plain and _may_hold_credentials(address, is_strict=is_strict):
                raise ConfigError(
                    f"{key or 'tracking.uri'}: the address may hold a password or a token (before "
                    "@, after #, or in an option that is not known to be harmless), which would "
                    "end up in logs and records. Give the address alone, and the login in the "
                    "environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD or ~/.pgpass for PostgreSQL"
                )


def _may_hold_credentials(address: str, *, is_strict: bool) -> bool:
    scheme, _, rest = address.partition("://")
    if address.startswith("sqlite:///"):
        return False
    if not is_strict:
        return _OBVIOUS.search(rest) is not None
    grammar = _SERVER if scheme.lower() in ("http", "https") else _DATABASE
    return grammar.fullmatch(address) is None
