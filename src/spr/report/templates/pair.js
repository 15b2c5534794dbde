/* Draws one pair. Text from models and datasets only becomes text nodes and attributes, never HTML. */
"use strict";
const SPR = {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const EDITS = { replaced: "replaced", kept: "kept", box_removed: "box removed", phrase_removed: "phrase removed" };
  const SIDES = ["chosen", "rejected"];

  /* An element with its class, text or children, and attributes. */
  function el(name, className, content, attributes) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (typeof content === "string") node.textContent = content;
    else if (content) node.append(...content.filter(Boolean));
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    return node;
  }

  function svg(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  }

  const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
  const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  const letter = (n) => (n < 26 ? String.fromCharCode(97 + n) : `x${n}`);

  function rect(box, className) {
    const [x1, y1, x2, y2] = box;
    const place = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) };
    return svg("rect", { class: className, ...place });
  }

  /* A box: a dark outline below a coloured one. */
  function outline(box, className) {
    const group = svg("g", { class: className });
    group.append(rect(box, "case"), rect(box, "box"));
    return group;
  }

  /* Objects inside the region are numbered first, then those outside, in the order of the table. */
  function numberObjects(objects) {
    const order = objects.map((_, k) => k).sort((a, b) => objects[b][2] - objects[a][2] || a - b);
    const numbers = [];
    order.forEach((index, k) => { numbers[index] = k + 1; });
    return numbers;
  }

  /* For each span of a side: its boxes with label, colour class and links. */
  function labelSpans(side, name, numbers) {
    let misses = 0;
    return side.spans.map((boxes, span) => boxes.map(([box, object, iou]) => {
      const hit = object >= 0;
      return {
        box, object, iou,
        label: hit ? String(numbers[object]) : letter(misses++),
        colour: hit ? `c${(numbers[object] - 1) % 8}` : "miss",
        links: hit ? [`${name}${span}`, `o${object}`] : [`${name}${span}`],
      };
    }));
  }

  function picture(pair, name, items, labelled, numbers) {
    const [width, height] = pair.size;
    const frame = el("div", "frame");
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.width = `min(100%, calc(25rem * ${(width / height).toFixed(4)}))`;
    const inside = pair.objects.filter((o) => o[2]).map((o) => o[0]);
    const about = `${pair.file}: a region with ${count(inside.length, "object")}: ${inside.slice(0, 12).join(", ")}`;
    if (pair.image.src) {
      const image = el("img", "", null, { src: pair.image.src, alt: about, width, height, decoding: "async" });
      if (Math.max(width, height) <= 256) image.classList.add("small");
      image.addEventListener("error", () => image.replaceWith(gap("Missing thumbnail: copy the whole report folder", about)));
      frame.append(image);
    } else {
      frame.append(gap(`No image: ${String(pair.image.problem).replaceAll("_", " ")}`, `${about}. ${pair.image.detail || ""}`));
    }
    const marks = svg("svg", { class: "marks", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "group" });
    marks.setAttribute("aria-label", `Boxes of the ${name} answer; arrow keys move from box to box`);
    marks.append(outline(pair.region, "region"));
    pair.objects.forEach(([category, box, isInside], index) => {
      const group = outline(box, `mark object ${isInside ? "" : "out"}`);
      group.setAttribute("aria-hidden", "true");
      marks.append(group);
      items.push({ node: group, links: [`o${index}`] });
    });
    if (name === "chosen") {
      for (const [, before, , edit] of pair.box_edits) if (edit !== "kept") marks.append(outline(before, "was miss"));
    }
    const tags = [];
    let first = true;
    labelled.forEach((boxes, span) => boxes.forEach((one) => {
      const group = outline(one.box, `mark answer ${one.colour}`);
      const words = pair.sides[name].phrases[span] || "a box without a phrase";
      const on = one.object < 0 ? "overlaps no object" : `on object ${one.label}, ${pair.objects[one.object][0]}, IoU ${fixed(one.iou, 2)}`;
      group.setAttribute("aria-label", `Box ${one.label}: ${words.slice(0, 120)}; ${on}`);
      group.setAttribute("role", "button");
      group.setAttribute("aria-pressed", "false");
      group.setAttribute("tabindex", first ? "0" : "-1");
      first = false;
      marks.append(group);
      const tag = el("span", `tag ${one.colour}`, one.label, { "aria-hidden": "true" });
      tag.style.left = `${clamp((100 * Math.min(one.box[0], one.box[2])) / width)}%`;
      tag.style.top = `${clamp((100 * Math.min(one.box[1], one.box[3])) / height)}%`;
      tags.push(tag);
      items.push({ node: group, links: one.links, act: true }, { node: tag, links: one.links });
    }));
    for (const [span, x, y] of pair.sides[name].points || []) {
      const dot = svg("ellipse", { class: "point", cx: x, cy: y, rx: Math.max(width, height) / 90, ry: Math.max(width, height) / 90 });
      dot.setAttribute("role", "img");
      dot.setAttribute("aria-label", `Point: ${(pair.sides[name].phrases[span] || "without a phrase").slice(0, 120)}`);
      marks.append(dot);
    }
    frame.append(marks, ...tags);
    return el("div", "view", [frame]);
  }

  const clamp = (percent) => Math.min(Math.max(percent, 0), 95).toFixed(2);

  function gap(text, about) {
    return el("div", "gap", [el("span", "", text)], { role: "img", "aria-label": `${about}. ${text}` });
  }

  function phrase(text, span, boxes, name, items) {
    const node = el("span", `phrase ${boxes.length ? boxes[0].colour : "bare"}`, text || "▢");
    if (!boxes.length) {
      node.title = "a phrase without a box";
      return [node];
    }
    node.setAttribute("role", "button");
    node.setAttribute("tabindex", "0");
    node.setAttribute("aria-pressed", "false");
    items.push({ node, links: [...new Set(boxes.flatMap((one) => one.links))], act: true });
    const chips = boxes.slice(0, 12).map((one) => el("span", `chip ${one.colour}`, one.label));
    if (boxes.length > 12) chips.push(el("small", "", ` and ${boxes.length - 12} more`));
    return [node, ...chips];
  }

  function answer(pair, name, items, labelled) {
    const side = pair.sides[name];
    const text = el("p", "text", side.text.flatMap(([words, span]) =>
      span < 0 ? [document.createTextNode(words)] : phrase(words, span, labelled[span], name, items)), { dir: "auto" });
    for (const span of side.loose) text.append(" ", ...phrase(side.phrases[span], span, labelled[span] || [], name, items));
    if (!side.text.length && !side.loose.length) text.append(el("small", "", "(no words)"));
    const boxes = side.spans.reduce((sum, found) => sum + found.length, 0) + (side.boxesCut || 0);
    const what = side.what || (name === "chosen" ? "Chosen, refined" : "Rejected, as generated");
    const from = `from ${side.kind}; ${count(boxes, "box").replace("boxs", "boxes")}, ${count(side.plainWords, "word")}`;
    return [
      el("h4", "", [document.createTextNode(`${what} `), el("span", "", from)]),
      text,
      side.cut ? el("p", "", [el("small", "", `The first ${side.text.reduce((n, t) => n + t[0].length, 0).toLocaleString("en")} of ${side.cut.toLocaleString("en")} characters. `), more(pair)]) : null,
    ];
  }

  function more(pair) {
    const button = el("button", "more", "Show all", { type: "button" });
    button.addEventListener("click", () => SPR.expand(pair, button));
    return button;
  }

  /* A bar from 0 to the value on a scale from `low` (0, or the lowest negative value) to 1. */
  function bar(value, name, low) {
    const share = (v) => (100 * (Math.min(v, 1) - low)) / (1 - low);
    const fill = el("i");
    fill.style.marginLeft = `${share(Math.min(value || 0, 0)).toFixed(1)}%`;
    fill.style.width = `${Math.abs(share(value || 0) - share(0)).toFixed(1)}%`;
    const node = el("span", `bar ${name}`, [fill], { "aria-hidden": "true" });
    if (low < 0) {
      const zero = el("span", "zero");
      zero.style.left = `${share(0).toFixed(1)}%`;
      node.append(zero);
    }
    return node;
  }

  function scores(pair) {
    const names = ["S_crop", "S_local", "S_sem", "S_loc", "S"];
    const rows = names.map((label, k) => [label, ...SIDES.map((name) => pair.sides[name].scores[k])]);
    rows.push(["S_loc, own boxes", ...SIDES.map((name) => pair.sides[name].localization)]);
    const low = Math.min(0, ...rows.flatMap((row) => row.slice(1)));
    const cells = rows.flatMap(([label, chosen, rejected]) => [
      el("b", "", label, label === "S_loc, own boxes" ? { title: "S_loc of the answer’s own boxes; of the chosen answer after refinement" } : {}),
      bar(chosen, "chosen", low), el("span", "", fixed(chosen, 3), { "aria-label": `chosen ${fixed(chosen, 3)}` }),
      bar(rejected, "rejected r", low),
      el("span", "", fixed(rejected, 3), { "aria-label": `rejected ${fixed(rejected, 3)}` }),
    ]);
    const heads = [el("span", "corner"), ...SIDES.map((name) => el("span", `head ${name}`, name))];
    return el("div", "bits", [...heads, ...cells], { role: "group", "aria-label": "Scores of the chosen and of the rejected candidate" });
  }

  function details(pair) {
    const counts = {};
    for (const edit of pair.box_edits) counts[edit[3]] = (counts[edit[3]] || 0) + 1;
    const summary = Object.entries(counts).map(([edit, n]) => `${n} ${EDITS[edit] || edit}`).join(", ");
    const rows = pair.box_edits.map(([words, before, after, edit]) => el("tr", "", [
      el("td", "", words || "▢"), el("td", "", EDITS[edit] || edit), el("td", "", `[${before.join(", ")}]`),
      el("td", "", after ? `[${after.join(", ")}]` : "–")]));
    const head = el("tr", "", ["phrase", "edit", "box before", "box after"].map((t) => el("th", "", t, { scope: "col" })));
    const texts = [["Prompt", pair.prompt], ["Chosen", pair.sides.chosen.raw], ["Rejected", pair.sides.rejected.raw]];
    return [
      el("details", "", [el("summary", "", `What refinement did: ${summary || "nothing"}`),
        el("div", "scroll", [el("table", "", [el("thead", "", [head]), el("tbody", "", rows)])], { tabindex: "0", role: "region", "aria-label": "What refinement did" })]),
      el("details", "", [el("summary", "", "Prompt and answers for training"),
        ...texts.flatMap(([title, text]) => [el("b", "", title), el("pre", "", text, { tabindex: "0", dir: "auto" })]),
        pair.cut ? el("p", "", [el("small", "", "Long texts are shortened. "), more(pair)]) : null]),
    ];
  }

  /* Highlights phrases, boxes and objects that belong together: under the pointer, in focus, or fixed by a click. */
  function connect(card, items) {
    const itemOf = new Map(items.filter((item) => item.act).map((item) => [item.node, item]));
    let pinned = null;
    const find = (target) => { const node = target.closest && target.closest('[role="button"]'); return node ? itemOf.get(node) : undefined; };
    function show(item) {
      const active = new Set((item || pinned || { links: [] }).links);
      card.classList.toggle("active", active.size > 0);
      for (const one of items) one.node.classList.toggle("lit", one.links.some((link) => active.has(link)));
    }
    function pin(item) {
      pinned = pinned === item ? null : item;
      for (const one of itemOf.values()) one.node.setAttribute("aria-pressed", String(one === pinned));
      show(item === pinned ? item : null);
    }
    card.addEventListener("mouseover", (event) => show(find(event.target)));
    card.addEventListener("mouseleave", () => show(null));
    card.addEventListener("focusin", (event) => show(find(event.target)));
    card.addEventListener("focusout", () => show(null));
    card.addEventListener("click", (event) => { const item = find(event.target); if (item) pin(item); });
    card.addEventListener("keydown", (event) => {
      const item = find(event.target);
      if (item && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pin(item); }
      if (event.key === "Escape") { pinned = null; pin(null); }
      const marks = event.target.closest("svg.marks");
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (marks && step) {
        const boxes = [...marks.querySelectorAll(".answer")];
        const next = boxes[(boxes.indexOf(event.target) + step + boxes.length) % boxes.length];
        boxes.forEach((node) => node.setAttribute("tabindex", node === next ? "0" : "-1"));
        next.focus();
        event.preventDefault();
        event.stopPropagation();
      }
    });
  }

  SPR.el = el;
  SPR.svg = svg;
  SPR.outline = outline;
  SPR.count = count;
  SPR.draw = (pair) => {
    const items = [];
    const numbers = numberObjects(pair.objects);
    const sides = SIDES.map((name) => {
      const labelled = labelSpans(pair.sides[name], name, numbers);
      return el("div", `side ${name}`, [picture(pair, name, items, labelled, numbers), ...answer(pair, name, items, labelled)]);
    });
    const heading = el("h3", "", [document.createTextNode(pair.id), el("span", "", pair.file), el("span", "", `margin ${fixed(pair.margin, 3)}`)]);
    if (pair.split === "holdout") heading.append(el("span", "held-out", "held out, not trained on"));
    const card = el("article", "card", [heading, el("div", "sides", sides), scores(pair), ...details(pair)], { tabindex: "-1", "aria-label": `Pair ${pair.id}` });
    connect(card, items);
    return card;
  };
})();
