// Elements without markup in strings: what comes from the service is always text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Names that begin with "on" are listeners, `style` an object, the rest attributes. */
export function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Make an element of a drawing. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let identifiers = 0;

/** Return an id that no other element has. */
export const newId = (prefix) => `${prefix}-${(identifiers += 1)}`;

/** Put a label, and a hint, on a control. */
export function field(label, control, hint) {
  control.id ||= newId("field");
  const described = hint && newId("hint");
  if (described) control.setAttribute("aria-describedby", described);
  return element("div", { class: "field" },
    element("label", { for: control.id }, label),
    control,
    hint && element("p", { class: "hint", id: described }, hint));
}

/** A list to choose from; `options` are [value, text] pairs. */
export function select(options, value, onchange) {
  const control = element("select", {
    onchange: (event) => onchange(event.target.value),
  }, options.map(([key, text]) => element("option", { value: key }, text)));
  control.value = value;
  return control;
}

/** A whole number; what is not one, or out of range, says so and is not passed on. */
export function whole(value, { minimum = 0, maximum = 2 ** 53 - 1 }, onchange) {
  return element("input", {
    type: "number", inputmode: "numeric", value: String(value), min: minimum, max: maximum, step: 1, required: true,
    oninput: (event) => {
      const number = Number(event.target.value);
      if (event.target.reportValidity() && Number.isSafeInteger(number)) onchange(number);
    },
  });
}

/** A slider with its number beside it; far ranges are logarithmic. */
export function slider(label, { minimum, maximum, value, whole: integral = false, words = (number) => precise(number), hint }, onchange) {
  const logarithmic = minimum > 0 && maximum / minimum >= 100;
  const [low, high] = logarithmic ? [Math.log(minimum), Math.log(maximum)] : [minimum, maximum];
  const position = (number) => (logarithmic ? Math.log(number) : number);
  const number = (at) => {
    const exact = logarithmic ? Math.exp(at) : at;
    const rounded = integral ? Math.round(exact) : Number(exact.toPrecision(3));
    return Math.min(maximum, Math.max(minimum, rounded));
  };
  const output = element("output", {}, words(value));
  const control = element("input", {
    type: "range", min: low, max: high, step: integral && !logarithmic ? 1 : (high - low) / 200,
    oninput: (event) => {
      const chosen = number(Number(event.target.value));
      say(chosen);
      onchange(chosen);
    },
  });
  const say = (chosen) => {
    output.textContent = words(chosen);
    control.setAttribute("aria-valuetext", words(chosen));
  };
  control.value = position(value);
  say(value);
  const row = field(label, control, hint);
  row.classList.add("slider");
  output.setAttribute("for", control.id);
  row.firstChild.after(output);
  return Object.assign(row, {
    control,
    put: (chosen) => {
      control.value = position(chosen);
      say(chosen);
    },
  });
}

/** A box to tick. */
export function tick(label, value, onchange) {
  const id = newId("field");
  const box = element("input", { type: "checkbox", id, onchange: (event) => onchange(event.target.checked) });
  box.checked = value;
  return element("div", { class: "tick" }, box, element("label", { for: id }, label));
}

/** Buttons of which one is pressed; `options` are [value, text] pairs. */
export function choice(label, options, value, onchange) {
  const buttons = options.map(([key, text]) => element("button", {
    type: "button",
    "aria-pressed": String(key === value),
    onclick: () => {
      for (const [index, [other]] of options.entries()) buttons[index].setAttribute("aria-pressed", String(other === key));
      onchange(key);
    },
  }, text));
  return element("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** A number in few digits. */
export function precise(number, digits = 3) {
  if (number === null || number === undefined) return "none";
  if (number !== 0 && (Math.abs(number) < 0.0001 || Math.abs(number) >= 1e6)) return number.toExponential(1);
  return String(Number(number.toPrecision(digits)));
}

/** A share as a percentage in few digits. */
export const percent = (share) => `${precise(share * 100)} %`;

/** Say what went wrong, and offer to try again. */
export function notice(problem, again) {
  return element("div", { class: "notice problem", role: "alert" },
    element("p", {}, element("strong", {}, problem.title ?? "This failed"), ": ", problem.detail ?? problem.message),
    problem.reason && element("p", { class: "reason" }, problem.reason, problem.requestId && ` · request ${problem.requestId}`),
    again && element("button", { type: "button", onclick: again }, "Try again"));
}

/** Run a function once calls have paused for some milliseconds. */
export function paused(run, milliseconds = 150) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), milliseconds);
  };
}

/** Offer bytes as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
