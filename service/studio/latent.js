// Latent space: a plane of what a model can draw, paths between images, and sums of them.

import { Problem, newest, post } from "./api.js";
import { anySeed, classField, classesOf, manifestOf, modelField, nothingOffers, offering, workbench } from "./controls.js";
import { choice, element, field, notice, paused, slider, whole } from "./elements.js";
import { canvas, draw, fromPng, picture, readFile, resize, toPng } from "./images.js";
import { copyPanel } from "./snippets.js";

export const title = "Latent space";
export const purpose = "Every image is a point. Move through them, walk from one to another, add and subtract.";

const MODES = { manifold, interpolation, arithmetic };
const WORDS = [["manifold", "Manifold"], ["interpolation", "Interpolation"], ["arithmetic", "Arithmetic"]];
const FRAMES = 24;
const FRAME_MILLISECONDS = 70;

/** Show one of the three ways to look at a latent space. */
export async function show(root, context) {
  const mode = Object.hasOwn(MODES, context.state.get("mode", "")) ? context.state.get("mode") : "manifold";
  const place = element("div", {});
  let leaving = new AbortController();
  context.signal.addEventListener("abort", () => leaving.abort());
  const open = async (chosen) => {
    leaving.abort();
    leaving = new AbortController();
    const { signal } = leaving;
    place.replaceChildren();
    try {
      await MODES[chosen](place, { ...context, signal });
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(notice(error, () => open(chosen)));
    }
  };
  root.append(element("div", { class: "modes" }, choice("What to do", WORDS, mode, (chosen) => {
    context.state.set({ mode: chosen, model: null });
    open(chosen);
  })), place);
  await open(mode);
}

/** Run one request at a time, and after it the newest of those that came meanwhile. */
function latest(run) {
  let [busy, next] = [false, null];
  return async function ask(...given) {
    next = given;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await run(...now);
      }
    } finally {
      busy = false;
    }
  };
}

// The plane of a model with two latents

async function manifold(root, { state, signal, models }) {
  const manifests = await Promise.all(offering(models, "decode").map((model) => manifestOf(model.name, signal)));
  const planes = manifests.filter(({ latent }) => latent?.shape.length === 1 && latent.shape[0] === 2);
  const manifest = planes.find(({ name }) => name === state.get("model")) ?? planes[0];
  if (!manifest) {
    root.append(element("p", { class: "notice" }, "No model that is served has a latent space of two dimensions. Paths and sums work with any latent space."));
    return;
  }
  const shape = manifest.event.shape;
  const status = element("p", { class: "status", role: "status" }, "Decoding the plane");
  const plane = element("canvas", { class: "pixels", tabindex: "0", role: "application", "aria-label": "The plane: arrow keys move the point" });
  const mark = element("div", { class: "cross" });
  const one = canvas(shape, 8, "The image at the point");
  const wrong = element("div", {});
  const copy = copyPanel();
  const board = element("div", { class: "plane" }, plane, mark);
  const sliders = [0, 1].map((axis) => slider(`z${axis + 1}`, { minimum: -3, maximum: 3, value: state.number(`z${axis + 1}`, 0), words: (value) => value.toFixed(2) }, (value) => {
    at[axis] = value;
    move();
  }));
  const at = [state.number("z1", 0), state.number("z2", 0)];
  workbench(root, [
    planes.length > 1 && modelField(planes.map(({ name }) => ({ name, state: "ready" })), manifest.name, (model) => {
      state.set({ model });
      root.replaceChildren();
      manifold(root, { state, signal, models });
    }),
    one, ...sliders,
    element("p", { class: "hint" }, "Move the pointer over the plane, use its arrow keys, or the sliders. Cells stand at equally probable steps of the prior, so the middle of the plane is where most images come from."),
  ], [status, board, wrong, copy]);

  // As many cells as fit at whole pixels; the service decodes at most 256 at once, unless set otherwise.
  const room = Math.min(root.querySelector(".stage").clientWidth, Math.max(330, innerHeight - 250));
  const side = Math.max(4, Math.min(16, Math.floor(room / shape[1] / (room >= 500 ? 2 : 1))));
  const steps = Array.from({ length: side }, (_, index) => round(normalQuantile((index + 0.5) / side)));

  async function decodePlane() {
    const latents = steps.toReversed().flatMap((y) => steps.map((x) => [x, y]));
    const { images } = await post("/decode", { model: manifest.name, latents }, signal);
    plane.width = side * shape[1];
    plane.height = side * shape[0];
    resize(plane, Math.max(1, Math.floor(room / plane.width)));
    const cell = element("canvas", { width: shape[1], height: shape[0] });
    for (const [index, png] of images.entries()) {
      draw(cell, (await fromPng(png, shape)).values, shape[1], shape[2]);
      plane.getContext("2d").drawImage(cell, (index % side) * shape[1], Math.floor(index / side) * shape[0]);
    }
    status.textContent = `${side} × ${side} images of ${manifest.name}`;
  }

  const decodeOne = latest(async () => {
    const latent = at.map(round);
    const body = { model: manifest.name, latents: [latent] };
    try {
      const { images: [png] } = await post("/decode", body, signal);
      draw(one, (await fromPng(png, shape)).values, shape[1], shape[2]);
      one.dataset.png = png;
      one.setAttribute("aria-label", `The image at ${latent.join(", ")}`);
      copy.offer("/decode", body);
      wrong.replaceChildren();
    } catch (error) {
      if (!signal.aborted) wrong.replaceChildren(notice(error, open));
    }
  });

  const remember = paused(() => signal.aborted || state.set({ model: manifest.name, z1: round(at[0]), z2: round(at[1]) }), 300);

  function move() {
    sliders.forEach((row, axis) => row.put(at[axis]));
    mark.style.left = `${normalShare(at[0]) * 100}%`;
    mark.style.top = `${(1 - normalShare(at[1])) * 100}%`;
    remember();
    decodeOne();
  }

  function follow(event) {
    const box = plane.getBoundingClientRect();
    const inside = (share) => Math.min(1 - 0.5 / side, Math.max(0.5 / side, share));
    at[0] = normalQuantile(inside((event.clientX - box.left) / box.width));
    at[1] = normalQuantile(inside(1 - (event.clientY - box.top) / box.height));
    move();
  }

  plane.addEventListener("pointermove", follow);
  plane.addEventListener("pointerdown", follow);
  plane.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    step.forEach((by, axis) => (at[axis] = Math.min(3, Math.max(-3, at[axis] + by))));
    move();
  });

  async function open() {
    board.setAttribute("aria-busy", "true");
    try {
      await decodePlane();
      move();
    } catch (error) {
      if (signal.aborted) return;
      status.textContent = "";
      wrong.replaceChildren(notice(error, open));
    } finally {
      board.removeAttribute("aria-busy");
    }
  }

  await open();
}

const round = (value) => Number(value.toFixed(4));

/** The quantile of the standard normal; Abramowitz and Stegun 26.2.23, to within 0.0005. */
function normalQuantile(share) {
  const tail = Math.min(share, 1 - share);
  const t = Math.sqrt(-2 * Math.log(tail));
  const size = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return share < 0.5 ? -size : size;
}

/** The share of the standard normal below a value: the inverse of the quantile above. */
function normalShare(value) {
  let [low, high] = [1e-4, 1 - 1e-4];
  for (let step = 0; step < 30; step += 1) {
    const middle = (low + high) / 2;
    if (normalQuantile(middle) < value) low = middle;
    else high = middle;
  }
  return low;
}

// Points that are a seed or an image

/**
 * Fields for a point: a seed, or an image where the model can encode one.
 *
 * The state holds `key` for the seed, and `key-image` for the image as a base64 PNG.
 */
function pointField(key, words, seed, { manifest, state, onchange }) {
  const said = element("div", {});
  const image = () => state.get(`${key}-image`);
  const useSeed = (value) => {
    state.set({ [key]: value, [`${key}-image`]: null });
    said.replaceChildren();
    onchange();
  };
  const number = whole(state.number(key, seed), {}, useSeed);
  const chooser = element("input", { type: "file", accept: "image/*", class: "unseen", "aria-label": `Image file for ${words}`, onchange: () => take(chooser.files[0]) });
  const canEncode = "encode" in manifest.operations;

  async function take(chosen) {
    if (!chosen) return;
    try {
      const { image: read, note } = await readFile(chosen, manifest.event.shape);
      state.set({ [`${key}-image`]: await toPng(read) });
      sayImage(note);
      onchange();
    } catch (error) {
      said.replaceChildren(notice(error));
    }
    chooser.value = "";
  }

  const sayImage = (note = "") => said.replaceChildren(element("p", { class: "hint" }, `${words} is an image until there is a new seed. ${note ?? ""}`));
  if (image() && canEncode) sayImage();

  const box = element("div", {
    class: "point",
    ondragover: (event) => event.preventDefault(),
    ondrop: (event) => {
      event.preventDefault();
      if (canEncode) take(event.dataTransfer.files[0]);
    },
  },
  field(`Seed of ${words}`, number),
  element("div", { class: "actions" },
    element("button", {
      type: "button",
      "aria-label": `New seed for ${words}`,
      onclick: () => {
        number.value = anySeed();
        useSeed(number.value);
      },
    }, "New"),
    canEncode && element("button", { type: "button", "aria-label": `Open an image file for ${words}`, onclick: () => chooser.click() }, "Image"),
    canEncode && chooser),
  said);
  return Object.assign(box, {
    point: () => (image() && canEncode ? { image: image() } : { seed: state.number(key, seed) }),
  });
}

/** The models that interpolate, the fields that all of them share, and a place for what they draw. */
async function openPaths(root, { state, signal, models }, build) {
  const offered = offering(models, "interpolate");
  if (!offered.length) {
    root.append(nothingOffers("interpolate"));
    return;
  }
  const needsImages = ["a", "b", "c"].some((key) => state.get(`${key}-image`) !== null);
  const first = needsImages ? offering(models, "encode")[0] : offered[0];
  const name = state.get("model") ?? first?.name ?? offered[0].name;
  const manifest = await manifestOf(name, signal);
  state.set({ model: name });
  const reopen = (model) => {
    state.set({ model, class: null });
    root.replaceChildren();
    openPaths(root, { state, signal, models }, build).catch((error) => {
      if (!signal.aborted) root.replaceChildren(notice(error, () => reopen(model)));
    });
  };
  await build(manifest, modelField(offered, name, reopen));
}

// A path from one point to another

async function interpolation(root, context) {
  const { state, signal } = context;
  await openPaths(root, context, async (manifest, models) => {
    const shape = manifest.event.shape;
    const status = element("p", { class: "status", role: "status" });
    const large = element("img", { class: "pixels", width: shape[1] * 10, height: shape[0] * 10, alt: "The image at the slider's place", hidden: true });
    const strip = element("div", { class: "film" });
    const wrong = element("div", {});
    const copy = copyPanel();
    const play = element("button", { type: "button", onclick: toggle }, "Play");
    const requests = newest(signal);
    let [frames, timer, forwards] = [[], 0, true];
    const later = paused(ask);
    const options = { manifest, state, onchange: later };
    const [start, end] = [pointField("a", "A", 7, options), pointField("b", "B", 20, options)];
    const place = slider("Between A and B", { minimum: 0, maximum: FRAMES - 1, value: 0, whole: true, words: (index) => (index / (FRAMES - 1)).toFixed(2) }, (index) => {
      rest();
      look(index);
    });
    workbench(root, [
      models, start, end,
      classField(manifest.condition, state, ask, { each: false }),
      choice("The way between", [["slerp", "Along the sphere"], ["lerp", "Straight"]], state.get("path", "slerp"), (path) => {
        state.set({ path });
        ask();
      }),
    ], [status, wrong, element("div", { class: "path" }, large, element("div", { class: "fields" }, strip, place, play)), copy]);
    signal.addEventListener("abort", rest);

    async function ask() {
      rest();
      const mine = requests.begin();
      const body = {
        model: manifest.name, start: start.point(), end: end.point(), steps: FRAMES, mode: state.get("path", "slerp"),
        ...classesOf(manifest.condition, state, 1),
      };
      status.textContent = "Walking from A to B";
      strip.setAttribute("aria-busy", "true");
      try {
        const { images } = await post("/interpolate", body, mine);
        frames = images;
        strip.replaceChildren(...images.map((png, index) => element("button", { type: "button", class: "tile", onclick: () => look(index) },
          picture(png, shape, 2, `Step ${index + 1} of ${FRAMES}`))));
        look(Math.min(FRAMES - 1, Number(place.control.value)));
        copy.offer("/interpolate", body);
        wrong.replaceChildren();
        status.textContent = `${FRAMES} steps of ${manifest.name}`;
      } catch (error) {
        if (mine.aborted) return;
        status.textContent = "";
        wrong.replaceChildren(notice(error, ask));
      } finally {
        if (requests.isLast(mine)) strip.removeAttribute("aria-busy");
      }
    }

    function look(index) {
      if (!frames.length) return;
      large.src = `data:image/png;base64,${frames[index]}`;
      large.hidden = false;
      place.put(index);
      for (const [other, tile] of [...strip.children].entries()) tile.setAttribute("aria-pressed", String(other === index));
    }

    function toggle() {
      if (timer) {
        rest();
        return;
      }
      play.textContent = "Pause";
      timer = setInterval(() => {
        const index = Number(place.control.value);
        if (index === FRAMES - 1) forwards = false;
        if (index === 0) forwards = true;
        look(index + (forwards ? 1 : -1));
      }, FRAME_MILLISECONDS);
    }

    function rest() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    }

    await ask();
  });
}

// a - b + c

async function arithmetic(root, context) {
  const { state, signal } = context;
  await openPaths(root, context, async (manifest, models) => {
    const shape = manifest.event.shape;
    const status = element("p", { class: "status", role: "status" });
    const wrong = element("div", {});
    const copy = copyPanel();
    const requests = newest(signal);
    const options = { manifest, state, onchange: paused(ask) };
    const points = [["a", "a", 3], ["b", "b", 5], ["c", "c", 11]].map(([key, words, seed]) => pointField(key, words, seed, options));
    const frames = Array.from({ length: 4 }, () => element("div", { class: "frame" }));
    const terms = ["a", "− b", "+ c", "= a − b + c"].map((sign, index) => element("div", { class: "term" },
      element("h2", {}, sign), frames[index], points[index] ?? ""));
    workbench(root, [models, classField(manifest.condition, state, ask, { each: false }),
      element("p", { class: "hint" }, "Each letter is the latent of a seed or of an image. The sum is decoded as it is.")],
    [status, wrong, element("div", { class: "sum" }, terms), copy]);

    const sum = (plus, minus = []) => ({
      model: manifest.name, arithmetic: { plus, minus }, ...classesOf(manifest.condition, state, 1),
    });

    async function ask() {
      const mine = requests.begin();
      const [a, b, c] = points.map((one) => one.point());
      const body = sum([a, c], [b]);
      status.textContent = "Adding";
      frames[3].setAttribute("aria-busy", "true");
      try {
        const answers = await Promise.all([...[a, b, c].map((point) => (point.image ? { images: [point.image] } : post("/interpolate", sum([point]), mine))),
          post("/interpolate", body, mine)]);
        const names = ["a", "b", "c", "a minus b plus c"];
        answers.forEach(({ images: [png] }, index) => frames[index].replaceChildren(picture(png, shape, 6, names[index])));
        copy.offer("/interpolate", body);
        wrong.replaceChildren();
        status.textContent = `a − b + c by ${manifest.name}`;
      } catch (error) {
        if (mine.aborted) return;
        status.textContent = "";
        wrong.replaceChildren(notice(error instanceof Problem ? error : { detail: String(error) }, ask));
      } finally {
        if (requests.isLast(mine)) frames[3].removeAttribute("aria-busy");
      }
    }

    await ask();
  });
}
