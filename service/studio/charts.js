// Charts as drawings, by hand: lines over time, and bars. What they say is beside them in words.

import { precise, svg } from "./elements.js";

const [WIDTH, HEIGHT] = [480, 110];

/** Lines over the same steps of time; `lines` are {values, class}, the newest value last. */
export function lineChart(lines, steps, label, words = precise) {
  const highest = Math.max(0, ...lines.flatMap(({ values }) => values).filter(Number.isFinite));
  const top = highest * 1.1 || 1;
  const x = (index, length) => WIDTH - ((length - 1 - index) / (steps - 1)) * WIDTH;
  const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 6);
  return frame(label, [svg("text", { x: 0, y: 10 }, `up to ${words(highest)}`), ...lines.map(({ values, class: name }) => {
    const points = values.map((value, index) => (Number.isFinite(value) ? [x(index, values.length), y(value)] : null)).filter(Boolean);
    return svg("polyline", { class: `line ${name ?? ""}`, points: points.map((point) => point.map((at) => at.toFixed(1)).join(",")).join(" ") });
  })]);
}

/** Bars of heights, with a word below each. */
export function barChart(values, words, label) {
  const top = Math.max(1, ...values);
  const width = WIDTH / values.length;
  return frame(label, values.map((value, index) => {
    const height = (value / top) * (HEIGHT - 26);
    return svg("g", {},
      svg("rect", { class: "bin", x: index * width + 2, y: HEIGHT - 18 - height, width: width - 4, height }),
      svg("text", { x: (index + 0.5) * width, y: HEIGHT - 5, "text-anchor": "middle" }, words[index]));
  }));
}

/**
 * A histogram of scores with a limit, beyond which it is shaded, and numbered marks.
 *
 * `scores` ascend, `width` is in pixels of the page. What lies beyond the scale stands at its end.
 */
export function histogram(scores, limit, marks, width, label) {
  const [low, high] = scale(scores);
  const bins = new Array(60).fill(0);
  const place = (score) => Math.min(1, Math.max(0, (score - low) / (high - low)));
  for (const score of scores) bins[Math.min(bins.length - 1, Math.floor(place(score) * bins.length))] += 1;
  const [height, floor, step] = [190, 170, width / bins.length];
  const rise = (count) => (count / Math.max(...bins)) * (floor - 8);
  const cut = place(limit) * width;
  const placed = marks.map((score, index) => ({ index, score, x: place(score ?? Infinity) * (width - 20) + 10 }));
  const rows = []; // marks that would overlap stand below each other
  for (const mark of placed.sort((a, b) => a.x - b.x)) {
    mark.row = [0, 1, 2, 3, 4, 5].find((row) => mark.x - (rows[row] ?? -99) > 22) ?? 0;
    rows[mark.row] = mark.x;
  }
  const outside = placed.filter(({ score }) => score === null || score > high);
  return frame(label, [
    ...bins.map((count, index) => svg("rect", {
      class: (index + 0.5) * step > cut ? "bin beyond" : "bin",
      x: index * step + 0.5, width: step - 1, y: floor - rise(count), height: rise(count),
    })),
    svg("line", { class: "limit", x1: cut, x2: cut, y1: 0, y2: floor }),
    ...placed.map(({ index, x, row }) => svg("g", { class: "mark" },
      svg("line", { x1: x, x2: x, y1: 20 + row * 22, y2: floor }),
      svg("circle", { cx: x, cy: 11 + row * 22, r: 10 }),
      svg("text", { x, y: 15 + row * 22, "text-anchor": "middle" }, String(index + 1)))),
    svg("text", { x: 0, y: height - 4 }, precise(low)),
    outside.length ? svg("text", { x: width, y: height - 4, "text-anchor": "end" }, `${precise(high)}, and ${outside.length} further out`)
      : svg("text", { x: width, y: height - 4, "text-anchor": "end" }, precise(high)),
  ], width, height);
}

// All but the rarest thousandth, and some air: single scores can lie very far out.
function scale(scores) {
  const low = scores[0];
  const high = scores[Math.floor((scores.length - 1) * 0.999)];
  return [low, high + (high - low || 1) * 0.25];
}

function frame(label, content, width = WIDTH, height = HEIGHT) {
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, content);
}
