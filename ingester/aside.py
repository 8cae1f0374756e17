"""Asking X aside of the polls, for an answer that reads no posts: wait for the turn, ask once, judge, give the turn back."""

from collections.abc import Awaitable, Callable

from ingester.answers import Meaning, judge
from ingester.errors import Transient
from ingester.model import Answer
from ingester.pacing import ASIDE, Gate
from ingester.pulse import FOR_EVER, Beat, unheard
from ingester.telemetry import Telemetry


async def ask_aside(
    gate: Gate,
    telemetry: Telemetry,
    endpoint: str,
    call: Callable[[], Awaitable[Answer]],
    *,
    cost: int = 0,
    beat: Beat = unheard,
) -> Answer | None:
    """One answer with status 200, or None after telling why there was none. `cost` is in millionths of a dollar.

    The turn is given back before the caller books the cost, which is small and certain to be booked at once.
    """
    beat(FOR_EVER)  # the gate is heard itself
    turn = await gate.turn(ASIDE, 0, endpoint=endpoint, cost=cost)
    beat()
    assert turn is not None  # there was no limit to the waiting
    try:
        answer = await call()
    except Transient as error:
        telemetry.aside_failed(endpoint, str(error))
        return None
    finally:
        gate.give_back(turn)
    verdict = judge(answer)
    gate.learn(answer, verdict, endpoint)
    seconds = (answer.received_at - answer.requested_at).total_seconds()
    telemetry.answered(endpoint, verdict.meaning.value, max(0.0, seconds))
    if verdict.meaning is not Meaning.PAGE:
        telemetry.aside_failed(endpoint, verdict.detail)
        return None
    return answer
