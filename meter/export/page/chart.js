// The charts: power over the last two minutes, the requests in flight below it, a cell a request.
// Areas reach as far as joules are settled; from there on only the drawn line is known: pending.

import { count, quantity } from "./format.js";
import { say } from "./words.js";

export const WINDOW_S = 120;
const STACK = ["prefill", "decode", "recompute", "startup", "idle", "unattributed"];
const SMOOTH_S = 0.9;
const COUNTER_S = 1.3;    // many ticks of a counter, so that its steps do not show
const HOLE_S = 3;
const LEFT = 46, BOTTOM = 20, TOP = 8;

const style = getComputedStyle(document.documentElement);
export const colour = name => style.getPropertyValue(`--${name}`).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

/** From cyan over blue to pink, neighbours apart; none is the colour of an account. */
export function deviceColour(index) {
  const lightness = (dark.matches ? 60 : 42) + (index % 2 ? 12 : 0);
  return `hsl(${190 + (index % 8) * 18} 48% ${lightness}%)`;
}

/** Canvas of the size it is shown at, cleared; drawn on in CSS pixels. */
function begin(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

/** The next round number at or above. */
function rounded(value) {
  const base = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 1.5, 2, 3, 4, 5, 8, 10].map(step => step * base).find(step => step >= value);
}

/** What the meter told: moments, and the power of each account between them. */
export class Series {
  constructor() { this.clear(); }

  clear() {
    this.moments = [];
    this.flows = [];
  }

  /** rows: [t_s, settled_s, measured_j[], accounts_j[], running, output_tokens] */
  add(rows, accounts) {
    for (const [t, settled, measured, joules, running, tokens] of rows) {
      const moment = { t, settled, measured, running, tokens,
        joules: Object.fromEntries(accounts.map((name, i) => [name, joules[i]])) };
      moment.watts = this.drawn(moment);
      moment.power = total(moment.watts);
      this.moments.push(moment);
      this.flow(moment);
    }
    const oldest = (this.moments.at(-1)?.t ?? 0) - WINDOW_S - 30;
    while (this.moments[0]?.t < oldest) this.moments.shift();
    while (this.flows[0]?.t < oldest) this.flows.shift();
  }

  /** Mean power of each device since a little more than a second ago, by its counter. */
  drawn(moment) {
    const before = this.moments.findLast(other => other.t <= moment.t - COUNTER_S);
    return moment.measured.map((joules, i) =>
      before?.measured[i] === undefined ? null : Math.max(0, (joules - before.measured[i]) / (moment.t - before.t)));
  }

  flow(moment) {
    if (moment.settled === null || moment.settled === this.moments.at(-2)?.settled) return;
    const before = this.moments.findLast(m => m.settled !== null && m.settled <= moment.settled - SMOOTH_S);
    if (!before) return;
    const over = moment.settled - before.settled;
    const watts = Object.fromEntries(STACK.map(name =>
      [name, Math.max(0, (moment.joules[name] - before.joules[name]) / over)]));
    // Where much settled at once its mean power is drawn all along; not where nothing was heard.
    const long = moment.t - before.t > HOLE_S, last = this.flows.at(-1)?.t ?? -Infinity;
    const count = long ? 1 : Math.max(1, Math.floor(over / SMOOTH_S)), step = over / count;
    for (let i = 0; i < count; i++) {
      const t = long ? moment.settled - SMOOTH_S / 2 : before.settled + (i + 0.5) * step;
      if (t > last) this.flows.push({ t, watts, long });
    }
  }

  /** Output tokens a second over the last few seconds; null where nothing is known. */
  speed() {
    const last = this.moments.at(-1);
    const before = last && this.moments.findLast(m => m.t <= last.t - 3);
    return before ? Math.max(0, (last.tokens - before.tokens) / (last.t - before.t)) : null;
  }

  /** Seconds since the last moment with a request in flight; null where one is. */
  quiet_s() {
    const last = this.moments.at(-1);
    const busy = this.moments.findLast(m => m.running > 0);
    if (!last || busy === last) return null;
    return last.t - (busy ?? this.moments[0]).t;
  }
}

function total(watts) {
  const known = watts.filter(value => value !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}

/** Axes, and a function each from time and value to place. */
function frame(pen, width, height, now, most, unit) {
  const right = width - 8, floor = height - (unit ? BOTTOM : 4);
  const x = t => LEFT + (right - LEFT) * (1 - (now - t) / WINDOW_S);
  const y = value => floor - (floor - TOP) * value / most;
  pen.font = `11px ${style.getPropertyValue("--font") || "sans-serif"}`;
  pen.fillStyle = colour("soft");
  pen.strokeStyle = colour("line");
  pen.lineWidth = 1;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const steps = unit ? 4 : 2;
  for (let i = 0; i <= steps; i++) {
    const value = most * i / steps, at = Math.round(y(value)) + 0.5;
    pen.beginPath(); pen.moveTo(LEFT, at); pen.lineTo(right, at); pen.stroke();
    if (unit || Number.isInteger(value)) pen.fillText(unit ? quantity(value, unit, 3) : count(value), LEFT - 6, at);
  }
  if (unit) {
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    for (let ago = 0; ago <= WINDOW_S; ago += 30) {
      pen.textAlign = ago === 0 ? "right" : ago === WINDOW_S ? "left" : "center";
      pen.fillText(ago === 0 ? say("now") : `−${ago} s`, ago === 0 ? right : x(now - ago), height - 4);
    }
  }
  return { x, y, right, floor };
}

function hatch(pen, from, to, top, floor) {
  if (to - from < 1) return;
  pen.save();
  pen.beginPath(); pen.rect(from, top, to - from, floor - top); pen.clip();
  pen.strokeStyle = colour("line");
  pen.lineWidth = 1;
  for (let at = from - (floor - top); at < to; at += 7) {
    pen.beginPath(); pen.moveTo(at, floor); pen.lineTo(at + floor - top, top); pen.stroke();
  }
  pen.restore();
}

/** Runs of points without holes. */
function* runs(points) {
  let run = [];
  for (const point of points) {
    if (run.length && (point.t - run.at(-1).t > HOLE_S || point.long)) { yield run; run = []; }
    run.push(point);
  }
  if (run.length) yield run;
}

function stack(pen, axes, points, names, watts, paint) {
  for (const run of runs(points)) {
    const base = new Array(run.length).fill(0);
    for (const name of names) {
      const top = run.map((point, i) => base[i] + (watts(point, name) ?? 0));
      pen.beginPath();
      run.forEach((point, i) => pen.lineTo(axes.x(point.t), axes.y(top[i])));
      for (let i = run.length - 1; i >= 0; i--) pen.lineTo(axes.x(run[i].t), axes.y(base[i]));
      pen.closePath();
      pen.fillStyle = paint(name);
      pen.fill();
      top.forEach((value, i) => { base[i] = value; });
    }
  }
}

function outline(pen, axes, points, value, paint) {
  pen.strokeStyle = paint;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  for (const run of runs(points)) {
    pen.beginPath();
    run.forEach(point => pen.lineTo(axes.x(point.t), axes.y(value(point))));
    pen.stroke();
  }
}

/** Clip to the plot, so that what slides out on the left is cut. */
function inside(pen, axes, draw) {
  pen.save();
  pen.beginPath(); pen.rect(LEFT, 0, axes.right - LEFT, axes.floor); pen.clip();
  draw();
  pen.restore();
}

/** options: { now, seen (time of the last message), by: account | device, hover: time or null } */
export function drawFlow(canvas, series, options) {
  const [pen, width, height] = begin(canvas);
  const from = options.now - WINDOW_S - 2;
  const moments = series.moments.filter(m => m.t >= from), flows = series.flows.filter(f => f.t >= from);
  const peak = Math.max(10, ...moments.map(m => m.power ?? 0), ...flows.map(f => total(Object.values(f.watts))));
  const axes = frame(pen, width, height, options.now, rounded(peak * 1.05), "W");
  const settled = flows.at(-1)?.t ?? axes.right;
  inside(pen, axes, () => {
    if (options.now - options.seen > HOLE_S) hatch(pen, axes.x(options.seen), axes.right, TOP, axes.floor);
    if (options.by === "device") {
      const names = [...Array(Math.max(0, ...moments.map(m => m.measured.length))).keys()];
      stack(pen, axes, moments, names, (m, i) => m.watts[i],
        deviceColour);
      return;
    }
    const end = flows.at(-1);
    const waiting = moments.filter(m => m.t - COUNTER_S / 2 > settled && m.power !== null)
      .map(m => ({ t: m.t, power: m.power }));
    if (end && waiting.length) waiting.unshift({ t: end.t, power: total(Object.values(end.watts)) });
    stack(pen, axes, waiting, ["power"], m => m.power, () => colour("pending"));
    stack(pen, axes, flows, STACK, (flow, name) => flow.watts[name], colour);
    outline(pen, axes, flows, flow => total(Object.values(flow.watts)), colour("ink"));
    outline(pen, axes, waiting, m => m.power, colour("soft"));
  });
  if (options.hover !== null) cross(pen, axes, axes.x(options.hover));
  return axes;
}

function cross(pen, axes, at) {
  pen.strokeStyle = colour("soft");
  pen.lineWidth = 1;
  pen.beginPath(); pen.moveTo(at, TOP); pen.lineTo(at, axes.floor); pen.stroke();
}

export function drawBatch(canvas, series, options) {
  const [pen, width, height] = begin(canvas);
  const moments = series.moments.filter(m => m.t >= options.now - WINDOW_S - 2);
  const most = Math.max(4, ...moments.map(m => m.running));
  const axes = frame(pen, width, height, options.now, rounded(most * 1.1), "");
  inside(pen, axes, () => {
    if (options.now - options.seen > HOLE_S) hatch(pen, axes.x(options.seen), axes.right, TOP, axes.floor);
    stack(pen, axes, moments, ["running"], m => m.running, () => colour("decode") + "66");
    outline(pen, axes, moments, m => m.running, colour("decode"));
  });
  if (options.hover !== null) cross(pen, axes, axes.x(options.hover));
}

/** One square a request, in order of arrival; smaller squares where there are many. */
export function drawCells(canvas, cells) {
  const letters = { w: "waiting", p: "prefill", d: "decode", s: "settling" };
  const width = canvas.clientWidth;
  const size = [14, 11, 9, 7, 6, 5, 4].find(s => Math.ceil(cells.length / Math.floor(width / s)) * s <= 70) ?? 3;
  const across = Math.max(1, Math.floor(width / size));
  canvas.style.height = `${Math.max(size, Math.ceil(cells.length / across) * size)}px`;
  const [pen] = begin(canvas);
  const edge = size > 5 ? 2 : 1;
  for (let i = 0; i < cells.length; i++) {
    pen.fillStyle = colour(letters[cells[i]]);
    pen.fillRect((i % across) * size, Math.floor(i / across) * size, size - edge, size - edge);
  }
}

/** What was drawn and where it went at a time, in lines. */
export function tip(series, t, by, names) {
  const moment = series.moments.findLast(m => m.t <= t) ?? series.moments[0];
  if (!moment) return "";
  const lines = [`${quantity(moment.power, "W", 3)}  ${say("measured")}`];
  if (by === "device") {
    moment.watts.forEach((watts, i) => lines.push(`${quantity(watts, "W", 3)}  ${names[i] ?? i}`));
  } else {
    const flow = series.flows.find(f => f.t >= t);
    if (flow) {
      for (const name of STACK) {
        if (flow.watts[name] >= 0.05) lines.push(`${quantity(flow.watts[name], "W", 3)}  ${say(name)}`);
      }
    } else lines.push(say("unsettled"));
  }
  lines.push(`${count(moment.running)}  ${say("in_flight")}`);
  return lines.join("\n");
}

export const stackNames = STACK;
export const plotLeft = LEFT;
