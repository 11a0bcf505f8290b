// Numbers with their units. Unknown is a dash, never a zero.

import { language } from "./words.js";

export const units = { wh: false };
const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]];
const whole = new Intl.NumberFormat(language);
const digits = [...Array(7)].map((_, n) => new Intl.NumberFormat(language, {
  minimumFractionDigits: n, maximumFractionDigits: n }));

/** A number with so many significant digits, always as wide. */
export function number(value, significant = 4) {
  if (value === null || value === undefined) return "–";
  const size = Number(Math.abs(value).toPrecision(significant));
  const before = size >= 1 ? Math.floor(Math.log10(size)) + 1 : 1;
  return digits[Math.min(6, Math.max(0, significant - before))].format(value);
}

/** Value and unit apart: ["1.234", "kJ"]. */
export function split(value, unit, significant = 4) {
  if (value === null || value === undefined) return ["–", ""];
  if (value === 0) return ["0", unit];
  const size = Math.abs(value);
  const [factor, prefix] = PREFIXES.find(([least]) => size >= least * 0.99995) ?? PREFIXES.at(-1);
  return [number(value / factor, significant), prefix + unit];
}

export const quantity = (value, unit, significant) => split(value, unit, significant).join(" ").trim();
export const count = value => value === null || value === undefined ? "–" : whole.format(value);

/** Joules, or watt-hours where the reader chose them. */
export function energy(joules, significant = 4) {
  if (joules === null || joules === undefined) return "–";
  return units.wh ? quantity(joules / 3600, "Wh", significant) : quantity(joules, "J", significant);
}

export function energyParts(joules, significant = 3) {
  if (joules === null || joules === undefined) return ["–", ""];
  return units.wh ? split(joules / 3600, "Wh", significant) : split(joules, "J", significant);
}

export function percent(part) {
  return part === null || !isFinite(part) ? "–" : `${number(100 * part, 3).replace(/(\.\d)\d+$/, "$1")} %`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.9995) return `${number(value * 1e3, 3)} ms`;
  if (value < 100) return `${number(value, 3)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Terms of a sum and their total, in one unit and so rounded that a reader can add them up.
    Where they are not all of the total they do not add up to it, and a reader can see that. */
export function summands(total, terms) {
  const value = joules => units.wh ? joules / 3600 : joules;
  const [factor, prefix] = PREFIXES.find(([least]) =>
    Math.abs(value(total)) >= least * (least > 1 ? 1000 : 1)) ?? PREFIXES[total ? 5 : 3];
  const rest = total - terms.reduce((a, b) => a + b, 0);
  const all = Math.abs(rest) < Math.max(1e-6, 1e-10 * Math.abs(total)) ? terms : [...terms, rest];
  const size = Math.abs(value(total)) / factor, shown = !size || size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const fine = 10 ** shown, exact = all.map(joules => fine * value(joules) / factor);
  const floors = exact.map(Math.floor);
  let missing = Math.round(fine * value(total) / factor) - floors.reduce((a, b) => a + b, 0);
  const order = exact.map((one, i) => [one - floors[i], i]).sort((a, b) => b[0] - a[0]);
  for (const [, i] of order) if (missing-- > 0) floors[i] += 1;
  const unit = prefix + (units.wh ? "Wh" : "J");
  const write = n => `${digits[shown].format(n / fine)}`;
  return { unit, total: write(floors.reduce((a, b) => a + b, 0)), terms: floors.slice(0, terms.length).map(write) };
}

/** Money that is often millionths: µ and m before the currency. */
export function money(value, currency) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 0.01 || size === 0) return `${number(value, size >= 1 ? 4 : 3)} ${currency}`;
  return quantity(value, currency, 3);
}
