"""Prompts of a run: the region queries as the describer is asked, and questions whose truth is complete."""

import json

import pytest

from run_folders import rows
from spr.config import make_config
from spr.exports.prompt_options import PromptOptions
from spr.exports.prompts import NoPrompt, PromptMaker
from spr.grounding import get_dialect, parse
from spr.pipeline.runner import run
from spr.records import AskableCategories, ImageObject, ImageObjects, RegionObject, RegionQuery
from spr.records.schemas import from_table
from spr.rewards import Truth
from spr.runs.reader import Run

FERRET = get_dialect("ferret")
EVERYTHING = PromptOptions(("detect", "locate", "absent"), questions=8)


@pytest.fixture(scope="module")
def pets(make_dataset, tmp_path_factory):
    """A run with regions only. In each image: two dogs, a cat, and a bird with a tiny one, which is dropped.

    The second image lacks the tiny bird.
    """
    dataset = make_dataset(tmp_path_factory.mktemp("pets"), images=2, objects=0)
    names = ["dog", "cat", "bird", "horse", "sheep"]
    dataset.coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    dataset.coco["annotations"] = [
        {"id": 10 * k + j, "image_id": image["id"], "category_id": category, "bbox": box, "iscrowd": 0}
        for k, image in enumerate(dataset.coco["images"])
        for j, (category, box) in enumerate(
            [
                (0, [10, 10, 40, 40]),
                (0, [60, 10, 40, 40]),
                (1, [10, 60, 40, 40]),
                (2, [60, 60, 40, 40]),
                (2, [150, 100, 2, 2]),
            ][: 5 - k]
        )
    ]
    dataset.write()
    sections = {
        "annotations": {"min_objects": 3, "min_area": 100},
        "regions": {"min_inside": 3},
        "describer": {"backend": "fake"},
        "detector": {"backend": "none"},
    }
    run(make_config(dataset.config(**sections)), dataset.folder / "run", until="regions")
    return Run(dataset.folder / "run")


def asked(maker, images):
    return {
        (item.query_id, item.text, tuple(box["label"] for box in json.loads(item.truth)["objects"]))
        for item in maker.questions(images)
        if not isinstance(item, NoPrompt)
    }


def images_of(run):
    return from_table(run.table("objects"), ImageObjects)


def test_a_description_is_asked_for_in_the_describers_words_and_its_truth_are_the_objects_inside(small_run):
    run = Run(small_run)
    queries = from_table(run.table("regions"), RegionQuery)
    made = list(PromptMaker(run, run.describer[1], PromptOptions()).descriptions(queries))
    pairs = {row["query_id"]: row["prompt"] for row in rows(small_run, "pairs")}
    assert pairs
    for query, prompt in zip(queries, made, strict=True):
        assert prompt.text == pairs.get(query.query_id, prompt.text)
        assert (prompt.query_id, prompt.region, prompt.task) == (query.query_id, query.region, "describe")
        truth = Truth.from_json(prompt.truth)
        assert truth.to_json() == prompt.truth
        assert [(item.label, item.box) for item in truth.objects] == [
            (item.category, pytest.approx(item.box, abs=0.00051)) for item in query.inside
        ]
        assert truth.size_wh == (query.width, query.height)
        assert prompt.objects == len(query.inside)


def test_in_another_dialect_the_region_and_the_reading_of_answers_change(small_run):
    run = Run(small_run)
    (query, *_) = from_table(run.table("regions"), RegionQuery)
    (prompt,) = PromptMaker(run, FERRET, PromptOptions(), converted=True).descriptions([query])
    assert "<region_fea>" in prompt.text
    (region,) = parse(prompt.text.partition("region ")[2].partition(" <")[0], FERRET, (200, 160)).boxes
    assert region == pytest.approx(query.region, abs=0.2)
    truth = Truth.from_json(prompt.truth)
    assert truth.dialect == "ferret"
    assert truth.read("a cup [0, 0, 500, 500]").boxes == ((0.0, 0.0, 100.0, 80.0),)


def test_all_objects_of_a_category_are_asked_for_only_where_none_was_dropped(pets):
    first, second = images_of(pets)
    found = asked(PromptMaker(pets, FERRET, EVERYTHING), [first, second])
    detected = {
        (name.split("/")[0], labels) for name, text, labels in found if "/detect-" in name and text.startswith("Find")
    }
    # An object of the first image was dropped: of its two dogs and its bird, it is not known whether they are all.
    assert detected == {
        (first.image_id, ("cat",)),
        (second.image_id, ("cat",)),
        (second.image_id, ("bird",)),
        (second.image_id, ("dog", "dog")),
    }
    located = {(name.split("/")[0], text) for name, text, _ in found if "/locate-" in name}
    words = FERRET.rec_prompt
    assert located == {
        (first.image_id, words.format(expression="the cat")),
        (second.image_id, words.format(expression="the cat")),
        (second.image_id, words.format(expression="the bird")),
    }


def test_an_absent_category_is_asked_about_in_the_words_of_the_other_questions(pets):
    (image, _) = images_of(pets)
    detect, locate = "Find all objects of these categories: ", FERRET.rec_prompt.partition("{")[0]

    def beginnings(images, *tasks):
        made = asked(PromptMaker(pets, FERRET, PromptOptions((*tasks, "absent"), questions=8)), images)
        absent = [(text, labels) for name, text, labels in made if "/absent-" in name]
        assert {labels for _, labels in absent} == {()}
        assert all("horse" in text or "sheep" in text for text, _ in absent)
        return [next(start for start in (detect, locate) if text.startswith(start)) for text, _ in absent]

    assert beginnings([image], "detect") == [detect] * 2
    assert beginnings([image], "locate") == [locate] * 2
    assert beginnings([image], "describe") == [locate] * 2
    many = [image.from_row({**image.to_row(), "image_id": str(number)}) for number in range(40)]
    both = beginnings(many, "detect", "locate")
    assert len(both) == 80
    assert 25 < both.count(detect) < 55


def test_the_truth_of_an_absent_category_is_empty_and_is_read_by_the_reward(pets):
    from spr.rewards import get_reward

    (image, _) = images_of(pets)
    prompt = next(
        item for item in PromptMaker(pets, FERRET, PromptOptions(("absent",))).questions([image]) if item.objects == 0
    )
    truth, reward = Truth.from_json(prompt.truth), get_reward("rejection")
    name = prompt.text.split()[-1]
    assert reward(truth.read(f"There is no {name} in the image."), truth) == 1
    assert reward(truth.read("It is here: [0, 0, 500, 500]"), truth) == 0


def test_questions_are_as_many_as_wanted_always_the_same_and_depend_on_the_seed(pets):
    _, second = images_of(pets)
    two = PromptOptions(("detect",), questions=2)
    made = [item.text for item in PromptMaker(pets, FERRET, two).questions([second])]
    assert len(set(made)) == 2
    assert [item.text for item in PromptMaker(pets, FERRET, two).questions([second])] == made
    names = [item.query_id for item in PromptMaker(pets, FERRET, two).questions([second])]
    assert names == [f"{second.image_id}/detect-0", f"{second.image_id}/detect-1"]
    first = {
        next(iter(PromptMaker(pets, FERRET, PromptOptions(("detect",))).questions([image]))).text.split(":")[1]
        for image in (second.from_row({**second.to_row(), "image_id": str(number)}) for number in range(30))
    }
    assert len(first) == 3


def test_categories_that_a_detector_found_in_crowds_are_not_asked_about(pets):
    objects = (ImageObject("1", "dog", (0, 0, 9, 9)), ImageObject("2#0", "cat", (0, 0, 9, 9), "detector", 0.5))
    askable = AskableCategories((), (), (), ("dog",))
    image = ImageObjects("7", "7.png", 200, 160, objects, askable=askable)
    maker = PromptMaker(pets, FERRET, EVERYTHING)
    assert {labels for _, _, labels in asked(maker, [image])} == {("dog",)}
    (nothing,) = (item for item in maker.questions([image]) if isinstance(item, NoPrompt))
    assert nothing == NoPrompt("7/absent", "7", "7.png", "no_category_to_ask")


def test_of_images_of_earlier_versions_it_is_not_known_what_is_absent(pets):
    (image, _) = images_of(pets)
    old = image.from_row({**image.to_row(), "askable": None})
    made = list(PromptMaker(pets, FERRET, EVERYTHING).questions([old]))
    assert [item.reason for item in made] == ["no_category_to_ask"] * 3


def test_names_are_words_and_the_labels_of_the_truth_are_the_annotations_own(pets):
    objects = tuple(
        ImageObject(str(k), name, (9 * k, 0, 9 * k + 9, 9)) for k, name in enumerate(["crab_(animal)", "crab_(food)"])
    )
    image = ImageObjects("8", "8.png", 200, 160, objects)
    found = asked(PromptMaker(pets, get_dialect("qwen3_vl"), PromptOptions(("detect",), questions=2)), [image])
    assert {("crab (food)" in text, labels) for _, text, labels in found} == {
        (True, ("crab_(food)",)),
        (False, ("crab_(animal)",)),
    }
    assert all(text.endswith("Report bbox coordinates in JSON format.") for _, text, _ in found)


def test_labels_synonyms_and_tokenizer_are_in_the_truth_of_the_objects_that_they_are_for(pets):
    _, second = images_of(pets)
    options = PromptOptions(
        ("detect",), "synonyms", {"dog": ("puppy", "hound"), "horse": ("pony",)}, "some/tokenizer", 8
    )
    truths = {
        item.text.rpartition(": ")[0] and json.loads(item.truth)["objects"][0]["label"]: json.loads(item.truth)
        for item in PromptMaker(pets, FERRET, options).questions([second])
    }
    assert {name: truth.get("synonyms") for name, truth in truths.items()} == {
        "dog": {"dog": ["puppy", "hound"]},
        "cat": None,
        "bird": None,
    }
    assert {(truth["labels"], truth["tokenizer"]) for truth in truths.values()} == {("synonyms", "some/tokenizer")}


def test_prompts_whose_labels_no_answer_can_name_are_left_out(pets):
    objects = (ImageObject("1", "C++", (0, 0, 9, 9)), ImageObject("2", "C#", (20, 0, 29, 9)))
    image = ImageObjects("7", "7.png", 200, 160, objects, askable=AskableCategories((), (), (), ("C++", "C#")))
    for labels, expected in (("ignore", set()), ("name", {"label_not_nameable"})):
        maker = PromptMaker(pets, FERRET, PromptOptions(("describe", "detect"), labels=labels, questions=8))
        query = from_query(image)
        found = [*maker.descriptions([query]), *maker.questions([image])]
        reasons = {item.reason for item in found if isinstance(item, NoPrompt)}
        assert reasons == expected, labels


def from_query(image):
    inside = tuple(RegionObject(item.id, item.category, item.box, inside=True) for item in image.objects)
    return RegionQuery(f"{image.image_id}/0", image.image_id, "7.png", 200, 160, (0, 0, 40, 20), "1", inside)
