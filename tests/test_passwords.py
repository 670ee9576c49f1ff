"""Passwords in addresses, whatever stands around them."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_pyro.passwords import Formatter, without_passwords

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:s3cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://:s3:cr@et@host/db", "postgresql+psycopg2://:***@host/db"),
        ("postgresql://u:pa/ssw0rd@host/db", "postgresql://u:***@host/db"),
        ("http://h/x?api_key=s3cret", "http://h/x?api_key=***"),
        ("http://127.0.0.1:5000 and mail@host", "http://127.0.0.1:5000 and mail@host"),
        ("https://t0ken@host:5000/x", "https://***@host:5000/x"),
        ("postgresql://host/db?user=me&password=s3cret&a=b",
         "postgresql://host/db?user=me&password=***&a=b"),
        ("two: http://a:x@h and http://b:y@h", "two: http://a:***@h and http://b:***@h"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)  # fmt: skip
def test_only_the_password_goes(text: str, clean: str) -> None:
    assert without_passwords(text) == clean
    assert without_passwords(clean) == clean


@given(user=WORDS, password=WORDS.map(lambda word: f"p{word}_"), before=st.text(max_size=20))
def test_no_password_is_left(user: str, password: str, before: str) -> None:
    text = f"{before} mysql://{user}:{password}@host/db"
    assert f"{password}@" not in without_passwords(text)


def test_log_lines_have_none() -> None:
    record = logging.LogRecord("hydra", logging.INFO, "", 1, "#0 : uri=%s", ("x://a:s3@h",), None)
    assert Formatter("%(message)s").format(record) == "#0 : uri=x://a:***@h"
