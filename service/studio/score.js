// Score: how likely images are, how rare among normal ones, and which of their pixels were not expected.

import { get, newest, post } from "./api.js";
import { histogram } from "./charts.js";
import { chosenModel, manifestOf, modelField, nothingOffers, offering, workbench } from "./controls.js";
import { element, field, notice, paused, percent, precise, select, slider } from "./elements.js";
import { atLevels, blank, canvas, fromPng, picture, readFile, toPng } from "./images.js";
import { makePad } from "./pad.js";
import { copyPanel } from "./snippets.js";

export const title = "Score";
export const purpose = "How likely is an image, and how rare among normal ones? Drop some, or draw one.";

const MOST = 12; // images: they stand in the address, so that a view can be shared
const KINDS = { lower_bound: "lower bound on a", estimate: "estimate of a" };

/** Show the fields, where images come from, and what the model says of each. */
export async function show(root, { state, signal, models }) {
  const offered = offering(models, "likelihood");
  const name = chosenModel(offered, state);
  if (!name) {
    root.append(nothingOffers("likelihood"));
    return;
  }
  const status = element("p", { class: "status", role: "status" });
  const wrong = element("div", { class: "stack" }); // of files
  const refused = element("div", { class: "stack" }); // of requests
  const chart = element("div", {});
  const legend = element("p", { class: "hint", hidden: true }, "Beside each image is its map: the brighter a pixel, the less the model expected it, on one scale for all.");
  const list = element("ol", { class: "scored" });
  const copy = copyPanel();
  const fields = element("div", { class: "fields" });
  const chooser = element("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", "aria-label": "Image files to score", onchange: () => take(chooser.files) });
  const drop = element("div", {
    class: "drop",
    ondragover: (event) => {
      event.preventDefault();
      drop.classList.add("over");
    },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take(event.dataTransfer.files);
    },
  }, element("p", {}, "Drop images here"), element("div", { class: "actions" },
    element("button", { type: "button", onclick: () => chooser.click() }, "Choose files"), chooser,
    element("button", { type: "button", onclick: examples }, "Examples"),
    element("button", { type: "button", onclick: () => put([]) }, "Clear")));
  workbench(root, [modelField(offered, name, open), fields], [status, wrong, refused, chart, legend, list, copy]);

  const calibrations = new Map(); // by model and id
  let manifest = null;
  const requests = newest(signal);

  const images = () => (state.get("image") ?? "").split(".").filter(Boolean);
  const rate = () => Math.min(0.5, Math.max(0.001, state.number("rate", 0.01)));
  const rules = () => manifest.preprocess.binarisation?.rules ?? [];
  const rule = () => (rules().includes(state.get("binarisation")) ? state.get("binarisation") : rules()[0]);
  const hasMap = () => manifest.graphs.log_likelihood?.outputs.some(({ role }) => role === "log_likelihood_map");

  async function open(model) {
    const mine = requests.begin();
    try {
      manifest = await manifestOf(model, mine);
    } catch (error) {
      if (!mine.aborted) fail(error, () => open(model));
      return;
    }
    state.set({ model });
    const pad = makePad(manifest.event.shape, { label: "The image to score", scale: 8, onchange: () => {} });
    fields.replaceChildren(
      drop,
      element("details", { class: "draw" }, element("summary", {}, "Draw one"), pad,
        element("button", { type: "button", onclick: async () => add([await toPng(atLevels(pad.image(), manifest.event.levels))]) }, "Score the drawing")),
      slider("False-positive rate", { minimum: 0.001, maximum: 0.5, value: rate(), words: percent, hint: "Share of normal images that may be called anomalous." }, (value) => {
        state.set({ rate: value });
        later();
      }),
      rules().length ? field("Grey levels become binary", select(rules().map((one) => [one, one === "threshold" ? "above half" : "drawn by level"]), rule(), (value) => {
        state.set({ binarisation: value });
        score();
      })) : "");
    if (images().length) await score();
    else await examples();
  }

  async function take(files) {
    const found = [];
    wrong.replaceChildren();
    for (const chosen of [...files].slice(0, MOST)) {
      try {
        const { image, note } = await readFile(chosen, manifest.event.shape);
        found.push(await toPng(atLevels(image, manifest.event.levels)));
        if (note) wrong.append(element("p", { class: "hint" }, `${chosen.name}: ${note}`));
      } catch (error) {
        wrong.append(notice(error));
      }
    }
    if (files.length > MOST) wrong.append(element("p", { class: "hint" }, `${MOST} of ${files.length} files were taken; genserve score takes many.`));
    chooser.value = "";
    if (found.length) await add(found);
  }

  const add = (pngs) => put([...pngs, ...images()].slice(0, MOST));

  async function put(pngs) {
    state.set({ image: pngs.join(".") });
    if (pngs.length) await score();
    else {
      requests.stop();
      list.replaceChildren();
      chart.replaceChildren();
      refused.replaceChildren();
      status.textContent = "Nothing to score yet: drop images, draw one, or take the examples.";
    }
  }

  /** Two samples, the negative of one, and noise: what is normal, and what is not. */
  async function examples() {
    const like = models.find((model) => model.name === manifest.name)?.dataset;
    const drawing = offering(models, "sample").filter((model) => model.dataset === like);
    const best = drawing.find((model) => model.state === "ready" && model.operations.includes("complete")) // nearest to its data
      ?? drawing.find((model) => model.name === manifest.name) ?? drawing[0] ?? { name: manifest.name };
    try {
      const { images: pngs } = await post("/sample", { model: best.name, count: 2, seed: 21 }, signal);
      const second = await fromPng(pngs[1], manifest.event.shape);
      const negative = { ...second, values: second.values.map((value) => 255 - value) };
      const noise = blank(manifest.event.shape);
      let next = 7; // of a linear congruential generator, so that the same noise comes each time
      noise.values = noise.values.map(() => (next = (next * 1103515245 + 12345) % 2147483648) >> 23);
      const made = await Promise.all([negative, noise].map((image) => toPng(atLevels(image, manifest.event.levels))));
      await put([...pngs, ...made]);
    } catch (error) {
      if (!signal.aborted) fail(error, examples);
    }
  }

  function request() {
    const parts = ["log_likelihood"];
    if (manifest.calibrations.length) parts.push("scores");
    if (hasMap()) parts.push("log_likelihood_map");
    return {
      model: manifest.name,
      images: images(),
      return: parts,
      ...(parts.includes("scores") ? { false_positive_rate: rate() } : {}),
      ...(rules().length ? { binarisation: rule() } : {}),
    };
  }

  async function score() {
    const mine = requests.begin();
    if (!images().length) return;
    status.textContent = `Scoring ${images().length} images`;
    list.setAttribute("aria-busy", "true");
    try {
      const loaded = manifest.state === "ready";
      let body = request();
      let answer = await scored(body, mine);
      if (!loaded) { // what calibrations it has is known now
        manifest = await manifestOf(manifest.name, mine);
        body = request();
        answer = await scored(body, mine);
      }
      await showAnswer(answer, mine);
      copy.offer("/likelihood", body);
      list.removeAttribute("aria-busy");
    } catch (error) {
      if (!mine.aborted) fail(error, score);
    }
  }

  /** Score; where no calibration holds for the request, without a verdict. */
  async function scored(body, mine) {
    try {
      return await post("/likelihood", body, mine);
    } catch (error) {
      if (error.reason !== "NOT_CALIBRATED") throw error;
      const { false_positive_rate: _, ...rest } = body;
      rest.return = body.return.filter((part) => part !== "scores");
      return { ...await post("/likelihood", rest, mine), refused: error.detail };
    }
  }

  const later = paused(score);

  async function showAnswer(answer, mine) {
    const { results, calibration, model } = answer;
    const shown = images();
    chart.replaceChildren(calibration ? await against(calibration, model, results, mine) : element("p", { class: "notice" },
      `There is no verdict: ${answer.refused ?? `${manifest.name} has no calibration`}. The command genserve calibrate makes one of normal images.`));
    refused.replaceChildren();
    legend.hidden = !hasMap();
    list.replaceChildren(...results.map((result, index) => item(shown[index], result, index)));
    status.textContent = `${results.length} images scored by ${model}`;
  }

  async function against({ id, count, decision, false_positive_rate: asked, realised_rate: [low, high], coverage }, model, results, mine) {
    const key = `${model}/${id}`;
    if (!calibrations.has(key)) calibrations.set(key, await get(`/models/${encodeURIComponent(model)}/calibrations/${id}`, mine));
    const normal = calibrations.get(key).scores[decision];
    const beyond = Math.max(0, Math.floor(asked * (count + 1)) - 1); // so many normal ones may score as high
    const limit = normal[normal.length - 1 - beyond];
    const marks = results.map(({ scores }) => scores[decision].value);
    const called = results.filter(({ anomalous }) => anomalous).length;
    return element("figure", { class: "against" },
      element("figcaption", {}, element("h2", {}, `Score “${decision.replaceAll("_", " ")}” of ${count} normal images, and of these`),
        element("p", { class: "hint" }, `Right of the line is what is called anomalous at a rate of ${percent(asked)}. `
          + `For normal images it is really between ${percent(low)} and ${percent(high)}, with a probability of ${percent(coverage)}.`)),
      histogram(normal, limit, marks, Math.max(280, chart.clientWidth - 34), `${called} of ${results.length} images lie beyond the limit; their numbers are in the list below.`));
  }

  function item(png, result, index) {
    const shape = manifest.event.shape;
    const facts = [
      ["log-likelihood", `${precise(result.log_likelihood, 5)}${result.standard_error ? ` ± ${precise(result.standard_error, 2)}` : ""} nats`],
      ["kind", result.kind === "exact" ? `exact ${result.quantity}`
        : `${KINDS[result.kind]} ${result.quantity}: ${result.estimator.replaceAll("_", " ")}, ${result.draws} draw${result.draws > 1 ? "s" : ""}`],
      ["bits/dim", precise(result.bits_per_dim, 4)],
      ...Object.entries(result.scores ?? {}).map(([kind, { value, unit, p_value: p }]) =>
        [kind.replaceAll("_", " "), `${precise(value, 4)}${unit ? ` ${unit}` : ""}, p ${precise(p, 2)}`]),
    ];
    return element("li", {},
      element("p", { class: "verdict" }, element("span", { class: "number" }, String(index + 1)),
        result.p_value === null || result.p_value === undefined ? "not judged" : [
          element("strong", { class: result.anomalous ? "anomalous" : "normal" }, result.anomalous ? "anomalous" : "normal"),
          ` p-value ${precise(result.p_value, 2)}`,
          element("small", {}, result.percentile === 100 ? "above all normal images" : `above ${percent(result.percentile / 100)} of normal images`)],
        element("button", { type: "button", class: "quiet", "aria-label": `Remove image ${index + 1}`, onclick: () => put(images().filter((_, other) => other !== index)) }, "×")),
      element("div", { class: "pair" }, picture(png, shape, 4, `Image ${index + 1}`),
        result.log_likelihood_map && heatMap(result.log_likelihood_map, shape, index)),
      element("dl", { class: "facts-of" }, facts.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)))));
  }

  /** The log-likelihood of each pixel on the service's own scale: black is certain, the lightest twice a guess. */
  function heatMap(map, shape, index) {
    const levels = manifest.preprocess.binarisation?.levels ?? manifest.event.levels;
    const made = canvas(shape, 4, `Which pixels of image ${index + 1} were not expected: the unlikely are bright`);
    const pixels = new ImageData(shape[1], shape[0]);
    map.flat().forEach((nats, at) => {
      const share = nats === null ? 1 : Math.min(1, Math.max(0, -nats / (2 * Math.log(levels))));
      pixels.data.set([...colour(share), 255], 4 * at);
    });
    made.getContext("2d").putImageData(pixels, 0, 0);
    return made;
  }

  function fail(error, again) {
    if (signal.aborted) return;
    list.removeAttribute("aria-busy");
    list.replaceChildren();
    chart.replaceChildren();
    legend.hidden = true;
    status.textContent = "";
    refused.replaceChildren(notice(error, again));
  }

  await open(name);
}

// Dark to light through red and amber: lightness rises all the way, so it can be read without colour.
const RAMP = [[0, 0, 0], [74, 16, 40], [158, 42, 28], [224, 120, 38], [255, 214, 122], [255, 255, 240]];

function colour(share) {
  const at = Math.sqrt(share) * (RAMP.length - 1); // most of what is to be seen is far below a guess
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[low].map((from, channel) => Math.round(from + (RAMP[low + 1][channel] - from) * (at - low)));
}
