// Lines over the length of the context, on a log axis, as a picture in SVG.

import { escape } from "../page.js";

const [W, H, LEFT_EDGE, BELOW, ABOVE] = [344, 214, 44, 38, 10]; // in pixels
const [WIDE, TALL] = [W - LEFT_EDGE - 16, H - BELOW - ABOVE];

const UNITS = [[2 ** 20, "M"], [2 ** 10, "K"], [1, ""]];

/** 8192 -> "8K", in the powers of two in which contexts are counted. */
export function shortLength(n) {
  const [unit, letter] = UNITS.find(([least]) => n >= least) ?? [1, ""];
  return `${+(n / unit).toPrecision(3)}${letter}`;
}

/** x: { shortest, longest }. Where a length stands in a chart, from 0 to 1, and back. */
export const shareOf = (n, { shortest, longest }) => Math.log(n / shortest) / Math.log(longest / shortest);
export const lengthAt = (share, { shortest, longest }) => {
  const n = Math.round(shortest * (longest / shortest) ** Math.min(Math.max(share, 0), 1));
  return Math.min(Math.max(n, shortest), longest);
};

/** The share of the width at which the mouse is. */
export const shareUnder = (svg, event) => {
  const box = svg.getBoundingClientRect();
  return ((event.clientX - box.left) * (W / box.width) - LEFT_EDGE) / WIDE;
};

/** Whole multiples of a step. */
function ticksOf(least, most) {
  const step = [0.1, 0.2, 0.5, 1, 2, 4, 5, 10, 20].find((size) => (most - least) / size <= 5.01) ?? (most - least) / 4;
  const [from, to] = [Math.ceil(least / step - 1e-9), Math.floor(most / step + 1e-9)];
  return Array.from({ length: to - from + 1 }, (_, i) => (from + i) * step);
}

function lengthTicks({ shortest, longest }) {
  const [from, to] = [Math.ceil(Math.log2(shortest) - 1e-9), Math.floor(Math.log2(longest) + 1e-9)];
  const step = Math.max(1, Math.ceil((to - from) / 6));
  return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => 2 ** (from + i * step));
}

/**
 * The inside of an SVG. lines: [{ points: [[n, y]], look, dots, label }], look a class, dots "round" or
 * "square"; span: { shortest, longest }; most, least: the ends of the y axis; marks: [{ n, label, look }],
 * lines from top to bottom; spots: [{ n, y, look }]; room: for the lines' labels, on the right.
 */
export function chart({ lines, span, least = 0, most, marks = [], spots = [], digits = 0, room = 0 }) {
  const wide = WIDE - room;
  const x = (n) => LEFT_EDGE + wide * shareOf(n, span);
  const y = (value) => ABOVE + TALL * (1 - (Math.min(Math.max(value, least), most) - least) / (most - least));
  const across = ticksOf(least, most).map((value) => `
    <path class="ml4-grid" d="M${LEFT_EDGE} ${y(value)}h${wide}"/>
    <text class="ml4-line" x="${LEFT_EDGE - 6}" y="${y(value) + 4}">${value.toFixed(digits)}</text>`);
  const along = lengthTicks(span).map((n) => `<text class="ml4-tick" x="${x(n)}" y="${H - BELOW + 16}">${shortLength(n)}</text>`);
  const line = ({ points, look, dots }) => {
    const d = points.map(([n, value], i) => `${i ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const dot = ([n, value]) => `<rect class="${look}" x="${x(n) - 3}" y="${y(value) - 3}" width="6" height="6" rx="${dots === "round" ? 3 : 0}"/>`;
    return `<path class="ml4-curve ${look}" d="${d}"/>${dots ? points.map(dot).join("") : ""}`;
  };
  const named = lines.filter(({ label }) => label).map(({ label, points }) => ({ label, at: points.at(-1) }))
    .sort((a, b) => y(b.at[1]) - y(a.at[1])); // from below; each a line above the one before
  let free = H;
  const name = ({ label, at: [n, value] }) => {
    free = Math.min(y(value) + 4, free - 14);
    return `<text class="ml4-name" x="${x(n) + 7}" y="${free}">${escape(label)}</text>`;
  };
  const mark = ({ n, label, look }) => `<path class="ml4-upright ${look}" d="M${x(n)} ${ABOVE}v${TALL}"/>
    <text class="ml4-tick" x="${Math.min(Math.max(x(n), LEFT_EDGE + 22), W - 30)}" y="${ABOVE - 1}">${escape(label)}</text>`;
  const within = ({ n }) => n >= span.shortest && n <= span.longest;
  return `${across.join("")}${along.join("")}${marks.filter(within).map(mark).join("")}
    ${lines.map(line).join("")}${named.map(name).join("")}${spots.map((spot) => `<circle class="ml4-spot-at ${spot.look}" cx="${x(spot.n)}" cy="${y(spot.y)}" r="4.5"/>`).join("")}
    <text class="ml4-tick" x="${LEFT_EDGE + wide / 2}" y="${H - 5}">context length (tokens)</text>`;
}

export const chartBox = (name, title) => `<section><h4>${title}</h4>
  <svg class="ml4-chart ml4-${name}" viewBox="0 0 ${W} ${H}" role="img"></svg></section>`;
