"""Batches: order, filling, halving, and preparation ahead of time."""

import threading

import pytest
import torch

from spr.models.batching import Batcher, DeviceMemoryError, prepared


def test_results_come_in_the_order_of_the_items_whatever_their_lengths():
    seen = []

    def work(batch):
        seen.append(list(batch))
        return [text.upper() for text in batch]

    batcher = Batcher(work, 2, length=len)
    assert batcher(["a", "bbb", "cc", "dddd", "e"]) == ["A", "BBB", "CC", "DDDD", "E"]
    assert seen == [["dddd", "bbb"], ["cc", "a"], ["e"]]


def test_out_of_memory_halves_the_batch_and_the_size_that_worked_is_kept():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("full")
        return [item + 1 for item in batch]

    batcher = Batcher(work, 8)
    assert batcher(list(range(10))) == list(range(1, 11))
    assert batcher([5, 6]) == [6, 7]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]


def test_a_single_item_that_does_not_fit_is_an_error_that_says_how_to_fix_it():
    def work(_):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(DeviceMemoryError, match=r"A single item[\s\S]*fix:"):
        Batcher(work, 4)([1, 2, 3])


def test_other_errors_are_not_caught():
    def work(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Batcher(work, 4)([1])


def test_items_are_prepared_in_order_while_the_caller_works():
    names = []

    def work(item):
        names.append(threading.current_thread().name)
        return 2 * item

    with prepared(work, [1, 2, 3]) as ready:
        assert [item.result(timeout=10) for item in ready] == [2, 4, 6]
    assert len(names) == 3
    assert threading.main_thread().name not in names


def test_a_preparation_error_is_raised_at_its_item_and_later_items_are_not_started():
    started = []
    go_on = threading.Event()

    def work(item):
        started.append(item)
        if item == 0:
            raise ValueError("torn")
        go_on.wait(10)

    def use():
        with prepared(work, range(100)) as ready:
            try:
                ready[0].result(timeout=10)
            finally:
                go_on.set()

    with pytest.raises(ValueError, match="torn"):
        use()
    assert len(started) < 100
