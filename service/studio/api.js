// The REST API as the page uses it: problems in words, the key of this tab, streams that go on after a cut.

const KEY = "genserve.key"; // in sessionStorage: it is gone with the tab
const PATIENCE = 60_000; // milliseconds without an answer, beyond the service's own deadline
const ATTEMPTS = 5; // to go on with a stream without hearing anything new

/** Why something was not answered: what the service said, or that it said nothing. */
export class Problem extends Error {
  constructor({ title, detail, reason, status, request_id: requestId }) {
    super(detail);
    Object.assign(this, { title, detail, reason, status, requestId });
  }
}

/** What is said where the service does not answer. */
export const unreachable = () => new Problem({
  title: "The service can't be reached",
  detail: "Is it running, and is this computer connected? What is on the page stays as it is.",
  status: 0,
});

let askForKey = async () => null;
let asking = null; // requests that are refused together wait for one dialog
let onReach = () => {};

/** Set what asks a person for the key, and what hears whether the service answers. */
export function connect(asker, listener) {
  askForKey = asker;
  onReach = listener;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Keep a key for this tab, or forget it. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** GET a path and return its JSON. */
export async function get(path, signal) {
  return whole(await send(path, { signal }), "json");
}

/** POST a JSON body and return the JSON of the answer. */
export async function post(path, body, signal) {
  return whole(await send(path, { body, signal }), "json");
}

/** POST a JSON body and return the answer as a file of a media type. */
export async function file(path, body, accept, signal) {
  return whole(await send(path, { body, accept, signal }), "blob");
}

/** GET a path and return its text; it goes before other requests that wait for a connection. */
export async function text(path, signal) {
  return whole(await send(path, { signal, priority: "high" }), "text");
}

async function whole(response, kind) {
  try {
    return await response[kind]();
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
}

async function send(path, { body, accept = "application/json", signal, priority }) {
  const key = sessionStorage.getItem(KEY);
  const headers = { Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await answer(path, {
    method: body === undefined ? "GET" : "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers,
    priority,
    cache: "no-store",
  }, signal);
  onReach(true);
  if (response.ok) return response;
  const problem = await readProblem(response);
  if (response.status !== 401) throw problem;
  await renewKey(key, problem);
  return send(path, { body, accept, signal, priority });
}

/** Fetch; a service that does not begin to answer in time counts as gone. */
async function answer(path, options, signal) {
  const giveUp = new AbortController();
  const timer = setTimeout(() => giveUp.abort(), PATIENCE);
  try {
    return await fetch(path, { ...options, signal: AbortSignal.any([giveUp.signal, ...(signal ? [signal] : [])]) });
  } catch (error) {
    if (signal?.aborted) throw error;
    onReach(false);
    throw unreachable();
  } finally {
    clearTimeout(timer);
  }
}

async function renewKey(refused, problem) {
  if (sessionStorage.getItem(KEY) !== refused) return; // another request has got a new one
  asking ??= askForKey(refused === null ? "asked" : "refused").finally(() => (asking = null));
  const key = await asking;
  if (!key) throw problem;
  setKey(key);
}

async function readProblem(response) {
  try {
    return new Problem(await response.json());
  } catch {
    return new Problem({
      title: `The service answered ${response.status}`,
      detail: "It gave no reason that could be read; something between here and it may have answered.",
      status: response.status,
    });
  }
}

/** Requests of which only the newest counts: it ends the one before, and all end with the view's signal. */
export function newest(signal) {
  let running = new AbortController();
  const stop = () => running.abort();
  signal.addEventListener("abort", stop);
  return {
    stop,
    begin() {
      stop();
      running = new AbortController();
      if (signal.aborted) stop(); // what was put off until after the view was left
      return running.signal;
    },
    isLast: (mine) => mine === running.signal,
  };
}

/**
 * Yield the events of a stream, {name, data}, up to its result.
 *
 * Where the connection is cut, the same request goes on after the last event by its resume token;
 * `onCut` hears of each attempt. What the service refuses is thrown.
 */
export async function* stream(path, body, { signal, onCut }) {
  let token = null;
  let failures = 0;
  for (;;) {
    try {
      const asked = token ? { ...body, resume_token: token } : body;
      const response = await send(path, { body: asked, accept: "text/event-stream", signal });
      for await (const event of events(response)) {
        if (event.name === "error") throw new Problem(event.data);
        if (event.data.resume_token) token = event.data.resume_token;
        failures = 0;
        yield event;
        if (event.name === "result") return;
      }
    } catch (error) {
      if (signal.aborted || !mayGoOn(error, token)) throw error;
    }
    failures += 1;
    if (failures > ATTEMPTS || !token) throw unreachable();
    onCut(failures);
    await wait(200 * 2 ** failures, signal);
  }
}

// Another replica, or the same one after a restart, can go on: 503 is no last word.
const mayGoOn = (error, token) => token !== null && (!(error instanceof Problem) || [0, 503].includes(error.status));

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [name, data] = ["event", "data"].map((field) => part.match(new RegExp(`^${field}: (.*)$`, "m"))?.[1]);
      if (data) yield { name, data: JSON.parse(data) };
    }
  }
}

/** Wait; throws where the signal aborts meanwhile. */
export function wait(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", leave);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", leave);
  });
}
