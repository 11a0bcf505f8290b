// The page: takes the meter's messages and shows them. It computes differences and ratios for the
// eye; every sum is the meter's own.

import { count, energy, energyParts, money, number, percent, quantity, seconds, split, summands, units } from "./format.js";
import { WINDOW_S, Series, deviceColour, drawBatch, drawCells, drawFlow, plotLeft, stackNames, tip } from "./chart.js";
import { Rows, facts, head, showTenants } from "./requests.js";
import { say, translate } from "./words.js";

const at = id => document.getElementById(id);
const ACCOUNTS = ["prefill", "decode", "recompute", "idle", "startup", "unattributed", "pending"];
const SORTS = ["energy", "token", "tokens", "prompt", "age", "newest"];
const ROWS = 50, STALE_S = 3, DEAF_S = 10, FRAME_MS = 100, RETRY_MS = 2000;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const series = new Series();
const running = new Rows(at("running"), "running", showReceipt);
const finished = new Rows(at("finished"), "finished", showReceipt);
let source = null;
let last = null;            // the last message
let heardMs = null;         // when it came, by this clock
let ended = false;
let paused = false;
let by = "account";
let cells = null;           // the batch as it was drawn last
let hover = null;           // seconds before now

// --- the stream

function connect() {
  source?.close();
  const query = new URLSearchParams({ rows: ROWS, sort: at("sort").value, match: at("match").value });
  source = new EventSource(`v1/live?${query}`);
  let fresh = true;
  source.onmessage = event => {
    const message = JSON.parse(event.data);
    if (fresh) series.clear();
    fresh = false;
    ended = false;
    take(message);
  };
  source.onopen = () => { fresh = true; };
  // A browser tries a broken connection again, but not one that was refused (by a proxy, say).
  const mine = source;
  source.onerror = () => {
    if (mine === source && source.readyState === EventSource.CLOSED) setTimeout(() => mine === source && connect(), RETRY_MS);
  };
  source.addEventListener("end", () => { ended = true; judge(); });
}

function take(message) {
  heardMs = performance.now();
  if (message.summary) series.add(message.moments, message.accounts);
  if (paused) return;
  last = message;
  show();
}

/** Seconds since the last message, by this clock. */
const silence = () => heardMs === null ? Infinity : (performance.now() - heardMs) / 1000;
/** The meter's own time now. */
const nowS = () => last.now_s + (paused ? 0 : silence());

// --- what is shown

function show() {
  judge();
  if (!last?.summary) return;
  const s = last.summary, currency = s.cost?.currency;
  figures(s, currency);
  accounts(s);
  theSum(s);
  devices(s);
  requests(currency);
  if (still.matches) draw();
}

function big(id, [value, unit]) {
  const element = at(id), small = document.createElement("i");
  small.textContent = unit;
  element.replaceChildren(value, small);
}

function figures(s, currency) {
  const power = series.moments.at(-1)?.power ?? null;
  big("power", split(power, "W", 3));
  const limits = s.devices.map(d => d.power_limit_w);
  const limit = limits.includes(null) ? "" : say("of_limit", quantity(limits.reduce((a, b) => a + b, 0), "W", 3));
  at("power_note").replaceChildren(tag(s.quality), ` ${limit}`);
  const minute = idle => s.per_token.filter(f => f.window === "1m" && f.token_type === "output" && f.idle === idle);
  const only = figures => figures.length === 1 ? figures[0] : null;
  const without = only(minute("without")), with_ = only(minute("with"));
  const joules = figure => figure && figure.kwh_per_token * 3.6e6;
  big("token", energyParts(joules(without)));
  at("token_note").textContent = !without ? say("no_tokens")
    : [with_ && say("with_idle", energy(joules(with_), 3)), say("kwh_million", quantity(without.kwh_per_token * 1e9, "Wh", 3))]
      .filter(Boolean).join(" · ");
  const cost = without?.cost_per_million_tokens ?? null;
  big("cost", cost === null ? ["–", ""] : [number(cost, 3), currency ?? ""]);
  at("cost_note").textContent = !currency ? say("no_price")
    : with_ ? say("with_idle", money(with_.cost_per_million_tokens, currency)) : say("no_tokens");
  const speed = series.speed();
  big("speed", speed === null ? ["–", ""] : [speed < 10 ? number(speed, 2) : count(Math.round(speed)), "/ s"]);
  at("speed_note").textContent = say("requests_done", count(s.requests), count(s.requests_running));
}

function pairs(list, facts) {
  list.replaceChildren(...facts.flatMap(([name, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

function tag(quality) {
  const element = document.createElement("span");
  element.className = `tag ${quality ?? ""}`;
  element.textContent = quality ? say(quality) : "–";
  return element;
}

function accounts(s) {
  const whole = Math.max(s.measured_j, 1e-12), body = at("accounts");
  if (!body.children.length) body.replaceChildren(...ACCOUNTS.map(accountRow));
  ACCOUNTS.forEach((name, i) => {
    const [, joules, share] = body.children[i].children, part = s[`${name}_j`] / whole;
    joules.textContent = energy(s[`${name}_j`]);
    share.lastChild.textContent = percent(part);
    share.firstChild.firstChild.style.width = `${100 * Math.min(1, Math.max(0, part))}%`;
  });
  at("reasons").textContent = Object.entries(s.unattributed_by_reason)
    .filter(([, joules]) => joules > 0).map(([reason, joules]) => `${energy(joules)}: ${say(reason)}`).join(" · ");
}

function accountRow(name) {
  const row = document.createElement("tr");
  const [label, , share] = [0, 1, 2].map(() => row.appendChild(document.createElement("td")));
  label.append(key(name), say(name));
  const meter = share.appendChild(document.createElement("span")), fill = document.createElement("i");
  meter.className = "meter";
  meter.append(fill);
  fill.style.background = `var(--${name})`;
  share.append(document.createElement("span"));
  return row;
}

function key(name, kind = "") {
  const element = document.createElement("span");
  element.className = `key ${kind}`;
  if (name) element.style.background = name.startsWith("hsl") ? name : `var(--${name})`;
  return element;
}

/** Measured = attributed + idle + start-up + unattributed + pending: held in view. */
function theSum(s) {
  const whole = Math.max(s.measured_j, 1e-12), bar = at("bar");
  if (!bar.children.length) {
    bar.replaceChildren(...ACCOUNTS.map(name => {
      const part = document.createElement("i");
      part.style.background = `var(--${name})`;
      return part;
    }));
  }
  ACCOUNTS.forEach((name, i) => { bar.children[i].style.width = `${100 * Math.max(0, s[`${name}_j`]) / whole}%`; });
  const parts = ["attributed", "idle", "startup", "unattributed", "pending"];
  const error = Math.abs(s.conservation_error_j), good = error < Math.max(1e-6, 1e-10 * s.measured_j);
  const told = summands(s.measured_j, parts.map(name => s[`${name}_j`]));
  const line = [term(`${told.total} ${told.unit}`, "measured")];
  parts.forEach((name, i) => line.push(piece(i ? "+" : "=", "op"), term(told.terms[i], name)));
  line.push(piece(good ? say("closes") : say("off", energy(error)), good ? "check" : "check broken"));
  at("sum").replaceChildren(...line);
}

function piece(text, kind) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

function term(text, name) {
  const element = document.createElement("span"), value = document.createElement("b");
  value.textContent = text;
  element.append(value, ` ${say(name)}`);
  return element;
}

function devices(s) {
  at("devices").classList.toggle("many", s.devices.length > 2);
  at("devices").replaceChildren(...s.devices.map((device, i) => {
    const item = document.createElement("li"), name = document.createElement("span"), note = document.createElement("small");
    name.append(by === "device" ? key(deviceColour(i)) : "", `${device.gpu} · ${device.gpu_name}`);
    const told = !device.refresh_s ? "" : !(device.delay_s >= 0.001)
      ? say("counter_refresh", seconds(device.refresh_s)) : say("counter", seconds(device.refresh_s), seconds(device.delay_s));
    note.append(tag(device.quality), ` ${say("measured_since", energy(device.measured_j))}${told ? ` · ${told}` : ""}${device.note ? ` · ${device.note}` : ""}`);
    item.append(name, piece(quantity(series.moments.at(-1)?.watts[i], "W", 3), ""), note);
    return item;
  }));
  const tokens = [["input", s.tokens.input], ["input_cached", s.tokens.input_cached], ["output_tokens", s.tokens.output]];
  const spent = Object.entries(s.cost?.components ?? {}).map(([name, amount]) => [name, money(Number(amount), s.cost.currency)]);
  pairs(at("so_far"), [...tokens.filter(([, n]) => n !== undefined).map(([name, n]) => [name, count(n)]), ...spent]
    .map(([name, text]) => [say(name), text]));
  const models = [...new Set(s.engines.map(engine => engine.model).filter(Boolean))];
  const cards = new Map();
  s.devices.forEach(d => cards.set(d.gpu_name, (cards.get(d.gpu_name) ?? 0) + 1));
  const on = [...cards].map(([name, n]) => n > 1 ? `${n} × ${name}` : name).join(", ");
  at("subject").textContent = [models.join(", "), on].filter(Boolean).join(" · ");
  at("version").textContent = `joulemeter ${s.version}`;
}

function requests(currency) {
  const all = last.running;
  at("running_count").textContent = count(all.total);
  at("stages").replaceChildren(...Object.entries(all.counts).map(([name, n]) => {
    const item = document.createElement("li");
    item.append(key(name), `${count(n)} ${say(name)}`);
    return item;
  }));
  if (all.cells !== cells) {
    cells = all.cells;
    drawCells(at("cells"), cells);
    at("cells").setAttribute("aria-label", say("cells_says", count(all.total),
      Object.entries(all.counts).map(([name, n]) => `${n} ${say(name)}`).join(", ")));
  }
  running.show(all.rows, currency);
  at("running_note").textContent = all.total === 0 ? say("none_running") : all.matching === 0 ? say("none_match")
    : all.rows.length < all.matching ? say("shown", all.rows.length, count(all.matching)) : "";
  finished.show(last.finished, currency);
  showTenants(document.querySelectorAll(".requests"), [...all.rows, ...last.finished].some(r => r.tenant));
  at("finished_note").textContent = last.finished.length ? "" : say("none_finished");
}

// --- alive, quiet, or blind

/** Sets the state and the alarm; blindness is never shown as a quiet engine. */
function judge() {
  const s = last?.summary, age = s?.source_age_s ?? {};
  const power = age.power === undefined ? undefined : age.power + silence(), quiet = series.quiet_s();
  const silent = (s?.devices ?? []).filter(d => d.age_s !== null && d.age_s + silence() > STALE_S);
  let state = "live", word = say("live"), alarm = "";
  if (heardMs === null) [state, word] = ["wait", say("connecting")];
  else if (ended) [state, word, alarm] = ["lost", say("ended"), say("say_ended")];
  else if (silence() > STALE_S) [state, word, alarm] = ["lost", say("lost"), say("say_lost", Math.round(silence()))];
  else if (!s) [state, word, alarm] = ["wait", say("waits"), last.problems.join(" ")];
  else if (power === undefined || !s.devices.length) [state, word, alarm] = ["blind", say("blind"), said("say_no_power")];
  else if (power > STALE_S || silent.length === s.devices.length) [state, word, alarm] = ["blind", say("blind"), said("say_blind", Math.round(Math.max(power, silent[0]?.age_s ?? 0)))];
  else if (silent.length) [state, word, alarm] = ["blind", say("blind"), said("say_part_blind", silent.map(d => d.gpu).join(", "), Math.round(silent[0].age_s))];
  else if (s.requests_running > 0 && age.engine > DEAF_S) [state, word, alarm] = ["blind", say("blind"), said("say_deaf", Math.round(age.engine))];
  else if (s.requests_running === 0) {
    const since = age.engine === undefined ? say("say_no_engine") : quiet === null ? "" : say("idle_for", say("seconds", Math.round(quiet)));
    [state, word, alarm] = ["quiet", [say("quiet"), since].filter(Boolean).join(" · "), last.problems.join(" ")];
  } else alarm = last.problems.join(" ");
  if (paused && state !== "lost") word = say("paused");
  const status = at("status");
  // Only a change of kind is announced; the seconds that run on are not.
  status.setAttribute("aria-live", status.dataset.state === state ? "off" : "polite");
  status.dataset.state = state;
  status.firstElementChild.textContent = word;
  at("alarm").hidden = !alarm;
  if (alarm && at("alarm").textContent !== alarm) at("alarm").textContent = alarm;
}

const said = (word, ...values) => [say(word, ...values), ...last.problems].join(" ");

// --- the charts

let drawnMs = 0;
function draw() {
  if (!last || !series.moments.length) return;
  const now = nowS(), hovered = hover === null ? null : now - hover;
  const options = { now, seen: now - (paused ? 0 : silence()), by, hover: hovered };
  drawFlow(at("flow"), series, options);
  drawBatch(at("batch"), series, options);
  at("tip").hidden = hovered === null;
  if (hovered !== null) showTip(hovered);
}

function frame(ms) {
  if (!still.matches && !paused && ms - drawnMs >= FRAME_MS) { drawnMs = ms; draw(); }
  requestAnimationFrame(frame);
}

function showTip(t) {
  const box = at("tip"), width = at("flow").clientWidth;
  box.textContent = tip(series, t, by, (last.summary?.devices ?? []).map(d => d.gpu_name));
  const place = plotLeft + (width - 8 - plotLeft) * (1 - hover / WINDOW_S);
  box.style.left = place > width / 2 ? "" : `${place + 10}px`;
  box.style.right = place > width / 2 ? `${width - place + 10}px` : "";
}

function point(event) {
  const box = at("flow").getBoundingClientRect();
  const part = (event.clientX - box.left - plotLeft) / (box.width - 8 - plotLeft);
  hover = part < 0 || part > 1 ? null : (1 - part) * WINDOW_S;
  if (still.matches || paused) draw();
}

function legend() {
  const names = by === "account" ? [...stackNames, "pending"] : [];
  const items = names.map(name => [key(name), say(name)]);
  if (by === "account") items.push([key("", "line"), say("measured")]);
  else (last?.summary?.devices ?? []).forEach((d, i) => items.push([key(deviceColour(i)), `${d.gpu} · ${d.gpu_name}`]));
  at("legend").replaceChildren(...items.map(parts => {
    const item = document.createElement("li");
    item.append(...parts);
    return item;
  }));
}

/** For those who do not see the charts; renewed rarely, and not announced. */
function describe() {
  const s = last?.summary, moment = series.moments.at(-1);
  if (!s || !moment) return;
  at("flow").setAttribute("aria-label", say("chart_says", quantity(moment.power, "W", 3), seconds(s.settled_lag_s)));
  at("batch").setAttribute("aria-label", say("batch_says", count(moment.running)));
}

// --- what the reader does

async function showReceipt(id) {
  const answer = await fetch(`v1/receipts/${encodeURIComponent(id)}`).catch(() => null);
  const found = answer?.ok ? facts(await answer.json()) : [[say("request"), id], ["", say("gone")]];
  pairs(at("receipt_facts"), found);
  if (!at("receipt").open) at("receipt").showModal();
}

function press(button, on) { button.setAttribute("aria-pressed", String(on)); }

function listen() {
  at("pause").onclick = () => {
    paused = !paused;
    press(at("pause"), paused);
    at("pause").textContent = say(paused ? "resume" : "pause");
    judge();
  };
  for (const button of document.querySelectorAll("[data-unit]")) {
    button.onclick = () => {
      units.wh = button.dataset.unit === "wh";
      document.querySelectorAll("[data-unit]").forEach(other => press(other, other === button));
      show();
    };
  }
  for (const button of document.querySelectorAll("[data-split]")) {
    button.onclick = () => {
      by = button.dataset.split;
      document.querySelectorAll("[data-split]").forEach(other => press(other, other === button));
      legend();
      show();
      draw();
    };
  }
  let typed = 0;
  at("match").oninput = () => { clearTimeout(typed); typed = setTimeout(connect, 250); };
  at("sort").onchange = connect;
  at("flow").onpointermove = point;
  at("flow").onpointerleave = () => { hover = null; if (still.matches || paused) draw(); };
  at("flow").onkeydown = event => {
    const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (event.key === "Escape") hover = null;
    else if (step) hover = Math.min(WINDOW_S, Math.max(0, (hover ?? 0) + step));
    else return;
    event.preventDefault();
    draw();
  };
  at("flow").onblur = () => { hover = null; draw(); };
  dark.addEventListener("change", () => { cells = null; show(); legend(); draw(); });
  window.addEventListener("resize", () => { cells = null; show(); draw(); });
}

translate();
at("sort").replaceChildren(...SORTS.map(name => new Option(say(`sort_${name}`), name)));
head(at("running").parentElement.tHead, "running");
head(at("finished").parentElement.tHead, "finished");
legend();
listen();
connect();
judge();
setInterval(judge, 1000);
setInterval(describe, 5000);
setTimeout(describe, 1500);
requestAnimationFrame(frame);
