"""What new objects and changed days call for: once for each change, in few runs, and nothing that is in progress."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_pipeline.defs.automation.change_detection import Plan, SensorCursor, may_look_again, plan

FIRST = date(2017, 4, 1)
NOON = datetime(2017, 6, 1, 12, tzinfo=UTC)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def planned(
    changes: Mapping[str, Mapping[date, int]],
    *,
    done: Sequence[tuple[str, date]] = (),
    in_progress: Sequence[tuple[date, date]] = (),
    now: datetime = NOON,
    identity: str = "a",
    most: int = 100,
) -> Plan:
    return plan(
        changes,
        is_done=lambda feed, of, _: (feed, of) in done,
        in_progress=in_progress,
        now=now,
        identity=identity,
        most=most,
    )


def ranges(made: Plan) -> list[tuple[date, date]]:
    return [(call.first, call.last) for call in made.calls]


def test_days_that_follow_each_other_are_one_run_whichever_feed_they_changed_in() -> None:
    made = planned({"a": {day(1): 1, day(3): 1}, "b": {day(2): 5, day(7): 5}})
    assert ranges(made) == [(day(1), day(3)), (day(7), day(7))]
    assert made.waiting == {"a": {}, "b": {}}


def test_a_day_that_is_materialized_with_its_change_calls_for_nothing() -> None:
    made = planned({"a": {day(1): 1, day(2): 1}, "b": {day(2): 1}}, done=[("a", day(1)), ("a", day(2))])
    assert ranges(made) == [(day(2), day(2))]


def test_a_day_that_is_in_progress_waits() -> None:
    made = planned({"a": {day(n): 3 for n in range(5)}}, in_progress=[(day(1), day(2))])
    assert ranges(made) == [(day(0), day(0)), (day(3), day(4))]
    assert made.waiting == {"a": {day(1): 3, day(2): 3}}


@pytest.mark.parametrize(
    ("now", "called"),
    [
        (datetime(2017, 4, 1, 12, tzinfo=UTC), []),
        (datetime(2017, 4, 2, 0, 59, tzinfo=UTC), []),
        (datetime(2017, 4, 2, 1, 0, tzinfo=UTC), [(day(0), day(0))]),
        (datetime.fromisoformat("2017-04-02T01:30:00+02:00"), []),
    ],
)
def test_a_day_is_left_to_the_schedule_until_an_hour_after_its_end(
    now: datetime, called: list[tuple[date, date]]
) -> None:
    made = planned({"a": {day(0): 1}}, now=now)
    assert ranges(made) == called
    assert made.waiting == {"a": {} if called else {day(0): 1}}


def test_more_ranges_than_asked_for_at_once_wait() -> None:
    changes = {day(2 * n): 1 for n in range(7)}
    made = planned({"a": changes}, most=3)
    assert ranges(made) == [(day(0), day(0)), (day(2), day(2)), (day(4), day(4))]
    assert set(made.waiting["a"]) == {day(6), day(8), day(10), day(12)}


def test_a_key_stands_for_days_and_their_changes_in_one_lake() -> None:
    changes = {"a": {day(1): 1, day(2): 1}}
    [same] = {planned(changes).calls[0].key, planned(dict(changes)).calls[0].key}
    others = {
        planned({"a": {day(1): 1, day(2): 2}}).calls[0].key,
        planned({"a": {day(1): 1}}).calls[0].key,
        planned({"b": {day(1): 1, day(2): 1}}).calls[0].key,
        planned(changes, identity="b").calls[0].key,
    }
    assert len(others) == 4
    assert same not in others


@given(
    changes=st.dictionaries(
        st.sampled_from("ab"), st.dictionaries(st.integers(0, 70).map(day), st.integers(1, 9)), max_size=2
    ),
    done=st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 70).map(day))),
    in_progress=st.lists(
        st.tuples(st.integers(0, 70), st.integers(0, 9)).map(lambda x: (day(x[0]), day(x[0] + x[1]))), max_size=3
    ),
    most=st.integers(1, 5),
)
def test_every_change_is_called_for_waits_or_is_done_and_no_other_day_is_touched(
    changes: dict[str, dict[date, int]], done: set[tuple[str, date]], in_progress: list[tuple[date, date]], most: int
) -> None:
    made = planned(changes, done=sorted(done), in_progress=in_progress, most=most)
    called = [call.first + timedelta(days=n) for call in made.calls for n in range((call.last - call.first).days + 1)]
    assert len(called) == len(set(called))
    open_days = {of for feed, days in changes.items() for of in days if (feed, of) not in done}
    waiting = {of for days in made.waiting.values() for of in days}
    assert set(called) | waiting == open_days
    assert not set(called) & waiting
    assert not any(first <= of <= last for of in called for first, last in in_progress)
    assert all(
        later.first - earlier.last > timedelta(days=1)
        for earlier, later in zip(made.calls, made.calls[1:], strict=False)
    )
    assert len(made.calls) <= most


def test_a_cursor_survives_its_json_and_starts_anew_with_another_lake() -> None:
    cursor = SensorCursor("x", 7, {"a": {day(1): 3}, "b": {}})
    assert SensorCursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor
    assert cursor.since("x") == cursor
    assert cursor.since("y") == SensorCursor("y")
    assert SensorCursor.from_json({}) == SensorCursor()
    # As the first version wrote it, a position for each feed.
    assert SensorCursor.from_json({"page_views": {"catalog": "x", "version": 1, "waiting": {}}}) == SensorCursor()


def test_a_look_that_was_in_vain_is_repeated_ever_later() -> None:
    assert may_look_again([], NOON)
    for looks, minutes in ((1, 1), (2, 2), (5, 16), (40, 1440)):
        ended = [NOON - timedelta(days=n) for n in range(looks)]
        assert not may_look_again(ended, NOON + timedelta(minutes=minutes) - timedelta(seconds=1))
        assert may_look_again(ended, NOON + timedelta(minutes=minutes))
