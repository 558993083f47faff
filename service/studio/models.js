// Models: what is there, what each can do, how good it is, and what it draws.

import { post } from "./api.js";
import { element, notice, precise } from "./elements.js";
import { picture, scatter } from "./images.js";

export const title = "Models";
export const purpose = "What this service serves, what each model can do, and how good it is.";

const STRIP = 8;
const POINTS = 256; // what a service answers at most, unless set otherwise
const SIDE = 168; // pixels of their picture
const WORDS = { available: "loads on first use", loading: "is loading", ready: "ready", refused: "refused", unloaded: "unloaded" };
const LINKS = [
  ["sample", "sample", "Sample"],
  ["complete", "paint", "Paint"],
  ["interpolate", "latent", "Latent space"],
  ["likelihood", "score", "Score"],
];

/** Show a card for each model. */
export function show(root, { models, signal }) {
  if (!models.length) {
    root.append(element("p", { class: "notice" }, "The model repository is empty. Put an artifact into it, and start the service again."));
    return;
  }
  root.append(element("ul", { class: "cards" }, sorted(models).map((model) => card(model, signal))));
}

// Those that answer at once come first.
const sorted = (models) => [...models].sort((a, b) => (b.state === "ready") - (a.state === "ready"));

function card(model, signal) {
  return element("li", { class: "card", "data-model": model.name },
    element("div", { class: "card-head" },
      element("h2", {}, model.name, element("span", { class: "version" }, ` @${model.version}`)),
      element("span", { class: `state ${model.state}` }, WORDS[model.state])),
    element("p", { class: "facts" }, [model.family ?? "unknown family", model.dataset].filter(Boolean).join(" · ")),
    model.reason && element("p", { class: "notice problem" }, model.reason),
    strip(model, signal),
    element("ul", { class: "operations", "aria-label": "Operations" }, model.operations.map((name) => element("li", {}, name))),
    figures(model.quality),
    model.event === "vector"
      ? element("p", { class: "hint" }, "A model of vectors: the other views show images. Ask it over REST or gRPC.")
      : element("p", { class: "links" }, LINKS.filter(([operation]) => model.operations.includes(operation)).map(([, view, words]) =>
        element("a", { href: `#/${view}?model=${encodeURIComponent(model.name)}` }, words))));
}

function figures(quality) {
  if (!quality.length) return element("p", { class: "hint" }, "No figures were measured.");
  return element("table", { class: "figures" },
    element("thead", {}, element("tr", {}, ["figure", "here", "published"].map((words) => element("th", { scope: "col" }, words)))),
    element("tbody", {}, quality.map((figure) => element("tr", { title: figure.protocol },
      element("th", { scope: "row" }, figure.name.replaceAll("_", " "), element("small", {}, ` ${figure.unit}`)),
      element("td", {}, precise(figure.value, 4), figure.standard_error && element("small", {}, ` ± ${precise(figure.standard_error, 1)}`)),
      element("td", {}, figure.published ? element("span", { title: figure.published.source }, precise(figure.published.value, 4)) : "–")))));
}

/** Samples, once they are on the screen; a model that would have to be loaded for them is asked for. */
function strip(model, signal) {
  const place = element("div", { class: "strip" });
  if (!model.operations.includes("sample") || !["ready", "available", "loading"].includes(model.state)) return null;
  const load = async () => {
    place.replaceChildren(element("span", { class: "hint" }, model.state === "ready" ? "Drawing samples" : "Loading the model"));
    place.setAttribute("aria-busy", "true");
    try {
      const count = model.event === "vector" ? POINTS : STRIP;
      const { images, vectors } = await post("/sample", { model: `${model.name}@${model.version}`, count, seed: 1 }, signal);
      if (vectors) {
        place.replaceChildren(scatter(vectors, SIDE, `${count} vectors of ${model.name}`));
        return;
      }
      const pictures = images.map((png, index) => picture(png, sizeOf(png), 1, index ? "" : `${STRIP} samples of ${model.name}`));
      place.replaceChildren(element("div", { class: "frames" }, pictures));
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(notice(error, load));
    } finally {
      place.removeAttribute("aria-busy");
    }
  };
  if (model.state === "available") {
    place.append(element("button", { type: "button", onclick: load }, "Load it and draw samples"));
  } else {
    const watch = new IntersectionObserver(([seen]) => {
      if (!seen.isIntersecting) return;
      watch.disconnect();
      load();
    });
    watch.observe(place);
  }
  return place;
}

/** Height and width that a PNG's header states. */
function sizeOf(png) {
  const head = atob(png.slice(0, 32));
  const number = (at) => [0, 1, 2, 3].reduce((sum, i) => sum * 256 + head.charCodeAt(at + i), 0);
  return [number(20), number(16)];
}
