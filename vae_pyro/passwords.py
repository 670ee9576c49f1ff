"""No password leaves the process: not in a message, a log line or a record."""

import logging
import re

_SECRETS = (
    # Also one with a slash in it; but what is a port is none, whatever follows.
    (re.compile(r"(://[^/:@\s]*):(?!\d+(?:[/\s]|$))[^\s'\"]*@"), r"\1:***@"),
    (re.compile(r"(https?://)[^/:@\s]+@"), r"\1***@"),
    (
        re.compile(
            r"([?&](?:password|passwd|pwd|token|secret|api_?key|access_?key)=)[^&\s'\"]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def without_passwords(text: str) -> str:
    """``postgresql://user:secret@host/db`` -> ``postgresql://user:***@host/db``.

    Anywhere in the text; also ``https://token@host`` and ``...?password=secret``.
    """
    for secret, mark in _SECRETS:
        text = secret.sub(mark, text)
    return text


class Formatter(logging.Formatter):
    """For Hydra's log, which tells of every job with all that was typed for it."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))
