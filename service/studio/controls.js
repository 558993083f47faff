// What a model lets one choose, as fields: which model, the class, and the controls of its manifest.

import { Problem, get } from "./api.js";
import { element, field, newId, select, slider, tick } from "./elements.js";

/** Return the models of images that offer an operation and may answer, those that are loaded first. */
export function offering(models, operation) {
  const usable = models.filter((model) =>
    model.operations.includes(operation) && model.event !== "vector" && !["refused", "unloaded"].includes(model.state));
  const newest = usable.filter((model, index) => usable.findLastIndex((other) => other.name === model.name) === index);
  return newest.sort((a, b) => (b.state === "ready") - (a.state === "ready"));
}

/** Return the model that the state names, or the first; it may be none of those that may answer. */
export const chosenModel = (offered, state) => state.get("model") ?? offered[0]?.name;

/** Say that no model can do what the view is for. */
export function nothingOffers(operation) {
  return element("p", { class: "notice" }, `No model that is served offers ${operation}. `, element("a", { href: "#/models" }, "See the models"), ".");
}

/** A list of models, by name; one of the address that is not offered stays in it, so that the service can say why. */
export function modelField(offered, value, onchange) {
  const names = offered.map((model) => [model.name, model.state === "ready" ? model.name : `${model.name} (${model.state})`]);
  if (value && !offered.some((model) => model.name === value)) names.push([value, value]);
  return field("Model", select(names, value, onchange));
}

/** Return the manifest of a model of images, with its state and calibrations. */
export async function manifestOf(name, signal) {
  const manifest = await get(`/models/${encodeURIComponent(name)}`, signal);
  if (manifest.event?.kind === "vector") {
    throw new Problem({ title: "This view shows images", detail: `${name} is a model of vectors; the view Models draws some of them.` });
  }
  return manifest;
}

/** Return a random seed, small enough to be read aloud. */
export const anySeed = () => Math.floor(Math.random() * 100_000);

/** A list of the classes; "each" takes them in turn. */
export function classField(condition, state, onchange, { each = true } = {}) {
  if (!condition) return null;
  const options = [
    ["", condition.optional ? "none given" : "drawn for each image"],
    ...(each ? [["each", "all in turn"]] : []),
    ...condition.names.map((name, index) => [String(index), name]),
  ];
  return field("Class", select(options, state.get("class", ""), (value) => {
    state.set({ class: value });
    onchange();
  }));
}

/** Return the class labels that the state asks for, as the field class_label. */
export function classesOf(condition, state, count) {
  const chosen = state.get("class", "");
  if (!condition || chosen === "") return {};
  if (chosen !== "each") return { class_label: Number(chosen) };
  return { class_label: Array.from({ length: count }, (_, index) => index % condition.names.length) };
}

const WHOLE = new Set(["top_k", "burn_in", "thinning", "chains"]);

/** Sliders for the controls that a manifest lists, folded on narrow screens; what is off is left to the model. */
export function controlFields(controls, state, onchange) {
  const fields = Object.entries(controls).map(([name, control]) => {
    const words = capital(name.replaceAll("_", "-"));
    if (name === "greedy") {
      return tick(`Greedy: ${control.meaning.replace(/^1 /, "")}`, state.get(name) === "true", (on) => {
        state.set({ [name]: on ? "true" : null });
        onchange();
      });
    }
    return slider(words, {
      minimum: control.minimum,
      maximum: control.maximum,
      whole: WHOLE.has(name),
      value: state.number(name, control.default ?? control.maximum),
      words: (value) => (isOff(control, value) ? "off" : String(value)),
      hint: control.meaning,
    }, (value) => {
      state.set({ [name]: isOff(control, value) || value === control.default ? null : value });
      onchange();
    });
  });
  if (!fields.length) return "";
  return element("details", { class: "more", open: innerWidth > 760 }, element("summary", {}, "Controls"), element("div", { class: "fields" }, fields));
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// A control without a default takes nothing away where it is at its highest.
const isOff = (control, value) => control.default === null && value === control.maximum;

/** Return the controls that the state sets, as fields of a request. */
export function controlsOf(controls, state) {
  const set = Object.keys(controls).filter((name) => state.get(name) !== null);
  return Object.fromEntries(set.map((name) => [name, name === "greedy" ? true : state.number(name, controls[name].default)]));
}

/** A panel of fields beside what they change. */
export function workbench(root, fields, result) {
  const panel = element("form", { class: "panel", "aria-label": "What to ask for", onsubmit: (event) => event.preventDefault() }, fields);
  root.append(element("div", { class: "bench" }, panel, element("section", { class: "stage", "aria-label": "Result", id: newId("stage") }, result)));
  return panel;
}
