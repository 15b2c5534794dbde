"""Colours that can be told apart and read, in light and dark, worked out from the style sheet (WCAG 2.2, AA)."""

import itertools
import re

import numpy as np
import pytest

from spr.core.plots import CSS as PLOT_CSS
from spr.core.plots import LIGHT
from spr.report.page import TEMPLATES

CSS = (TEMPLATES / "report.css").read_text(encoding="utf-8")
BLOCKS = re.findall(r":root\{(.*?)\}", CSS, re.DOTALL)
# Of deuteranopia, protanopia and tritanopia, severity 1, for linear RGB (Machado, Oliveira, Fernandes 2009).
BLIND = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def palette(block):
    return dict(re.findall(r"--([a-z0-9-]+):(#[0-9a-f]{6})", block))


THEMES = {"light": palette(BLOCKS[0]), "dark": {**palette(BLOCKS[0]), **palette(BLOCKS[1])}}


def linear(colour):
    channels = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    a, b = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_black_on_white_has_the_contrast_that_the_standard_gives():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # Said in WCAG's own notes: #767676 on white is just over 4.5.
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(theme):
    colours = THEMES[theme]
    for text, ground in itertools.product(
        ("ink", "muted", "link", "chosen", "rejected", "good", "bad"), ("bg", "surface", "soft")
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for k in range(8):
        assert contrast(colours["on-k"], colours[f"k{k}"]) >= 4.5, k
    # Unmatched boxes have their own grey, the same in both themes.
    (miss,) = re.findall(r"\.miss\{--k:(#[0-9a-f]{6})\}", CSS)
    assert contrast(colours["on-k"], miss) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lines_bars_and_borders_stand_out(theme):
    colours = THEMES[theme]
    for mark, ground in itertools.product(
        ("chosen", "rejected", "all", "kept", "gone", "muted", "focus"), ("bg", "surface")
    ):
        assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)


@pytest.mark.parametrize("sight", BLIND)
@pytest.mark.parametrize("theme", THEMES)
def test_chosen_and_rejected_and_all_can_be_told_apart_by_the_colour_blind(theme, sight):
    seen = {name: lab(np.array(BLIND[sight]) @ linear(THEMES[theme][name])) for name in ("chosen", "rejected", "all")}
    for one, other in itertools.combinations(seen, 2):
        # 2.3 is just noticeable, 10 is plain side by side; line styles differ besides.
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_all_colours_of_text_are_from_the_palette():
    # Hex colours outside the palette: white and shade of boxes over photographs, and the grey of unmatched ones.
    rest = re.sub(r":root\{.*?\}", "", CSS + PLOT_CSS, flags=re.DOTALL)
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", rest)) == {"#fff", "#d9dde0"}


def test_plots_in_files_have_the_colours_of_the_light_page():
    assert {name: THEMES["light"][name] for name in LIGHT} == LIGHT
