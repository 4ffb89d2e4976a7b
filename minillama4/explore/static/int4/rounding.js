// Rounding one group of weights, as explore/rounding.py does it, and what a sweep has measured.
// x holds the knobs (model, what, how, bits, group), and the tables measured, plain and schemes.

/** To the nearest whole number, from the middle to the even one, as torch rounds. */
export function nearest(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** What one group of weights becomes: { scale, levels, back }, levels ascending. */
export function roundGroup(weights, bits, how) {
  const half = 2 ** (bits - 1);
  const most = Math.max(...weights.map(Math.abs));
  let [scale, zero, first, last] = [0, 0, -half, half - 1];
  if (how === "asymmetric") {
    const [low, high] = [Math.min(0, ...weights), Math.max(0, ...weights)];
    [first, last] = [0, 2 ** bits - 1];
    scale = Math.max(high - low, 1e-9) / last;
    zero = nearest(-low / scale);
  } else if (how === "textbook") {
    first = 1 - half;
    scale = Math.max(most, 1e-9) / last;
  } else {
    scale = how === "meta" ? Math.max(most, 1e-6) / half : most / (half - 0.5) || 2 ** -23;
  }
  const value = (q) => (q - zero) * scale;
  const levels = Array.from({ length: last - first + 1 }, (_, i) => value(first + i));
  const back = weights.map((w) => value(Math.min(Math.max(nearest(w / scale) + zero, first), last)));
  return { scale, levels, back };
}

/** How many weights are moved by more than half a step, and the largest error in steps. */
export function cutOf(weights, { scale, back }) {
  const errors = weights.map((w, i) => Math.abs(back[i] - w) / scale);
  return { cut: errors.filter((e) => e > 0.5001).length, worst: Math.max(...errors) };
}

export const KEYS = ["rise", "low", "high", "error", "rerouted", "bytes", "bits"];

/** What was measured at these knobs, with others in place of some of them. */
export function at(x, other = {}) {
  const { model, what, how, group, bits } = { ...x, ...other };
  const row = x.measured[model][what][how][group][bits];
  return Object.fromEntries(KEYS.map((key, i) => [key, row[i]]));
}

const fixed = (n, digits) => (n + 1e-9).toFixed(digits); // the same in Python, at halves too
const added = (n) => `${n < -5e-5 ? "−" : "+"}${fixed(Math.abs(n), 4)}`;
const megabytes = (n) => `${fixed(n / 1e6, 2)} MB`;

export function sizeInWords(x) {
  const { bytes, bits } = at(x);
  return `${x.model}, ${x.schemes[x.what]} in ${x.bits} bits, groups of ${x.group}, ${x.how}: ${+fixed(bits, 3)} bits a weight `
    + `with its share of the scale; ${megabytes(bytes)} in all, ${megabytes(x.plain[x.model])} in bf16.`;
}

export function lossInWords(x) {
  const { rise, low, high, error, rerouted } = at(x);
  return `The rounded weights are off by ${fixed(100 * error, 1)}%, the loss rises by ${added(rise)} nats per token `
    + `(95%: ${added(low)} to ${added(high)}), and ${fixed(100 * rerouted, 1)}% of the routers' choices change.`;
}

export function groupInWords(x) {
  const group = x.weights.slice(0, x.group);
  const done = roundGroup(group, x.bits, x.how);
  const { cut, worst } = cutOf(group, done);
  return `${done.levels.length} levels for ${group.length} weights; moved by more than half a step: ${cut}; `
    + `the largest error is ${fixed(worst, 3)} steps.`;
}
