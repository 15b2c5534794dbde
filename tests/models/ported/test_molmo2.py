"""Molmo2's image processor equals a computation without torchvision and transformers."""

import numpy as np
import pytest

from spr.models.chat import render_answer, render_turn, user_turn
from spr.models.families import FAMILIES
from spr.models.image_processors import encode, load_processor

PATCH, SIDE, WINDOW = 14, 42, 28  # pixels: a patch, a crop of 3 × 3, and the distance of two crops


def bilinear(pixels, height, width):
    """Each output pixel from the four nearest input pixels, however small the output is; rounded to a byte."""

    def nearest(size, count):
        place = np.maximum((np.arange(count) + 0.5) * size / count - 0.5, 0)
        low = place.astype(int)
        return low, np.minimum(low + 1, size - 1), place - low

    pixels = pixels.astype(np.float64)
    (top, bottom, down), (left, right, across) = nearest(pixels.shape[0], height), nearest(pixels.shape[1], width)
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    return np.rint(rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None])


def patches(crop):
    """The patches of a crop by row, each with its pixels by row, red, green and blue, from −1 to 1."""
    places = [(y, x) for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)]
    return np.stack([crop[y : y + PATCH, x : x + PATCH].ravel() for y, x in places]) / 127.5 - 1


def windows(grid):
    """The 2 × 2 windows of patches that become one token; −1 where a window reaches beyond the grid."""
    padded = np.pad(grid, ((0, grid.shape[0] % 2), (0, grid.shape[1] % 2)), constant_values=-1)
    return [padded[y : y + 2, x : x + 2].ravel() for y in range(0, len(padded), 2) for x in range(0, len(padded), 2)]


@pytest.fixture
def processor(mllm_folder):
    return load_processor(mllm_folder("molmo2"), "molmo2", family=FAMILIES["molmo2"])


def test_views_and_windows_are_those_computed_with_numpy(processor, picture):
    # Of 66 × 86 px without the margin, 2 × 2 windows of 28 px are the nearest that are not more than four.
    image = picture(100, 80)
    found = processor.image_processor([image], return_tensors="np")
    pixels = np.asarray(image)
    canvas = bilinear(pixels, WINDOW + SIDE, WINDOW + SIDE)
    crops = [canvas[y : y + SIDE, x : x + SIDE] for y in (0, WINDOW) for x in (0, WINDOW)]
    views = np.stack([patches(view) for view in (bilinear(pixels, SIDE, SIDE), *crops)])
    # A byte is rounded the other way where the exact value is almost a half: 2 / 255.
    assert found["pixel_values"].shape == views.shape == (5, 9, 588)
    difference = np.abs(found["pixel_values"] - views)
    assert difference.max() < 0.008
    assert (difference > 1e-5).mean() < 0.02

    # Crops share a row or column of patches, which belongs to the first: rows 0 to 2, then 1 and 2 of the second.
    def place(row, column):
        down, across = row > 2, column > 2
        return 9 + 9 * (2 * down + across) + 3 * (row - 2 * down) + column - 2 * across

    whole = np.array([[place(row, column) for column in range(5)] for row in range(5)])
    expected = [*windows(np.arange(9).reshape(3, 3)), *windows(whole)]
    assert found["image_token_pooling"].tolist() == np.array(expected).tolist()
    assert found["image_grids"].tolist() == [[2, 2, 3, 3]]


def test_a_prompt_has_a_token_for_each_window_and_for_each_end_of_a_row(processor, picture):
    inputs = encode(processor, ["<|image|>a"], [picture(100, 80)])
    low = "<low_res_im_start>" + 2 * ("<im_patch>" * 2 + "<im_col>") + "<im_end>"
    high = "<im_start>" + 3 * ("<im_patch>" * 3 + "<im_col>") + "<im_end>"
    words = processor.tokenizer(f"<|im_end|>{low}{high}a", add_special_tokens=False)["input_ids"]
    assert inputs["input_ids"][0].tolist() == words
    # All of them, not only those of windows, attend to each other.
    assert inputs["mm_token_type_ids"][0].tolist() == [0] + [1] * (len(words) - 2) + [0]


def test_the_turn_begins_with_the_token_that_the_processor_would_put_before_it(processor, picture):
    turn = render_turn(processor, FAMILIES["molmo2"], user_turn("Where? <im_patch> <|image|>"))
    # As the published template writes it: the image before the first turn. Placeholders in the text are removed.
    assert turn == "<|im_end|><|image|><|im_start|>user\nWhere?    <|im_end|>\n<|im_start|>assistant\n"
    ids = encode(processor, [turn], [picture(60, 60)])["input_ids"][0].tolist()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 2
    assert ids[0] == end


def test_an_answer_follows_the_turn_and_ends_with_its_own_token(processor):
    turn = user_turn("Where?")
    rendered = render_answer(processor, FAMILIES["molmo2"], turn, "Here.")
    # The template of a whole conversation has a space before the answer's turn, and no end after it.
    reply = {"role": "assistant", "content": [{"type": "text", "text": "Here."}]}
    assert processor.apply_chat_template([*turn, reply], tokenize=False).endswith(" <|im_start|>assistant\nHere.")
    assert "".join(rendered) == "Here.<|im_end|>"
