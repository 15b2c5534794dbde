"""CLIP's and BERT's published vocabularies: pieces of long texts, and phrases that word pieces map back to."""

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from published_models import PUBLISHED, needs_vocabularies
from spr.models.detectors.prompts import phrase_prompts, text_prompts
from spr.models.scorers.clip import ClipScorer

pytestmark = needs_vocabularies
COCO = Path(__file__).parents[3] / "shared" / "data" / "coco-photos" / "instances.json"
SENTENCES = [
    "A man in a grey T-shirt holds a skateboard with both hands, next to a low concrete wall.",
    "Behind him, two cyclists wait at the kerb; one of them wears a bright yellow helmet.",
    'A sign reads "No parking, 8 a.m. to 6.30 p.m." and hangs at about 2.5 m above the pavement.',
    "The café’s awning is striped red and white…",
    "Is that a dog under the table?",
    "It may be a cat!",
    "Trees in full leaf line the far side of the street, and the sky is partly clouded.",
]
LIMIT = 77  # tokens that CLIP's text encoder reads, with the start and end tokens


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "clip"
    words = CLIPTokenizer(vocab=str(PUBLISHED / "clip" / "vocab.json"), merges=str(PUBLISHED / "clip" / "merges.txt"))
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": LIMIT, **ids}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return ClipScorer(folder, device="cpu", dtype="float32")


@pytest.fixture
def read(scorer, monkeypatch):
    """A text → the rows of token ids that the text encoder reads for it."""
    seen = []
    inner = scorer.model.get_text_features

    def watched(input_ids):
        seen.extend(input_ids.tolist())
        return inner(input_ids=input_ids)

    monkeypatch.setattr(scorer.model, "get_text_features", watched)

    def rows(text):
        seen.clear()
        scorer.embed_texts([text])
        end = scorer.tokenizer.eos_token_id
        return [row[: row.index(end) + 1] for row in seen]

    return rows


def test_a_short_text_is_read_as_the_publishers_tokenizer_gives_it(scorer, read):
    for text in ["a photo of a cat", "A Cat, a DOG", "", "犬 é 😀", "a   b\n\nc", "<|endoftext|>"]:
        expected = scorer.tokenizer(text, split_special_tokens=True)["input_ids"]
        assert read(text) == [expected]
    assert read("a photo of a cat") == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_a_long_text_is_read_in_whole_sentences_of_at_most_77_tokens(scorer, read):
    start, end = scorer.tokenizer.bos_token_id, scorer.tokenizer.eos_token_id
    for order in itertools.islice(itertools.permutations(SENTENCES), 0, None, 97):
        text = " ".join(order)
        rows = read(text)
        assert len(rows) > 1
        assert all(len(row) <= LIMIT and row[0] == start and row[-1] == end for row in rows)
        # Together the pieces have the tokens of the text, and each is a number of whole sentences.
        whole = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
        # (The pieces of a batch are read in the order of their lengths.)
        orders = itertools.permutations(rows)
        rows = next(parts for parts in orders if [token for row in parts for token in row[1:-1]] == whole)
        ends = {len(scorer.tokenizer(" ".join(order[:k]), add_special_tokens=False)["input_ids"]) for k in range(1, 8)}
        cuts = set(itertools.accumulate(len(row) - 2 for row in rows))
        assert cuts <= ends
        # No two neighbouring pieces would fit into one.
        assert all(len(a) + len(b) - 2 > LIMIT for a, b in itertools.pairwise(rows))


def test_a_sentence_that_is_too_long_is_cut_at_a_comma(scorer, read):
    text = ", ".join(f"a {color} umbrella with a wooden handle" for color in ["red", "green", "blue"] * 6) + "."
    rows = read(text)
    assert len(rows) == 2
    assert max(map(len, rows)) <= LIMIT
    assert scorer.tokenizer.decode(rows[0][1:-1]).endswith("a wooden handle ,")


def test_the_vectors_of_the_pieces_are_weighted_by_their_tokens(scorer, read):
    text = " ".join(SENTENCES)
    rows = [row[1:-1] for row in read(text)]
    parts = scorer.embed_texts([scorer.tokenizer.decode(row) for row in rows])
    mean = sum(len(row) * part for row, part in zip(rows, parts, strict=True))
    np.testing.assert_allclose(scorer.embed_texts([text])[0], mean / np.linalg.norm(mean), atol=1e-5)


@functools.cache
def bert():
    return BertTokenizer(vocab=str(PUBLISHED / "bert" / "vocab.txt"))


PHRASES = (
    "a T-shirt",
    "the man's hat",
    "an ice-cream cone",
    "Café São Paulo",
    "naïve Ångström",
    "a U.S. flag",
    "salt & pepper",
    "a 3.5 mm plug",
    "Straße",
    "İstanbul kedisi",
    "两只 狗",
    "a skateboarder",
    "¿un gato?",
    "“quoted” dog",
    "co₂ bottle",
    "A BIG RED BUS",
    "a dog (left)",
    "x" * 120,  # more characters than a word of BERT may have
)


def test_each_word_piece_maps_back_to_its_phrase_as_it_was_written():
    ((prompt,),) = phrase_prompts(bert(), [PHRASES], 254)
    assert prompt.phrases == PHRASES
    for place, phrase in zip(prompt.places, PHRASES, strict=True):
        assert place[0] < place[1]
        for token in range(*place):
            row = [0.1] * len(prompt.ids)
            row[token] = 0.9
            assert prompt.phrase(row) == phrase
    # As the detector reads it: what the publisher's tokenizer makes of the joined phrases in lower case.
    joined = " . ".join(phrase.lower() for phrase in PHRASES if len(phrase.lower()) == len(phrase))
    kept = [phrase for phrase in PHRASES if len(phrase.lower()) == len(phrase)]
    ((prompt,),) = phrase_prompts(bert(), [tuple(kept)], 254)
    assert list(prompt.ids) == bert()(joined + " .", add_special_tokens=False)["input_ids"]


def test_very_long_lists_of_phrases_become_several_prompts_with_all_phrases_in_order():
    if not COCO.is_file():
        pytest.skip("the photographs' annotations are not part of the repository")
    names = [category["name"] for category in json.loads(COCO.read_text())["categories"]]
    phrases = tuple(f"{adjective} {name}" for adjective in ("a", "the old", "two") for name in names)
    (prompts,) = phrase_prompts(bert(), [phrases], 254)
    assert len(prompts) > 1
    assert tuple(itertools.chain(*(prompt.phrases for prompt in prompts))) == phrases
    dot = bert().convert_tokens_to_ids(".")
    for prompt in prompts:
        assert len(prompt.ids) <= 254
        assert prompt.ids[-1] == dot
        for (first, last), phrase in zip(prompt.places, prompt.phrases, strict=True):
            assert bert().decode(prompt.ids[first:last]) == phrase


def test_a_detection_in_a_description_is_the_words_as_they_were_written():
    text = "A man's T-shirt, an ice-cream cone & Café São Paulo; the skateboarders wait."
    ((prompt,),) = text_prompts(bert(), [text], 254, 0.3)
    pieces = bert().convert_ids_to_tokens(list(prompt.ids))
    for best, also, expected in [
        ("shirt", ("man", "'", "s", "t", "-"), "man's T-shirt"),
        ("cream", (), "ice-cream"),
        ("cafe", ("sao", "paulo"), "Café São Paulo"),
        ("##board", (), "skateboarders"),
    ]:
        row = [0.9 if piece == best else 0.5 if piece in also else 0.1 for piece in pieces]
        assert prompt.phrase(row) == expected
