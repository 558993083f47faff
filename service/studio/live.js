// Live: what the service is doing now, from its metrics, and a burst of requests to see it batch them.

import { post, text, wait } from "./api.js";
import { barChart, lineChart } from "./charts.js";
import { modelField, nothingOffers, offering, workbench } from "./controls.js";
import { element, notice, precise, slider } from "./elements.js";
import { copyPanel } from "./snippets.js";

export const title = "Live";
export const purpose = "What the service does right now: who waits, how requests share batches, how long they take.";

const STEPS = 60;
const [PAUSE, GONE] = [500, 3000]; // milliseconds between two looks, and where nobody answers
const WINDOW = 20; // looks that latency is of
const [MOST_REQUESTS, MOST_EACH] = [2000, 32];
// Browsers keep six connections to a service; one is for the metrics.
const AT_ONCE = 5;

/** Show charts that move, and the button that gives them something to show. */
export async function show(root, { state, signal, models }) {
  const offered = offering(models, "sample");
  const figures = element("div", { class: "charts" });
  const status = element("p", { class: "status", role: "status" });
  const wrong = element("div", {});
  const copy = copyPanel();
  const button = element("button", { type: "submit", class: "primary", onclick: toggle }, "Start a burst");
  const gauge = element("progress", { max: 1, value: 0, "aria-label": "Requests answered" });
  const model = () => state.get("model") ?? offered[0].name;
  const count = () => within(MOST_REQUESTS, state.number("requests", 500));
  const imagesEach = () => within(MOST_EACH, state.number("each", 4));
  workbench(root, offered.length ? [
    modelField(offered, model(), (chosen) => state.set({ model: chosen })),
    slider("Requests", { minimum: 1, maximum: MOST_REQUESTS, value: count(), whole: true }, (value) => state.set({ requests: value })),
    slider("Images in each", { minimum: 1, maximum: MOST_EACH, value: imagesEach(), whole: true }, (value) => state.set({ each: value })),
    button,
    element("p", { class: "hint" }, `A browser keeps few connections to a service, so ${AT_ONCE} requests are in flight at a time. Other clients are counted too.`),
  ] : [nothingOffers("sample")], [status, gauge, wrong, figures, copy]);

  const looks = []; // the last readings, with their times
  let base = null; // the batches before the burst, or before this view
  let burst = null;
  signal.addEventListener("abort", () => burst?.abort());
  const ended = (error) => signal.aborted || error.name === "AbortError";

  async function watch() {
    while (!signal.aborted) {
      let pause = PAUSE;
      try {
        if (!document.hidden) {
          const read = reading(parse(await text("/metrics", signal)), performance.now());
          base ??= read;
          looks.push(read);
          if (looks.length > STEPS + WINDOW) looks.shift();
          figures.replaceChildren(...charts(looks, base));
          wrong.replaceChildren();
        }
      } catch (error) {
        if (ended(error)) return;
        if (!wrong.childElementCount) wrong.replaceChildren(notice(error));
        if (error.status === 401) return;
        pause = GONE;
      }
      await wait(pause, signal).catch(() => {});
    }
  }

  async function toggle() {
    if (burst) {
      burst.abort();
      return;
    }
    burst = new AbortController();
    base = looks.at(-1) ?? null;
    button.textContent = "Stop";
    const start = performance.now();
    const total = count();
    const [done, refused] = [[], []];
    let next = 0;
    const body = (index) => ({ model: model(), count: imagesEach(), seed: index });
    copy.offer("/sample", body(0));
    const one = async () => {
      while (next < total && !burst.signal.aborted) {
        const index = next;
        next += 1;
        try {
          await post("/sample", body(index), burst.signal);
          done.push(index);
        } catch (error) {
          if (burst.signal.aborted) return;
          refused.push(error);
          if ([0, 401].includes(error.status)) throw error; // the next one would end like it
        }
        gauge.value = (done.length + refused.length) / total;
      }
    };
    status.textContent = `Asking ${total} times for ${imagesEach()} images of ${model()}`;
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, one));
      const seconds = (performance.now() - start) / 1000;
      status.textContent = `${done.length} requests answered in ${seconds.toFixed(1)} s, ${precise(done.length / seconds)} a second`
        + (refused.length ? `; ${refused.length} refused: ${refused[0].detail}` : "");
    } catch (error) {
      burst.abort();
      if (!signal.aborted) {
        status.textContent = `${done.length} of ${total} requests were answered.`;
        wrong.replaceChildren(notice(error));
      }
    } finally {
      burst = null;
      button.textContent = "Start a burst";
    }
  }

  watch();
}

const within = (most, number) => Math.min(most, Math.max(1, Math.round(number)));

/** Read the text format of Prometheus: [{name, labels, value}]. */
export function parse(metrics) {
  return metrics.split("\n").filter((line) => line && !line.startsWith("#")).map((line) => {
    const [, name, labels = "", value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/);
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, label]) => [key, label]);
    return { name, labels: Object.fromEntries(pairs), value: value === "+Inf" ? Infinity : Number(value) };
  });
}

/** What the charts need of one look: sums over models, and histograms as [bound, count so far]. */
function reading(samples, time) {
  const of = (name) => samples.filter((one) => one.name === name);
  const sum = (name, keep = () => true) => of(name).filter(({ labels }) => keep(labels)).reduce((total, { value }) => total + value, 0);
  const buckets = (name) => {
    const counts = new Map();
    for (const { labels: { le }, value } of of(`${name}_bucket`)) counts.set(le, (counts.get(le) ?? 0) + value);
    return [...counts].map(([le, value]) => [le === "+Inf" ? Infinity : Number(le), value]).sort((a, b) => a[0] - b[0]);
  };
  return {
    time,
    images: sum("genserve_images_total"),
    requests: sum("genserve_requests_total"),
    refused: sum("genserve_requests_total", ({ code }) => code !== "OK"),
    inFlight: sum("genserve_requests_in_flight"),
    queued: sum("genserve_queued_rows"),
    waiting: sum("genserve_waiting_images"),
    busy: sum("genserve_busy_slots"),
    slots: sum("genserve_slots"),
    batches: buckets("genserve_batch_rows"),
    rows: sum("genserve_batch_rows_sum"),
    runs: sum("genserve_batch_rows_count"),
    latency: buckets("genserve_request_seconds"),
  };
}

function charts(looks, base) {
  const recent = looks.slice(-STEPS);
  const now = looks.at(-1);
  const before = (index) => looks[Math.max(0, looks.length - recent.length + index - 1)];
  const rate = (key) => recent.map((look, index) => {
    const seconds = (look.time - before(index).time) / 1000;
    return seconds > 0 ? (look[key] - before(index)[key]) / seconds : 0;
  });
  const [images, requests] = [rate("images"), rate("requests")];
  const quantile = (share) => recent.map((look, index) => {
    const earlier = looks[Math.max(0, looks.length - recent.length + index - WINDOW)];
    return quantileOf(less(look.latency, earlier.latency), share);
  });
  const [middle, slow] = [quantile(0.5), quantile(0.95)];
  const sizes = each(less(now.batches, base.batches));
  const runs = now.runs - base.runs;
  const mean = runs ? (now.rows - base.rows) / runs : null;
  const milliseconds = (seconds) => (Number.isFinite(seconds) ? `${precise(seconds * 1000)} ms` : "none yet");
  return [
    panel("Throughput", `${precise(images.at(-1))} images a second`, `${precise(requests.at(-1))} requests a second, ${now.refused} refused so far`,
      lineChart([{ values: images }, { values: requests, class: "second" }], STEPS, "Images, and fainter requests, a second over the last half minute")),
    panel("Batch sizes", mean === null ? "no batch yet" : `${precise(mean)} rows a batch`, `${runs} batches since the last burst began, by their rows`,
      barChart(sizes.map(([, count]) => count), sizes.map(([bound, , last]) => words(bound, last)), "Batches by their number of rows")),
    panel("Latency", milliseconds(middle.at(-1)), `95 of 100 within ${milliseconds(slow.at(-1))}, over the last ${(WINDOW * PAUSE) / 1000} s`,
      lineChart([{ values: slow, class: "second" }, { values: middle }], STEPS, "Median latency, and fainter the 95th percentile", milliseconds)),
    panel("Waiting", `${now.queued} rows`, `${now.inFlight} requests in flight; ${now.busy} of ${now.slots} painting slots busy, ${now.waiting} images wait for one`,
      lineChart([{ values: recent.map((look) => look.queued + look.waiting) }, { values: recent.map((look) => look.inFlight), class: "second" }], STEPS, "Rows and images that wait, and fainter requests in flight")),
  ];
}

const panel = (name, value, more, chart) => element("figure", { class: "metric" },
  element("figcaption", {}, element("h2", {}, name), element("p", { class: "value" }, value), element("p", { class: "hint" }, more)), chart);

// Buckets of Prometheus count everything up to their bound.
const less = (later, earlier) => later.map(([bound, count], index) => [bound, count - (earlier[index]?.[1] ?? 0)]);

/** Return [bound, count in it alone, the bound before], up to the first bound above the batch limit. */
function each(buckets) {
  const single = buckets.map(([bound, count], index) => [bound, count - (buckets[index - 1]?.[1] ?? 0), buckets[index - 1]?.[0] ?? 0]);
  const last = Math.max(6, single.findLastIndex(([, count]) => count > 0));
  return single.slice(0, last + 1);
}

function words(bound, before) {
  if (bound === Infinity) return `> ${before}`;
  return before + 1 >= bound ? String(bound) : `${before + 1}–${bound}`;
}

/** A quantile of a histogram, straight between the bounds of its bucket, as Prometheus does it. */
function quantileOf(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  const index = buckets.findIndex(([, count]) => count >= share * total);
  const [bound, count] = buckets[index];
  const [from, below] = index ? buckets[index - 1] : [0, 0];
  return bound === Infinity ? from : from + ((bound - from) * (share * total - below)) / (count - below);
}
