"""Limits per key: a window that slides, tokens of requests that still run, and replicas that share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray

from serve_apps.limits import Limits, SharedWindows
from serve_apps.refusal import Refused
from serve_apps.tally import Tally
from storage.keys import KeyRecord
from tests.conftest import TestCluster


class Clock:
    """Seconds that pass when we say so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _key(**limits: int) -> KeyRecord:
    return KeyRecord(
        id="0123456789ab", name="ci", salt="0" * 32, sha256="0" * 64, created_at="2026-11-25", **limits
    )


def _work(completion_tokens: int, prompt_tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _request(limits: Limits, key: KeyRecord, tokens: int = 0) -> None:
    tally = Tally("tiny")
    limits.admit(key, tally)
    tally.works.append(_work(tokens))
    limits.done(key, tally)


def test_a_key_without_limits_is_not_even_counted():
    limits = Limits()
    for _ in range(1000):
        _request(limits, _key(), tokens=10**6)
    assert not limits._accounts


def test_requests_per_minute_slide():
    clock = Clock()
    limits, key = Limits(clock=clock), _key(requests_per_minute=3)
    for _ in range(3):
        _request(limits, key)
        clock.now += 10
    with pytest.raises(Refused, match=r"0123456789ab: 3 of 3 requests in the last minute") as caught:
        _request(limits, key)
    # The first was 30 s ago and counts for 62.
    assert (caught.value.status, caught.value.retry_after_s) == (429, pytest.approx(32))
    assert dict(caught.value.headers())[b"retry-after"] == b"32"
    clock.now += 32
    _request(limits, key)
    with pytest.raises(Refused):
        _request(limits, key)


def test_tokens_count_while_the_request_still_runs():
    clock = Clock()
    limits, key = Limits(clock=clock), _key(tokens_per_minute=100)
    running = Tally("tiny")
    limits.admit(key, running)
    running.works.append(_work(39, prompt_tokens=60))
    _request(limits, key, tokens=1)
    with pytest.raises(Refused, match="100 of 100 tokens"):
        _request(limits, key)
    limits.done(key, running)
    clock.now += 59
    with pytest.raises(Refused) as caught:
        _request(limits, key)
    assert caught.value.retry_after_s == pytest.approx(3)
    clock.now += 3
    _request(limits, key)


def test_reports_are_summed_over_others_and_replace_what_was_said_before():
    shared = SharedWindows()
    shared.exchange("a", {"k": [(30.0, 1, 50), (0.0, 0, 7)]})
    shared.exchange("a", {"k": [(40.0, 2, 60), (0.0, 0, 0)]})
    shared.exchange("b", {"k": [(1.0, 5, 500)], "other": [(0.0, 9, 9)]})
    others = shared.exchange("c", {"k": []})
    assert list(others) == ["k"]
    assert [(round(age_s), requests, tokens) for age_s, requests, tokens in others["k"]] == [
        (40, 2, 60), (1, 5, 500),
    ]  # fmt: skip
    assert [use[1:] for use in shared.exchange("b", {"k": []})["k"]] == [(2, 60)]


def test_tokens_of_a_request_that_ran_longer_than_the_window_count_from_its_end():
    clock = Clock()
    limits, key = Limits(clock=clock), _key(tokens_per_minute=100)
    long = Tally("tiny")
    limits.admit(key, long)
    long.works.append(_work(100_000))
    clock.now += 70
    limits.done(key, long)
    limits._forget_the_idle()
    with pytest.raises(Refused, match="100000 of 100 tokens"):
        _request(limits, key)
    clock.now += 62
    limits._forget_the_idle()
    assert not limits._accounts


@pytest.mark.engine
def test_replicas_share_a_limit_through_ray(cluster: TestCluster):
    key = _key(tokens_per_minute=1000)

    async def both() -> str:
        here, there, late = Limits(sync_s=0.05), Limits(sync_s=0.05), Limits(sync_s=60)
        await here.start()
        await there.start()
        try:
            for _ in range(4):
                _request(here, key, tokens=200)
            running = Tally("tiny")
            there.admit(key, running)
            running.works.append(_work(201))
            async with asyncio.timeout(60):
                while True:
                    await asyncio.sleep(0.05)
                    try:
                        for limits in (here, there):
                            limits.admit(key, probe := Tally("tiny"))
                            limits.done(key, probe)
                    except Refused as refused:
                        said = str(refused)
                        break
            # One that never saw the key asks the others before its first request.
            await late.start()
            # It waits half a second at most for what they say, which may take longer on a busy machine. By
            # itself it would hear of it after a minute.
            async with asyncio.timeout(30):
                while True:
                    await late.know(key)
                    try:
                        late.admit(key, probe := Tally("tiny"))
                        late.done(key, probe)
                    except Refused:
                        return said
                    await asyncio.sleep(0.05)
        finally:
            for limits in (here, there, late):
                await limits.stop()

    # 800 here and 201 there: neither replica alone would ever refuse, the probes have no tokens.
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        said = asyncio.run(both())
    finally:
        ray.shutdown()
    assert "1001 of 1000 tokens" in said
