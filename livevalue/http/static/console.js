// The console: a table of users whose value moves, and one user with their silence curve.
"use strict";

const DAY_MS = 86_400_000;
const ROWS = 18;
const KEPT = 500; // users whose last move is remembered
const RECENT_MS = 8000; // of these the largest moves are shown, or of the last 60

const $ = (id) => document.getElementById(id);
const state = {
  moves: new Map(), // user -> move, the latest last
  rows: new Map(), // user -> <tr> in the table
  view: "largest",
  highest: [],
  unit: "",
  clock: "wall",
  now: 0, // the deployment's time when `heard` was read
  heard: 0,
  count: 0,
  counted: performance.now(),
  chosen: null,
  published: null, // the document of the chosen user, as published
  dirty: true,
  held: false,
};

const number = new Intl.NumberFormat(undefined,
  { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const money = (value) => `${number.format(value)} ${state.unit}`.trim();
const signed = (value) => (value >= 0 ? "+" : "−") + number.format(Math.abs(value));
const percent = (share) => `${Math.round(100 * share)}%`;
const day = new Intl.DateTimeFormat(undefined,
  { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const minute = new Intl.DateTimeFormat(undefined,
  { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false, timeZone: "UTC" });
const shown = (format, text) => (text ? format.format(new Date(text)) : "never");

function say(kind, text) {
  $("state").className = `state ${kind}`;
  $("state").textContent = text;
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text || "";
}

function trouble(error) {
  if (error.status === 401) {
    $("token-form").hidden = false;
    say("away", "token needed");
  } else {
    say("away", error.status ? "not ready" : "no server");
    notice(error.message);
  }
}

// What moved a value. The amount is known where the document before this one was seen.
function why(document, before) {
  const cause = document.cause.type;
  const now = document.history;
  if (cause === "silence") return "silence: time passed without an order";
  if (cause === "generation") return "a new model rescored everyone";
  if (cause === "recover") return "published again after a roll-back";
  if (cause === "erase") return "events that an erase left";
  if (cause !== "purchase") return cause;
  if (before) {
    const spent = now.spent_gross - before.history.spent_gross;
    const refunded = now.refunded - before.history.refunded;
    const told = [];
    if (spent > 0.005) told.push(`order of ${money(spent)}`);
    if (refunded > 0.005) told.push(`refund of ${money(refunded)}`);
    if (told.length) return told.join(", ");
  }
  if (now.orders === 1 && !now.refunds) return "first order";
  if (now.last_order_at === document.as_of) return "order";
  return now.last_event_at === document.as_of ? "refund" : "order or refund";
}

function heard(name, data) {
  if (name === "update") {
    state.count += 1;
    const user = data.user_id;
    const before = state.moves.get(user);
    const horizon = data.headline;
    const value = data.values[horizon].expected;
    state.moves.delete(user);
    state.moves.set(user, {
      user, value, document: data, at: performance.now(),
      change: data.previous ? value - data.previous[horizon] : null,
      why: why(data, before && before.document),
    });
    if (state.moves.size > KEPT) state.moves.delete(state.moves.keys().next().value);
    if (state.clock === "log") {
      const as_of = Date.parse(data.as_of);
      if (as_of > state.now) state.now = as_of;
    }
    if (user === state.chosen) refresh();
    state.dirty = true;
  } else if (name === "erased") {
    state.moves.delete(data.user_id);
    if (data.user_id === state.chosen) refresh();
    state.dirty = true;
  } else if (name === "lost") {
    notice(`${data.updates} updates were left out: this page reads more slowly than they come.`);
  } else if (name === "away") {
    say("away", "broker away");
    notice(data.message);
  } else if (name === "back") {
    say("live", "live");
    notice(data.missed ? "The broker is back; what was published meanwhile is not in the table." : "");
  }
}

async function follow() {
  for (;;) {
    try {
      await api.listen("/v1/updates", heard, () => { say("live", "live"); notice(""); });
      say("away", "stream ended");
    } catch (error) {
      trouble(error);
    }
    await new Promise((again) => setTimeout(again, 2000));
  }
}

async function look() {
  try {
    const meta = await api.json("/v1/meta");
    state.unit = meta.unit.code;
    state.clock = meta.clock;
    state.now = Math.max(Date.parse(meta.now), meta.clock === "log" ? state.now : 0);
    state.heard = performance.now();
    $("token-form").hidden = true;
    $("unit").textContent = meta.unit.kind === "money" ? meta.unit.code : `${meta.unit.code} (${meta.unit.kind})`;
    $("clock-name").textContent = meta.clock === "log" ? "Clock of the log, UTC" : "Clock, UTC";
  } catch (error) {
    trouble(error);
  }
}

async function rank() {
  if (state.view !== "highest") return;
  try {
    state.highest = (await api.json(`/v1/top?n=${ROWS}`)).map((document) => ({
      user: document.user_id, document, change: null, at: 0,
      value: document.values[document.headline].expected,
      why: why(document, null),
    }));
    state.dirty = true;
  } catch (error) {
    trouble(error);
  }
}

function now() {
  return state.clock === "log" || !state.heard
    ? state.now : state.now + performance.now() - state.heard;
}

// The moves to show, in order.
function picked() {
  if (state.view === "highest") return state.highest;
  let moves = [...state.moves.values()];
  if (!$("silent").checked) {
    moves = moves.filter((move) => !["silence", "generation"].includes(move.document.cause.type));
  }
  moves.reverse();
  if (state.view === "newest") return moves.slice(0, ROWS);
  const since = performance.now() - RECENT_MS;
  return moves.filter((move, i) => i < 60 || move.at > since)
    .sort((a, b) => Math.abs(b.change ?? b.value) - Math.abs(a.change ?? a.value))
    .slice(0, ROWS);
}

function row(move) {
  const made = element("tr", {},
    element("td", {}, element("button", { type: "button", class: "pick", title: move.user },
      element("bdi", { textContent: move.user }))),
    ...["n value", "n change", "n", "n", "why", "n"].map((name) => element("td", { class: name })));
  made.addEventListener("click", () => choose(move.user));
  return made;
}

function render() {
  if (state.held || !state.dirty) return;
  state.dirty = false;
  const moves = picked();
  const body = document.querySelector("#moves tbody");
  const before = state.rows;
  state.rows = new Map();
  moves.forEach((move, i) => {
    const tr = before.get(move.user) || row(move);
    before.delete(move.user);
    state.rows.set(move.user, tr);
    if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] || null);
    if (tr.move === move.document) return;
    const [, value, change, active, orders, reason, as_of] = tr.children;
    const headline = move.document.values[move.document.headline];
    value.textContent = number.format(move.value);
    change.textContent = state.view === "highest" ? "" : move.change === null ? "new" : signed(move.change);
    change.className = `n change ${(move.change ?? 0) >= 0 ? "up" : "down"}`;
    active.textContent = percent(headline.p_active);
    orders.textContent = move.document.history.orders;
    reason.textContent = move.why;
    as_of.textContent = shown(minute, move.document.as_of);
    tr.move = move.document;
    tr.classList.remove("fresh");
    if (performance.now() - move.at < 1500) {
      void tr.offsetWidth; // starts the animation anew
      tr.classList.add("fresh");
    }
  });
  for (const tr of before.values()) tr.remove();
  for (const [user, tr] of state.rows) tr.classList.toggle("chosen", user === state.chosen);
  $("empty").hidden = moves.length > 0;
  const first = moves[0];
  if (first) {
    const days = first.document.headline.slice(1);
    $("value-head").textContent = `Next ${days} days, ${state.unit}`;
  }
}

function tick() {
  const at = now();
  if (at) $("clock").textContent = `${day.format(at)} ${new Date(at).toISOString().slice(11, 19)}`;
  const passed = (performance.now() - state.counted) / 1000;
  if (passed >= 2) {
    $("rate").textContent = `${Math.round(state.count / passed)} a second`;
    state.count = 0;
    state.counted = performance.now();
    const seen = [...state.moves.keys()].slice(-100).map((user) => element("option", { value: user }));
    $("seen").replaceChildren(...seen);
  }
}

let due = 0;
function refresh() {
  if (!due) due = setTimeout(() => { due = 0; load(state.chosen); }, 400);
}

function choose(user) {
  state.chosen = user;
  $("query").value = user;
  history.replaceState(null, "", `#${encodeURIComponent(user)}`);
  state.dirty = true;
  load(user);
}

// Two reads: as published (before its as_of a document says what it says), and as it stands now.
async function load(user) {
  const path = `/v1/users/${encodeURIComponent(user)}`;
  try {
    const [published, current] = await Promise.all([
      api.json(`${path}?at=1970-01-01T00:00:00Z`), api.json(path)]);
    if (user !== state.chosen) return;
    state.published = published;
    detail(published, current);
  } catch (error) {
    if (user !== state.chosen) return;
    if (error.status === 404) {
      $("user").hidden = true;
      $("nobody").hidden = false;
      $("nobody").textContent = `No event of ${user} has been folded yet, or none since they were erased.`;
    } else {
      trouble(error);
    }
  }
}

function detail(published, current) {
  $("nobody").hidden = true;
  $("user").hidden = false;
  $("user-title").replaceChildren(element("bdi", { textContent: published.user_id }));
  $("evidence").textContent = { cold: "cold: no order yet", thin: "thin: little known",
    enough: "enough known" }[published.evidence] || published.evidence;
  const before = state.moves.get(published.user_id);
  $("user-when").textContent =
    `Last moved ${shown(minute, published.as_of)} UTC by ${before ? before.why : why(published, null)}`;
  $("cards").replaceChildren(...Object.entries(current.values).map(([name, value], i) =>
    element("div", { class: `tile c${i}` },
      element("div", { class: "name", textContent: `next ${name.slice(1)} days` }),
      element("div", { class: "worth", textContent: number.format(value.expected) }),
      element("small", { textContent: `${percent(value.p_active)} active` }),
      element("small", { textContent: value.p90 === undefined ? "" : `9 in 10 below ${number.format(value.p90)}` }))));
  const since = Math.max((now() - Date.parse(published.as_of)) / DAY_MS, 0);
  plot.draw($("plot"), published.silence, since, money);
  const past = published.history;
  const facts = {
    "Orders": past.orders, "Spent, net": money(past.spent), "Refunds": past.refunds,
    "Refunded": money(past.refunded), "First event": shown(day, past.first_event_at),
    "Last order": shown(day, past.last_order_at), "Revision": published.revision,
    "Model": published.generation.slice(0, 12),
  };
  $("past").replaceChildren(...Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

document.querySelector(".tabs").addEventListener("click", (event) => {
  const view = event.target.dataset.view;
  if (!view) return;
  state.view = view;
  for (const tab of event.currentTarget.children) {
    tab.setAttribute("aria-pressed", String(tab === event.target));
  }
  for (const tr of state.rows.values()) tr.move = null;
  state.dirty = true;
  rank();
});
$("silent").addEventListener("change", () => { state.dirty = true; });
for (const [name, held] of [["pointerenter", true], ["pointerleave", false]]) {
  document.querySelector("#moves tbody").addEventListener(name, () => {
    state.held = held;
    $("paused").hidden = !held;
  });
}
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("query").value) choose($("query").value);
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token = $("token").value;
  $("token").value = "";
  $("token-form").hidden = true;
  look();
});

look();
follow();
setInterval(look, 10_000);
setInterval(rank, 3000);
setInterval(render, 500);
setInterval(tick, 250);
try {
  if (location.hash.length > 1) choose(decodeURIComponent(location.hash.slice(1)));
} catch { /* a broken escape in the address names nobody */ }
