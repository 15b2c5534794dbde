"""Batches: order, filling, halving."""

import pytest
import torch

from spr.models.batching import Batcher, DeviceMemoryError


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


def test_one_item_that_does_not_fit_is_an_error_with_the_mend():
    def work(_):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(DeviceMemoryError, match=r"One item alone[\s\S]*fix:"):
        Batcher(work, 4)([1, 2, 3])


def test_other_errors_pass():
    def work(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Batcher(work, 4)([1])
