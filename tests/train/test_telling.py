"""Metrics are told again and again while a step takes its time, and no more when the training has ended."""

import threading

import pytest

from tests.conftest import wait_for
from train_jobs.engine.telling import telling


def test_a_metric_is_told_again_without_anybody_asking_until_the_context_ends():
    told: list[str] = []
    with telling(lambda: told.append(threading.current_thread().name), period_s=0.01):
        wait_for(lambda: len(told) > 3, "it is told again", 10)
    count = len(told)
    assert set(told) == {"telling"}
    assert "telling" not in [thread.name for thread in threading.enumerate()]
    assert len(told) == count


def test_a_training_that_fails_ends_it_too():
    with pytest.raises(ValueError, match="lost"), telling(lambda: None, period_s=0.01):
        raise ValueError("lost")
    assert "telling" not in [thread.name for thread in threading.enumerate()]
