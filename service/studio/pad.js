// A pad to draw on with mouse, pen, finger or keys, which takes files too.

import { element, newId, notice } from "./elements.js";
import { blank, canvas, draw, readFile, resize } from "./images.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Make a pad for images of a shape.
 *
 * `onchange` gets the image after each stroke. The pad has `put(image)`, and `keepRows(count)`, which
 * dims what is below the rows that are kept.
 */
export function makePad(shape, { label, scale = 8, onchange }) {
  let image = blank(shape);
  let [x, y] = [Math.floor(shape[1] / 2), Math.floor(shape[0] / 4)]; // of the keyboard's cursor
  let pen = 255;
  let last = null; // where the stroke was before
  const hint = newId("hint");
  const surface = canvas(shape, scale, label);
  surface.tabIndex = 0;
  surface.setAttribute("role", "application");
  surface.setAttribute("aria-describedby", hint);
  const cover = element("div", { class: "pad-cover" });
  const cursor = element("div", { class: "pad-cursor" });
  const said = element("span", { class: "unseen", role: "status" });
  const wrong = element("div", {});
  const pens = [["Draw", 255], ["Erase", 0]].map(([words, value]) => element("button", {
    type: "button",
    "aria-pressed": String(value === pen),
    onclick: () => {
      pen = value;
      pens.forEach((button, index) => button.setAttribute("aria-pressed", String(index === (pen ? 0 : 1))));
    },
  }, words));
  const chooser = element("input", { type: "file", accept: "image/*", class: "unseen", "aria-label": "An image file to start from", onchange: () => take(chooser.files[0]) });

  const board = element("div", {
    class: "pad-board",
    ondragover: (event) => event.preventDefault(),
    ondrop: (event) => {
      event.preventDefault();
      take(event.dataTransfer.files[0]);
    },
  }, surface, cover, cursor);

  const show = () => draw(surface, image.values, shape[1], shape[2]);
  const changed = () => onchange(image);

  async function take(chosen) {
    if (!chosen) return;
    try {
      const { image: read, note } = await readFile(chosen, shape);
      put(read);
      wrong.replaceChildren(note ? element("p", { class: "hint" }, note) : "");
      changed();
    } catch (error) {
      wrong.replaceChildren(notice(error));
    }
    chooser.value = "";
  }

  function put(next) {
    image = { ...next, values: next.values.slice() };
    show();
  }

  /** A soft dot: its middle takes the pen's value, its neighbours come nearer to it. */
  function dot(cx, cy) {
    const [height, width, channels] = shape;
    for (let py = Math.max(0, cy - 1); py <= Math.min(height - 1, cy + 1); py += 1) {
      for (let px = Math.max(0, cx - 1); px <= Math.min(width - 1, cx + 1); px += 1) {
        const share = px === cx && py === cy ? 1 : px === cx || py === cy ? 0.55 : 0.2;
        for (let c = 0; c < channels; c += 1) {
          const at = (py * width + px) * channels + c;
          const mixed = Math.round(image.values[at] + (pen - image.values[at]) * share);
          image.values[at] = pen ? Math.max(image.values[at], Math.round(255 * share)) : mixed;
        }
      }
    }
  }

  function stroke([tx, ty]) {
    const [fx, fy] = last ?? [tx, ty];
    const steps = Math.max(Math.abs(tx - fx), Math.abs(ty - fy), 1);
    for (let step = 1; step <= steps; step += 1) {
      dot(Math.round(fx + ((tx - fx) * step) / steps), Math.round(fy + ((ty - fy) * step) / steps));
    }
    last = [tx, ty];
    show();
  }

  const cell = (event) => {
    const box = surface.getBoundingClientRect();
    return [
      Math.floor(((event.clientX - box.left) / box.width) * shape[1]),
      Math.floor(((event.clientY - box.top) / box.height) * shape[0]),
    ];
  };

  surface.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    surface.focus();
    surface.setPointerCapture(event.pointerId);
    last = null;
    stroke(cell(event));
  });
  surface.addEventListener("pointermove", (event) => {
    if (surface.hasPointerCapture(event.pointerId)) stroke(cell(event));
  });
  surface.addEventListener("pointerup", changed);
  surface.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step) {
      x = Math.min(shape[1] - 1, Math.max(0, x + step[0]));
      y = Math.min(shape[0] - 1, Math.max(0, y + step[1]));
      if (event.shiftKey) mark();
      else point();
    } else if (event.key === " " || event.key === "Enter") mark();
    else return;
    event.preventDefault();
  });

  function mark() {
    last = null;
    stroke([x, y]);
    point();
    changed();
  }

  function point() {
    cursor.style.left = `${(x / shape[1]) * 100}%`;
    cursor.style.top = `${(y / shape[0]) * 100}%`;
    cursor.style.width = `${100 / shape[1]}%`;
    cursor.style.height = `${100 / shape[0]}%`;
    said.textContent = `row ${y + 1}, column ${x + 1}, value ${image.values[(y * shape[1] + x) * shape[2]]}`;
  }

  resize(surface, scale);
  show();
  point();
  return Object.assign(element("div", { class: "pad" },
    board,
    element("div", { class: "actions" }, pens,
      element("button", {
        type: "button",
        onclick: () => {
          put(blank(shape));
          changed();
        },
      }, "Clear"),
      element("button", { type: "button", onclick: () => chooser.click() }, "Open a file"), chooser),
    wrong,
    element("p", { class: "hint", id: hint }, "Draw with the pointer, or with the keys: arrows move, space draws, shift and an arrow draws on."),
    said), {
    put,
    image: () => image,
    keepRows(count) {
      cover.style.top = `${(count / shape[0]) * 100}%`;
    },
  });
}
