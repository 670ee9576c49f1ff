"""A signal ends a job at once, except where lines belong together: then right after them."""

import os
import signal

import pytest

from vae_pyro.interruption import Interrupted, interruptible, uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_exception_with_the_shells_status(signum: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=signum.name) as caught, interruptible():
        os.kill(os.getpid(), signum)
    assert caught.value.status == 128 + signum


def test_it_waits_for_the_end_of_what_belongs_together() -> None:
    done = []

    def job() -> None:
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(Interrupted), interruptible():
        job()
    assert done == ["inner", "outer"]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
