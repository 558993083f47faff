// The frame: which view is shown, by the part of the address behind "#", the key, and the service's state.

import { connect, get, hasKey, setKey, unreachable } from "./api.js";
import { element, notice, paused } from "./elements.js";

const VIEWS = { models: "Models", sample: "Sample", paint: "Paint", latent: "Latent", score: "Score", live: "Live" };
const LOOK_AGAIN = 10_000; // milliseconds between two looks at the service's state

const main = document.getElementById("main");
let leaving = new AbortController();

/** The state of a view: what stands behind "?" in the address, so that it can be shared. */
function readState(name, query, signal) {
  const values = new URLSearchParams(query);
  const write = paused(() => {
    if (!signal.aborted) history.replaceState(null, "", `#/${name}?${values}`); // or it is another view's
  }, 50); // browsers pass over the changes of an address, or refuse them, where there are very many
  return {
    get: (key, otherwise = null) => values.get(key) ?? otherwise,
    number: (key, otherwise) => (values.has(key) && Number.isFinite(Number(values.get(key))) ? Number(values.get(key)) : otherwise),
    set(changes) {
      for (const [key, value] of Object.entries(changes)) {
        if (value === null || value === undefined || value === "") values.delete(key);
        else values.set(key, value);
      }
      write();
    },
  };
}

async function showView() {
  leaving.abort(); // what the last view asked for, nobody waits for
  leaving = new AbortController();
  const { signal } = leaving;
  const [path, query = ""] = location.hash.replace(/^#\//, "").split("?");
  const name = Object.hasOwn(VIEWS, path) ? path : "models";
  document.title = `${VIEWS[name]} · genserve studio`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = element("div", { class: "view" });
  main.replaceChildren(root);
  try {
    const [view, { models }] = await Promise.all([load(name), get("/models", signal)]);
    if (signal.aborted) return;
    root.append(element("header", { class: "head" }, element("h1", {}, view.title), element("p", {}, view.purpose)));
    await view.show(root, { state: readState(name, query, signal), signal, models });
  } catch (error) {
    if (!signal.aborted) root.append(notice(error, showView));
  }
}

/** Load the module of a view: each is there once somebody looks at it. */
async function load(name) {
  try {
    return await import(`/studio/${name}.js`);
  } catch {
    throw unreachable();
  }
}

const WHY = {
  asked: "This service asks for a key. It stays in this tab and is forgotten with it.",
  refused: "This key is not accepted. Check it, or ask whoever runs the service for another.",
  chosen: "For services that ask for one. It stays in this tab and is forgotten with it, or where this is left empty.",
};

function askForKey(why) {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key");
  document.getElementById("key-reason").textContent = WHY[why];
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "use" ? input.value.trim() : null);
      showKey();
    }, { once: true });
  });
}

async function changeKey() {
  const key = await askForKey("chosen");
  if (key !== null) {
    setKey(key);
    showKey();
    showView();
  }
}

function showKey() {
  document.getElementById("key-button").textContent = hasKey() ? "Change key" : "API key";
}

function say(state, words) {
  const place = document.getElementById("service-state");
  if (place.textContent !== words) place.textContent = words; // said once by screen readers
  place.parentElement.dataset.state = state;
}

async function lookAtService() {
  if (document.hidden) return;
  try {
    const response = await fetch("/readyz", { cache: "no-store", signal: AbortSignal.timeout(LOOK_AGAIN) });
    say(response.ok ? "ready" : "waiting", response.ok ? "ready" : "not ready");
  } catch {
    say("gone", "not reached");
  }
}

connect(askForKey, (reached) => {
  if (!reached) say("gone", "not reached");
  else if (document.getElementById("service").dataset.state === "gone") lookAtService();
});
document.getElementById("views").append(...Object.entries(VIEWS).map(([name, words]) =>
  element("a", { href: `#/${name}`, "data-view": name }, words)));
document.getElementById("key-button").addEventListener("click", changeKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the view
  main.focus();
});
addEventListener("hashchange", () => {
  showView();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
setInterval(lookAtService, LOOK_AGAIN);
showKey();
lookAtService();
showView();
