// Attention temperature in numbers, as model/attention.py and explore/entropy.py have them.

/** s(p): exactly 1 as long as p + 1 is below the floor. */
export const temperatureAt = (position, floor, scale) =>
  1 + scale * Math.log1p(Math.floor((position + 1) / floor));

/** One relevant key among n - 1 others with normal scores, all times s: { weight, entropy }. */
export function oneAmong(n, advantage, spread, s) {
  const width = s * spread;
  const tilt = Math.min(width, Math.sqrt(2 * Math.log(n - 1))); // how far out they matter
  const others = Math.log(n - 1) + width * tilt - (tilt * tilt) / 2; // ln of the others' share
  const [most, least] = [Math.max(s * advantage, others), Math.min(s * advantage, others)];
  const total = most + Math.log1p(Math.exp(least - most));
  const weight = Math.exp(s * advantage - total);
  return { weight, entropy: total - (weight * s * advantage + (1 - weight) * width * tilt) };
}

/** At a length, seen by its last token: s, and the row with the temperature and without. */
export function atLength(n, { floor_scale: floor, attn_scale: scale, advantage, spread }) {
  const s = temperatureAt(n - 1, floor, scale);
  return { n, s, with: oneAmong(n, advantage, spread, s), without: oneAmong(n, advantage, spread, 1) };
}

/** Lengths at which to draw: evenly on a log axis, and every step of s while steps can be told apart. */
export function lengthsBetween(shortest, longest, floor) {
  const [from, to] = [Math.log(shortest), Math.log(longest)];
  const lengths = Array.from({ length: 161 }, (_, i) => Math.round(Math.exp(from + ((to - from) * i) / 160)));
  for (let k = 1; k <= 40; k++) lengths.push(k * floor - 1, k * floor);
  const inRange = lengths.filter((n) => n >= shortest && n <= longest);
  return [...new Set([...inRange, shortest, longest])].sort((a, b) => a - b);
}

/** So few keys hold the others' weight that the mean of many stands for them but roughly. */
export const beyondTheMean = ({ n, s }, spread) => s * spread > 0.7 * Math.sqrt(2 * Math.log(n));
