// Paint: images of an autoregressive model while they grow, row by row, from nothing or from a beginning.

import { Problem, newest, post, stream, wait } from "./api.js";
import {
  anySeed, chosenModel, classField, classesOf, controlFields, controlsOf, manifestOf, modelField, nothingOffers, offering, workbench,
} from "./controls.js";
import { choice, element, field, notice, slider, whole } from "./elements.js";
import { canvas, draw, fit, fromPng, resize, toPng } from "./images.js";
import { makePad } from "./pad.js";
import { copyPanel } from "./snippets.js";

export const title = "Paint";
export const purpose = "Watch images grow row by row, many sharing every step, or draw the beginning and see how it can go on.";

const MOST = 32;
const SLOW = 60; // milliseconds a row in slow motion; the model is often faster than the eye

/** Show the fields, and canvases that fill while events come in. */
export async function show(root, { state, signal, models }) {
  const offered = offering(models, "complete");
  const name = chosenModel(offered, state);
  if (!name) {
    root.append(nothingOffers("painting (complete)"));
    return;
  }
  let manifest = null;
  let pad = null;
  const requests = newest(signal);
  const isSlow = () => state.get("pace", matchMedia("(prefers-reduced-motion: reduce)").matches ? "live" : "slow") === "slow";
  const easel = element("div", { class: "grid easel" });
  const status = element("p", { class: "status", role: "status" });
  const gauge = element("progress", { max: 1, value: 0, "aria-label": "Rows painted" });
  const facts = element("dl", { class: "readings" });
  const wrong = element("div", {});
  const copy = copyPanel();
  const fields = element("div", { class: "fields" });
  const stop = element("button", { type: "button", onclick: requests.stop, hidden: true }, "Stop");
  const again = element("button", { type: "button", class: "primary", onclick: paint }, "Paint");
  workbench(root, [modelField(offered, name, choose), fields], [
    element("div", { class: "stage-head" }, status, element("div", { class: "actions" },
      choice("How to show it", [["live", "As it comes"], ["slow", "Slow motion"]], isSlow() ? "slow" : "live", (pace) => state.set({ pace })),
      stop, again)),
    gauge, facts, wrong, easel, copy,
  ]);

  async function choose(model) {
    state.set({ model, class: null, temperature: null, top_k: null, top_p: null, greedy: null, burn_in: null, thinning: null, chains: null });
    await open(model);
  }

  const isBegun = () => state.get("from") === "beginning" || state.get("image") !== null;
  const rowsKept = () => Math.min(manifest.event.shape[0], Math.max(0, Math.round(state.number("rows", manifest.event.shape[0] / 2))));
  const count = () => Math.min(MOST, Math.max(1, Math.round(state.number("count", 8))));

  async function open(model) {
    const mine = requests.begin();
    try {
      manifest = await manifestOf(model, mine);
    } catch (error) {
      if (!mine.aborted) fail(error, () => open(model));
      return;
    }
    state.set({ model, seed: state.number("seed", 1) });
    const seed = whole(state.number("seed", 1), {}, (value) => state.set({ seed: value }));
    const beginning = element("div", { class: "beginning", hidden: !isBegun() });
    makeBeginning(beginning);
    fields.replaceChildren(
      choice("What to start from", [["nothing", "From nothing"], ["beginning", "A beginning"]], isBegun() ? "beginning" : "nothing", (from) => {
        state.set({ from, image: from === "nothing" ? null : state.get("image") });
        beginning.hidden = from === "nothing";
        if (from === "beginning" && isEmpty(pad.image())) example();
      }),
      beginning,
      element("div", { class: "seed" }, field("Seed", seed),
        element("button", {
          type: "button",
          onclick: () => {
            seed.value = anySeed();
            state.set({ seed: seed.value });
            paint();
          },
        }, "New seed")),
      slider("Images", { minimum: 1, maximum: MOST, value: count(), whole: true }, (value) => state.set({ count: value })),
      classField(manifest.condition, state, () => {}) ?? "",
      controlFields(manifest.controls, state, () => {}));
    if (state.get("image")) await restore();
    else if (isBegun()) await example();
    await paint();
  }

  function makeBeginning(beginning) {
    const height = manifest.event.shape[0];
    pad = makePad(manifest.event.shape, { label: "The beginning of the image", onchange: keep });
    pad.keepRows(rowsKept());
    beginning.replaceChildren(pad,
      slider("Rows kept", { minimum: 0, maximum: height, value: rowsKept(), whole: true, hint: "The model draws what is below the line." }, (value) => {
        state.set({ rows: value });
        pad.keepRows(value);
      }),
      element("button", { type: "button", onclick: example }, "Take a sampled image"));
  }

  const keep = async (image) => state.set({ image: isEmpty(image) ? null : await toPng(image) });

  async function restore() {
    try {
      pad.put(await fromPng(state.get("image"), manifest.event.shape));
    } catch (error) {
      state.set({ image: null });
      wrong.replaceChildren(notice(error));
    }
  }

  /** Begin from an image of the fastest model that draws images of this shape. */
  async function example() {
    const quick = offering(models, "decode").find((model) => model.dataset === datasetOf(manifest)) ?? { name: manifest.name };
    try {
      const { images: [png] } = await post("/sample", { model: quick.name, seed: anySeed() }, signal);
      pad.put(await fromPng(png, manifest.event.shape));
      await keep(pad.image());
    } catch (error) {
      if (!signal.aborted) wrong.replaceChildren(notice(error, example));
    }
  }

  /** The image on the pad as the model takes it: black and white, where it draws nothing else. */
  function forced() {
    const image = pad.image();
    if (!manifest.preprocess.binarisation) return image;
    return { ...image, values: image.values.map((level) => (level < 128 ? 0 : 255)) };
  }

  async function request() {
    const body = {
      model: manifest.name,
      count: count(),
      seed: state.number("seed", 1),
      ...classesOf(manifest.condition, state, count()),
      ...controlsOf(manifest.controls, state),
    };
    if (!isBegun()) return ["/sample/stream", body];
    return ["/complete/stream", { ...body, image: await toPng(forced()), prefix_rows: rowsKept() }];
  }

  async function paint() {
    const mine = requests.begin();
    const [path, body] = await request();
    if (mine.aborted) return;
    const canvases = prepare(body);
    const start = performance.now();
    const slowness = isSlow() ? SLOW : 0;
    const shown = [];
    let [first, cuts, fresh] = [null, 0, 0];
    wrong.replaceChildren();
    status.textContent = `Painting ${body.count} images`;
    stop.hidden = false;
    easel.setAttribute("aria-busy", "true");
    copy.offer(path, body);
    try {
      for await (const { name: kind, data } of stream(path, body, { signal: mine, onCut })) {
        if (kind === "rows") {
          first ??= performance.now() - start;
          fresh += data.rows.length;
          shown.push(placeAt(slowness * (data.first_row - (body.prefix_rows ?? 0)), canvases[data.image], data));
          read(first, fresh, performance.now() - start, data, cuts);
        } else if (kind === "result") {
          await Promise.all(shown);
          await finish(canvases, data);
        }
      }
      status.textContent = `${body.count} images painted, seed ${body.seed}${cuts ? ". The connection was cut; the stream went on where it was" : ""}`;
    } catch (error) {
      if (signal.aborted) return;
      if (mine.aborted) status.textContent = "Stopped";
      else fail(error, paint);
    } finally {
      if (requests.isLast(mine)) rest();
    }

    /** Draw rows once slow motion has come to them. */
    async function placeAt(milliseconds, cell, rows) {
      const left = start + milliseconds - performance.now();
      if (left > 0) await wait(left, mine).catch(() => {});
      if (!mine.aborted) place(cell, rows);
    }

    function onCut(attempt) {
      if (attempt === 1) cuts += 1;
      status.textContent = `The connection was cut. Going on from the last row that arrived, attempt ${attempt}`;
    }
  }

  function rest() {
    stop.hidden = true;
    easel.removeAttribute("aria-busy");
    for (const cell of easel.children) cell.classList.remove("growing");
  }

  function prepare({ count: images, prefix_rows: known = 0 }) {
    const shape = manifest.event.shape;
    const space = { width: easel.clientWidth, height: Math.max(480, innerHeight - 400) };
    const { columns, scale } = fit(images, shape, space, { gap: 8, largest: 6 });
    easel.style.setProperty("--columns", columns);
    const cells = Array.from({ length: images }, (_, index) => {
      const target = canvas(shape, scale, `Image ${index + 1}, being painted`);
      resize(target, scale);
      if (known) draw(target, forced().values.subarray(0, known * shape[1] * shape[2]), shape[1], shape[2]);
      return element("div", { class: "cell growing", style: { "--done": known / shape[0], "--known": known / shape[0] } }, target);
    });
    easel.replaceChildren(...cells);
    return cells;
  }

  function place(cell, { first_row: firstRow, rows }) {
    const [height, width] = manifest.event.shape;
    const top = 255 / (manifest.event.levels - 1);
    draw(cell.firstChild, rows.flat().map((level) => Math.round(level * top)), width, 1, firstRow);
    cell.style.setProperty("--done", (firstRow + rows.length) / height);
    if (firstRow + rows.length === height) cell.classList.remove("growing");
  }

  function read(first, fresh, elapsed, { rows_done: done, rows_total: total }, cuts) {
    gauge.value = done / total;
    const readings = [
      ["first row", `${Math.round(first)} ms`],
      ["rows a second", String(Math.round((fresh / elapsed) * 1000))],
      ["rows", `${done} of ${total}`],
      ["time", `${(elapsed / 1000).toFixed(1)} s`],
      ["cuts", String(cuts)],
    ];
    facts.replaceChildren(...readings.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))));
  }

  /** Draw what the answer holds over what the events said: it is the same, or the page is wrong. */
  async function finish(cells, { images }) {
    gauge.value = 1; // a model that shows no rows on the way comes to its end at once
    for (const [index, png] of images.entries()) {
      const { values } = await fromPng(png, manifest.event.shape);
      draw(cells[index].firstChild, values, manifest.event.shape[1], manifest.event.shape[2]);
      cells[index].style.setProperty("--done", 1);
      cells[index].firstChild.setAttribute("aria-label", `Image ${index + 1} of seed ${state.number("seed", 1)}, painted`);
      cells[index].dataset.png = png;
    }
  }

  function fail(error, retry) {
    if (signal.aborted) return;
    rest();
    status.textContent = "";
    wrong.replaceChildren(notice(error instanceof Problem ? error : { detail: "The page could not read the stream.", title: "This failed" }, retry));
  }

  await open(name);
}

const datasetOf = ({ provenance }) => provenance?.dataset;
const isEmpty = ({ values }) => values.every((value) => value === 0);
