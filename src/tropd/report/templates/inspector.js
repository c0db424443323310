"use strict";
(function () {
  const at = (id) => document.getElementById(id);
  let touched = 0;

  // ---- a page that follows a run: ask for it again, but not while somebody reads
  const follow = Number(document.body.dataset.follow);
  if (follow) {
    setInterval(() => {
      if (Date.now() - touched > 60000) location.reload();
    }, 1000 * follow);
  }
  if (!at("rollouts")) return;

  // ---- the data, as inspector.py lays it out
  const [TEXT, REGION, R, SAMPLED, TEACHER, STUDENT, DIRECT, LOSS, ID, LIKELIEST] = Array(10).keys();
  const data = JSON.parse(at("rollouts").textContent);
  const filters = { q: at("by-text"), run: at("by-run"), step: at("by-step"), region: at("by-region"), r: at("by-depth") };
  let found = []; // numbers of rollouts
  let place = 0; // in `found`
  let token = 0;

  const make = (tag, how, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(how)) {
      if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const number = (value, digits) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
  const share = (logp) => {
    if (logp === null) return "–";
    const percent = 100 * Math.exp(logp);
    return percent >= 0.01 ? `${percent >= 99.95 ? "100" : percent.toPrecision(3)}%` : `${percent.toExponential(1).replace("-", "−")}%`;
  };
  const shown = (text) => text.replaceAll("\n", "↵\n") || "∅";
  const quoted = (text) => `“${text.replaceAll("\n", "↵") || "∅"}”`;

  // ---- finding
  const asksForTokens = () => filters.region.value !== "" || filters.r.value !== "";
  const isHit = (t) =>
    (filters.region.value === "" || t[REGION] === Number(filters.region.value)) &&
    (filters.r.value === "" || (t[R] !== null && t[R] <= Number(filters.r.value)));
  const isMarked = (t) => (asksForTokens() ? isHit(t) : data.marks[t[REGION]] === "o" || data.marks[t[REGION]] === "x");
  const textOf = (rollout) => (rollout.prompt + (rollout.response || rollout.tokens.map((t) => t[TEXT]).join("")) + (rollout.episode || []).map((part) => part[2]).join("")).toLowerCase();

  function find() {
    const words = filters.q.value.toLowerCase();
    found = [];
    let hits = 0;
    data.rollouts.forEach((rollout, index) => {
      if (filters.run.value !== "" && rollout.run !== Number(filters.run.value)) return;
      if (filters.step.value !== "" && rollout.step !== Number(filters.step.value)) return;
      if (words && !textOf(rollout).includes(words)) return;
      const mine = asksForTokens() ? rollout.tokens.filter(isHit).length : 0;
      if (asksForTokens() && !mine) return;
      hits += mine;
      found.push(index);
    });
    const tokens = asksForTokens() ? `, ${hits} ${hits === 1 ? "token" : "tokens"} in them` : "";
    at("found").textContent = `${found.length} of ${data.rollouts.length} rollouts${tokens}.`;
    at("which").replaceChildren(...found.map((index, n) => make("option", { value: n }, nameOf(data.rollouts[index]))));
    listDeepest();
  }

  const nameOf = (rollout) => (data.runs.length > 1 ? `${data.runs[rollout.run]}, ` : "") + `step ${rollout.step}, row ${rollout.row}`;

  function listDeepest() {
    const all = [];
    found.forEach((index, n) =>
      data.rollouts[index].tokens.forEach((t, i) => {
        if (t[R] !== null && (asksForTokens() ? isHit(t) : t[R] < 0)) all.push([t[R], n, i]);
      })
    );
    all.sort((a, b) => a[0] - b[0]);
    const items = all.slice(0, 12).map(([r, n, i]) => {
      const rollout = data.rollouts[found[n]];
      const button = make("button", { type: "button" }, `r ${number(r, 2)}  ${quoted(rollout.tokens[i][TEXT])}  ${nameOf(rollout)}`);
      button.addEventListener("click", () => open(n, i, true));
      return make("li", {}, button);
    });
    at("deepest").hidden = !items.length;
    at("deepest").querySelector("ol").replaceChildren(...items);
  }

  // ---- one rollout
  function open(n, i, focus) {
    place = Math.min(Math.max(n, 0), found.length - 1);
    const rollout = data.rollouts[found[place]];
    at("text").hidden = at("panel").hidden = !rollout;
    for (const id of ["earlier", "later", "back", "on", "which"]) at(id).disabled = !rollout;
    if (!rollout) return remember();
    at("which").value = String(place);
    at("earlier").disabled = place === 0;
    at("later").disabled = place === found.length - 1;
    const said = (k) =>
      (rollout.episode || []).filter(([at]) => at === k).map(([, author, words]) => make("span", { className: "part" }, make("b", {}, author), words && ` ${words}`));
    const spans = rollout.tokens.flatMap((t, k) => {
      const span = make("span", { className: `k ${data.marks[t[REGION]]}${asksForTokens() && isHit(t) ? " hit" : ""}`, tabIndex: -1, role: "button" }, shown(t[TEXT]));
      span.addEventListener("click", () => select(k, true));
      return [...said(k), span];
    });
    if (!rollout.cut) spans.push(...said(rollout.tokens.length));
    const rest = rollout.tokens.length ? [] : [make("span", { className: "x" }, rollout.response)];
    const cut = rollout.cut ? [make("em", {}, ` … ${rollout.cut} more tokens`)] : [];
    at("text").replaceChildren(make("span", { className: "prompt" }, rollout.prompt), ...spans, ...rest, ...cut);
    const first = rollout.tokens.findIndex(isMarked);
    select(i === null ? Math.max(first, 0) : i, focus);
  }

  const spans = () => at("text").querySelectorAll(".k");

  function select(i, focus) {
    const rollout = data.rollouts[found[place]];
    token = Math.min(Math.max(i, 0), Math.max(rollout.tokens.length - 1, 0));
    spans().forEach((span, k) => {
      span.classList.toggle("sel", k === token);
      span.tabIndex = k === token ? 0 : -1;
      if (k === token) span.setAttribute("aria-pressed", "true");
      else span.removeAttribute("aria-pressed");
      if (k === token && focus) span.focus({ preventScroll: false });
    });
    show(rollout, rollout.tokens[token]);
    remember();
  }

  function show(rollout, t) {
    const whose = nameOf(rollout) + (rollout.teacher ? `, teacher ${rollout.teacher}` : "");
    const state = !rollout.included ? "left out of the loss" : rollout.ended ? "ended by itself" : "cut at the limit";
    if (!t) return at("panel").replaceChildren(make("h3", {}, "No token to show"), make("p", { className: "note" }, `${whose}: ${state}.`));
    const facts = [
      ["region", data.regions[t[REGION]]],
      ["r = log π_T − log π_S", `${number(t[R], 3)} nats`],
      ["student, π_S", `${share(t[SAMPLED])} (log ${number(t[SAMPLED], 3)})`],
      ["teacher, π_T", `${share(t[TEACHER])} (log ${number(t[TEACHER], 3)})`],
      ["min(π_T/π_S, 1)", t[R] === null ? "–" : share(Math.min(t[R], 0))],
      ["K1 term, −r", t[R] === null ? "–" : number(-t[R], 3)],
      [data.divergences[rollout.run], t[DIRECT] === null ? "none for this token" : number(t[DIRECT], 3)],
      ["part of the loss", number(t[LOSS], 4)],
    ];
    if (t[STUDENT] !== null && t[SAMPLED] !== null && Math.abs(t[STUDENT] - t[SAMPLED]) > 0.001) facts.push(["π_S at this update", share(t[STUDENT])]);
    facts.push(["token id", String(t[ID])]);
    const list = make("dl", {});
    for (const [name, value] of facts) list.append(make("dt", {}, name), make("dd", {}, value));
    const rows = t[LIKELIEST].map(([text, logp]) =>
      make("tr", text === t[TEXT] ? { className: "written" } : {}, make("td", {}, quoted(text) + (text === t[TEXT] ? " ← written" : "")), make("td", {}, make("meter", { min: 0, max: 1, value: Math.exp(logp), "aria-hidden": "true" })), make("td", {}, share(logp)))
    );
    const likeliest = rows.length
      ? [make("h4", {}, "The teacher's likeliest"), make("table", {}, make("tbody", {}, ...rows))]
      : [make("p", { className: "note" }, "The teacher's alternatives to this token were not logged (alternatives_per_token).")];
    at("panel").replaceChildren(
      make("h3", {}, make("span", { className: data.marks[t[REGION]] }, quoted(t[TEXT])), ` ${token + 1} of ${rollout.tokens.length}`),
      make("p", { className: "note" }, `${whose}: ${state}` + (rollout.prefix && !rollout.episode ? `, after ${rollout.prefix} teacher tokens` : "") + "."),
      list,
      ...likeliest
    );
  }

  function marked(direction) {
    for (let n = place, from = token + direction; n >= 0 && n < found.length; n += direction) {
      const tokens = data.rollouts[found[n]].tokens;
      for (let k = n === place ? from : direction > 0 ? 0 : tokens.length - 1; k >= 0 && k < tokens.length; k += direction) {
        if (isMarked(tokens[k])) return n === place ? select(k, true) : open(n, k, true);
      }
    }
  }

  // ---- where one is, in the address, so that it can be sent on and outlives a reload
  function remember() {
    const rollout = data.rollouts[found[place]];
    const words = Object.entries(filters).filter(([, field]) => field.value !== "").map(([name, field]) => [name, field.value]);
    if (rollout) words.push(["at", [rollout.run, rollout.step, rollout.row, token].join(".")]);
    if (touched || location.hash.includes("at=")) history.replaceState(null, "", `#${new URLSearchParams(words)}`);
  }

  function recall() {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const [name, field] of Object.entries(filters)) if (words.has(name)) field.value = words.get(name);
    find();
    const [run, step, row, i] = (words.get("at") || "").split(".").map(Number);
    const n = found.findIndex((index) => {
      const rollout = data.rollouts[index];
      return rollout.run === run && rollout.step === step && rollout.row === row;
    });
    if (words.has("at") && n >= 0) return open(n, i, false);
    const kinds = found.map((index) => new Set(data.rollouts[index].tokens.map((t) => t[REGION])).size);
    open(kinds.indexOf(Math.max(...kinds)), null, false);
  }

  // ---- what a person does
  for (const field of Object.values(filters)) {
    field.addEventListener("input", () => {
      find();
      open(0, null, false);
    });
  }
  at("which").addEventListener("change", () => open(Number(at("which").value), null, false));
  at("earlier").addEventListener("click", () => open(place - 1, null, false));
  at("later").addEventListener("click", () => open(place + 1, null, false));
  at("back").addEventListener("click", () => marked(-1));
  at("on").addEventListener("click", () => marked(1));
  const keys = {
    ArrowLeft: () => select(token - 1, true),
    ArrowRight: () => select(token + 1, true),
    Home: () => select(0, true),
    End: () => select(Infinity, true),
    n: () => marked(1),
    p: () => marked(-1),
    "[": () => open(place - 1, null, true),
    "]": () => open(place + 1, null, true),
  };
  at("text").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const kind of ["pointerdown", "keydown", "input"]) at("inspector").addEventListener(kind, () => (touched = Date.now()), true);

  for (const id of ["find", "turn", "keys"]) at(id).hidden = false;
  recall();
})();
