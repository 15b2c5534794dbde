"""Two samples in each layout of `spr check`, written as the publishers' documentation shows the layout."""

import json

LAYOUTS = ("coco", "mdetr", "llava", "qwen_vl", "qwen_vl_json", "ms_swift", "ms_swift_objects", "llamafactory", "trl")
PROMPT = "Where is the {}?"
SAMPLES = (("a.jpg", "dog", (100.0, 150.0, 300.0, 400.0)), ("b.jpg", "red cup", (0.0, 10.0, 640.0, 480.0)))
"""Image, label, and box as xyxy pixels; the images are 640 × 480."""


def expected_numbers(layout, box):
    """The numbers of a box as the layout writes them."""
    x1, y1, x2, y2 = box
    return (x1, y1, x2 - x1, y2 - y1) if layout in ("coco", "mdetr") else box


def _row(layout, image, label, box):
    prompt, (x1, y1, x2, y2) = PROMPT.format(label), map(int, box)
    if layout == "llava":
        turns = [{"from": "human", "value": f"<image>\n{prompt}"}]
        turns.append({"from": "gpt", "value": f"The {label} is here [{x1}, {y1}, {x2}, {y2}]."})
        return {"id": image, "image": image, "conversations": turns}
    if layout == "qwen_vl":
        turns = [{"from": "user", "value": f"Picture 1: <img>{image}</img>\n{prompt}"}]
        turns.append({"from": "assistant", "value": f"<ref>{label}</ref><box>({x1},{y1}),({x2},{y2})</box>"})
        return {"id": image, "conversations": turns}
    if layout == "qwen_vl_json":
        turns = [{"from": "human", "value": f"<image>\n{prompt}"}]
        turns.append({"from": "gpt", "value": f'{{\n"bbox_2d": [{x1}, {y1}, {x2}, {y2}]\n}}'})
        return {"image": image, "conversations": turns}
    if layout == "ms_swift":
        turns = [{"role": "system", "content": "You are a helpful assistant."}]
        turns.append({"role": "user", "content": f"<image>{prompt}"})
        turns.append({"role": "assistant", "content": f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"})
        return {"messages": turns, "images": [image]}
    if layout == "ms_swift_objects":
        turns = [{"role": "user", "content": "<image>Find the <ref-object>"}]
        turns.append({"role": "assistant", "content": "<bbox>"})
        return {"messages": turns, "images": [image], "objects": {"ref": [label], "bbox": [list(box)]}}
    if layout == "llamafactory":
        turns = [{"content": f"<image>{prompt}", "role": "user"}]
        turns.append({"content": f"[{x1}, {y1}, {x2}, {y2}]", "role": "assistant"})
        return {"messages": turns, "images": [image]}
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": f"{label} [{x1}, {y1}, {x2}, {y2}]"}]}]
    return {"prompt": prompt, "completion": answer, "images": [image]}


def write(folder, layout):
    """Write the samples in a layout; returns the file."""
    if layout in ("coco", "mdetr"):
        images, annotations = [], []
        for number, (name, label, box) in enumerate(SAMPLES):
            images.append({"id": number, "file_name": name, "width": 640, "height": 480})
            images[-1] |= {"caption": PROMPT.format(label)} if layout == "mdetr" else {}
            entry = {"id": number, "image_id": number, "bbox": expected_numbers(layout, box), "category_id": number}
            annotations.append(entry)
        categories = [{"id": number, "name": label} for number, (_, label, _) in enumerate(SAMPLES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / f"{layout}.json"
        path.write_text(json.dumps(content))
        return path
    rows = [_row(layout, *sample) for sample in SAMPLES]
    if layout in ("ms_swift", "ms_swift_objects", "trl"):
        path = folder / f"{layout}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = folder / f"{layout}.json"
        path.write_text(json.dumps(rows, indent=2))
    return path
