"""Until the lead's Truth is merged."""
import json

def truth_json(objects, size_wh, dialect, options, tokenizer):
    content = {"spr_truth": 1, "width": size_wh[0], "height": size_wh[1], "dialect": dialect.spec, "labels": options.labels}
    content["objects"] = [{"label": label, "box": [round(v, 3) for v in box]} for label, box in objects]
    labels = {label for label, _ in objects}
    synonyms = {label: list(names) for label, names in options.synonyms.items() if label in labels}
    if synonyms: content["synonyms"] = synonyms
    if tokenizer: content["tokenizer"] = tokenizer
    return json.dumps(content, ensure_ascii=False)
