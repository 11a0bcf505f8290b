// The tables of requests: those under way, those just finished, and one receipt on its own.

import { count, energy, money, number, percent, seconds } from "./format.js";
import { say } from "./words.js";

const COLUMNS = {
  running: ["request", "tenant", "stage", "prompt", "output", "energy", "parts", "j_per_token", "cost", "age"],
  finished: ["request", "tenant", "end", "prompt", "output", "energy", "parts", "j_per_token", "cost", "doubt"],
};
// Left out where there is no room: a receipt has them all.
const NARROW = new Set(["tenant", "stage", "end", "prompt", "j_per_token", "cost", "age", "doubt"]);

export function head(table, kind) {
  const row = document.createElement("tr");
  for (const name of COLUMNS[kind]) {
    const th = row.appendChild(document.createElement("th"));
    th.scope = "col";
    if (name !== "parts") th.textContent = say(name);
    th.className = NARROW.has(name) ? `${name} less` : name;
  }
  table.replaceChildren(row);
}

/** Without a request that names a tenant there is no such column. */
export function showTenants(tables, known) {
  for (const table of tables) table.classList.toggle("no-tenants", !known);
}

/** A row that is filled again and again: its cells are made once. */
function makeRow(kind, open) {
  const row = document.createElement("tr");
  const cells = COLUMNS[kind].map(name => {
    const td = row.appendChild(document.createElement("td"));
    if (NARROW.has(name)) td.className = name === "tenant" ? "tenant less" : "less";
    return td;
  });
  const button = cells[0].appendChild(document.createElement("button"));
  button.type = "button";
  button.addEventListener("click", () => open(row.dataset.id));
  const [prefix, name] = [0, 1].map(() => button.appendChild(document.createElement("span")));
  prefix.className = "less";
  const key = kind === "running" ? cells[2].appendChild(document.createElement("span")) : null;
  if (key) key.className = "key";
  const label = cells[2].appendChild(document.createElement("span"));
  const bar = cells[6].appendChild(document.createElement("span"));
  bar.className = "meter two";
  const parts = ["prefill", "decode", "recompute"].map(name => {
    const part = bar.appendChild(document.createElement("i"));
    part.style.background = `var(--${name})`;
    return part;
  });
  return { row, cells, prefix, name, key, label, parts };
}

/** The engine's own word, but for one that needs an explanation. */
function ending(reason, whole = false) {
  if (reason !== "stop_or_abort") return reason ?? "–";
  return whole ? `${say(reason)}: ${say("stop_or_abort_why")}` : say(reason);
}

/** Its joules: "at least" where some may be missing, a dash where none are known. */
function figure(request, significant) {
  const known = request.energy_j !== null && request.energy_j !== undefined;
  return (known && request.missed ? "≥ " : "") + energy(request.energy_j, significant);
}

function perToken(joules, tokens, significant) {
  return tokens && joules !== null && joules !== undefined ? energy(joules / tokens, significant) : "–";
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(made, request, most, currency) {
  const { row, cells, prefix, name, key, label, parts } = made;
  const running = "progress" in request;
  const tokens = running ? request.output_tokens : request.completion_tokens;
  row.dataset.id = request.id;
  // "chatcmpl-" says nothing: on a phone the end of the name is what tells requests apart.
  const lead = /^(chat)?cmpl-/.exec(request.id)?.[0] ?? "";
  set(prefix, lead);
  set(name, request.id.slice(lead.length));
  row.title = [request.tenant, request.model].filter(Boolean).join(" · ");
  set(label, running ? say(request.progress) : ending(request.reason));
  cells[2].title = request.reason === "stop_or_abort" ? say("stop_or_abort_why") : "";
  if (key) key.style.background = `var(--${request.progress})`;
  set(cells[1], request.tenant ?? "–");
  set(cells[3], count(request.prompt_tokens));
  set(cells[4], count(tokens));
  set(cells[5], figure(request));
  cells[5].title = request.missed ? say("may_miss", say(request.missed)) : "";
  const joules = [request.prefill_j, request.decode_j, request.recompute_j];
  parts.forEach((part, i) => { part.style.width = `${most > 0 ? 100 * joules[i] / most : 0}%`; });
  set(cells[7], perToken(request.energy_j, tokens, 3));
  const cost = running ? request.cost : request.cost && Number(request.cost.amount);
  set(cells[8], money(cost, currency ?? request.cost?.currency));
  set(cells[9], running ? seconds(request.age_s)
    : request.energy_j > 0 ? `± ${percent(request.uncertainty_j / request.energy_j)}` : "–");
}

/** A table body whose rows follow a list; a request keeps its row while it is shown. */
export class Rows {
  constructor(body, kind, open) {
    this.body = body;
    this.kind = kind;
    this.open = open;
    this.made = new Map();
  }

  show(requests, currency) {
    const most = Math.max(0, ...requests.map(request => request.energy_j));
    const kept = new Map();
    requests.forEach((request, place) => {
      const name = `${request.engine} ${request.id}`;
      const made = this.made.get(name) ?? makeRow(this.kind, this.open);
      kept.set(name, made);
      fill(made, request, most, currency);
      if (this.body.children[place] !== made.row) {
        this.body.insertBefore(made.row, this.body.children[place] ?? null);
      }
    });
    for (const [name, made] of this.made) if (!kept.has(name)) made.row.remove();
    this.made = kept;
  }
}

/** The facts of one receipt, as pairs of words. */
export function facts(receipt) {
  const cost = receipt.cost;
  const doubt = receipt.energy_j > 0 ? ` (${percent(receipt.uncertainty_j / receipt.energy_j)})` : "";
  return [
    [say("request"), receipt.id],
    [say("model"), receipt.model ?? "–"],
    ...(receipt.tenant ? [[say("tenant"), receipt.tenant]] : []),
    [say("energy"), figure(receipt, 5)],
    ...(receipt.missed ? [[say("missed"), say("may_miss", say(receipt.missed))]] : []),
    [say("doubt"), energy(receipt.uncertainty_j, 3) + doubt],
    [say("prefill"), energy(receipt.prefill_j)],
    [say("decode"), energy(receipt.decode_j)],
    [say("recompute"), energy(receipt.recompute_j)],
    [say("prompt"), count(receipt.prompt_tokens)],
    [say("cached"), count(receipt.cached_tokens)],
    [say("output"), count(receipt.completion_tokens)],
    [say("j_per_token"), perToken(receipt.energy_j, receipt.completion_tokens)],
    ["kWh", receipt.kwh == null ? "–" : receipt.kwh.toExponential(3)],
    [say("cost"), cost ? money(Number(cost.amount), cost.currency) : "–"],
    ...Object.entries(cost?.components ?? {}).map(([name, amount]) =>
      [`  ${name}`, money(Number(amount), cost.currency)]),
    [say("end"), ending(receipt.reason, true)],
    [say("quality"), receipt.quality ? say(receipt.quality) : "–"],
    [say("boundary"), receipt.boundary],
    [say("fidelity"), receipt.fidelity],
    [say("final"), receipt.final ? say("yes") : say("so_far")],
  ];
}
