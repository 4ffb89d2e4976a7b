// The Int4 explorer's pictures in SVG: a group of weights among its levels, and loss on a log scale.

import { escape } from "../page.js";
import { at, roundGroup } from "./rounding.js";

const [WIDE, TALL, EDGE] = [860, 132, 64]; // of the group, in pixels
const [W, H, LEFT_SIDE, UNDER, OVER] = [404, 250, 58, 40, 12]; // of a chart
const [FLOOR, CEILING] = [1e-4, 4]; // nats

export const LOOKS = { "compressed-tensors": "ml4-way-a", meta: "ml4-way-b", textbook: "ml4-way-c", asymmetric: "ml4-way-d" };

/** Weights above, levels as uprights, what the weights become below. */
export function groupPicture({ weights, group, bits, how }) {
  const some = weights.slice(0, group);
  const { scale, levels, back } = roundGroup(some, bits, how);
  const far = 1.08 * Math.max(...some.map(Math.abs), ...levels.map(Math.abs));
  const x = (w) => (EDGE + (WIDE - 2 * EDGE) * (0.5 + w / (2 * far))).toFixed(1);
  const uprights = levels.map((level) => `<path class="ml4-level" d="M${x(level)} 30V100"/>`).join("");
  const move = (w, i) => {
    const look = Math.abs(back[i] - w) > 0.5001 * scale ? " ml4-cut" : "";
    return `<path class="ml4-move${look}" d="M${x(w)} 34L${x(back[i])} 96"/><circle class="ml4-before${look}" cx="${x(w)}" cy="34" r="3.2"/>
      <circle class="ml4-after${look}" cx="${x(back[i])}" cy="96" r="3.6"/>`;
  };
  const say = (w, y, name) => `<text class="ml4-tick" x="${x(w)}" y="${y}">${name}</text>`;
  const ends = [levels[0], levels.at(-1)].map((level) => say(level, 118, level.toPrecision(2))).join("");
  return `${uprights}${some.map(move).join("")}<text class="ml4-left-said" x="4" y="38">weights</text>
    <text class="ml4-left-said" x="4" y="100">levels</text>${ends}${say(0, 118, "0")}`;
}

const height = (nats) => {
  const held = Math.min(Math.max(nats, FLOOR), CEILING);
  return OVER + (H - OVER - UNDER) * (1 - Math.log(held / FLOOR) / Math.log(CEILING / FLOOR));
};

const grid = [1e-4, 1e-3, 0.01, 0.1, 1].map((nats) => `<path class="ml4-grid" d="M${LEFT_SIDE} ${height(nats)}H${W - 10}"/>
  <text class="ml4-line" x="${LEFT_SIDE - 6}" y="${height(nats) + 4}">${nats === 1e-4 ? "≤0.0001" : nats}</text>`).join("");

/** A dot for a setting, hollow where the interval takes in zero; it can be clicked. */
function dot(x, row, across, other, resting) {
  const look = `${LOOKS[other.how ?? x.how]}${row.low > 0 ? "" : " ml4-unsure"}${resting ? " ml4-resting" : ""}`;
  const now = Object.entries(other).every(([name, value]) => x[name] === value);
  const said = Object.values(other).join(", ");
  return `${now ? `<circle class="ml4-now-at" cx="${across}" cy="${height(row.rise)}" r="8"/>` : ""}<circle class="ml4-dot ${look}"
    data-to="${escape(JSON.stringify(other))}" cx="${across}" cy="${height(row.rise)}" r="4.5"><title>${escape(said)}: ${row.rise.toFixed(4)}</title></circle>`;
}

const line = (points, look) => `<path class="ml4-curve ${look}" d="${points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")}"/>`;

/** Loss added over bits: a line for each way of rounding, at this group size. */
export function lossChart(x) {
  const across = (bits) => LEFT_SIDE + 16 + ((W - LEFT_SIDE - 42) * (bits - 2)) / 6;
  const ways = Object.keys(LOOKS).sort((a, b) => (a === x.how) - (b === x.how)); // the one in hand on top
  const one = (how) => {
    const rows = x.bitsToChoose.map((bits) => [bits, at(x, { how, bits })]);
    const resting = how === x.how ? "" : " ml4-resting";
    return line(rows.map(([bits, row]) => [across(bits), height(row.rise)]), LOOKS[how] + resting)
      + rows.map(([bits, row]) => dot(x, row, across(bits), { bits, how }, resting)).join("");
  };
  const ticks = x.bitsToChoose.map((bits) => `<text class="ml4-tick" x="${across(bits)}" y="${H - UNDER + 16}">${bits}</text>`);
  return `${grid}${ticks.join("")}<text class="ml4-tick" x="${(W + LEFT_SIDE) / 2}" y="${H - 6}">bits</text>${ways.map(one).join("")}`;
}

/** Loss added over the size of the whole model: a dot for each pair of bits and group size. */
export function sizeChart(x) {
  const pairs = x.bitsToChoose.flatMap((bits) => x.groupsToChoose.map((group) => ({ bits, group })));
  const rows = pairs.map((pair) => [pair, at(x, pair)]);
  const sizes = rows.map(([, { bytes }]) => bytes);
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const across = (bytes) => LEFT_SIDE + 16 + ((W - LEFT_SIDE - 42) * (bytes - least)) / (most - least);
  const runs = x.groupsToChoose.map((group) => rows.filter(([pair]) => pair.group === group));
  const lines = runs.map((run) => line(run.map(([, row]) => [across(row.bytes), height(row.rise)]), `${LOOKS[x.how]} ml4-resting`));
  const dots = rows.map(([pair, row]) => dot(x, row, across(row.bytes), pair, pair.group === x.group ? "" : "resting"));
  const named = [[runs[0], 9, 4], [runs.at(-1), -6, -11]].map(([[[{ group }, row]], right, down]) =>
    `<text class="ml4-name" x="${across(row.bytes) + right}" y="${height(row.rise) + down}">groups of ${group}</text>`);
  const ticks = [0, 1, 2, 3].map((i) => least + (i * (most - least)) / 3).map((bytes) =>
    `<text class="ml4-tick" x="${across(bytes)}" y="${H - UNDER + 16}">${(bytes / 1e6).toFixed(1)}</text>`);
  return `${grid}${ticks.join("")}<text class="ml4-tick" x="${(W + LEFT_SIDE) / 2}" y="${H - 6}">megabytes of the whole model</text>${lines.join("")}${dots.join("")}${named.join("")}`;
}

export const pictureBox = (name, title) => `<section><h4>${title}</h4>
  <svg class="ml4-loss-chart ml4-${name}" viewBox="0 0 ${W} ${H}" role="img"></svg></section>`;

export const groupBox = `<section class="ml4-wide"><h4 class="ml4-group-said"></h4>
  <svg class="ml4-group-picture" viewBox="0 0 ${WIDE} ${TALL}" role="img"></svg></section>`;
