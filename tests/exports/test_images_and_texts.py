"""The contents of an exported row: the pixels that the pipeline saw, and texts with exact boxes."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from spr.config import PromptsConfig
from spr.core.errors import InputError
from spr.core.images import ImageSource
from spr.exports.texts import texts_of, with_pixels
from spr.exports.writing import export
from spr.grounding import get_dialect
from spr.models.fakes import FakeDescriber
from spr.models.protocols import Answer
from spr.pipeline import describe
from spr.records import BoxEdit, PreferencePair, Span

SIZE = (160, 200)


def save(path, kind):
    """An image of 160×200 px as shown whose left half is red and right half blue, stored in a way that misleads."""
    shown = Image.new("RGB", SIZE, (255, 0, 0))
    shown.paste((0, 0, 255), (80, 0, 160, 200))
    if kind == "turned":
        # Stored a quarter turn to the left; orientation 6 tells viewers to turn it right.
        exif = Image.Exif()
        exif[0x0112] = 6
        shown.transpose(Image.Transpose.ROTATE_90).save(path, "PNG", exif=exif)
    elif kind == "transparent":
        layer = shown.convert("RGBA")
        layer.putalpha(0)
        layer.save(path, "PNG")
    elif kind == "sixteen bits":
        Image.fromarray(np.full((200, 160), 30_000, np.uint16)).save(path, "PNG")
    else:
        shown.save(path, "PNG")


@pytest.fixture
def odd_run(make_dataset, make_run, tmp_path):
    """Four images, each stored in its own way, under names with odd characters."""
    dataset = make_dataset(tmp_path / "data", images=4)
    kinds = {
        "plain.png": "plain",
        "été/a photo #1.png": "turned",
        "b&w (2).png": "sixteen bits",
        "d'or\n.png": "transparent",
    }
    for image, (name, kind) in zip(dataset.coco["images"], kinds.items(), strict=True):
        (dataset.images / image["file_name"]).unlink()
        (dataset.images / name).parent.mkdir(exist_ok=True)
        save(dataset.images / name, kind)
        image |= {"file_name": name, "width": SIZE[0], "height": SIZE[1]}
    for annotation in dataset.coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x * 0.8, y, width, height]
    return make_run(dataset), dataset


EXPECTED = {
    "plain.png": ((255, 0, 0), (0, 0, 255)),
    "été/a photo #1.png": ((255, 0, 0), (0, 0, 255)),
    # (30,000 + 128) // 257 = 117
    "b&w (2).png": ((117,) * 3, (117,) * 3),
    # What is transparent shows white.
    "d'or\n.png": ((255,) * 3, (255,) * 3),
}


def test_embedded_images_are_what_the_pipeline_saw(odd_run, tmp_path):
    run, dataset = odd_run
    summary = export(run, tmp_path / "out", "trl")
    assert (summary.pairs, summary.left_out) == (4, {})
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["file_name"] for row in rows} == set(EXPECTED)
    for row in rows:
        image = row["images"][0].convert("RGB")
        assert image.size == SIZE
        assert (image.getpixel((10, 100)), image.getpixel((150, 100))) == EXPECTED[row["file_name"]]
        assert image.getexif().get(0x0112) is None
    alike = {name: ImageSource(dataset.images).reads_alike(name) for name in EXPECTED}
    assert [name for name, plain in alike.items() if plain] == ["plain.png"]


def test_copies_are_upright_have_plain_names_and_plain_files_stay_byte_for_byte(odd_run, tmp_path):
    run, dataset = odd_run
    out = tmp_path / "out"
    export(run, out, "llava")
    rows = {row["id"].partition("/")[0]: row for row in json.loads((out / "train.json").read_text(encoding="utf-8"))}
    for image in dataset.coco["images"]:
        path = rows[str(image["id"])]["image"]
        assert path.isascii()
        assert not set(path) & set(" #&()'\n")
        with Image.open(out / path) as copy:
            pixels = copy.convert("RGB")
        assert (pixels.getpixel((10, 100)), pixels.getpixel((150, 100))) == EXPECTED[image["file_name"]]
    assert (out / "images" / "plain.png").read_bytes() == (dataset.images / "plain.png").read_bytes()
    assert len([p for p in (out / "images").rglob("*") if p.is_file()]) == 4


def test_by_path_files_that_readers_would_not_agree_on_are_left_out_and_named(odd_run, tmp_path):
    run, _ = odd_run
    summary = export(run, tmp_path / "out", "ms-swift", images="path")
    assert (summary.pairs, summary.left_out) == (1, {"image_needs_rewriting": 3})
    named = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert {row["file_name"] for row in named} == set(EXPECTED) - {"plain.png"}
    assert {row["reason"] for row in named} == {"image_needs_rewriting"}


def test_images_that_have_gone_since_are_counted_and_named(make_dataset, make_run, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=4)
    run = make_run(dataset)
    (dataset.images / "1000.png").unlink()
    (dataset.images / "1007.png").write_bytes(b"no image")
    summary = export(run, tmp_path / "out", "trl")
    assert summary.pairs == 2
    assert summary.left_out == {"image_missing": 1, "image_unreadable": 1}
    named = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert {(row["file_name"], row["reason"]) for row in named} == {
        ("1000.png", "image_missing"),
        ("1007.png", "image_unreadable"),
    }
    again = export(run, tmp_path / "out", "trl")
    assert (again.done_before, again.left_out) == (True, summary.left_out)


def test_with_no_image_left_nothing_is_written(make_dataset, make_run, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=3)
    run = make_run(dataset)
    for image in dataset.images.iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"No pair can be exported[\s\S]*image_missing 3[\s\S]*annotations\.images"):
        export(run, tmp_path / "out", "llava")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


KEEP = {"backend": "fake", "truncated": "keep"}


class Cut(FakeDescriber):
    """Half of its answers are truncated."""

    def describe(self, requests):
        reasons = ("length", "stop")
        given = zip(requests, super().describe(requests), strict=True)
        return [Answer(answer.text, reasons[request.seed % 2]) for request, answer in given]


def test_pairs_with_a_truncated_answer_are_left_out_and_named(make_dataset, make_run, pairs_of, tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "load_describer", Cut)
    run = make_run(make_dataset(tmp_path / "data", images=8), describer=KEEP)
    reasons = {pair.query_id: {pair.chosen_finish_reason, pair.rejected_finish_reason} for pair in pairs_of(run)}
    cut = {name for name, both in reasons.items() if "length" in both}
    assert 0 < len(cut) < len(reasons)
    summary = export(run, tmp_path / "out", "llava")
    assert (summary.pairs, summary.left_out) == (len(reasons) - len(cut), {"truncated_answer": len(cut)})
    named = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert {row["query_id"] for row in named} == cut
    assert {row["id"] for row in json.loads((tmp_path / "out" / "train.json").read_text())} == set(reasons) - cut


def test_with_truncated_answers_alone_nothing_is_written_and_the_token_limit_is_named(
    make_dataset, make_run, tmp_path, monkeypatch
):
    class All(Cut):
        def describe(self, requests):
            return [Answer(answer.text, "length") for answer in super().describe(requests)]

    monkeypatch.setattr(describe, "load_describer", All)
    run = make_run(make_dataset(tmp_path / "data", images=3), describer=KEEP)
    with pytest.raises(InputError, match=r"truncated_answer 3[\s\S]*raise describer\.max_new_tokens"):
        export(run, tmp_path / "out", "llava")


CUP = (100 / 3, 25.0, 200 / 3, 75.0)


def pair(chosen, rejected, chosen_spans=(), rejected_spans=(), size_wh=(100, 100)):
    edit = BoxEdit("a cup", CUP, CUP, "kept")
    return PreferencePair(
        query_id="7/0",
        image_id="7",
        file_name="7.png",
        width=size_wh[0],
        height=size_wh[1],
        region=(20.0, 20.0, 80.0, 80.0),
        prompt="Where? [0.20, 0.20, 0.80, 0.80]",
        chosen=chosen,
        rejected=rejected,
        chosen_spans=chosen_spans,
        rejected_spans=rejected_spans,
        chosen_candidate="7/0/full0",
        rejected_candidate="7/0/full1",
        chosen_score=0.5,
        rejected_score=0.25,
        margin=0.25,
        box_edits=(edit,),
    )


LLAVA = get_dialect("llava_onevision")
ASK = PromptsConfig(full="Where? {region}")


def test_another_dialect_is_written_from_the_pixels_not_from_the_rounded_text():
    # 33.33 of 100 px is 0.33 in the text: from the text it would become 330 thousandths, from the pixels 333.
    exact = Span("a cup", 0, 5, (CUP,))
    texts = texts_of(
        pair("a cup [0.33, 0.25, 0.67, 0.75] stands", "nothing", (exact,)), LLAVA, get_dialect("ferret"), ASK
    )
    assert texts.prompt == "Where? [200, 200, 800, 800] <region_fea>"
    assert texts.chosen == "a cup [333, 250, 666, 750] stands"
    assert texts.rejected == "nothing"


def test_without_another_dialect_texts_stay_as_they_are():
    same = pair("a cup [0.33, 0.25, 0.67, 0.75]", "no")
    assert texts_of(same, LLAVA, None, ASK) == (same.prompt, same.chosen, same.rejected)


def test_prose_goes_where_the_dialect_keeps_none_and_pairs_that_then_read_the_same_are_left_out():
    exact = (Span("a cup", 0, 5, (CUP,)),)
    chosen, rejected = "a cup [0.33, 0.25, 0.67, 0.75] stands", "a cup [0.33, 0.25, 0.67, 0.75] lies"
    target = get_dialect("qwen3_vl")
    assert texts_of(pair(chosen, rejected, exact, exact), LLAVA, target, ASK) == "chosen_equals_rejected"
    other = texts_of(pair(chosen, "no cup", exact), LLAVA, target, ASK)
    assert other.chosen == '[{"bbox_2d": [333, 250, 667, 750], "label": "a cup"}]'
    assert other.rejected == "no cup"


def test_spans_that_do_not_belong_to_the_text_are_not_put_in():
    text = "a cup [0.33, 0.25, 0.67, 0.75]"
    read = (33.0, 25.0, 67.0, 75.0)
    far = Span("a cup", 0, 5, ((0.0, 0.0, 10.0, 10.0),))
    two = Span("a cup", 0, 5, (CUP, CUP))
    assert with_pixels(text, [far], LLAVA, (100, 100)).boxes == (pytest.approx(read),)
    assert with_pixels(text, [two], LLAVA, (100, 100)).boxes == (pytest.approx(read),)
    assert with_pixels("no box", [far], LLAVA, (100, 100)).boxes == ()


def test_a_box_that_leaves_the_image_is_still_the_one_in_the_text():
    # The text holds the clipped box; the span what the model said before.
    out = Span("a cup", 0, 5, ((50.0, 50.0, 120.0, 90.0),))
    assert with_pixels("a cup [0.50, 0.50, 1.00, 0.90]", [out], LLAVA, (100, 100)).boxes == out.boxes


def test_words_that_the_other_dialect_takes_for_boxes_are_left_out():
    # For InternVL brackets are words, for LLaVA they are a box.
    odd = pair("<ref>a sign [0.1, 0.2, 0.3, 0.4]</ref><box>[[100, 100, 200, 200]]</box>", "no")
    assert texts_of(odd, get_dialect("internvl"), LLAVA, ASK) == "not_renderable"


def test_answers_with_points_are_left_out_of_a_dialect_without_points():
    both = pair('[{"point_2d": [500, 500], "label": "a cup"}]', '[{"point_2d": [100, 100], "label": "a cup"}]')
    qwen = get_dialect("qwen3_vl")
    assert texts_of(both, qwen, LLAVA, ASK) == "points_not_writable"
    texts = texts_of(both, qwen, get_dialect("gemini"), ASK)
    assert texts.chosen == '[{"point": [500, 500], "label": "a cup"}]'
    boxes = pair('[{"bbox_2d": [1, 2, 30, 40], "label": "a cup"}]', "[]")
    assert texts_of(boxes, qwen, get_dialect("molmo2"), ASK) == "boxes_not_writable"


@pytest.mark.parametrize(("mark", "key"), [("<video>", "ms-swift"), ("<image>", "trl")])
def test_a_prompt_with_the_trainers_placeholder_is_refused(mark, key, make_dataset, make_run, tmp_path):
    run = make_run(make_dataset(tmp_path / "data", images=2), prompts={"full": f"Look {mark} at {{region}}"})
    with pytest.raises(InputError, match="placeholder_in_text 2"):
        export(run, tmp_path / "out", key)
