"""When a request is sent again and when it is given up, step by step, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_time import FakeTime

from m2rag.backends.exchange import Broken, Gate, Reply, RetryPolicy, Send, Wait, exchange, server_wait
from m2rag.errors import RemoteError

NOW = 1_700_000_000.0

OK = Reply(200, {}, b'{"data": []}')
BUSY = Reply(503, {}, b"")


def play(time: FakeTime, *outcomes: Reply | Broken, gate: Gate | None = None, **policy: Any) -> Reply:
    """Feed outcomes to an exchange, letting fake time pass where it waits; all of them must be asked for."""
    left = list(outcomes)
    steps = exchange(b"{}", 1_000, time.policy(**policy), gate or Gate(), "model at host")
    step = next(steps)
    while True:
        try:
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                step = steps.send(None)
            else:
                assert isinstance(step, Send) and step.timeout > 0
                step = steps.send(left.pop(0))
        except StopIteration as done:
            assert not left
            return done.value


def test_a_good_answer_needs_no_second_try() -> None:
    time = FakeTime()
    assert play(time, OK).data == {"data": []} and not time.waits


def test_full_jitter_doubles_its_bound_up_to_the_longest_wait() -> None:
    time = FakeTime()
    play(time, *[BUSY] * 7, OK, deadline=1_000.0, longest_wait=6.0)
    assert time.waits == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0]
    time = FakeTime()
    draws = iter([0.0, 0.25, 1.0])
    play(time, *[BUSY] * 3, OK, draw=lambda: next(draws))
    assert time.waits == [0.0, 0.25, 2.0]


def test_the_servers_wait_is_spread_but_never_shortened() -> None:
    time = FakeTime()
    play(time, *[Reply(429, {"retry-after": "10"}, b"")] * 2, OK)
    assert time.waits == [10.5, 10.5]


def test_a_shut_gate_holds_back_the_first_try_too() -> None:
    time, gate = FakeTime(), Gate()
    gate.shut_until(time.now + 3)
    gate.shut_until(time.now + 1)
    play(time, OK, gate=gate)
    assert time.waits == [3.0]
    gate.shut_until(time.now + 400)
    with pytest.raises(RemoteError, match="not sent.*the server asks for 400 s more"):
        play(time, gate=gate)
    assert time.waits == [3.0]


def test_a_wait_that_the_server_asks_for_holds_back_other_requests_too() -> None:
    time, gate = FakeTime(), Gate()
    one = exchange(b"{}", 1_000, time.policy(), gate, "one")
    assert isinstance(next(one), Send)
    assert one.send(Reply(429, {"retry-after": "20"}, b"")) == Wait(20.5)
    other = exchange(b"{}", 1_000, time.policy(), gate, "other")
    assert next(other) == Wait(20.0)
    time.sleep(20.0)
    assert isinstance(other.send(None), Send)


def test_what_no_try_will_better_is_final() -> None:
    time = FakeTime()
    with pytest.raises(RemoteError, match="certificate.*1 try"):
        play(time, Broken("ConnectError: certificate verify failed", final=True))
    assert not time.waits


def test_time_spent_in_tries_counts() -> None:
    time = FakeTime(tick=4.0)
    with pytest.raises(RemoteError, match="deadline is 30 s"):
        play(time, BUSY, BUSY, deadline=30.0)


def test_the_last_error_is_the_one_told() -> None:
    with pytest.raises(RemoteError, match="ReadError: reset") as caught:
        play(FakeTime(), BUSY, Broken("ReadError: reset"), attempts=2)
    assert caught.value.status is None
    with pytest.raises(RemoteError, match="HTTP 503") as caught:
        play(FakeTime(), Broken("ReadError: reset"), BUSY, attempts=2)
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:10 GMT"}, 0.0),
        ({"retry-after": "Wed, 15 Nov 2023 00:00:30 GMT", "date": "Wed, 15 Nov 2023 00:00:00 GMT"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon", "ratelimit-reset": "4"}, 4.0),
        ({"x-ratelimit-reset": str(int(NOW) + 9)}, 9.0),
        ({"x-ratelimit-reset": str((int(NOW) + 9) * 1_000)}, 9.0),
        ({"x-ratelimit-reset": str(int(NOW) - 9)}, 0.0),
        ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3_723.5),
        ({"x-ratelimit-reset-tokens": "1d"}, 86_400.0),
        ({"x-ratelimit-reset-tokens": ""}, None),
        ({"x-ratelimit-reset-requests": "5s", "x-ratelimit-reset-tokens": "8s"}, 8.0),
        (
            {"x-ratelimit-reset-requests": "5s", "x-ratelimit-reset-tokens": "8s", "x-ratelimit-remaining-tokens": "9"},
            5.0,
        ),
    ],
    ids=str,
)
def test_what_the_server_says_of_waiting(headers: dict[str, str], wait: float | None) -> None:
    assert server_wait(headers, lambda: NOW) == (None if wait is None else pytest.approx(wait))


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"timeout": 0.0}, {"deadline": -1.0}])
def test_policies_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)
