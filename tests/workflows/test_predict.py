"""One question about an image: the right prompt, boxes in pixels, drawings, and what the command refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import spr
from spr.cli import app
from spr.config import DescriberConfig, PromptsConfig, make_config
from spr.core.boxes import iou
from spr.core.errors import ConfigError, InputError, RecordError, RunError
from spr.core.images import ImageProblem
from spr.embedded.scenes import write_scenes
from spr.grounding import get_dialect
from spr.models.protocols import Answer
from spr.report.contact_sheet import CAPTION, colour_of
from spr.workflows.predict import draw_answer, model_settings, predict, report_lines

EMBEDDED = DescriberConfig(model="embedded/describer", temperature=0, max_new_tokens=160)


class Fixed:
    """A describer that always answers the same, and keeps what it was asked."""

    name = "fixed@1"

    def __init__(self, text, reason="stop", dialect="qwen2_vl"):
        self.text, self.reason, self.dialect, self.asked = text, reason, get_dialect(dialect), []

    def describe(self, requests):
        self.asked += requests
        return [Answer(self.text, self.reason)] * len(requests)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), 3, seed=700_000_000).parent


def test_the_embedded_describer_finds_what_expressions_refer_to(scenes):
    """On scenes that it was not trained on, most boxes have an IoU of at least 0.5 with the right object."""
    content = json.loads((scenes / "expressions.json").read_text())
    boxes = {row["image_id"]: row["bbox"] for row in content["annotations"]}
    overlaps = []
    for row in content["images"][:8]:
        answer = predict(scenes / "images" / row["file_name"], EMBEDDED, find=row["caption"])
        assert answer.prompt == f"Where is {row['caption']}?"
        x, y, width, height = boxes[row["id"]]
        overlaps.append(float(iou(answer.boxes[0], [x, y, x + width, y + height])))
    assert np.mean(np.array(overlaps) >= 0.5) > 0.5


def test_a_region_is_described_in_the_words_of_the_pipeline(scenes):
    image = min((scenes / "images").iterdir())
    with Image.open(image) as opened:
        width, height = opened.size
    answer = predict(image, EMBEDDED, region=(0, 0, width / 2, height))
    assert answer.prompt == "Describe the region [0.00, 0.00, 0.50, 1.00] and locate its objects."
    assert answer.boxes
    # The described objects are in the left half.
    assert np.mean([(x1 + x2) / 2 < width / 2 for x1, _, x2, _ in answer.boxes]) > 0.5


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ({"region": (100, 50, 300, 150)}, "What is in (250,250),(750,750)?"),
        ({"find": "the red cup"}, get_dialect("shikra").rec_prompt.replace("{expression}", "the red cup")),
        ({"prompt": "How many cups?"}, "How many cups?"),
        ({}, "What is here?"),
    ],
)
def test_each_question_has_its_prompt(question, prompt):
    dialect = "shikra" if "find" in question else "qwen2_vl"
    model = Fixed("a cup", dialect=dialect)
    prompts = PromptsConfig(full="What is in {region}?", crop="What is here?")
    predict(Image.new("RGB", (400, 200)), model, **question, prompts=prompts)
    asked = model.asked[0].prompt
    assert prompt in asked.replace("<|box_start|>", "").replace("<|box_end|>", "")


def test_an_answer_has_boxes_in_pixels_and_says_what_is_malformed():
    """Qwen2-VL's numbers are thousandths: of 400 × 200 pixels, (250,500),(750,1000) is 100, 100, 300, 200."""
    text = "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(250,500),(750,1000)<|box_end|> and (1,2"
    answer = predict(Image.new("RGB", (400, 200)), Fixed(text, "length"), prompt="?")
    assert answer.boxes == ((100, 100, 300, 200),)
    assert [span.phrase for span in answer.text.spans] == ["a cup"]
    assert answer.problems[0] == "the answer was cut (length)"
    row = json.loads(json.dumps(answer.to_json()))
    assert row["spans"] == [{"phrase": "a cup", "start": 0, "end": 5, "boxes": [[100, 100, 300, 200]], "points": []}]
    assert (row["width"], row["height"], row["answer"], row["finish_reason"]) == (400, 200, text, "length")
    unfinished = predict(Image.new("RGB", (400, 200)), Fixed("<think>hm"), prompt="?")
    assert unfinished.problems == ("reasoning is not closed: no answer",)


def test_an_answer_is_drawn_where_its_boxes_are():
    text = "<|box_start|>(250,500),(750,1000)<|box_end|>"
    image = Image.new("RGB", (400, 200))
    answer = predict(image, Fixed(text), find="the cup")
    assert answer.label(answer.text.spans[0]) == "the cup"
    drawn = draw_answer(answer, image, side=800)  # the box is 200, 200, 600, 400 below the caption of 18 pixels
    colours = {drawn.getpixel((400, 18 + 200)), drawn.getpixel((200, 18 + 300))}
    assert len(colours) == 1
    assert colours != {(0, 0, 0)}
    assert drawn.getpixel((400, 18 + 300)) == (0, 0, 0)


def test_points_are_listed_and_drawn():
    text = 'Counting the <points coords="1 1 250 500 2 750 500">cups</points> shows a total of 2.'
    answer = predict(Image.new("RGB", (400, 200)), Fixed(text, dialect="molmo2"), prompt="Point to the cups")
    assert (answer.boxes, answer.text.points) == ((), ((100, 100), (300, 100)))
    assert answer.to_json()["spans"] == [
        {"phrase": "cups", "start": 13, "end": 17, "boxes": [], "points": [[100, 100], [300, 100]]}
    ]
    lines = list(report_lines(answer))
    assert lines == ["Counting the cups shows a total of 2.", "  (100.0, 100.0)  cups", "  (300.0, 100.0)  cups"]
    drawn = np.asarray(draw_answer(answer, Image.new("RGB", (400, 200)), side=400))
    colours = [tuple(drawn[CAPTION + 100, x]) for x in (100, 200, 300)]
    assert colours[0] == colours[2] == colour_of("cups")
    assert colours[1] == (0, 0, 0)


def test_wrong_questions_are_refused():
    image, model = Image.new("RGB", (40, 20)), Fixed("")
    with pytest.raises(ConfigError, match="Only one question"):
        predict(image, model, find="a cup", prompt="Where?")
    with pytest.raises(ConfigError, match="`find` is empty"):
        predict(image, model, find=" ")
    with pytest.raises(ConfigError, match="`prompt` is not UTF-8"):
        predict(image, model, prompt="a \udcff")
    with pytest.raises(ImageProblem, match=r"UnidentifiedImageError: cannot identify image file$"):
        predict(Path(__file__), model)
    with pytest.raises(RecordError, match="extends beyond its image"):
        predict(image, model, region=(0, 0, 41, 20))
    assert model.asked == []


def run(*arguments):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


FAKE = ("describer.backend=fake", "describer.dialect=qwen2_vl")


def test_the_command_asks_about_a_folder_prints_and_draws(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("b.png", "a.jpg", "a.png"):
        Image.new("RGB", (64, 48), "blue").save(images / name)
    (images / "notes.txt").write_text("no image")
    out = run(images, *FAKE, "--find", "it", "--draw", tmp_path / "drawn")
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith(str(images))] == ["64x48"] * 3
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a-2.png", "a.png", "b.png"]
    lines = [json.loads(line) for line in run(images, *FAKE, "--find", "it", "--json").splitlines()]
    assert [line["image"] for line in lines] == [str(images / name) for name in ("a.jpg", "a.png", "b.png")]
    # The fake's box is half as wide and high as the image.
    x1, y1, x2, y2 = lines[0]["spans"][0]["boxes"][0]
    assert (x2 - x1, y2 - y1) == pytest.approx((32, 24), abs=0.1)


def test_a_broken_image_among_others_is_reported_and_the_others_are_answered(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["predict", str(tmp_path), *FAKE, "--find", "it"])
    assert "1 of 2 images have no answer" in str(result.exception)
    assert "[" in result.stdout
    assert str(tmp_path / "b.png") in result.stderr


def test_a_drawing_replaces_an_earlier_one_and_nothing_else(tmp_path):
    image, out = tmp_path / "a.png", tmp_path / "out.png"
    Image.new("RGB", (64, 48)).save(image)
    for _ in range(2):
        run(image, *FAKE, "--find", "it", "--draw", out)
    before = image.read_bytes()
    with pytest.raises(RunError, match="is not a drawing of `spr predict --draw`"):
        run(image, *FAKE, "--draw", image)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["a.png"], ConfigError, "no model to ask"),
        ([*FAKE], ConfigError, "no image to ask about"),
        (["missing.png", *FAKE], InputError, "no image missing.png"),
        (["a.png", *FAKE, "--region", "1,2,3"], ConfigError, "--region is not a box"),
        (["a.png", *FAKE, "--seed", "1"], ConfigError, "no effect on greedy decoding"),
        (["a.png", *FAKE, "--port", "80"], ConfigError, "no effect without --serve"),
        (["a.png", *FAKE, "--serve"], ConfigError, "asks for this itself"),
        (["a.png", "--adapter", "nowhere"], InputError, "nowhere is not an adapter"),
    ],
)
def test_what_the_command_refuses(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("a.png")
    with pytest.raises(error, match=message):
        run(*arguments)


def test_an_adapter_of_a_run_brings_the_model_and_the_prompts_of_the_run(tmp_path):
    describer = {"backend": "fake", "model": "embedded/describer", "dialect": "ferret", "max_new_tokens": 77}
    sections = {"annotations": {"path": "-", "images": "-"}, "describer": describer}
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    config = make_config({**sections, "prompts": {"full": "Look at {region}."}})
    (run_folder / "config.yaml").write_text(config.to_yaml())
    adapter = run_folder / "trainings" / "slow" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    for source in (run_folder, run_folder / "trainings" / "slow", adapter):
        settings, prompts = model_settings(None, source)
        assert (settings.backend, settings.model, settings.dialect) == ("hf", "embedded/describer", "ferret")
        assert (settings.max_new_tokens, settings.temperature) == (77, 0)
        assert settings.peft_adapter == str(adapter)
        assert prompts.full == "Look at {region}."
    changed, _ = model_settings("mine/other", run_folder, ["describer.temperature=1"])
    assert (changed.model, changed.dialect, changed.temperature) == ("mine/other", "ferret", 1)


def test_an_adapter_elsewhere_is_used_with_the_model_that_it_names(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "embedded/describer"}')
    settings, prompts = model_settings(None, tmp_path)
    assert settings.model == "embedded/describer"
    assert prompts.full == "Describe the region {region} and locate its objects."


def test_the_functions_are_public():
    assert spr.predict is predict
    assert spr.draw_answer is draw_answer
