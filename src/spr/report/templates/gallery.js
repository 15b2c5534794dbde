/* Filters, sorts and pages the gallery. Pairs are in script files, because a page from disk may not fetch data. */
"use strict";
(() => {
  const { el, count } = SPR;
  const $ = (selector) => document.querySelector(selector);
  const form = $("#filters"), cards = $("#cards"), status = $("#status"), gallery = $("#gallery");
  const pagers = [...document.querySelectorAll("[data-pager]")];
  const KEPT_FILES = 60;
  let index = null, order = [], page = 0, turn = 0, recalling = false;

  /* Each data file calls a function of SPR. */
  const pages = new Map(), waiting = new Map();
  function load(source) {
    return new Promise((resolve, reject) => {
      const script = el("script", "", null, { src: source });
      script.addEventListener("load", () => { script.remove(); resolve(); });
      script.addEventListener("error", () => { script.remove(); reject(new Error(source)); });
      document.head.append(script);
    });
  }
  SPR.page = (number, pairs) => { pages.set(number, pairs); };
  function file(number) {
    if (pages.has(number)) return Promise.resolve();
    if (!waiting.has(number)) {
      const source = `gallery/page-${String(number).padStart(5, "0")}.js`;
      waiting.set(number, load(source).finally(() => waiting.delete(number)));
    }
    return waiting.get(number);
  }
  const whole = new Map();
  SPR.full = (number, pair) => { whole.set(number, pair); };
  SPR.expand = async (pair, button) => {
    const card = button.closest(".card");
    button.textContent = "Loading …";
    try {
      if (!whole.has(pair.number)) await load(`gallery/full-${String(pair.number).padStart(6, "0")}.js`);
      const drawn = SPR.draw(whole.get(pair.number));
      card.replaceWith(drawn);
      drawn.focus();
    } catch (error) {
      button.replaceWith(el("small", "", lost(error)));
    }
  };
  const lost = (error) => `${error.message} can’t be loaded. Copy the whole report folder, not index.html alone.`;

  const value = (name) => form.elements[name].value;
  const number = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));

  /* The indices of the pairs that match the filters, sorted; equal ones stay in the run's order. */
  function select() {
    const category = value("category"), low = number(value("from")), high = number(value("to"));
    const chosenKind = value("chosenKind"), rejectedKind = value("rejectedKind"), find = value("find").trim().toLowerCase();
    const split = value("split");
    const wanted = category === "" ? -1 : Number(category);
    order = [];
    for (let k = 0; k < index.id.length; k++) {
      if (wanted >= 0 && !index.categoriesOf[k].includes(wanted)) continue;
      if (split && index.split[k] !== split) continue;
      if (chosenKind && index.chosenKind[k] !== chosenKind) continue;
      if (rejectedKind && index.rejectedKind[k] !== rejectedKind) continue;
      if (low !== null && !(index.margin[k] >= low)) continue;
      if (high !== null && !(index.margin[k] <= high)) continue;
      if (find && !index.id[k].toLowerCase().includes(find) && !index.file[k].toLowerCase().includes(find)) continue;
      order.push(k);
    }
    const sort = value("sort");
    if (sort) {
      const column = index[sort.replace("-", "")], sign = sort.startsWith("-") ? -1 : 1;
      order.sort((a, b) => sign * (column[a] - column[b]) || a - b);
    }
  }

  const per = () => Number(value("per"));
  const last = () => Math.max(Math.ceil(order.length / per()) - 1, 0);

  async function show({ focus = false, scroll = false } = {}) {
    const mine = ++turn;
    page = Math.min(Math.max(page, 0), last());
    const shown = order.slice(page * per(), (page + 1) * per());
    updatePagers();
    try {
      await Promise.all([...new Set(shown.map((k) => Math.floor(k / index.pageSize)))].map(file));
    } catch (error) {
      if (mine === turn) { cards.replaceChildren(); status.textContent = lost(error); }
      return;
    }
    if (mine !== turn) return;
    cards.replaceChildren(...shown.map((k) => SPR.draw(pages.get(Math.floor(k / index.pageSize))[k % index.pageSize])));
    for (const key of [...pages.keys()].slice(0, Math.max(pages.size - KEPT_FILES, 0))) pages.delete(key);
    const all = index.id.length, first = page * per() + 1;
    const of = order.length === all ? count(all, "pair") : `${count(order.length, "matching pair")}, out of ${all.toLocaleString("en")}`;
    status.textContent = order.length ? `${first.toLocaleString("en")} to ${(first + shown.length - 1).toLocaleString("en")} of ${of}` : `None of the ${all.toLocaleString("en")} pairs matches. Reset shows all.`;
    if (scroll) status.scrollIntoView({ block: "start" });
    if (focus && cards.firstElementChild) cards.firstElementChild.focus({ preventScroll: true });
    remember();
  }

  function go(to, options) {
    if (to < 0 || to > last() || to === page) return;
    page = to;
    show({ scroll: true, ...options });
  }

  const BUTTONS = [["First", () => 0], ["Previous", () => page - 1], ["Next", () => page + 1], ["Last", () => last()]];
  function buildPagers() {
    for (const pager of pagers) {
      const [first, previous, next, end] = BUTTONS.map(([name, to]) => {
        const button = el("button", "", name, { type: "button", "data-go": name });
        button.addEventListener("click", () => go(to()));
        return button;
      });
      const input = el("input", "", null, { type: "number", min: "1", name: "page" });
      input.addEventListener("change", () => {
        const to = number(input.value);
        if (to !== null) go(Math.min(Math.max(Math.round(to) - 1, 0), last()));
        updatePagers();
      });
      pager.append(first, previous, el("label", "", [document.createTextNode("Page "), input, el("span", "of")]), next, end);
    }
  }
  function updatePagers() {
    for (const pager of pagers) {
      pager.hidden = order.length <= per();
      pager.querySelector("input").value = String(page + 1);
      pager.querySelector("input").max = String(last() + 1);
      pager.querySelector(".of").textContent = ` of ${(last() + 1).toLocaleString("en")}`;
      for (const button of pager.querySelectorAll("button")) {
        const back = ["First", "Previous"].includes(button.dataset.go);
        // Not `disabled`, because a disabled button would lose the focus.
        button.setAttribute("aria-disabled", String(back ? page === 0 : page === last()));
      }
    }
  }

  /* The filters are kept in the address, so that a view can be shared as a link. */
  const FIELDS = ["category", "split", "chosenKind", "rejectedKind", "from", "to", "find", "sort"];
  function remember() {
    const state = new URLSearchParams();
    for (const name of FIELDS) {
      const text = name === "category" && value(name) !== "" ? index.categories[Number(value(name))][0] : value(name);
      if (text) state.set(name, text);
    }
    if (page) state.set("page", String(page + 1));
    if (value("per") !== "10") state.set("per", value("per"));
    const text = state.toString();
    if (text || location.hash.startsWith("#gallery?")) {
      try { history.replaceState(null, "", text ? `#gallery?${text}` : "#gallery"); } catch { /* some browsers forbid this for files */ }
    }
  }
  function recall() {
    if (!location.hash.startsWith("#gallery?")) return false;
    const state = new URLSearchParams(location.hash.slice("#gallery?".length));
    recalling = true;
    form.reset();
    recalling = false;
    for (const name of [...FIELDS, "per"]) {
      const text = state.get(name);
      if (text === null) continue;
      const field = form.elements[name];
      const wanted = name === "category" ? String(index.categories.findIndex(([known]) => known === text)) : text;
      if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === wanted)) field.value = wanted;
    }
    page = (number(state.get("page") || "") || 1) - 1;
    return true;
  }

  function option(select, text, key) {
    select.append(el("option", "", text, { value: key }));
  }

  SPR.index = (data) => {
    index = data;
    const named = data.categories.map(([name, n], k) => [name, n, k]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
    for (const [name, n, k] of named) option(form.elements.category, `${name.slice(0, 60)} (${n.toLocaleString("en")})`, String(k));
    for (const field of ["split", "chosenKind", "rejectedKind"]) {
      for (const kind of [...new Set(data[field])].sort()) option(form.elements[field], kind, kind);
    }
    form.elements.split.parentElement.hidden = !data.split.includes("holdout");
    form.hidden = false;
    buildPagers();
    toggles();
    const recalled = recall();
    select();
    show({ scroll: recalled });
  };

  const toggles = () => {
    gallery.classList.toggle("hide-objects", !form.elements.objects.checked);
    gallery.classList.toggle("show-before", form.elements.before.checked);
  };
  function changed(event) {
    toggles();
    if (event.target.type === "checkbox") return;
    page = 0;
    select();
    show();
  }
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    // The fields are reset only after this event.
    if (!recalling) setTimeout(() => { toggles(); page = 0; select(); show(); });
  });
  addEventListener("hashchange", () => { if (index && recall()) { select(); show({ scroll: true }); } });

  gallery.addEventListener("keydown", (event) => {
    if (!index || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, pre")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "ArrowRight" || key === "ArrowLeft") {
      event.preventDefault();
      go(page + (key === "ArrowRight" ? 1 : -1), { focus: true });
    } else if (key === "j" || key === "k") {
      const all = [...cards.children], here = all.indexOf(event.target.closest(".card"));
      const next = all[here < 0 ? 0 : here + (key === "j" ? 1 : -1)];
      if (next) { event.preventDefault(); next.focus(); next.scrollIntoView({ block: "start" }); }
    }
  });

  /* The dropped ids by reason, with the names of their image files. */
  SPR.dropped = (drops) => {
    const area = $("#drops"), filter = $("#drop-filter");
    if (!drops.length) { area.append(el("p", "", "Nothing was dropped.")); return; }
    const choice = filter.elements.reason;
    const name = (drop) => `${drop.stage}, ${drop.kind}: ${drop.reason.replaceAll("_", " ")} (${drop.count.toLocaleString("en")})`;
    drops.forEach((drop, k) => option(choice, name(drop), String(k)));
    function list() {
      const drop = drops[Number(choice.value)];
      const shown = drop.ids.length < drop.count ? `The first ${drop.ids.length.toLocaleString("en")} of ${drop.count.toLocaleString("en")}` : drop.count.toLocaleString("en");
      area.replaceChildren(
        el("p", "", `${shown} ${drop.kind === "query" ? "queries" : `${drop.kind}s`}: ${drop.explanation.replaceAll("`", "")}.`),
        el("ul", "drops", drop.ids.map((id, k) => el("li", "", drop.files[k] ? [`${id} `, el("span", "", drop.files[k])] : id))));
    }
    choice.addEventListener("input", list);
    filter.hidden = false;
    list();
  };

  addEventListener("load", () => {
    if (!index) status.textContent = lost(new Error("gallery/index.js"));
  });
})();
