"""Pairs from a run or from anyone's file, in every form that TRL takes; and files that are none."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image

from spr.config import AnnotationsConfig
from spr.core.errors import InputError, RunError
from spr.core.images import ImageProblem, ImageSource
from spr.runs.store import StageStore
from spr.training.pairs import run_pairs, trl_pairs

TEXTS = {"prompt": "Where is the cat?", "chosen": "here", "rejected": "there"}
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the cat?"}]}]


def content(pair):
    return [dict(message) for message in pair.messages], pair.chosen, pair.rejected, pair.load().size


@pytest.fixture
def photo(tmp_path, picture):
    (tmp_path / "images").mkdir()
    picture(40, 30).save(tmp_path / "images" / "a.png")
    return tmp_path / "images" / "a.png"


@pytest.fixture
def write(photo):
    """Rows → a .jsonl file beside the image; each row is about it unless it says otherwise."""

    def make(*rows, name="pairs.jsonl"):
        path = photo.parents[1] / name
        full = [{"image": "images/a.png", **TEXTS, **row} for row in rows]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n" for row in full))
        return path

    return make


def test_parquet_a_folder_of_parquet_and_a_dataset_on_disk_hold_the_same_pairs(pairs_folder, tmp_path):
    dataset, (folder, file) = load_from_disk(str(pairs_folder)), (tmp_path / "parts", tmp_path / "pairs.parquet")
    folder.mkdir()
    dataset.to_parquet(str(file))
    dataset.select(range(2)).to_parquet(str(folder / "part-0.parquet"))
    dataset.select(range(2, 6)).to_parquet(str(folder / "part-1.parquet"))
    expected = list(map(content, trl_pairs(pairs_folder)))
    assert len(expected) == 6
    assert expected[0][1:] == ("a cat [0.10, 0.20, 0.50, 0.60]", "a dog", (60, 44))
    for source in (file, folder):
        loaded = list(trl_pairs(source))
        assert list(map(content, loaded)) == expected
        assert [pair.digest() for pair in loaded] == [pair.digest() for pair in trl_pairs(pairs_folder)]


def test_texts_with_an_images_path_are_the_users_turn(write, photo):
    (pair,) = trl_pairs(write({}))
    assert content(pair) == (ASKED, "here", "there", (40, 30))
    (absolute,) = trl_pairs(write({"image": str(photo)}), allow_outside_images=True)
    assert content(absolute) == content(pair)
    assert absolute.digest() == pair.digest()


@pytest.mark.parametrize("value", ["/dev/zero", "../secret.png", "images/link.png", "images/../../secret.png"])
def test_a_path_that_leaves_the_folder_of_the_pairs_is_opened_only_if_allowed(value, write, photo, tmp_path):
    secret = tmp_path.with_name(tmp_path.name + "-secret.png")
    photo.rename(secret)
    (photo.parent / "link.png").symlink_to(secret)
    value = value.replace("secret.png", secret.name)
    source = write({"image": value})
    (pair,) = trl_pairs(source)
    for read in (pair.load, pair.digest):
        with pytest.raises(ImageProblem) as caught:
            read()
        assert caught.value.reason == "path_outside_images"
    (pair,) = trl_pairs(source, allow_outside_images=True)
    if value == "/dev/zero":
        with pytest.raises(ImageProblem, match="not a regular file"):
            pair.load()
    else:
        assert pair.load().size == (40, 30)


def stored_as(image, suffix, **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def test_images_of_pairs_get_the_pixels_that_images_of_a_run_get(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    lying = Image.new("RGB", (40, 20), (255, 0, 0))
    lying.paste((0, 0, 255), (20, 0, 40, 20))
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    pictures = {
        "turned.jpg": (stored_as(lying, "JPEG", exif=exif, quality=95), (20, 40)),
        "grey.png": (stored_as(grey, "PNG"), (3, 1)),
        "clear.png": (stored_as(clear, "PNG"), (1, 1)),
        "clear.gif": (stored_as(Image.new("P", (1, 1)), "GIF", transparency=0), (1, 1)),
    }
    for name, (data, _) in pictures.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, **TEXTS} for name in pictures]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inside = [{"images": [{"bytes": data, "path": None}], **TEXTS} for data, _ in pictures.values()]
    Dataset.from_list(inside).to_parquet(str(tmp_path / "pairs.parquet"))
    values = []
    for source in ("pairs.jsonl", "pairs.parquet"):
        loaded = [pair.load() for pair in trl_pairs(tmp_path / source)]
        for (name, (_, size_wh)), image in zip(pictures.items(), loaded, strict=True):
            of_run = ImageSource(tmp_path).load(name, size_wh)
            assert (image.size, image.tobytes()) == (size_wh, of_run.tobytes()), name
        values.append([[image.getpixel((x, 0))[0] for x in range(min(image.width, 3))] for image in loaded])
    # Upright, the turned photo is red at the top; a grey v is 257 v in 16 bits; transparent is white.
    assert values[0] == values[1] == [[pytest.approx(254, abs=2)] * 3, [0, 128, 255], [255], [255]]


def test_a_list_of_one_image_and_bytes_serve_as_well(write, photo, tmp_path):
    (listed,) = trl_pairs(write({"image": ..., "images": ["images/a.png"]}))
    table = Dataset.from_list([{"images": [{"bytes": photo.read_bytes(), "path": None}], **TEXTS}])
    table.to_parquet(str(tmp_path / "bytes.parquet"))
    (inside,) = trl_pairs(tmp_path / "bytes.parquet")
    assert content(listed) == content(inside) == (ASKED, "here", "there", (40, 30))


def test_messages_keep_their_system_turn_and_their_order_of_image_and_text(write):
    prompt = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}, {"type": "image"}]},
    ]
    answers = {
        "chosen": [{"role": "assistant", "content": "here"}],
        "rejected": [{"role": "assistant", "content": "there"}],
    }
    (pair,) = trl_pairs(write({"prompt": prompt, **answers}))
    system, user = pair.messages
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be exact."}]}
    assert user == {"role": "user", "content": [{"type": "text", "text": "Where?"}, {"type": "image"}]}
    assert (pair.chosen, pair.rejected) == ("here", "there")


def test_messages_that_place_no_image_get_it_before_the_first_users_text(write):
    prompt = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Where?"}]
    (pair,) = trl_pairs(write({"prompt": prompt}))
    assert [part["type"] for part in pair.messages[0]["content"]] == ["text"]
    assert [part["type"] for part in pair.messages[1]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    ("row", "complete"),
    [
        ({}, (True, True)),
        ({"chosen_finish_reason": None, "rejected_finish_reason": "stop"}, (True, True)),
        ({"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}, (True, False)),
        ({"chosen_finish_reason": "length"}, (False, True)),
        ({"chosen_finish_reason": "content_filter", "rejected_finish_reason": "max_tokens"}, (False, False)),
    ],
)
def test_an_answer_that_ended_by_length_is_not_complete(row, complete, write):
    (pair,) = trl_pairs(write(row))
    assert (pair.chosen_complete, pair.rejected_complete) == complete


def test_an_image_is_given_as_rgb(write, tmp_path):
    Image.new("RGBA", (5, 4), (1, 2, 3, 4)).save(tmp_path / "images" / "a.png")
    (pair,) = trl_pairs(write({}))
    assert pair.load().mode == "RGB"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"image": ..., "images": ["images/a.png", "images/a.png"]}, r"row 1 .* is not about one image"),
        ({"image": ..., "images": []}, r"row 1 .* is not about one image"),
        ({"prompt": []}, "The prompt of row 1"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]}, "places several images"),
        ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "`chosen` of row 1"),
        ({"rejected": None}, "`rejected` of row 1"),
    ],
)
def test_a_row_that_is_no_pair_is_named(row, what, write):
    kind = row.get("prompt", row.get("chosen", ""))
    # Arrow wants one type a column: the first row is a pair of the same kind.
    good = {"image": ..., "images": ["images/a.png"]} if "images" in row else {}
    if isinstance(kind, list):
        side = "prompt" if "prompt" in row else "chosen"
        good = {side: [{"role": "user", "content": [{"type": "text"}] if side == "prompt" else "a"}]}
    pairs = trl_pairs(write(good, row))
    next(pairs)
    with pytest.raises(InputError, match=what):
        next(pairs)


@pytest.mark.parametrize("missing", ["prompt", "chosen", "rejected", "image"])
def test_a_column_that_is_missing_is_named_before_a_row_is_asked_for(missing, write):
    path = write({missing: ...})
    with pytest.raises(InputError, match=f"lacks {missing}") as caught:
        trl_pairs(path)
    assert "columns " in caught.value.got
    assert "docs/training.md" in caught.value.fix


@pytest.mark.parametrize(("column", "value"), [("images", "images/a.png"), ("image", 5), ("image", ["images/a.png"])])
def test_a_column_that_holds_something_else_than_images_is_named(column, value, write):
    with pytest.raises(InputError, match=f"Column `{column}` of .* does not hold images"):
        trl_pairs(write({"image": ..., column: value}))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pairs.parquet", b"PAR1 but not really"),
        ("pairs.parquet", b""),
        ("pairs.jsonl", b"{not json\n"),
        ("pairs.jsonl", b""),
        ("pairs.csv", b"prompt,chosen\n"),
        ("pairs", b"x"),
    ],
)
def test_a_file_that_is_something_else_is_refused(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="can't be read as pairs") as caught:
        trl_pairs(tmp_path / name)
    assert caught.value.expected == "a dataset folder, or a .parquet, .jsonl or .json file"


def test_a_path_that_is_not_there_names_the_flag_and_an_empty_folder_holds_no_pairs(tmp_path):
    with pytest.raises(InputError, match="There is nothing at") as caught:
        trl_pairs(tmp_path / "nowhere.parquet")
    assert caught.value.fix == "check the path given to --pairs"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="can't be read as pairs"):
        trl_pairs(tmp_path / "empty")


@pytest.mark.parametrize(
    ("value", "reason"), [("images/gone.png", "image_missing"), ("images/bad.png", "image_unreadable"), (None, None)]
)
def test_an_image_that_is_gone_or_damaged_is_a_problem_of_its_pair_alone(value, reason, write, photo):
    buffer = io.BytesIO()
    Image.open(photo).save(buffer, "PNG")
    (photo.parent / "bad.png").write_bytes(buffer.getvalue()[:40])
    good, bad = trl_pairs(write({}, {"image": value}))
    assert good.load().size == (40, 30)
    with pytest.raises(ImageProblem) as caught:
        bad.load()
    assert caught.value.reason == reason or value is None


def test_rows_and_files_that_are_not_for_training_are_marked(write, pairs_folder, tmp_path):
    rows = write({}, {"split": None}, {"split": "train"}, {"split": "test"}, {"split": "holdout"})
    assert [pair.excluded for pair in trl_pairs(rows)] == [None, None, None, "held_out", "held_out"]
    dataset, folder = load_from_disk(str(pairs_folder)), tmp_path / "exported"
    for name, first in (("data/train-00000", 0), ("data/test-00000", 1), ("validation/0000", 2), ("tested/0000", 3)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        dataset.select([first]).to_parquet(str(folder / f"{name}.parquet"))
    found = {pair.chosen: pair.excluded for pair in trl_pairs(folder)}
    expected = [None, "held_out", "held_out", None]
    assert [found[content(pair)[1]] for pair in list(trl_pairs(pairs_folder))[:4]] == expected
    (only,) = trl_pairs(folder / "data" / "test-00000.parquet")  # the user has named the file
    assert only.excluded is None
    for row in ({"split": "Test"}, {"split": "training"}, {"split": 0}, {"Split": "val"}):
        assert next(iter(trl_pairs(write(row)))).excluded == "held_out"


@pytest.mark.parametrize(
    ("file", "excluded"),
    [
        *(
            (name, "held_out")
            for name in ("Test", "my-test-0", "testA", "testing", "val2017", "refcoco_val", "heldout")
        ),
        *((name, None) for name in ("contest", "latest", "trained", "train-val", "Train", "evaluated")),
    ],
)
def test_a_file_is_held_out_for_a_word_in_its_name(file, excluded, pairs_folder, tmp_path):
    load_from_disk(str(pairs_folder)).select([0]).to_parquet(str(tmp_path / "data" / f"{file}.parquet"))
    assert [pair.excluded for pair in trl_pairs(tmp_path / "data")] == [excluded]


def test_a_run_is_no_file_of_pairs(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "spr run"}')
    with pytest.raises(InputError, match="is a run, not a file of pairs") as caught:
        trl_pairs(tmp_path)
    assert f"spr export {tmp_path} --format trl" in caught.value.fix


def test_splits_that_are_numbered_classes_count_by_their_names(pairs_folder, tmp_path):
    dataset = load_from_disk(str(pairs_folder)).select([0, 1]).add_column("split", ["test", "train"])
    dataset.class_encode_column("split").to_parquet(str(tmp_path / "pairs.parquet"))
    assert [pair.excluded for pair in trl_pairs(tmp_path / "pairs.parquet")] == ["held_out", None]
    DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match="DatasetDict") as caught:
        trl_pairs(tmp_path / "both")
    assert str(tmp_path / "both" / "train") in caught.value.fix


@pytest.mark.parametrize(
    ("columns", "complete"),
    [
        ({}, (True, True)),
        ({"chosen_finish_reason": None, "rejected_finish_reason": None}, (True, True)),
        ({"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}, (True, False)),
    ],
)
def test_a_runs_pairs_say_which_answers_were_cut(columns, complete, tmp_path, monkeypatch):
    row = {"query_id": "q", "width": 40, "height": 30, "prompt": "Where?", "file_name": "a.png"}
    table = pa.Table.from_pylist([{**row, "chosen": "here", "rejected": "there", **columns}])
    monkeypatch.setattr(StageStore, "finished", lambda _: None)
    monkeypatch.setattr(StageStore, "tables", lambda _: iter([table]))
    (pair,) = run_pairs(tmp_path, AnnotationsConfig(path=tmp_path / "a.json", images=tmp_path).image_source)
    assert (pair.chosen, pair.rejected, pair.size_wh) == ("here", "there", (40, 30))
    assert (pair.chosen_complete, pair.rejected_complete) == complete


def test_a_run_without_pairs_says_which_command_makes_them(tmp_path):
    with pytest.raises(RunError, match="does not hold a finished stage") as caught:
        run_pairs(tmp_path / "run", AnnotationsConfig(path=tmp_path / "a.json", images=tmp_path))
    assert caught.value.fix == f"spr run CONFIG --out {tmp_path / 'run'} --until pairs"
    assert not (tmp_path / "run").exists()
