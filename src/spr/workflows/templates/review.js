/* The review: shows one pair at a time, and saves decisions one after another, again and again until they are saved. */
"use strict";
(() => {
  const { el } = SPR;
  const $ = (selector) => document.querySelector(selector);
  const main = $("#main"), form = $("#filters"), saved = $("#saved");
  let index = null, reviewer = "", mine = [], outcomes = [], order = [], at = -1, current = null, editor = null, turn = 0;
  const undone = [], done = [];
  const fetched = new Map();

  async function get(path) {
    const response = await fetch(path);
    if (!response.ok) throw new Error((await response.json().catch(() => ({}))).problem || `HTTP ${response.status}`);
    return response.json();
  }
  const me = () => encodeURIComponent(reviewer);
  function pairOf(n) {
    if (!fetched.has(n)) {
      const promise = get(`pair/${n}/${me()}`);
      promise.catch(() => fetched.delete(n));
      fetched.set(n, promise);
      for (const key of [...fetched.keys()].slice(0, Math.max(fetched.size - 12, 0))) fetched.delete(key);
    }
    return fetched.get(n);
  }

  /* ── saving: decisions wait in a queue, in order, until the server has written them to disk ── */
  const queue = [];
  let sending = false, failures = 0, savedAny = false, refusal = "";
  function showSaved(problem) {
    const n = queue.length;
    saved.classList.toggle("bad", Boolean(n ? problem : refusal));
    saved.textContent = !n ? refusal || (savedAny ? "All saved" : "") : problem ? `${SPR.count(n, "decision")} not saved: ${problem}. Trying again …` : "Saving …";
  }
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  async function send() {
    if (sending) return;
    sending = true;
    while (queue.length) {
      const job = queue[0];
      showSaved(failures ? "no answer yet" : "");
      let reply = null, problem = "";
      try {
        const response = await fetch("decide", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(job.body) });
        reply = await response.json();
        problem = response.ok ? "" : reply.problem || `HTTP ${response.status}`;
        if (response.status >= 400 && response.status < 500) {
          queue.shift();
          job.refused(problem);
          continue;
        }
      } catch {
        problem = "the server does not answer; is `spr review` still running?";
      }
      if (problem) {
        failures++;
        showSaved(problem);
        await pause(Math.min(500 * 2 ** failures, 8000));
        continue;
      }
      failures = 0;
      savedAny = true;
      queue.shift();
      job.saved(reply);
    }
    sending = false;
    showSaved();
  }
  addEventListener("beforeunload", (event) => { if (queue.length || (editor && editor.isChanged())) event.preventDefault(); });

  /* Make a decision that is undone by returning to `before`. */
  function post(n, body, { before, record, refused }) {
    const change = { n, before, after: body.action === "clear" ? null : { action: body.action, answer: null } };
    if (record) { done.push(change); undone.length = 0; }
    const job = {
      body: { pair: n, reviewer, ...body },
      saved(reply) {
        // A later decision about the same pair is shown already, and must not be taken back until it is saved itself.
        const isLast = !queue.some((later) => later.body.pair === n);
        if (isLast) mine[n] = reply.mine;
        outcomes[n] = reply.outcome;
        fetched.delete(n);
        if (record) change.after = reply.mine;
        progress();
        if (at >= 0 && order[at] === n && !editor) show();
        if (job.then) job.then();
      },
      refused(problem) {
        mine[n] = before;
        if (record) done.splice(done.indexOf(change), 1);
        progress();
        refused(problem);
        if (at >= 0 && order[at] === n && !editor) show();
      },
    };
    refusal = "";
    queue.push(job);
    send();
    return job;
  }
  const alone = (problem) => { refusal = `Not saved: ${problem}`; showSaved(); };
  function decide(action) {
    if (at < 0 || !current) return;
    const n = order[at], before = mine[n] || null;
    if (action === "clear" && !before) return;
    mine[n] = action === "clear" ? null : { action, answer: null };
    post(n, { action }, { before, record: true, refused: alone });
    progress();
    if (action === "clear") show(); else forward();
  }
  function revisit(from, to, which) {
    const change = from[from.length - 1], wanted = (change && change[which]) || { action: "clear" };
    // An edit can be made again only once it is saved.
    if (!change || editor || (wanted.action === "edit" && !wanted.answer)) return;
    from.pop();
    const body = wanted.action === "edit" ? { action: "edit", answer: wanted.answer } : { action: wanted.action };
    const before = mine[change.n] || null;
    mine[change.n] = change[which];
    to.push(change);
    post(change.n, body, { before, record: false, refused: alone });
    let k = order.indexOf(change.n);
    if (k < 0) { order.push(change.n); k = order.length - 1; }
    at = k;
    progress();
    show();
  }

  /* ── which pair is shown ── */
  const value = (name) => form.elements[name].value;
  function select() {
    const status = value("status"), split = value("split"), category = value("category"), find = value("find").trim().toLowerCase(), sort = value("sort");
    const most = value("margin").trim() === "" ? Infinity : Number(value("margin"));
    order = index.id.map((_, n) => n).filter((n) =>
      (status === "" || (status === "open" ? !mine[n] : status === "mine" ? mine[n] : outcomes[n] === status))
      && (split === "" || index.split[n] === split)
      && (category === "" || index.categoriesOf[n].includes(Number(category)))
      && index.margin[n] <= most
      && (!find || index.id[n].toLowerCase().includes(find) || index.file[n].toLowerCase().includes(find)));
    if (sort) {
      const column = index[sort.replace("-", "")], sign = sort.startsWith("-") ? -1 : 1;
      order.sort((a, b) => sign * (column[a] - column[b]) || a - b);
    }
    at = order.length ? 0 : -1;
    $("#filter-note").textContent = `${form.elements.status.selectedOptions[0].textContent}: ${SPR.count(order.length, "pair")}`;
    progress();
  }
  function progress() {
    const own = mine.filter(Boolean).length, all = index.id.length;
    $("#progress").textContent = `${own.toLocaleString("en")} of ${all.toLocaleString("en")} decided${at >= 0 ? ` · pair ${(at + 1).toLocaleString("en")} of ${order.length.toLocaleString("en")}` : ""}`;
    $("#done").style.width = `${(100 * own) / all}%`;
    $('[data-do="undo"]').setAttribute("aria-disabled", String(!done.length));
    $('[data-do="redo"]').setAttribute("aria-disabled", String(!undone.length));
  }
  /* On to the next pair that this reviewer has not decided, after this one or from the start. */
  function forward() {
    const open = [...order.keys()].map((k) => (at + 1 + k) % order.length).find((k) => !mine[order[k]]);
    if (open === undefined) finished(); else go(open);
  }
  function go(k) {
    if (k < 0 || k >= order.length) return;
    at = k;
    progress();
    show({ top: true });
  }
  function finished() {
    at = -1;
    current = null;
    progress();
    const again = el("button", "", "Show all pairs", { type: "button" });
    again.addEventListener("click", () => { form.reset(); form.elements.status.value = ""; select(); show(); });
    const left = index.id.length - mine.filter(Boolean).length;
    const text = left ? `No pair of this selection is left. ${SPR.count(left, "pair")} outside of it ${left === 1 ? "has" : "have"} no decision by ${reviewer}.` : `${reviewer} has decided all ${SPR.count(index.id.length, "pair")}.`;
    main.replaceChildren(el("div", "nothing", [el("p", "", text), again]));
    document.body.classList.remove("editing");
  }
  async function show({ top = false } = {}) {
    if (at < 0) { finished(); return; }
    const n = order[at], own = ++turn;
    let pair;
    try { pair = await pairOf(n); } catch (error) {
      if (own === turn) { current = null; main.replaceChildren(el("div", "nothing", [el("p", "", `Pair ${index.id[n]} can’t be loaded: ${error.message}`)])); }
      return;
    }
    if (own !== turn || editor) return;
    current = pair;
    const card = SPR.draw(pair.payload);
    const decision = mine[n] ? mine[n].action : "";
    card.classList.add({ accept: "accepted", edit: "accepted", reject: "rejected" }[decision] || "open");
    const words = { accept: "accepted", reject: "rejected", edit: "edited" };
    const others = mine[n] || pair.outcome === "conflict" ? Object.entries(pair.others) : [];
    card.insertBefore(el("div", "verdict", [
      decision ? el("span", `pill ${decision}`, `you: ${words[decision]}`) : null,
      ...others.map(([name, action]) => el("span", `pill ${action}`, `${name}: ${words[action]}`)),
      outcomes[n] === "conflict" && others.length ? el("span", "pill conflict", "conflict") : null,
    ]), card.children[1]);
    main.replaceChildren(card);
    for (const name of ["accept", "reject", "edit"]) $(`[data-do="${name}"]`).setAttribute("aria-pressed", String(decision === name));
    if (top) { scrollTo({ top: 0, behavior: "instant" }); main.focus({ preventScroll: true }); }
    const following = order[at + 1];
    if (following !== undefined) pairOf(following).then((next) => { if (next.payload.image.src) new Image().src = next.payload.image.src; }).catch(() => {});
  }

  /* ── editing ── */
  function mode(editing) {
    $("#decide").hidden = editing;
    $("#editing").hidden = !editing;
    $("#filter-box").hidden = editing;
  }
  function edit() {
    if (!current || editor || at < 0 || current.number !== order[at]) return;
    const before = mine[order[at]] || null;
    if (before && before.action === "edit" && current.edit.base !== before.answer) return;
    mode(true);
    editor = SPR.edit(current, main, { changed: () => showSaved() });
    editor.before = before;
    scrollTo({ top: 0, behavior: "instant" });
  }
  function close() {
    editor = null;
    mode(false);
    show();
    main.focus({ preventScroll: true });
  }
  function save() {
    if (!editor || editor.saving) return;
    const n = order[at], mineNow = editor;
    mineNow.saving = true;
    const job = post(n, { action: "edit", ...editor.result() }, { before: editor.before, record: true, refused: (problem) => { mineNow.saving = false; mineNow.refuse(problem); } });
    job.then = () => { editor = null; mode(false); forward(); };
  }
  function cancel() {
    if (editor.saving) return;
    if (!editor.isChanged() || confirm("Discard the changes to this answer?")) close();
  }

  /* ── buttons, keys, dialogs ── */
  const DO = {
    accept: () => decide("accept"),
    reject: () => decide("reject"),
    clear: () => decide("clear"),
    edit,
    undo: () => revisit(done, undone, "before"),
    redo: () => revisit(undone, done, "after"),
    previous: () => go(at < 0 ? order.length - 1 : at - 1),
    next: () => go(at + 1),
    forward,
    save,
    cancel,
    back: () => editor.back(),
    original: () => editor.original(),
    box: () => editor.add(),
    filters() { $("#filter-box").open = true; form.elements.status.focus(); },
    who: askName,
    keys: () => $("#keys-dialog").showModal(),
  };
  const KEYS = { a: "accept", r: "reject", c: "clear", e: "edit", u: "undo", y: "redo", n: "forward", f: "filters", w: "who", "?": "keys", arrowleft: "previous", arrowright: "next", k: "previous", j: "next" };
  const EDIT_KEYS = { b: "box", o: "original", escape: "cancel", "?": "keys" };
  document.addEventListener("keydown", (event) => {
    if (!index || document.querySelector("dialog[open]") || event.altKey) return;
    const typing = event.target.closest("input, textarea, select"), command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let action = null;
    if (editor) {
      if (command && key === "enter") action = "save";
      else if (key === "escape") action = "cancel";
      else if (typing) return;
      else if (command && key === "z") action = "back";
      else if (editor.key(event)) { event.preventDefault(); return; }
      else if (!command) action = EDIT_KEYS[key];
    } else if (!typing && !command) {
      // Within a picture, arrow keys move from box to box.
      if (event.defaultPrevented || (key.startsWith("arrow") && event.target.closest("svg.marks"))) return;
      action = event.shiftKey && key === "u" ? "redo" : KEYS[key];
    }
    if (action) { event.preventDefault(); DO[action](); }
  });
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => DO[button.dataset.do]());
  $("#who").addEventListener("click", () => { if (!editor) askName(); });
  $("#keys").addEventListener("click", DO.keys);
  form.addEventListener("input", () => { select(); show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { select(); show(); }));

  const nameDialog = $("#name-dialog");
  function askName() {
    if (queue.length || editor) return;
    nameDialog.querySelector("input").value = reviewer;
    nameDialog.showModal();
    nameDialog.querySelector("input").select();
  }
  nameDialog.addEventListener("cancel", (event) => { if (!reviewer) event.preventDefault(); });
  nameDialog.addEventListener("close", () => {
    const name = nameDialog.querySelector("input").value.trim();
    if (name && name !== reviewer) begin(name);
  });
  async function begin(name) {
    reviewer = name;
    try { localStorage.setItem("spr-reviewer", name); } catch { /* the page works without */ }
    $("#who").textContent = name;
    fetched.clear();
    done.length = undone.length = 0;
    try {
      ({ mine, outcomes } = await get(`state/${me()}`));
    } catch (error) { alone(error.message); return; }
    select();
    show();
  }

  (async () => {
    try { index = await get("index"); } catch (error) {
      main.replaceChildren(el("div", "nothing", [el("p", "", `The pairs can’t be loaded: ${error.message}`)]));
      return;
    }
    document.title = `${index.run} · SPR review`;
    $("#run").textContent = index.run;
    form.elements.split.parentElement.hidden = !index.split.includes("holdout");
    const named = index.categories.map(([name, n], k) => [name, n, k]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
    for (const [name, n, k] of named) form.elements.category.append(el("option", "", `${name.slice(0, 60)} (${n.toLocaleString("en")})`, { value: String(k) }));
    let known = index.reviewer || "";
    if (!known) { try { nameDialog.querySelector("input").value = localStorage.getItem("spr-reviewer") || ""; } catch { /* no storage */ } }
    if (known) begin(known); else nameDialog.showModal();
  })();
})();
