"""Addresses hold no passwords and no tokens: one that does is refused before it is written down."""

import re
from collections.abc import Iterable
from itertools import pairwise

from vae_pyro.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = r"([\w.-]*|\[[\da-fA-F:.]+\])(:\d*)?"
_OPTIONS = (  # of databases; every other option of a query may be a secret
    "application_name|charset|client_encoding|connect_timeout|dbname|driver|host|port|"
    "read_default_file|sslcert|sslkey|sslmode|sslrootcert|ssl_ca|ssl_cert|ssl_key|user"
)
_QUERY = rf"(\?({_OPTIONS})=[^&@#?\s]*(&({_OPTIONS})=[^&@#?\s]*)*)?"
_PATH = r"(/[^@?#\s]*)?"
_SERVER = re.compile(rf"https?://{_HOST}{_PATH}")
_DATABASE = re.compile(rf"[\w+.-]+://([\w.~%-]+@)?{_HOST}{_PATH}{_QUERY}")

WAYS = (
    "give the address alone, and the login in the environment: MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD or ~/.pgpass for "
    "PostgreSQL"
)


def refuse_credentials(texts: Iterable[str]) -> None:
    """Refuse addresses that hold, or may hold, a password or token.

    Allowed beside host, port and path are the user name of a database and options that are known
    to hold no secret. The message does not repeat the address.

    Args:
        texts: as typed (``key=value``) or as configured; each may hold several addresses.

    Raises:
        ConfigError: naming the key, and where credentials belong.
    """
    for text in texts:
        starts = [found.start() for found in _SCHEME.finditer(text)]
        for start, end in pairwise([*starts, len(text)]):
            if _may_hold_credentials(text[start:end].rstrip(" ,'\"]})")):
                key = text[: starts[0]].partition("=")[0].strip(" +~'\"[{(") or "an address"
                raise ConfigError(
                    f"{key}: the address holds a password, a token or other credentials, which "
                    f"would end up in logs and records; {WAYS}"
                )


def _may_hold_credentials(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    if scheme.startswith("sqlite") or not set(rest) & set("@?#"):
        return False
    grammar = _SERVER if scheme in ("http", "https") else _DATABASE
    return grammar.fullmatch(address) is None
