// Stacked bars of bytes, as a picture in SVG.

import { escape } from "../page.js";
import { inGb } from "./bytes.js";

const [W, TOP, TALL, UNDER] = [760, 8, 30, 20]; // in pixels

/** { group: bytes }: norms and routers, too small to see, go with attention. */
export function grouped(parts, groups) {
  const sizes = groups.map(({ name, of }) => [name, of.reduce((all, part) => all + (parts[part] ?? 0), 0)]);
  return sizes.filter(([, size]) => size > 0);
}

/**
 * The inside of an SVG. sizes: [[group, bytes]]; frame: bytes of memory in which they must find room,
 * or null; gpus: how many share the frame; colours: of the groups.
 */
export function stackedBar({ sizes, frame, gpus = 1, colours }) {
  const total = sizes.reduce((all, [, size]) => all + size, 0);
  const scale = (W - 4) / Math.max(total, frame ?? 0);
  let at = 2;
  const part = ([name, size]) => {
    const [x, wide] = [at, size * scale];
    at += wide;
    const said = `${(size / 1e9).toFixed(size < 10e9 ? 1 : 0)}`;
    const label = wide > 26 ? `<text class="ml4-inside" x="${x + wide / 2}" y="${TOP + TALL / 2 + 4}">${said}</text>` : "";
    return `<rect x="${x.toFixed(2)}" y="${TOP}" width="${wide.toFixed(2)}" height="${TALL}" fill="${colours[name]}">
      <title>${escape(name)}: ${inGb(size)}</title></rect>${label}`;
  };
  const parts = sizes.map(part).join("");
  if (frame === null) return parts;
  const end = 2 + frame * scale;
  const between = Array.from({ length: gpus - 1 }, (_, i) => 2 + ((i + 1) * frame * scale) / gpus)
    .map((x) => `<path class="ml4-each-gpu" d="M${x.toFixed(2)} ${TOP - 4}v${TALL + 8}"/>`).join("");
  const beyond = total > frame ? `<rect class="ml4-beyond" x="${end.toFixed(2)}" y="${TOP}" width="${(at - end).toFixed(2)}"
    height="${TALL}"/>` : "";
  const side = end > W / 2 ? "ml4-before" : "ml4-behind";
  return `${parts}${beyond}<rect class="ml4-room" x="2" y="${TOP - 4}" width="${(end - 2).toFixed(2)}" height="${TALL + 8}"/>${between}
    <text class="${side}" x="${end.toFixed(1)}" y="${TOP + TALL + 18}">memory ${inGb(frame)}</text>`;
}

/** framed: with a line of text under it. */
export const barBox = (name, title, framed) => `<section class="ml4-wide"><h4>${title}</h4>
  <svg class="ml4-bar ml4-${name}" viewBox="0 0 ${W} ${TOP + TALL + (framed ? UNDER : 6)}" role="img"></svg></section>`;
