"""Why a tracking store cannot be used, in one line of plain words."""

from collections.abc import Iterator

_KNOWN = {  # what the libraries' messages contain -> the cause
    "database is locked": "the database is locked by another process",
    "database or disk is full": "the disk of the database is full",
    "readonly database": "the database cannot be written",
    "timed out": "the server does not respond",
    "Connection refused": "no server responds at this address (connection refused)",
}


def reason(error: BaseException) -> str:
    """The first cause of an error that MLflow, SQLAlchemy or requests wrapped into others."""
    chain = list(_chain(error))
    for cause in reversed(chain):
        text = str(cause)
        for sign, words in _KNOWN.items():
            if sign.lower() in text.lower():
                return words
    first_line, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return first_line.rstrip(".")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
