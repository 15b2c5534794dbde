"""Fuzz the rewards: every answer must earn numbers from 0 to 1, without an error, in linear time.

    python -m tools.fuzz_rewards [--count 100000] [--seed 0] [--keep FOLDER]

Most answers are real ones of a dialect after a few mutations: cut, spliced, repeated, with other digits, with tags,
keys and special tokens of any dialect, inside or outside of ``<think>`` and ``<answer>``. One in a hundred is hostile
text: deep nesting, runs of digits, numbers that are not finite, lone surrogates, NUL. Each is read for one of several
truths (no objects, one, many, labels that count) and goes through every reward, sums and schedules, and `measure`. The
tests run 2,000 answers.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path

from spr.grounding import DIALECTS, GroundedText, render
from spr.grounding.points import centre
from spr.records import Box, Span
from spr.rewards import REWARDS, Labels, Truth, TruthObject, get_reward, measure

SPECS = (*REWARDS, "f1@0.75", "length@200", "0.6*f1@0.5:0.9/1000 + 0.3*iou + 0.1*format", "0.5*s_loc + 0.5*precision")
_SIZES = ((640, 480), (333, 1000), (1, 1), (10_000, 7))
_LABELS = ("dog", "wine_glass", "car_(automobile)", "Cabinet/shelf", "一只狗", "non_ng_hose")
_WORDS = ("dog", "a wine glass", "the red car", "cabinet", "一只狗", "Non NG hoses", "two dogs", "")
_PIECES = (
    *"[](){}<>;,.:|\"'\\/-+ \n\t0123456789",
    "[[", "]]", "[1, 2, 3, 4]", "[1, 2, 3]", "(1,2),(3,4)", "[0.1, 0.2, 0.3, 0.4]", "1e999", "-1", "9" * 400, "NaN",
    "<think>", "</think>", "<answer>", "</answer>", "```json\n", "```", "<ref>", "</ref>", "<box>", "</box>",
    "<|box_start|>", "<|box_end|>", "<|im_end|>", "</s>", "<loc_5>", "<loc0005>", "<patch_index_0001>", "<12>",
    "<|det|>", "<bbox>", "<point>1 2</point>", '<points coords="1 1 100 200"', "<seg001>", "<|begin_of_box|>",
    '{"bbox_2d": [1, 2, 3, 4], "label": "x"}', '"point_2d": [1, 2]', '"label": "\\ud800"', '{"bbox_2d": {"a": [[[[',
    "None", "null", "Infinity", "\x00", "\u200b", "\u202e", "\ud800", "٣", "²", "İ", "\u2028", "🐕", "［1，2，3，4］",
)  # fmt: skip


@dataclass
class Findings:
    """What the answers did; ``failures`` are a description, the truth and the answer of each one that failed."""

    answers: int = 0
    rewarded: int = 0  # of which some box or point found an object
    errors: int = 0
    nan: int = 0
    out_of_range: int = 0
    slowest: float = 0.0  # seconds of all rewards of an answer
    slowest_answer: str = ""
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def hostile_texts(size: int) -> Iterator[tuple[str, str]]:
    """Kinds of text of about this many characters, by name."""
    box, entry = "a dog [1, 2, 300, 400] ", '{"bbox_2d": [1, 2, 300, 400], "label": "dog"}, '
    pieces = {
        "open brackets": "[",
        "open braces": "{",
        "nested lists": "[[1,",
        "nested objects": '{"bbox_2d": ',
        "open parentheses": "((1,2),",
        "open tags": "<box>",
        "open phrases": "<ref><box>(",
        "open reasoning": "<think>",
        "closed reasoning": "</think>",
        "open answers": "<answer>",
        "answers": "<answer>a</answer>",
        "digits": "9",
        "digits and points": "1.",
        "a long number in a box": "0",
        "unicode digits": "[٣, ٣, ٣, ٣] ²",
        "full-width digits": "［１，２，３，４］",
        "not a number": "[NaN, NaN, NaN, NaN] ",
        "infinite": "[Infinity, -Infinity, 1e999, -1e999] ",
        "huge": "[1e308, 1e308, 1e309, 1e309] ",
        "tiny": "[1e-320, 1e-320, 1e-319, 1e-319] ",
        "surrogates": "\ud800[1, 2, 3, 4]\udfff",
        "NUL": "\x00",
        "backslashes": '"label": "\\',
        "quotes": "\"'",
        "white space": " \n\t",
        "new lines in boxes": "[1,\n2,\n3,\n4]\n",
        "combining characters": "a\u0301\u202e\u200b",
        "boxes": box,
        "entries": entry,
        "location tokens": "<loc_1><loc_2><loc_300><loc_400>dog",
        "PaliGemma's tokens": "<loc0001><loc0002><loc0300><loc0400> dog ; ",
        "patches": "<phrase>a</phrase><object><patch_index_0001><patch_index_0900></object>",
        "points": "<point>1 2</point>",
        "boxes of one phrase": "[1, 2, 300, 400], ",
    }
    for name, piece in pieces.items():
        text = piece * (size // len(piece) + 1)
        yield name, {"a long number in a box": f"a dog [1, 2, {text}, 4]", "entries": f"[{text}"}.get(name, text)[:size]
    words = "dog wine glass car cabinet " * (size // 60)
    boxes = "[1, 2, 300, 400]" + ", [1, 2, 300, 400]" * (size // 40)
    yield "long phrase, Tags", f"<ref>{words}</ref><box>[{boxes}]</box>"
    yield "long phrase, JSON", f'[{{"bbox_2d": [1, 2, 300, 400], "label": "{words}"}}, {entry * (size // 100)}'
    yield "a long list in a box", f'{{"bbox_2d": [{"1, " * (size // 3)}1], "label": "dog"}}'


@cache
def seeds(key: str) -> tuple[str, ...]:
    """Answers in a dialect: none, one, several and many boxes, points, and both, as far as its models write them."""
    draw, dialect = random.Random(key), DIALECTS[key]
    kinds = [name for name, writes in (("boxes", dialect.writes_boxes), ("points", dialect.writes_points)) if writes]
    written = [_write(draw, key, count, kind) for count in (1, 1, 2, 4, 8, 30) for kind in kinds]
    return ("", *written, "There is no dog.", "[]", "none")


def _write(draw: random.Random, key: str, count: int, kind: str) -> str:
    text, spans = "", []
    for number in range(count):
        word = draw.choice(_WORDS[:-1])
        box = draw.choice(_objects(draw, 4)).box if number % 2 else _objects(draw, 1)[0].box
        boxes, points = ((box,), ()) if kind == "boxes" else ((), (centre(box),))
        spans.append(Span(word, len(text), len(text) + len(word), boxes, points))
        text += word + draw.choice((" and ", ", ", " is next to "))
    return render(GroundedText(text, tuple(spans)), key, _SIZES[0])


def _objects(draw: random.Random, count: int, size_wh: tuple[int, int] = _SIZES[0]) -> tuple[TruthObject, ...]:
    """Objects whose boxes come from few places, so that mutated answers still find some."""
    w, h = size_wh
    return tuple(TruthObject(draw.choice(_LABELS), _place(draw, w, h)) for _ in range(count))


def _place(draw: random.Random, w: int, h: int) -> Box:
    x, y = draw.choice((0.0, 0.25, 0.5)), draw.choice((0.0, 0.25, 0.5))
    return x * w, y * h, (x + draw.choice((0.25, 0.5))) * w, (y + draw.choice((0.25, 0.5))) * h


@cache
def truths(key: str) -> tuple[Truth, ...]:
    """Truths of answers in a dialect."""
    draw = random.Random(f"truths {key}")
    modes: tuple[Labels, ...] = ("ignore", "name", "phrase")
    found = [
        Truth(_objects(draw, count, size), key, size, labels)
        for size in _SIZES
        for count in (0, 1, 3, 12)
        for labels in modes
    ]
    objects = (*_objects(draw, 2), TruthObject("dog", (0, 0, 320, 240)))
    found.append(Truth(objects, key, _SIZES[0], "synonyms", {"dog": ("puppy", "一只狗")}))
    return tuple(found)


def mutate(text: str, others: Sequence[str], draw: random.Random) -> str:
    """A text after up to four mutations."""
    for _ in range(draw.choice((0, 0, 1, 1, 2, 4))):
        i, j = sorted(draw.randint(0, len(text)) for _ in range(2))
        text = draw.choice(_MUTATIONS)(text, i, j, others, draw)[:20_000]
    return text


def _splice(text: str, i: int, j: int, others: Sequence[str], draw: random.Random) -> str:
    other = draw.choice(others)
    k, m = sorted(draw.randint(0, len(other)) for _ in range(2))
    return text[:i] + other[k:m] + text[j:]


def _insert(text: str, i: int, _j: int, _others: Sequence[str], draw: random.Random) -> str:
    times: int = draw.choice((1, 1, 1, 3, 40))
    piece: str = draw.choice(_PIECES)
    return text[:i] + piece * times + text[i:]


def _digits(text: str, _i: int, _j: int, _others: Sequence[str], draw: random.Random) -> str:
    return "".join(str(draw.randrange(10)) if c.isdigit() and draw.random() < 0.2 else c for c in text)


def _character(text: str, i: int, _j: int, _others: Sequence[str], draw: random.Random) -> str:
    return text[:i] + chr(draw.choice((draw.randrange(128), draw.randrange(0x110000)))) + text[i + 1 :]


def _repeat(text: str, i: int, j: int, _others: Sequence[str], draw: random.Random) -> str:
    return text[:i] + text[i:j] * draw.choice((0, 2, 3, 10, 50)) + text[j:]


def _wrap(text: str, i: int, j: int, others: Sequence[str], draw: random.Random) -> str:
    form = draw.choice(
        (
            "<think>{other}</think>{text}",
            "<think>{other}</think><answer>{text}</answer>",
            "<answer>{text}</answer>",
            "{other}</think>\n{text}",
            "<think>{text}",
            "<answer>{other}</answer><answer>{text}",
            "```json\n{text}\n```",
            "{text}<|im_end|>",
        )
    )
    return form.replace("{other}", draw.choice(others)).replace("{text}", text[:i] + text[j:] if i % 2 else text)


_Mutation = Callable[[str, int, int, Sequence[str], random.Random], str]
_MUTATIONS: tuple[_Mutation, ...] = (
    lambda text, _i, j, _others, _draw: text[:j],
    lambda text, i, _j, _others, _draw: text[i:],
    lambda text, i, j, _others, _draw: text[:i] + text[j:],
    _splice,
    _insert,
    _insert,
    _digits,
    _character,
    _repeat,
    _wrap,
)


def answers(count: int, seed: int) -> Iterator[tuple[Truth, str]]:
    """Truths with answers; the same seed gives the same ones."""
    draw, keys = random.Random(seed), sorted(DIALECTS)
    everything = [text for key in keys for text in seeds(key)]
    for number in range(count):
        key = keys[number % len(keys)]
        truth = draw.choice(truths(key))
        if number % 100 == 99:
            size = draw.choice((100, 1_000, 5_000, 20_000, 100_000))
            text = draw.choice(list(hostile_texts(size)))[1]
            if draw.random() < 0.5:
                text = draw.choice(seeds(key)) + text
        else:
            text = mutate(draw.choice(seeds(key)), seeds(key) if draw.random() < 0.7 else everything, draw)
        yield truth, text


def check(truth: Truth, text: str, found: Findings) -> None:
    """Compute every reward of an answer."""
    rewards = [(spec, get_reward(spec)) for spec in SPECS]
    problems, best = [], 0.0
    started = time.process_time()
    try:
        answer = truth.read(text, step=len(text))
        for spec, reward in rewards:
            value = reward(answer, truth)
            if math.isnan(value):
                found.nan += 1
                problems.append(f"{spec} is NaN")
            elif not 0 <= value <= 1 + 1e-9:
                found.out_of_range += 1
                problems.append(f"{spec} is {value}")
            if truth.objects and spec in ("recall", "point_in_box"):
                best = max(best, value)
        numbers = astuple(measure(answer, truth))
        if not all(0 <= number <= (1 if isinstance(number, float) else math.inf) for number in numbers):
            found.out_of_range += 1
            problems.append(f"measures are {numbers}")
    except Exception:
        found.errors += 1
        problems.append(traceback.format_exc(limit=-4))
    seconds = time.process_time() - started
    found.answers += 1
    found.rewarded += best > 0
    if seconds > found.slowest:
        found.slowest, found.slowest_answer = seconds, f"{truth.dialect}, {len(text):,} characters: {text[:60]!r}"
    found.failures += [(problem, truth.to_json(), text) for problem in problems]


def fuzz(count: int, seed: int = 0) -> Findings:
    """Give the rewards this many answers."""
    found = Findings()
    for truth, text in answers(count, seed):
        check(truth, text, found)
    return found


def main() -> None:
    """Fuzz the rewards and print the findings."""
    parser = argparse.ArgumentParser(description="Fuzz the rewards.")
    parser.add_argument("--count", type=int, default=100_000, help="number of answers (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--keep", type=Path, help="folder for the truths and answers that fail")
    arguments = parser.parse_args()
    started = time.monotonic()
    found = fuzz(arguments.count, arguments.seed)
    print(
        f"{found.answers:,} answers through {len(SPECS)} rewards: {found.errors} exceptions, {found.nan} NaN, "
        f"{found.out_of_range} out of range; {found.rewarded:,} answers place an object; slowest answer "
        f"{1000 * found.slowest:.0f} ms ({found.slowest_answer}); {time.monotonic() - started:.0f} s in all"
    )
    for number, (problem, truth, text) in enumerate(found.failures[:20]):
        print(f"  {problem}\n  truth: {truth}\n  answer: {text[:200]!r}")
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            content = f"{truth}\n{text}".encode("utf-8", "surrogatepass")
            (arguments.keep / f"answer-{number}").write_bytes(content)
    sys.exit(bool(found.failures))


if __name__ == "__main__":
    main()
