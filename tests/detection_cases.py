"""Random detection annotations and detections, with everything that the rules of COCO and LVIS distinguish."""

import numpy as np

SIZE = {"width": 640, "height": 480}


def annotations(seed, images=500, categories=12, *, lvis=False):
    """COCO's or LVIS's JSON as a dict: crowds, masks, images and categories without objects, gaps in the ids."""
    draw = np.random.default_rng(seed)
    rows = [{"id": int(k) + 1, "file_name": f"{k}.jpg", **SIZE} for k in draw.permutation(images)]
    names = [{"id": 3 * k + 1, "name": f"c{k}"} for k in range(categories)]
    objects = []
    for row in rows:
        for _ in range(0 if draw.random() < 0.1 else int(draw.integers(1, 12))):
            x, y = draw.uniform(0, 500, 2)
            w, h = np.exp(draw.uniform(1.5, 5.5, 2))
            if draw.random() < 0.5:  # whole pixels, so that an IoU can be equal to a threshold
                x, y, w, h = np.round([x, y, max(w, 1), max(h, 1)])
            box = {"bbox": [float(x), float(y), float(w), float(h)], "area": float(w * h * draw.uniform(0.4, 1))}
            flags = {"ignore": int(draw.random() < 0.05)} if lvis else {"iscrowd": int(draw.random() < 0.08)}
            category = 3 * int(draw.integers(0, categories - 2)) + 1
            objects.append({"id": len(objects) + 1, "image_id": row["id"], "category_id": category, **box, **flags})
    if lvis:
        present = {row["id"]: {o["category_id"] for o in objects if o["image_id"] == row["id"]} for row in rows}
        for row in rows:
            others = [name["id"] for name in names if name["id"] not in present[row["id"]]]
            row["neg_category_ids"] = [k for k in others if draw.random() < 0.3]
            row["not_exhaustive_category_ids"] = [k for k in sorted(present[row["id"]]) if draw.random() < 0.2]
        for k, name in enumerate(names):
            name["frequency"] = "rcf"[k % 3]
    return {"images": rows, "annotations": objects, "categories": names}


def detections(seed, content):
    """Rows of image id, category id, x, y, width, height, score: shifted objects, false ones, ties, over 300 in one."""
    draw = np.random.default_rng([seed, 1])
    found = []
    skipped = {row["id"] for row in content["images"] if draw.random() < 0.1}
    for item in content["annotations"]:
        for _ in range(0 if item["image_id"] in skipped else int(draw.integers(0, 4))):
            x, y, w, h = item["bbox"]
            shift = draw.normal(0, 0.12, 4) if draw.random() < 0.8 else np.zeros(4)
            box = x + shift[0] * w, y + shift[1] * h, max(w * (1 + shift[2]), 0.5), max(h * (1 + shift[3]), 0.5)
            other = content["categories"][int(draw.integers(0, len(content["categories"])))]["id"]
            category = item["category_id"] if draw.random() < 0.85 else other
            found.append((item["image_id"], category, *box, round(float(draw.random()), 1)))
    for row in content["images"]:
        if draw.random() < 0.02:
            for _ in range(350):
                x, y, w, h = *draw.uniform(0, 500, 2), *draw.uniform(5, 100, 2)
                category = content["categories"][0]["id"] if draw.random() < 0.7 else content["categories"][1]["id"]
                found.append((row["id"], category, x, y, w, h, round(float(draw.random()), 2)))
    return np.array(found)
