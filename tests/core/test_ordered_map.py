"""`ordered_map` keeps the order and its bounds on memory."""

import threading

import pytest

from spr.core.ordered_map import ordered_map


def test_results_come_in_the_order_of_the_items_even_if_the_first_is_slow():
    others_done = threading.Barrier(3)

    def work(item):
        if item < 3:
            others_done.wait(timeout=30)
        return -item

    assert list(ordered_map(work, range(8), threads=3)) == [(item, -item) for item in range(8)]


@pytest.mark.parametrize(("bounds", "most"), [({"ahead": 3}, 3), ({"budget": 25.0, "cost": lambda _: 10.0}, 3)])
def test_no_more_items_are_taken_than_may_be_held(bounds, most):
    taken = []
    items = (taken.append(item) or item for item in range(10))
    for finished, (item, _) in enumerate(ordered_map(str, items, **{"ahead": 8, **bounds})):
        assert item == finished
        assert len(taken) <= finished + most


def test_one_item_over_the_budget_is_still_allowed():
    assert [result for _, result in ordered_map(str, [1, 2], budget=1.0, cost=lambda _: 5.0)] == ["1", "2"]


def test_an_error_is_raised_when_its_item_is_due():
    results = ordered_map(lambda item: 1 // item, [2, 1, 0, 1])
    assert [next(results), next(results)] == [(2, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
