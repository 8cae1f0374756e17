"""Following pages by token: what is missing after a page is never believed covered, in whatever order X sends its ids."""

from hypothesis import given
from hypothesis import strategies as st

from ingester.chain import MOST_IDLE_PAGES, follow
from ingester.model import PageFacts
from schemas.records import Interval

WHOLE = Interval(0, 1000, "r", "live")


def page(*ids, token=None):
    return PageFacts(len(ids), ids, token, 0, 0)


def below(interval, *ids, chain=None):
    return follow(interval, page(*ids, token="more"), chain, max_results=100).missing_below


def test_the_lowest_id_is_the_bound_while_ids_descend():
    assert below(WHOLE, 900, 800, 700) == 700


def test_the_bound_stays_above_what_came_late():
    assert below(WHOLE, 900, 500, 800, 700) == 800
    assert below(WHOLE, 500, 700, 600) == 700


def test_a_page_that_reaches_above_the_one_before_lifts_the_bound():
    first = follow(WHOLE, page(900, 500, token="a"), None, max_results=100)
    asked = WHOLE.resumed_below(first.missing_below)
    second = follow(asked, page(800, 700, token="b"), first.chain, max_results=100)
    assert second.missing_below == 800
    assert second.problem is None
    third = follow(asked.resumed_below(800), page(600, 400, token="c"), second.chain, max_results=100)
    assert third.missing_below == 400


def test_ids_outside_the_bounds_count_for_nothing():
    found = follow(WHOLE, page(2000, 900, 0), None, max_results=100)
    assert (found.inside, found.is_last) == ((900,), True)
    assert "within the bounds" in follow(WHOLE, page(2000, 3000, token="a"), None, max_results=100).problem


def test_a_repeated_token_ends_the_chain_and_the_page_counts():
    first = follow(WHOLE, page(900, token="a"), None, max_results=100)
    again = follow(WHOLE.resumed_below(900), page(800, token="a"), first.chain, max_results=100)
    assert (again.problem, again.chain, again.missing_below) == (None, None, 800)
    assert "next_token" in again.remark
    empty = follow(WHOLE.resumed_below(900), page(token="a"), first.chain, max_results=100)
    assert "next_token" in empty.problem


def test_the_same_page_with_a_new_token_is_no_progress():
    first = follow(WHOLE, page(900, 800, token="a"), None, max_results=100)
    again = follow(WHOLE.resumed_below(800), page(800, 900, token="b"), first.chain, max_results=100)
    assert "did not have" in again.problem


@given(
    st.lists(
        st.lists(st.integers(1, 999), max_size=3), min_size=MOST_IDLE_PAGES + 1005, max_size=MOST_IDLE_PAGES + 1005
    )
)
def test_no_sequence_of_pages_is_followed_for_ever(pages):
    interval, chain, followed = WHOLE, None, 0
    for number, ids in enumerate(pages):
        found = follow(interval, page(*ids, token=f"t{number}"), chain, max_results=100)
        if found.problem:
            break
        followed += 1
        interval, chain = interval.resumed_below(found.missing_below), found.chain
    assert followed <= MOST_IDLE_PAGES * (len({number for ids in pages for number in ids}) + 1)
    assert followed < len(pages)


@given(st.data())
def test_what_a_page_leaves_uncovered_is_still_missing(data):
    """X sends ids that are out of order by a few places; wherever following stops, all that was not sent lies below."""
    disorder = data.draw(st.integers(0, 4))
    ids = sorted(data.draw(st.sets(st.integers(1, 999), min_size=1, max_size=60)), reverse=True)
    order = sorted(range(len(ids)), key=lambda place: place + data.draw(st.integers(0, disorder)))
    sent = [ids[place] for place in order]
    size = data.draw(st.integers(2, 10))
    pages = [sent[start : start + size] for start in range(0, len(sent), size)]
    interval, chain, stored = WHOLE, None, set()
    for number, part in enumerate(pages):
        last = number == len(pages) - 1
        found = follow(interval, page(*part, token=None if last else f"t{number}"), chain, max_results=size)
        if found.problem is not None:
            break  # asked again by the bounds
        stored.update(found.inside)
        if found.is_last:
            assert stored == set(ids)
            return
        interval, chain = interval.resumed_below(found.missing_below), found.chain
        following = set(pages[number + 1])
        # Only what the very next page shows to be out of order can be above the bound; it lifts it, tested above.
        missing = set(ids) - stored - following
        assert all(number < interval.upper for number in missing) or max(following) >= interval.upper
