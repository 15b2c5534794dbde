"""`spr report`: what is in the page, what bad input gets, and that nothing of the user's is lost."""

import json
import re
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

import warm_python
from spr.core import plots
from spr.core.errors import RunError
from spr.core.plots import Series, density, histogram, ticks
from spr.models.loading import model_source
from spr.records import Span
from spr.report import charts, page
from spr.report.page import write_report
from spr.report.payload import call_script
from spr.runs.cues import pair_cues
from spr.runs.pair_stats import PairStats
from spr.runs.reader import SCORE_NAMES, JoinedShard
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table


def scripts(folder, pattern):
    """The arguments of the calls in a report's data files."""
    found = {}
    for path in sorted((folder / "gallery").glob(pattern)):
        text = path.read_text(encoding="ascii")
        found[path.name] = json.loads("[" + re.fullmatch(r"SPR\.\w+\((.*)\);\n", text, re.DOTALL)[1] + "]")
    return found


def text_of(html):
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_page_shows_the_numbers_of_the_run(make_run):
    run = make_run(pairs=3).write()
    html = write_report(run).read_text(encoding="utf-8")
    text = text_of(html)
    # Margins 0.10, 0.11, 0.12; S_loc of the answers' own boxes 1 and 0.4 in every pair (see RunMaker).
    assert "preference pairs 3 from 6 scored descriptions" in text
    assert "S_loc, chosen 1.000 rejected 0.400" in text
    assert "mean margin 0.110" in text
    assert "replaced 3 50.0 %" in text
    assert "box removed 3 50.0 %" in text
    # Six objects lie inside: four cups (3 first ones, and the second of pair 1), two mugs. The rejected answers place
    # the first of each pair.
    assert re.search(r"cup 4 100 % 75 %", text)
    assert re.search(r"mug 2 100 % 0 %", text)
    # Kinds: chosen full, crop, crop_objects; rejected crop, crop_objects, full. So 2 candidates and 1 of each.
    assert "full 2 0.250 0.350 0.300 0.600" in text
    assert text.count("1 33 %") == 6
    assert "fake" in text


def test_lengths_that_differ_give_a_warning(make_run):
    maker = make_run(pairs=2)
    for k in range(2):
        # 8 words against 7, and 25 characters against 23; two pairs are too few for a warning of another kind.
        maker.change("pairs", k, chosen="a cup [1] and a big mug 2")
    assert "Warning:" not in write_report(maker.write()).read_text(encoding="utf-8")
    for k in range(2):
        maker.change("pairs", k, chosen="a b c d e f g h " * 3)
    text = unescape(write_report(maker.write()).read_text(encoding="utf-8"))
    assert "Warning:</b> On average 24.0 words per chosen and 7.0 per rejected answer. This alone identifies" in text


def test_the_page_and_a_file_for_scripts_show_the_cues(make_run):
    # Boxes of chosen answers are from left to right. The rejected ones have the cup first, which is right of the dog.
    run = make_run(pairs=5).write()
    report = write_report(run).parent
    html = (report / "index.html").read_text(encoding="utf-8")
    text = text_of(html)
    # Kinds of the five pairs: chosen full, crop, crop_objects, full, crop; rejected the next one of each.
    assert "prompt kind full 40 % 20 % 0.60 5" in text
    assert "in reading order 100 % 0 % 1.00 warning 5" in text
    assert "boxes 2.0 2.0 0.50 5" in text
    assert "100 % of chosen and 0 % of rejected answers list their boxes in reading order." in text
    assert "<code>describer.object_order: reading</code>" in html
    assert "tokens" not in re.search(r"<caption>Means of chosen.*?</table>", html, re.DOTALL)[0]  # a fake describer
    values = json.loads((report / "cues.json").read_text(encoding="utf-8"))
    assert values == pair_cues(run).to_json()
    assert values["cues"]["reading_order"]["accuracy"] == 1


def test_tokens_are_counted_with_the_tokenizer_of_the_describer(make_run):
    run = make_run(pairs=2, describer={"backend": "hf", "model": "embedded/describer"}).write()
    values = json.loads((write_report(run).parent / "cues.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(model_source("embedded/describer"))
    chosen = tokenizer("a cup [1] and a second cup [2]", add_special_tokens=False)["input_ids"]
    assert values["cues"]["tokens"]["chosen"] == len(chosen)


def test_sections_whose_stage_has_not_run_name_the_command(make_run):
    text = text_of(write_report(make_run().write()).read_text(encoding="utf-8"))
    assert "Not trained yet" in text
    assert "spr train" in text
    assert "Not evaluated yet" in text
    assert "spr evaluate" in text


def test_a_run_without_pairs_names_the_command_that_makes_them(make_run):
    run = make_run().write()
    (run / "pairs" / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"does not hold a finished stage(.|\n)*--until pairs"):
        write_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_not_a_run_is_an_error(tmp_path, there):
    folder = tmp_path / "x"
    if there:
        folder.mkdir()
    with pytest.raises(RunError, match="is not a run folder"):
        write_report(folder)


def test_tables_that_do_not_match_are_an_error(make_run):
    maker = make_run()
    maker.candidates.pop()
    with pytest.raises(RunError, match=r"the tables don't match(.|\n)*2/0/b"):
        write_report(maker.write())


def test_a_second_report_replaces_the_first_and_keeps_the_users_files(make_run):
    maker = make_run(pairs=3)
    report = write_report(maker.write()).parent
    assert len(list(report.glob("thumbs/*/*"))) == 3
    (report / "notes.txt").write_text("mine")
    (report / "mine" / "deep").mkdir(parents=True)
    (report / "mine" / "deep" / "more.txt").write_text("mine, too")
    maker.pairs = maker.pairs[:1]
    write_report(maker.write())
    assert (report / "notes.txt").read_text() == "mine"
    assert (report / "mine" / "deep" / "more.txt").read_text() == "mine, too"
    assert len(list(report.glob("thumbs/*/*"))) == 1
    assert [p.name for p in report.parent.iterdir() if p.name.endswith(".spr-tmp")] == []


def test_a_folder_that_is_not_a_report_is_left_unchanged(make_run, tmp_path):
    run, other = make_run().write(), tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="is not a report, so it is left unchanged"):
        write_report(run, other)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match=r"got: +a file"):
        write_report(run, other / "thesis.tex")
    with pytest.raises(RunError, match="is not a report"):
        write_report(run, run)
    assert write_report(run, tmp_path / "new" / "report").is_file()


def test_a_report_that_fails_halfway_leaves_the_old_one(make_run, monkeypatch):
    run = make_run().write()
    before = write_report(run).read_bytes()

    def fail(*_):
        raise RunError("no space left")

    monkeypatch.setattr(page, "_render", fail)
    with pytest.raises(RunError, match="no space left"):
        write_report(run)
    assert (run / "report" / "index.html").read_bytes() == before
    assert [p.name for p in run.iterdir() if p.name.startswith(".report")] == []


def test_images_that_cannot_be_shown_are_counted_and_say_why(make_run):
    maker = make_run(pairs=4)
    (maker.images / "0.png").unlink()
    (maker.images / "1.png").write_bytes(b"no image")
    maker.change("pairs", 2, file_name="../outside.png")
    lines = []
    report = write_report(maker.write(), say=lines.append).parent
    assert lines == ["3 images can't be shown; the gallery says why."]
    pairs = scripts(report, "page-*.js")["page-00000.js"][1]
    problems = [pair["image"].get("problem") for pair in pairs]
    assert problems == ["image_missing", "image_unreadable", "path_outside_images", None]
    assert "3 of them have no image" in text_of((report / "index.html").read_text(encoding="utf-8"))


def test_pairs_of_one_image_share_its_thumbnail_which_is_upright_and_small(make_run):
    maker = make_run(pairs=2)
    # Stored lying (1600×1280), to be turned by a quarter: upright it is 1280×1600, which becomes 512×640.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1280), (200, 30, 30)).save(maker.images / "big.jpg", exif=exif)
    for k in range(2):
        maker.change("pairs", k, file_name="big.jpg", width=1280, height=1600)
    report = write_report(maker.write()).parent
    (thumbnail,) = report.glob("thumbs/*/*")
    with Image.open(thumbnail) as picture:
        assert picture.size == (512, 640)
        assert picture.format == "JPEG"


def test_a_long_description_is_shortened_and_its_whole_text_is_in_a_file_of_its_own(make_run):
    maker = make_run(pairs=2)
    long = "a dog " * 17_000
    spans = (Span("a dog", 0, 5, ((0.0, 60.0, 10.0, 70.0),)), Span("a dog", 6000, 6005, ((0.0, 60.0, 10.0, 70.0),)))
    maker.change("candidates", 3, plain_text=long, spans=spans)
    maker.change("pairs", 1, rejected=long, rejected_spans=spans)
    report = write_report(maker.write()).parent
    short = scripts(report, "page-*.js")["page-00000.js"][1][1]
    side = short["sides"]["rejected"]
    assert sum(len(words) for words, _ in side["text"]) == 2000
    assert side["cut"] == 102_000
    assert side["boxesCut"] == 1
    assert (report / "gallery" / "page-00000.js").stat().st_size < 20_000
    ((number, whole),) = scripts(report, "full-*.js").values()
    assert number == 1
    assert "".join(words for words, _ in whole["sides"]["rejected"]["text"]) == long
    assert whole["sides"]["rejected"]["raw"] == long


def test_pairs_beyond_the_limit_are_counted_but_not_shown(make_run):
    run = make_run(pairs=30).write()
    html = write_report(run, max_pairs=25).read_text(encoding="utf-8")
    assert "The first 25 of 30 pairs are shown" in text_of(html)
    assert "preference pairs 30" in text_of(html)
    pages = scripts(run / "report", "page-*.js")
    assert [len(rows) for _, rows in pages.values()] == [20, 5]
    ((index,),) = scripts(run / "report", "index.js").values()
    assert len(index["id"]) == 25
    assert index["margin"][:2] == [0.1, 0.11]


def test_drops_are_listed_by_reason_up_to_a_limit(make_run):
    maker = make_run()
    maker.drops["pairs"] = ("query", [(f"q{k}", "chosen_without_box") for k in range(250)] + [("z", "not_renderable")])
    report = write_report(maker.write()).parent
    ((drops,),) = scripts(report, "dropped.js").values()
    assert [(drop["reason"], drop["count"], len(drop["ids"])) for drop in drops] == [
        ("chosen_without_box", 250, 200),
        ("not_renderable", 1, 1),
    ]
    assert drops[1] == {
        "stage": "pairs",
        "kind": "query",
        "reason": "not_renderable",
        "explanation": "without the boxes that refinement removes, the text would be read as something else",
        "count": 1,
        "ids": ["z"],
        "files": [None],
    }
    # 3 pairs of 254 queries: 1.2 %.
    assert "1.2 % kept" in (report / "index.html").read_text(encoding="utf-8")


def test_a_run_whose_pairs_were_all_dropped_still_has_a_report(make_run):
    maker = make_run(pairs=1)
    maker.pairs = []
    maker.drops["pairs"] = ("query", [("0/0", "chosen_without_box")])
    text = text_of(write_report(maker.write()).read_text(encoding="utf-8"))
    assert "preference pairs 0" in text
    assert "chosen without box" in text


def test_text_from_models_and_datasets_is_escaped_in_the_page_and_in_its_scripts(make_run):
    maker = make_run(pairs=1)
    evil = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028"
    query = maker.regions[0]
    row = query.to_row()
    row["objects"] = [{**item, "category": evil} for item in row["objects"]]
    maker.regions[0] = type(query).from_row(row)
    maker.change("pairs", 0, chosen=evil, prompt=evil)
    report = write_report(maker.write()).parent
    html = (report / "index.html").read_text(encoding="utf-8")
    assert html.count("<script") == 4
    assert "<img" not in html
    assert "&lt;img src=x onerror=window.hacked=1&gt;" in html
    for path in (report / "gallery").iterdir():
        assert not set("<>&\u2028") & set(path.read_text(encoding="utf-8"))
    assert scripts(report, "page-*.js")["page-00000.js"][1][0]["prompt"] == evil


def test_nothing_in_the_report_points_elsewhere(make_run):
    report = write_report(make_run().write()).parent
    for path in [report / "index.html", *report.glob("*.js")]:
        # The SVG namespace is a name, not an address.
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|fetch\(|XMLHttpRequest|innerHTML|\beval\(", text), path.name


def test_the_report_says_nothing_about_the_folders_of_the_machine(make_run, tmp_path):
    """Neither of images that can't be opened, nor of the models, the answers or the settings."""
    maker = make_run(pairs=4)
    folder = str(maker.images)
    maker.settings["annotations"] = {"path": f"{folder}/a.json", "images": folder, "allow_outside_images": True}
    (maker.images / "0.png").unlink()
    (maker.images / "1.png").write_bytes(b"no image")
    maker.change("pairs", 2, file_name=str(maker.images / "2.png"))
    maker.change("pairs", 3, file_name=str(tmp_path / "no" / "such.png"))
    maker.log_training([{"event": "start", "model": str(tmp_path / "model")}, {"event": "step", "step": 1, "loss": 1}])
    run = maker.write()
    result = {"n": 2, "metrics": {"acc@0.5": {"value": 0.5}}, "protocol": {"model": f"{tmp_path}/model@ab12"}}
    metrics = {"format_version": 2, "before": {"rec": result}, "after": {"rec": result}}
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    report = write_report(run).parent
    texts = [path.read_text(encoding="utf-8") for path in report.rglob("*") if path.suffix in (".html", ".js", ".json")]
    assert any("model@ab12" in text for text in texts)
    assert any("no image" not in text and "image_unreadable" in text for text in texts)
    assert [text for text in texts if str(tmp_path) in text] == []


def test_non_finite_numbers_become_null():
    assert (
        call_script("f", [float("nan"), float("inf"), 1.5], {"a": (1, -float("inf"))})
        == 'f([null,null,1.5],{"a":[1,null]});\n'
    )


def test_a_histogram_shows_shares():
    # Of four values two are 1, so that bin is highest: half of the pairs; ticks go up to that.
    picture = histogram("Words", [Series("chosen", "chosen", [1, 1, 2, 3])], "words", whole=True)
    (points,) = re.findall(r'polyline class="line chosen" points="([^"]*)"', picture)
    heights = [float(point.split(",")[1]) for point in points.split()]
    top, bottom = min(heights), max(heights)
    # Bins of 1, 2 and 3 with shares 0.5, 0.25, 0.25: the second is half as high as the first.
    assert [round((bottom - y) / (bottom - top), 2) for y in heights[1:7:2]] == [1.0, 0.5, 0.5]
    assert "chosen: mean 1.75" in picture
    assert histogram("x", [Series("none", "all", [float("nan")])], "x") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-7, 2e-7), (5, 5.0001), (0, 12_345)])
def test_ticks_lie_within_their_range_and_are_few(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-9 for tick in found)


def test_the_pairs_stage_of_a_killed_run_is_not_finished(make_run):
    run = make_run().write()
    store = StageStore(run / "pairs")
    manifest = store.manifest()
    manifest.complete = False
    store.save(manifest)
    with pytest.raises(RunError, match="unfinished stage"):
        write_report(run)


def test_the_command_prints_where_the_report_is_and_mistakes_without_a_traceback(make_run, tmp_path):
    run = make_run(pairs=1).write()
    command = [*warm_python.start(), "-m", "spr", "report"]
    done = subprocess.run([*command, run, "--out", tmp_path / "r"], capture_output=True, text=True, check=True)
    assert done.stdout == f"Report:  {tmp_path / 'r' / 'index.html'}\n"
    failed = subprocess.run([*command, tmp_path / "gone"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"spr: {tmp_path / 'gone'} is not a run folder.")
    assert "spr run CONFIG --out" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_stage_and_a_reason_of_another_package_are_shown(make_run):
    maker = make_run()
    run = maker.write()
    lines = [{"event": "stage started", "stage": name} for name in ("regions", "blur_check", "candidates", "pairs")]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    store, manifest = StageStore(run / "blur_check"), Manifest("blur_check", "by hand", complete=True)
    dropped = dropped_table("blur_check", "photo", [("9", "too_blurred")])
    manifest.shards.append(store.write_shard(0, StageOutput(dropped.slice(0, 0), dropped), inputs=1))
    store.save(manifest)
    report = write_report(run)
    text = text_of(report.read_text(encoding="utf-8"))
    assert re.search(r"regions 3 .* blur_check 0 rows .* dropped: 1 photo: too blurred candidates 6 ", text)
    ((drops,),) = scripts(report.parent, "dropped.js").values()
    assert drops[0]["explanation"] == "too blurred"


def test_points_are_counted_and_correlated_in_parts_as_all_at_once(monkeypatch):
    draw = np.random.default_rng(0)
    x, y = draw.random((2, 50), dtype=np.float32)
    whole = density("title", x, y, ("x", "y"), [])
    assert whole.count('class="cell"') == len({(int(a * 40), int(b * 25)) for a, b in _cells(x, y)})
    for module in (plots, charts):
        monkeypatch.setattr(module, "_POINTS", 7)
    assert density("title", x, y, ("x", "y"), []) == whole
    found = charts.score_charts(_stats_of(x, y))[1].note
    assert f"correlation {np.corrcoef(x, y)[0, 1]:.2f}".replace("-", "−") in found


def _cells(x, y):
    """Positions between 0 and 1 in the plot, whose horizontal axis has a margin of 6 % on both sides."""
    low, high = float(x.min()), float(x.max())
    room = 0.06 * (high - low)
    return zip((x - (low - room)) / (high - low + 2 * room), y, strict=True)


def _stats_of(semantic, localization):
    stats = PairStats()
    for start in range(0, len(semantic), 10):  # shards of ten candidates
        scores = np.zeros((10, len(SCORE_NAMES)), np.float32)
        scores[:, SCORE_NAMES.index("semantic")] = semantic[start : start + 10]
        scores[:, SCORE_NAMES.index("localization")] = localization[start : start + 10]
        stats.add_candidates(JoinedShard([], scores, np.zeros(10, np.int8)))
    for column in (stats.margins, *stats._values.values()):
        column.append(0.0)
    assert stats.candidates == len(semantic)
    return stats
