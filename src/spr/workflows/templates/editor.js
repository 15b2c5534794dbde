/* Edits the chosen answer of a pair: boxes by dragging or with the keyboard, words with the numbers of their boxes. */
"use strict";
(() => {
  const { el, svg, outline } = SPR;
  const GRIPS = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
  const ZOOMS = [1, 2, 4];
  const colour = (k) => `c${k % 8}`;
  const tenth = (value) => Math.round(value * 10) / 10;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

  /* A box after its edges moved by (dx, dy) px; an empty part moves all of it. It stays in the image, 1 px at least. */
  function moved(box, part, dx, dy, [width, height]) {
    const [x1, y1, x2, y2] = box;
    if (!part) {
      const x = clamp(dx, -x1, width - x2), y = clamp(dy, -y1, height - y2);
      return [x1 + x, y1 + y, x2 + x, y2 + y].map(tenth);
    }
    return [
      part.includes("w") ? clamp(x1 + dx, 0, x2 - 1) : x1,
      part.includes("n") ? clamp(y1 + dy, 0, y2 - 1) : y1,
      part.includes("e") ? clamp(x2 + dx, x1 + 1, width) : x2,
      part.includes("s") ? clamp(y2 + dy, y1 + 1, height) : y2,
    ].map(tenth);
  }

  /* [words](1 2): the phrases of a text with the numbers of their boxes. */
  const PHRASE = /\[((?:[^[\]\\]|\\.)*)\]\(([\d\s,]*)\)/gs;
  const numbers = (text) => (text.match(/\d+/g) || []).map(Number);
  function phraseOf(text, number) {
    const found = [...text.matchAll(PHRASE)].find((match) => numbers(match[2]).includes(number));
    return found ? found[1].replace(/\\(.)/gs, "$1") : "";
  }
  function without(text, number, prose) {
    return text.replace(PHRASE, (all, words, list) => {
      const left = numbers(list).filter((other) => other !== number);
      if (left.length === numbers(list).length) return all;
      return left.length ? `[${words}](${left.join(" ")})` : prose ? words : "";
    });
  }

  /* Opens the editor in `place`; returns what the page's buttons and keys call. */
  SPR.edit = (pair, place, { changed }) => {
    const { payload, prose } = pair, size = payload.size;
    let base = pair.edit.base, boxes = [], selected = -1, zoom = 0;
    const history = [];
    const area = el("textarea", "", null, { "aria-label": "Chosen answer", spellcheck: "true", dir: "auto" });
    const problem = el("p", "problem", "", { role: "alert" });
    const list = el("ol", "boxes");
    const frame = el("div", "frame"), view = el("div", "stage-view", [frame], { tabindex: "-1" });
    const live = () => boxes.map((box, k) => [box, k]).filter(([box]) => box);

    function snapshot() {
      const state = JSON.stringify([base, boxes, area.value]);
      if (history[history.length - 1] !== state) history.push(state);
      changed();
    }
    function restore(state) {
      let text;
      [base, boxes, text] = JSON.parse(state);
      area.value = text;
      if (!boxes[selected]) selected = live().length ? live()[0][1] : -1;
      draw();
    }
    function load(source) {
      restore(JSON.stringify([source.base, source.boxes, source.text]));
    }

    function place_(node, box) {
      const [width, height] = size, [x1, y1, x2, y2] = box;
      node.style.left = `${(100 * x1) / width}%`;
      node.style.top = `${(100 * y1) / height}%`;
      node.style.width = `${(100 * (x2 - x1)) / width}%`;
      node.style.height = `${(100 * (y2 - y1)) / height}%`;
      const scale = frame.clientWidth / width;
      node.classList.toggle("small", Math.min(x2 - x1, y2 - y1) * scale < (matchMedia("(pointer: coarse)").matches ? 100 : 56));
    }
    const nodeOf = (k) => frame.querySelector(`.ebox[data-k="${k}"]`);
    const inputs = (k) => list.querySelectorAll(`li[data-k="${k}"] input`);
    function set(k, box) {
      boxes[k] = box;
      place_(nodeOf(k), box);
      inputs(k).forEach((input, side) => { input.value = String(box[side]); });
    }
    function select(k, { focus = false } = {}) {
      selected = k;
      for (const node of [...frame.querySelectorAll(".ebox"), ...list.children]) node.classList.toggle("selected", Number(node.dataset.k) === k);
      if (focus && nodeOf(k)) nodeOf(k).focus({ preventScroll: zoom === 0 });
    }

    function grab(event, k, part) {
      if (event.button !== 0) return;
      event.preventDefault();
      event.stopPropagation();
      select(k, { focus: true });
      const start = boxes[k], rect = frame.getBoundingClientRect(), { clientX, clientY, pointerId } = event;
      const target = event.currentTarget;
      target.setPointerCapture(pointerId);
      const move = (e) => set(k, moved(start, part, ((e.clientX - clientX) * size[0]) / rect.width, ((e.clientY - clientY) * size[1]) / rect.height, size));
      const stop = () => {
        target.removeEventListener("pointermove", move);
        target.removeEventListener("pointerup", stop);
        target.removeEventListener("pointercancel", stop);
        snapshot();
      };
      target.addEventListener("pointermove", move);
      target.addEventListener("pointerup", stop);
      target.addEventListener("pointercancel", stop);
    }

    function drawBox(box, k) {
      const label = `Box ${k + 1}: ${phraseOf(area.value, k + 1) || "no words"}; arrow keys move it`;
      const node = el("div", `ebox ${colour(k)}`, [el("span", `tag ${colour(k)}`, String(k + 1))], { "data-k": k, tabindex: "0", role: "group", "aria-label": label });
      place_(node, box);
      node.addEventListener("pointerdown", (event) => grab(event, k, ""));
      node.addEventListener("focus", () => select(k));
      for (const part of GRIPS) {
        const grip = el("i", `grip ${part}`);
        grip.addEventListener("pointerdown", (event) => grab(event, k, part));
        node.append(grip);
      }
      return node;
    }
    function drawItem(box, k) {
      const fields = ["x1", "y1", "x2", "y2"].map((name, side) => {
        const input = el("input", "", null, { type: "number", step: "any", inputmode: "decimal", value: box[side], "aria-label": `${name} of box ${k + 1}` });
        input.addEventListener("change", () => {
          const next = [...boxes[k]];
          next[side] = clamp(tenth(Number(input.value) || 0), 0, size[side % 2]);
          if (next[0] < next[2] && next[1] < next[3]) { set(k, next); snapshot(); } else set(k, boxes[k]);
        });
        return el("label", "", [document.createTextNode(name), input]);
      });
      const remove = el("button", "", "Delete", { type: "button", "aria-label": `Delete box ${k + 1}` });
      remove.addEventListener("click", () => removeBox(k));
      const item = el("li", "", [el("span", `chip ${colour(k)}`, String(k + 1)), el("span", "of", phraseOf(area.value, k + 1) || "no words"), remove, el("span", "numbers", fields)], { "data-k": k });
      item.addEventListener("click", () => select(k));
      item.addEventListener("focusin", () => select(k));
      return item;
    }
    function draw() {
      frame.querySelectorAll(".ebox").forEach((node) => node.remove());
      frame.append(...live().map(([box, k]) => drawBox(box, k)));
      list.replaceChildren(...live().map(([box, k]) => drawItem(box, k)));
      select(selected);
    }
    function removeBox(k) {
      area.value = without(area.value, k + 1, prose);
      boxes[k] = null;
      const left = live();
      selected = left.length ? (left.find(([, j]) => j > k) || left[left.length - 1])[1] : -1;
      draw();
      snapshot();
      (nodeOf(selected) || area).focus();
    }
    function addBox() {
      const { selectionStart: from, selectionEnd: to, value } = area;
      const words = value.slice(from, to);
      if (!words.trim() || /[[\]()\\]/.test(words)) {
        problem.textContent = "Select words without brackets in the text first; the new box is theirs.";
        area.focus();
        return;
      }
      problem.textContent = "";
      const [x1, y1, x2, y2] = payload.region, w = (x2 - x1) / 4, h = (y2 - y1) / 4;
      boxes.push([(x1 + x2 - w) / 2, (y1 + y2 - h) / 2, (x1 + x2 + w) / 2, (y1 + y2 + h) / 2].map(tenth));
      area.value = `${value.slice(0, from)}[${words}](${boxes.length})${value.slice(to)}`;
      selected = boxes.length - 1;
      draw();
      snapshot();
      nodeOf(selected).focus();
    }
    function setZoom(level) {
      zoom = level;
      const [width, height] = size;
      frame.style.aspectRatio = `${width} / ${height}`;
      frame.style.width = zoom ? `${100 * ZOOMS[zoom]}%` : `min(100%, calc(72vh * ${(width / height).toFixed(4)}))`;
      for (const [shown, k] of live()) place_(nodeOf(k), shown);
      zoomButtons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === zoom)));
      const box = boxes[selected] || payload.region;
      view.scrollLeft = (frame.clientWidth * (box[0] + box[2])) / (2 * width) - view.clientWidth / 2;
      view.scrollTop = (frame.clientHeight * (box[1] + box[3])) / (2 * height) - view.clientHeight / 2;
    }
    const zoomButtons = ZOOMS.map((factor, k) => {
      const button = el("button", "", `${factor}×`, { type: "button", "aria-label": `Zoom ${factor} times` });
      button.addEventListener("click", () => setZoom(k));
      return button;
    });

    if (payload.image.src) frame.append(el("img", "", null, { src: payload.image.src, alt: payload.file, draggable: "false", class: Math.max(...size) <= 256 ? "small" : "" }));
    else frame.append(el("div", "gap", [el("span", "", `No image: ${String(payload.image.problem).replaceAll("_", " ")}`)]));
    const marks = svg("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    marks.append(outline(payload.region, "region"), ...payload.objects.map(([, box]) => outline(box, "object")));
    frame.append(marks);
    const hint = prose
      ? "[words](1) are the words of box 1. Select words and press “New box” to give them another one."
      : "This model’s answers list objects: all words must belong to a box, as in [words](1).";
    const words = el("div", "words", [el("h4", "", "Chosen answer"), area, el("p", "", hint), problem, el("h4", "", "Boxes, in pixels"), list]);
    place.replaceChildren(el("article", "card", [
      el("h3", "", [document.createTextNode(payload.id), el("span", "", "editing the chosen answer")]),
      el("div", "editor", [el("div", "", [el("div", "zoom", [document.createTextNode("Zoom "), ...zoomButtons]), view]), words]),
    ]));
    area.addEventListener("input", () => {
      changed();
      for (const item of list.children) item.querySelector(".of").textContent = phraseOf(area.value, Number(item.dataset.k) + 1) || "no words";
    });
    area.addEventListener("change", snapshot);
    load(pair.edit);
    snapshot();
    if (live().length) select(live()[0][1], { focus: true });
    setZoom(0);

    const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    return {
      add: addBox,
      back() {
        const now = JSON.stringify([base, boxes, area.value]);
        if (history[history.length - 1] === now) history.pop();
        restore(history[history.length - 1] || now);
        if (!history.length) history.push(now);
        changed();
      },
      original() { load(pair.original); snapshot(); },
      result: () => ({ text: area.value, boxes, base }),
      isChanged: () => history[0] !== JSON.stringify([base, boxes, area.value]),
      refuse(text) { problem.textContent = text; },
      key(event) {
        const box = event.target.closest(".ebox"), step = STEPS[event.key];
        if (box && step) {
          const by = event.shiftKey ? 10 : 1, k = Number(box.dataset.k);
          set(k, moved(boxes[k], event.ctrlKey || event.metaKey ? "se" : "", step[0] * by, step[1] * by, size));
          snapshot();
        } else if (box && (event.key === "Delete" || event.key === "Backspace")) removeBox(Number(box.dataset.k));
        else if (event.key.toLowerCase() === "z" && !event.ctrlKey && !event.metaKey) setZoom((zoom + 1) % ZOOMS.length);
        else if (event.key.toLowerCase() === "t" && !event.ctrlKey && !event.metaKey) area.focus();
        else return false;
        return true;
      },
    };
  };
  SPR.moved = moved;
})();
