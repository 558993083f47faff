// Sample: a grid of images that follows from the model, a seed and what its controls are set to.

import { file, newest, post } from "./api.js";
import {
  anySeed, chosenModel, classField, classesOf, controlFields, controlsOf, manifestOf, modelField, nothingOffers, offering, workbench,
} from "./controls.js";
import { element, field, notice, paused, save, slider, whole } from "./elements.js";
import { fit, picture } from "./images.js";
import { copyPanel } from "./snippets.js";

export const title = "Sample";
export const purpose = "Draw images. The same seed and settings give the same pictures, here and from any client.";

const MOST = 64;

/** Show the fields and a grid, drawn anew whenever a field changes. */
export async function show(root, { state, signal, models }) {
  const offered = offering(models, "sample");
  const name = chosenModel(offered, state);
  if (!name) {
    root.append(nothingOffers("sample"));
    return;
  }
  const grid = element("div", { class: "grid" });
  const status = element("p", { class: "status", role: "status" });
  const inspected = element("div", { class: "inspected" });
  const copy = copyPanel();
  const downloads = ["png", "npy"].map((kind) =>
    element("button", { type: "button", onclick: () => download(kind) }, kind === "png" ? "PNG" : "npy"));
  const fields = element("div", { class: "fields" });
  workbench(root, [modelField(offered, name, choose), fields], [
    element("div", { class: "stage-head" }, status, element("div", { class: "actions" }, element("span", { class: "hint" }, "Download"), downloads)),
    grid, inspected, copy,
  ]);
  let manifest = null;
  let asked = null;
  const requests = newest(signal);

  async function choose(model) {
    state.set({ model, class: null, temperature: null, truncation: null, top_k: null, top_p: null, greedy: null, burn_in: null, thinning: null, chains: null });
    await open(model);
  }

  async function open(model) {
    const mine = requests.begin();
    try {
      manifest = await manifestOf(model, mine);
    } catch (error) {
      if (!mine.aborted) fail(error, () => open(model));
      return;
    }
    state.set({ model, seed: state.number("seed", 1) });
    const seed = whole(state.number("seed", 1), {}, (value) => {
      state.set({ seed: value });
      later();
    });
    fields.replaceChildren(
      element("div", { class: "seed" }, field("Seed", seed),
        element("button", {
          type: "button",
          onclick: () => {
            seed.value = anySeed();
            state.set({ seed: seed.value });
            draw();
          },
        }, "New seed")),
      slider("Count", { minimum: 1, maximum: MOST, value: count(), whole: true }, (value) => {
        state.set({ count: value });
        later();
      }),
      classField(manifest.condition, state, draw) ?? "",
      controlFields(manifest.controls, state, later),
      element("button", { type: "submit", class: "primary", onclick: draw }, "Draw again"));
    await draw();
  }

  const count = () => Math.min(MOST, Math.max(1, Math.round(state.number("count", 16))));

  const request = () => ({
    model: manifest.name,
    count: count(),
    seed: state.number("seed", 1),
    ...classesOf(manifest.condition, state, count()),
    ...controlsOf(manifest.controls, state),
  });

  async function draw() {
    const mine = requests.begin();
    const body = request();
    status.textContent = `Drawing ${body.count} images`;
    grid.setAttribute("aria-busy", "true");
    const start = performance.now();
    try {
      const answer = await post("/sample", body, mine);
      asked = body;
      lay(answer);
      copy.offer("/sample", body);
      status.textContent = `${body.count} images of ${answer.model}, seed ${answer.seed}, in ${Math.round(performance.now() - start)} ms`;
      grid.removeAttribute("aria-busy");
    } catch (error) {
      if (!mine.aborted) fail(error, draw);
    }
  }

  const later = paused(draw);

  function fail(error, again) {
    if (signal.aborted) return;
    grid.removeAttribute("aria-busy");
    status.textContent = "";
    inspected.replaceChildren();
    grid.replaceChildren(notice(error, again));
  }

  function lay({ images, class_label: labels, seed }) {
    inspected.replaceChildren();
    const shape = manifest.event.shape;
    const space = { width: grid.clientWidth, height: Math.max(480, innerHeight - 330) };
    const { columns, scale } = fit(images.length, shape, space, { largest: 6 });
    grid.style.setProperty("--columns", columns);
    grid.replaceChildren(...images.map((png, index) => {
      const label = labels ? `, class ${manifest.condition.names[labels[index]]}` : "";
      const alt = `Image ${index + 1} of seed ${seed}${label}`;
      return element("button", { type: "button", class: "tile", "aria-pressed": "false", onclick: (event) => inspect(event.currentTarget, png, alt) },
        picture(png, shape, scale, alt));
    }));
  }

  function inspect(tile, png, alt) {
    for (const other of grid.children) other.setAttribute("aria-pressed", String(other === tile));
    const image = encodeURIComponent(png);
    const links = [["likelihood", `#/score?image=${image}`, "Score it"], ["complete", `#/paint?image=${image}`, "Complete it"],
      ["encode", `#/latent?mode=interpolation&a-image=${image}`, "Interpolate from it"]];
    inspected.replaceChildren(
      picture(png, manifest.event.shape, 4, alt),
      element("div", {},
        element("p", {}, alt),
        element("p", { class: "links" }, links.filter(([operation]) => offering(models, operation).length)
          .map(([, href, words]) => element("a", { href }, words)))));
  }

  async function download(kind) {
    if (!asked) return;
    try {
      const media = kind === "png" ? "image/png" : "application/x-npy";
      save(await file("/sample", asked, media, signal), `${asked.model}-seed-${asked.seed}.${kind}`);
    } catch (error) {
      fail(error, () => download(kind));
    }
  }

  await open(name);
}
