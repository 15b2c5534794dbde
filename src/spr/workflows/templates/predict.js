"use strict";
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#5bb8f0", "#f2a93b", "#3fcf9a", "#f07fb8", "#f0e04a", "#b79df5", "#ff8f6b", "#a8d94f"];
const HINTS = {region: "x1, y1, x2, y2 in pixels, or drag over the image", find: "the red cup", prompt: "What is on the table?"};
let file = null, region = null, answer = null, dragged = null;

const kind = () => document.querySelector("[name=kind]:checked").value;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function make(name, parent, values = {}, space) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(values)) key === "text" ? node.textContent = value : node.setAttribute(key, value);
  parent.append(node);
  return node;
}

function rectangle([x1, y1, x2, y2], values) {
  const place = {x: x1, y: y1, width: x2 - x1, height: y2 - y1};
  make("rect", $("marks"), {...place, class: "shade"}, SVG);
  return make("rect", $("marks"), {...place, ...values}, SVG);
}

function draw() {
  const {naturalWidth: width, naturalHeight: height} = $("image");
  $("marks").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("marks").setAttribute("preserveAspectRatio", "none");
  $("marks").replaceChildren();
  if (region && kind() === "region") rectangle(region, {class: "region"});
  if (answer) for (const {place, colour} of numbered(answer)) {
    if (place.length === 4) rectangle(place, {stroke: colour, class: "box"});
    else make("circle", $("marks"), {cx: place[0], cy: place[1], r: Math.max(width, height) / 100, fill: colour}, SVG);
  }
}

function numbered({spans, find}) {
  return spans.flatMap((span, k) => [...span.boxes, ...span.points].map(place =>
    ({place, colour: COLOURS[k % COLOURS.length], phrase: span.phrase || find || "(no phrase)"})));
}

function show() {
  $("result").hidden = !answer;
  if (!answer) return;
  const {text, spans, problems} = answer;
  for (const id of ["answer", "boxes", "problems"]) $(id).replaceChildren();
  const letters = Array.from(text);  // offsets count characters, not UTF-16 units
  let end = 0;
  spans.forEach((span, k) => {
    $("answer").append(letters.slice(end, span.start).join(""));
    make("b", $("answer"), {text: span.phrase}).style.setProperty("--k", COLOURS[k % COLOURS.length]);
    end = span.end;
  });
  $("answer").append(letters.slice(end).join(""));
  for (const {place, colour, phrase} of numbered(answer)) {
    const line = make("li", $("boxes"));
    make("i", line).style.setProperty("--k", colour);
    line.append(`${phrase}: ${place.map(edge => edge.toFixed(1)).join(", ")}`);
  }
  for (const problem of problems) make("li", $("problems"), {text: problem});
  $("raw").textContent = `${answer.prompt}\n\n${answer.answer}`;
}

function open(chosen) {
  if (!chosen) return;
  file = chosen;
  region = answer = null;
  URL.revokeObjectURL($("image").src);
  $("image").src = URL.createObjectURL(file);
  $("view").hidden = false;
  say(`${file.name}`);
  show();
}

async function ask() {
  if (!file) return say("Choose an image first.", true);
  const question = {}, words = $("text").value.trim();
  if (kind() === "region") {
    if (words) region = words.split(/[\s,]+/).map(Number);
    if (!region || region.length !== 4 || region.some(Number.isNaN)) return say("Drag over the image, or type x1, y1, x2, y2.", true);
    question.region = region;
  } else if (kind() !== "all") {
    if (!words) return say("Type what to ask.", true);
    question[kind()] = words;
  }
  const button = document.querySelector("button");
  button.disabled = true;
  say("The model is answering…");
  try {
    const address = "ask?question=" + encodeURIComponent(JSON.stringify(question));
    const reply = await fetch(address, {method: "POST", body: file});
    const content = await reply.json();
    if (!reply.ok) throw new Error(content.problem);
    answer = content;
    const count = numbered(answer).length;
    say(count === 1 ? "1 box" : `${count} boxes`);
  } catch (error) {
    answer = null;
    say(error instanceof TypeError ? "The server does not answer: is `spr predict --serve` still running?" : error.message, true);
  }
  button.disabled = false;
  draw();
  show();
}

function aim() {
  const chosen = kind();
  $("view").classList.toggle("aim", chosen === "region");
  $("words").hidden = chosen === "all";
  $("text").value = "";
  $("text").placeholder = HINTS[chosen] || "";
  answer = null;
  draw();
  show();
}

function place(event) {
  const frame = $("image").getBoundingClientRect();
  const at = (value, start, length, full) => Math.min(Math.max((value - start) / length, 0), 1) * full;
  return [at(event.clientX, frame.left, frame.width, $("image").naturalWidth),
          at(event.clientY, frame.top, frame.height, $("image").naturalHeight)];
}

function stretch(event) {
  const [x, y] = place(event), [a, b] = dragged;
  region = [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)].map(value => Math.round(value * 10) / 10);
  $("text").value = region.join(", ");
  answer = null;
  draw();
}

$("view").addEventListener("pointerdown", event => {
  if (kind() !== "region" || event.button) return;
  dragged = place(event);
  $("view").setPointerCapture(event.pointerId);
  event.preventDefault();
});
$("view").addEventListener("pointermove", event => dragged && stretch(event));
$("view").addEventListener("pointerup", () => { dragged = null; });
$("file").addEventListener("change", event => open(event.target.files[0]));
$("image").addEventListener("load", () => {
  const {naturalWidth: width, naturalHeight: height} = $("image"), size = Math.max(width, height);
  $("image").style.width = size < 320 ? `${320 * width / size}px` : "";  // a tiny image is enlarged
  draw();
});
$("image").addEventListener("error", () => { say("The browser can't show this image.", true); });
$("form").addEventListener("submit", event => { event.preventDefault(); ask(); });
document.querySelectorAll("[name=kind]").forEach(button => button.addEventListener("change", aim));
document.addEventListener("paste", event => open(event.clipboardData.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault();
  document.body.classList.toggle("over", name === "dragover");
  if (name === "drop") open(event.dataTransfer.files[0]);
});
aim();
