"""Answers are read like the publishers' own parsers read them, which are restated here from their documentation."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import TypeAlias

import pytest

from spr.grounding import DIALECTS, parse
from spr.records import Size

Found: TypeAlias = list[tuple[str, tuple[float, ...]]]
SIZES = [(1000, 1000), (640, 480), (333, 1001)]
WORDS = ["a dog", "two cats", "the man's hat", "Zoë", "a car (red)"]


def molmo(text: str, size: Size) -> Found:
    """Molmo: each pair of attributes x and y, in per cent (allenai/molmo2, `olmo/preprocessing/point_formatter.py`)."""
    found: Found = []
    for element in re.finditer(r"<points? ([^>]*)>([^<]*)</points?>", text):
        for x, y in re.findall(r'x\d*="\s*([\d.]+)"\s+y\d*="\s*([\d.]+)"', element[1]):
            if max(float(x), float(y)) <= 100:
                found.append((element[2], (float(x) / 100 * size[0], float(y) / 100 * size[1])))
    return found


def molmo2(text: str, size: Size) -> Found:
    """Molmo2: after the image's number, triples of a point's number, x and y, of 1000 (the same file)."""
    found: Found = []
    for element in re.finditer(r'<points coords="([0-9\t:;, .]+)">([^<]*)</points>', text):
        for _, x, y in re.findall(r"([0-9]+) ([0-9]{3,4}) ([0-9]{3,4})", element[1].split(" ", 1)[1]):
            if max(int(x), int(y)) <= 1000:
                found.append((element[2], (int(x) / 1000 * size[0], int(y) / 1000 * size[1])))
    return found


def rex_omni(text: str, size: Size) -> Found:
    """Rex-Omni: two bins are a point, four a box, of 999 (IDEA-Research/Rex-Omni, `rex_omni/parser.py`)."""
    found: Found = []
    tags = r"<\|object_ref_start\|>\s*([^<]+?)\s*<\|object_ref_end\|><\|box_start\|>(.*?)<\|box_end\|>"
    for label, content in re.findall(tags, text):
        for piece in content.split(","):
            bins = [int(number) for number in re.findall(r"<(\d+)>", piece)]
            if len(bins) in (2, 4):
                found.append((label, tuple(number / 999 * side for number, side in zip(bins, size * 2, strict=False))))
    return found


def deepseek(text: str, size: Size) -> Found:
    """DeepSeek-VL2 and DeepSeek-OCR: lists of boxes of 999 (`deepseek_vl2/serve/app_modules/utils.py`)."""
    found: Found = []
    for label, content in re.findall(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>(.*?)<\|/det\|>", text):
        for box in json.loads(content):
            found.append((label, tuple(number / 999 * side for number, side in zip(box, size * 2, strict=True))))
    return found


def gemini(text: str, size: Size) -> Found:
    """Gemini: y before x, of 1000 (ai.google.dev, image understanding; `supervision/detection/vlm.py`)."""
    found: Found = []
    for entry in json.loads(text.removeprefix("```json\n").removesuffix("\n```")):
        numbers = entry.get("box_2d") or entry["point"]
        xy = [numbers[place] for place in (1, 0, 3, 2)[: len(numbers)]]
        found.append((entry["label"], tuple(v / 1000 * side for v, side in zip(xy, size * 2, strict=False))))
    return found


def qwen3(text: str, size: Size) -> Found:
    """Qwen3-VL: x before y, of 1000 (QwenLM/Qwen3-VL, `cookbooks/spatial_understanding.ipynb`)."""
    found: Found = []
    for entry in json.loads(text.removeprefix("```json\n").removesuffix("\n```")):
        numbers = entry.get("bbox_2d") or entry["point_2d"]
        found.append((entry["label"], tuple(v / 1000 * side for v, side in zip(numbers, size * 2, strict=False))))
    return found


def answer(key: str, rng: random.Random) -> str:
    """A well-formed answer, as the publisher's code writes it, with one to four phrases of one to three places."""
    phrases = [(rng.choice(WORDS), [place(rng) for _ in range(rng.randint(1, 3))]) for _ in range(rng.randint(1, 4))]
    entries, pieces = [], []
    for label, boxes in phrases:
        points = [(x1, y1) for x1, y1, _, _ in boxes]
        as_points = rng.random() < 0.5
        match key:
            case "molmo" if len(points) == 1:
                ((x, y),) = points
                pieces.append(f'<point x="{x / 10:0.1f}" y="{y / 10:0.1f}" alt="{label}">{label}</point>')
            case "molmo":
                many = " ".join(f'x{k}="{x / 10:0.1f}" y{k}="{y / 10:0.1f}"' for k, (x, y) in enumerate(points, 1))
                pieces.append(f'<points {many} alt="{label}">{label}</points>')
            case "molmo2":
                many = " ".join(f"{k} {x:03d} {y:03d}" for k, (x, y) in enumerate(points, 1))
                pieces.append(
                    f'Counting the <points coords="1 {many}">{label}</points> shows a total of {len(points)}.'
                )
            case "rex_omni":
                bins = ["".join(f"<{number}>" for number in (point if as_points else box))
                        for point, box in zip(points, boxes, strict=True)]  # fmt: skip
                tags = f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{','.join(bins)}<|box_end|>"
                pieces.append(tags)
            case "deepseek_vl2" | "deepseek_ocr":
                pieces.append(f"<|ref|>{label}<|/ref|><|det|>{[list(box) for box in boxes]}<|/det|>")
            case "gemini":
                found = [{"point": [y, x]} for x, y in points] if as_points else []
                found = found or [{"box_2d": [y1, x1, y2, x2]} for x1, y1, x2, y2 in boxes]
                entries += [one | {"label": label} for one in found]
            case "qwen3_vl":
                found = [{"point_2d": list(point)} for point in points] if as_points else []
                found = found or [{"bbox_2d": list(box)} for box in boxes]
                entries += [one | {"label": label} for one in found]
    if key in ("gemini", "qwen3_vl"):
        text = json.dumps(entries, ensure_ascii=False)
        return f"```json\n{text}\n```" if rng.random() < 0.5 else text
    return (", " if key == "rex_omni" else " ").join(pieces)


def place(rng: random.Random) -> tuple[int, int, int, int]:
    (x1, x2), (y1, y2) = (sorted(rng.sample(range(1000), 2)) for _ in range(2))
    return x1, y1, x2, y2


PARSERS: dict[str, Callable[[str, Size], Found]] = {
    "molmo": molmo,
    "molmo2": molmo2,
    "rex_omni": rex_omni,
    "deepseek_vl2": deepseek,
    "deepseek_ocr": deepseek,
    "gemini": gemini,
    "qwen3_vl": qwen3,
}


@pytest.mark.parametrize("key", PARSERS)
def test_well_formed_answers_are_read_like_the_publisher_reads_them(key: str) -> None:
    rng = random.Random(key)
    for case in range(300):
        text, size = answer(key, rng), SIZES[case % len(SIZES)]
        theirs = PARSERS[key](text, size)
        grounded = parse(text, key, size, strict=True)
        ours = [(span.phrase, xy) for span in grounded.spans for xy in (*span.boxes, *span.points)]
        # Neighbours with the same label are one phrase, with its boxes before its points.
        assert sorted(phrase for phrase, _ in ours) == sorted(phrase for phrase, _ in theirs), text
        for (_, mine), (_, other) in zip(sorted(ours), sorted(theirs), strict=True):
            assert mine == pytest.approx(other, abs=1e-9), text


@pytest.mark.parametrize(
    ("key", "text", "phrases", "count"),
    [
        # The examples that the publishers print.
        ("deepseek_vl2",
         "<|ref|>The giraffe at the back.<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|><｜end▁of▁sentence｜>",
         ["The giraffe at the back."], (1, 0)),
        ("rex_omni",
         "<|object_ref_start|>person<|object_ref_end|><|box_start|><0><35><980><987>, <646><0><999><940><|box_end|>",
         ["person"], (2, 0)),
        ("qwen3_vl", '```json\n[\n\t{"point_2d": [925, 618], "label": "point_1"}\n]\n```', ["point_1"], (0, 1)),
        ("molmo2", 'Counting the <points coords="1 1 900 400 2 911 800">aasdf</points> shows a total of 2.',
         ["aasdf"], (0, 2)),
        ("seed_vl", "<bbox>175 98 791 476</bbox>", [""], (1, 0)),
        ("seed_vl", "<point>723 417</point>", [""], (0, 1)),
        ("kimi_vl", '{"bbox_2d": [0.280, 0.500, 0.520, 0.700]}', [""], (1, 0)),
    ],
)  # fmt: skip
def test_the_publishers_examples_are_read_without_a_problem(
    key: str, text: str, phrases: list[str], count: tuple[int, int]
) -> None:
    grounded = parse(text, key, (1000, 1000), strict=True)
    assert [span.phrase for span in grounded.spans] == phrases
    assert (len(grounded.boxes), len(grounded.points)) == count


def test_an_absent_object_of_rex_omni_has_no_box_and_no_problem() -> None:
    text = (
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|><1><2><3><4><|box_end|>, "
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>None<|box_end|>"
    )
    grounded = parse(text, "rex_omni", (999, 999), strict=True)
    assert [(span.phrase, len(span.boxes)) for span in grounded.spans] == [("dog", 1), ("cat", 0)]


def test_every_point_dialect_names_its_publishers_question() -> None:
    questions = {key: dialect.point_prompt for key, dialect in DIALECTS.items() if dialect.point_prompt is not None}
    assert set(questions) == {"qwen2_5_vl", "qwen3_vl", "gemini", "molmo", "molmo2", "rex_omni"}
    assert all("{expression}" in question for question in questions.values())
