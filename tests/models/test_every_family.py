"""Every entry of the table of families runs the whole method: describe, score, pair, train, merge, evaluate.

The models are tiny and of the real classes. Random ones write no boxes, so each first learns four answers by heart.
"""

import json
import shutil

import pytest
import torch
from PIL import Image

import spr
from spr.config import make_config
from spr.core.errors import SprError
from spr.grounding import GroundedText, get_dialect, render
from spr.grounding.points import centre
from spr.models.chat import render_answer, user_turn
from spr.models.describers.hf import HfDescriber
from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.records import Span
from spr.runs.store import StageStore
from spr.training.checkpoint import merge_adapter
from tiny_mllms import all_makers

SIZE = (200, 160)  # of the pictures of `make_dataset`
BOXES = [((28, 24, 90, 80), (100, 40, 180, 150)), ((40, 30, 120, 88), (104, 44, 160, 120))]
BOXES += [((24, 40, 80, 90), (120, 20, 184, 140)), ((60, 20, 130, 96), (88, 100, 150, 152))]
QUICK = ("llava_onevision", "qwen2_5_vl")  # the others are tested by `make test-slow`
STEPS, FASTEST, WHERE = 120, 6e-3, {"device": "cpu", "dtype": "float32"}


def answers(dialect):
    """Four answers of two phrases with boxes each, or with points where the dialect has no boxes."""
    text = "a cup and a box"
    given = []
    for places in BOXES:
        places = [((box,), ()) if dialect.writes_boxes else ((), (centre(box),)) for box in places]
        spans = Span("a cup", 0, 5, *places[0]), Span("a box", 10, 15, *places[1])
        given.append(render(GroundedText(text, spans), dialect, SIZE))
    return given


def prompt_of(family):
    return "Describe." if family.prompt_pattern is None else "<DENSE_REGION_CAPTION>"


def loss_of(model, family, inputs, known, lengths):
    """The mean cross-entropy of A answers, ``(A, R)`` with zeros behind shorter ones, after as many equal prompts."""
    given = torch.arange(known.shape[1]) < lengths[:, None]  # (A, R)
    if family.encoder_decoder:
        logits = model(**inputs, labels=known, use_cache=False).logits
    else:
        whole = {}
        filling = {"input_ids": known, "attention_mask": given, "token_type_ids": int(family.bidirectional_prompt)}
        for name, tensor in inputs.items():
            whole[name] = tensor
            if tensor.shape == inputs["input_ids"].shape:  # one number per token
                value = filling.get(name, 0)
                more = value if isinstance(value, torch.Tensor) else torch.full_like(known, value)
                whole[name] = torch.cat([tensor, more.to(tensor.dtype)], dim=1)
        logits = model(**whole, use_cache=False).logits[:, -known.shape[1] - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), known, reduction="none")
    return (losses * given / lengths[:, None]).sum() / len(known)


def teach(folder, images):
    """Train the whole model until it answers with one of the four texts, whatever it is asked; save it."""
    describer = HfDescriber(folder, **WHERE)
    model, processor, family = describer.model, describer.processor, describer.family
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=FASTEST)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    known = []
    for answer in answers(describer.dialect):
        text = "".join(render_answer(processor, family, user_turn(prompt_of(family)), answer))
        known.append(torch.tensor(processor.tokenizer(text, add_special_tokens=False)["input_ids"]))
    lengths = torch.tensor([len(answer) for answer in known])
    known = torch.nn.utils.rnn.pad_sequence(known, batch_first=True)
    for step in range(STEPS):
        expression = describer.dialect.rec_prompt.format(expression="the cup")
        prompt = expression if step % 4 == 3 else prompt_of(family)
        inputs = encode(processor, [describer.render(prompt)] * len(known), [images[step % len(images)]] * len(known))
        loss_of(model, family, inputs, known, lengths).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def write_expressions(path, data, dialect):
    """The expressions of the task ``rec``, or the questions of ``pointing``."""
    box, sentence = [10, 10, 90, 90], "the cup"
    asked = {"sentence": sentence, "box": box}
    if not dialect.writes_boxes:
        asked = {"question": dialect.point_prompt.format(expression=sentence), "boxes": [box]}
    lines = [{"image": f"{image['id']}.png", "width": 200, "height": 160, **asked} for image in data.coco["images"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(folder):
    return [row for table in StageStore(folder).tables() for row in table.to_pylist()]


def test_every_family_has_a_tiny_model():
    assert set(all_makers()) >= set(FAMILIES)


@pytest.mark.parametrize("family", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in FAMILIES])
def test_the_whole_method_runs(family, mllm_folder, make_dataset, tmp_path):
    folder = shutil.copytree(mllm_folder(family), tmp_path / family)
    teach(folder, [Image.new("RGB", size, (3, 6, 9)) for size in (SIZE, (150, 120), (130, 150), (120, 90))])
    data, run = make_dataset(tmp_path / "data", images=4), tmp_path / "run"
    config = make_config(
        data.config(
            prompts={"crop": prompt_of(FAMILIES[family])},
            describer={
                "model": str(folder),
                "samples": {"full": 0, "crop": 4, "crop_objects": 0},
                "max_new_tokens": 200,
                "temperature": 0.7,
                **WHERE,
            },
            scorer={"backend": "fake"},
            detector={"backend": "none"},
            training={"learning_rate": 1e-3, "lora": {"r": 4, "lora_alpha": 8}, "num_train_epochs": 2, **WHERE},
        )
    )
    options = {"max_new_tokens": 200, "temperature": 0, **WHERE}
    dialect = get_dialect(FAMILIES[family].dialect)
    expressions = write_expressions(tmp_path / "expressions.jsonl", data, dialect)
    task, without = ("rec", "no_box") if dialect.writes_boxes else ("pointing", "no_point")
    spr.run(config, run)
    candidates = rows_of(run / "candidates")
    assert {row["dialect"].partition(":")[0] for row in candidates} == {FAMILIES[family].dialect}
    assert any(span["boxes"] or span["points"] for row in candidates for span in row["spans"])
    assert rows_of(run / "pairs")
    if not FAMILIES[family].trainable:
        with pytest.raises(SprError, match="can describe, but not be trained"):
            spr.train(config, run)
        result = spr.evaluate(task, expressions, describer=HfDescriber(folder, **options), images=data.images)
        assert not result.problems.get(without)
        return
    spr.train(config, run)
    log = [json.loads(line) for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["event"] == "step"]
    # A fresh adapter changes nothing: −log σ(0) = log 2; then the margins grow.
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]
    merge_adapter(run / "adapter", tmp_path / "merged")
    merged = HfDescriber(tmp_path / "merged", **options)
    beside = HfDescriber(folder, peft_adapter=run / "adapter", **options)
    results = [spr.evaluate(task, expressions, describer=one, images=data.images) for one in (merged, beside)]
    assert [kept.answer for kept in results[0].predictions] == [kept.answer for kept in results[1].predictions]
    assert results[0].metrics == results[1].metrics
    assert not results[0].problems.get(without)
