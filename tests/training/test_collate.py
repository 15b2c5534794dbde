"""Batches of small pairs, their masks and positions written out by hand."""

from dataclasses import replace

import pytest
import torch

from spr.training.batches import EncodedPair, collate
from spr.training.vision_cache import Features


def pair(name, prompt, chosen, rejected, positions=None):
    positions = [list(range(len(prompt)))] if positions is None else positions
    tensors = (torch.tensor(tokens) for tokens in (prompt, chosen, rejected))
    prompt, chosen, rejected = tensors
    return EncodedPair(name, prompt, torch.tensor(positions), chosen, rejected, Features(torch.zeros(1, 2)))


def sees(mask):
    """A mask as lines of 1 and 0, a row what a token sees."""
    return ["".join("1" if seen else "0" for seen in row) for row in mask.tolist()]


A = pair("a", [5, 6, 7], [8, 9], [3])
B = pair("b", [5, 7], [8], [4])


def test_one_sequence_a_pair_as_written_out():
    batch = collate([A], pad=0, shared=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 3]]
    # Both answers begin at the position behind the prompt.
    assert batch.positions.tolist() == [[[0, 1, 2, 3, 4, 3]]]
    assert sees(batch.mask[0, 0]) == [
        "100000",
        "110000",
        "111000",
        "111100",  # chosen, from the prompt on
        "111110",
        "111001",  # rejected: the prompt and itself
    ]
    assert batch.token_types.tolist() == [[0, 0, 0, 1, 1, 1]]
    # What predicts 8, 9 and 3: the prompt's last token, 8, and again the prompt's last.
    assert batch.columns.tolist() == [2, 3, 2]
    assert batch.labels.tolist() == [8, 9, 3]
    assert batch.owners.tolist() == [0, 0, 1]
    assert batch.tokens == 6


def test_a_shorter_pair_is_padded_on_the_right_and_padding_sees_itself_alone():
    batch = collate([A, B], pad=0, shared=True)
    assert batch.input_ids[1].tolist() == [5, 7, 8, 4, 0, 0]
    assert batch.positions[0, 1].tolist() == [0, 1, 2, 2, 0, 0]
    assert sees(batch.mask[1, 0]) == ["100000", "110000", "111000", "110100", "000010", "000001"]
    assert batch.rows.tolist() == [0, 0, 0, 1, 1]
    assert batch.columns.tolist() == [2, 3, 2, 1, 1]
    assert batch.labels.tolist() == [8, 9, 3, 8, 4]
    assert batch.owners.tolist() == [0, 0, 2, 1, 3]  # rejected answers are counted behind all chosen ones
    assert batch.tokens == 10
    assert batch.pair_ids == ("a", "b")
    assert len(batch.features) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_weights_follow_their_tokens(shared):
    one = replace(A, chosen_weights=torch.tensor([1.0, 5.0]), rejected_weights=torch.tensor([3.0]))
    two = replace(B, chosen_weights=torch.tensor([2.0]), rejected_weights=torch.tensor([4.0]))
    batch = collate([one, two], pad=0, shared=shared)
    weights = dict(zip(zip(batch.owners.tolist(), batch.labels.tolist(), strict=True), batch.weights, strict=True))
    assert weights == {(0, 8): 1.0, (0, 9): 5.0, (2, 3): 3.0, (1, 8): 2.0, (3, 4): 4.0}
    assert collate([A, B], pad=0, shared=shared).weights is None


def test_two_sequences_a_pair_as_written_out():
    batch = collate([A, B], pad=0, shared=False)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 7, 8, 0, 0], [5, 6, 7, 3, 0], [5, 7, 4, 0, 0]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0], [0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.token_types.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert batch.rows.tolist() == [0, 0, 1, 2, 3]
    assert batch.columns.tolist() == [2, 3, 1, 2, 1]
    assert batch.labels.tolist() == [8, 9, 8, 3, 4]
    assert batch.owners.tolist() == [0, 0, 1, 2, 3]
    assert batch.tokens == 15
    assert len(batch.features) == 4


def test_three_axes_go_on_alike_from_one_behind_the_greatest():
    # A text token, an image of 1 × 2 tokens, a text token, as Qwen-VL counts them: time, height, width.
    axes = [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    batch = collate([pair("q", [1, 2, 2, 3], [4, 5], [6, 7, 8], axes)], pad=0, shared=True)
    assert batch.positions[:, 0].tolist() == [[*axis, 4, 5, 4, 5, 6] for axis in axes]


def test_positions_go_on_behind_an_image_that_ends_the_prompt():
    # An image of 2 × 1 tokens last: height reaches 2, so answers begin at 3 on every axis.
    axes = [[0, 1, 1], [0, 1, 2], [0, 1, 1]]
    batch = collate([pair("q", [1, 2, 2], [4], [6], axes)], pad=0, shared=True)
    assert batch.positions[:, 0].tolist() == [[*axis, 3, 3] for axis in axes]


def test_moving_a_batch_moves_its_tensors_and_features():
    batch = collate([A, B], pad=0, shared=True).to(torch.device("meta"))
    assert batch.mask.device.type == batch.labels.device.type == "meta"
    assert all(part.tokens.device.type == "meta" for part in batch.features)
    assert batch.tokens == 10
