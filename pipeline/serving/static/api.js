// Talks to the server that serves this page: patient where waiting helps, in words where it does not.
//
// While the server is busy (503) or cannot be reached, nothing more is asked of it: all requests
// wait at one gate until it may have recovered. Whoever no longer needs an answer aborts.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const TIMEOUT = 600_000; // ms; the server gives up much sooner, unless it was told otherwise
const LONGEST_WAIT = 30_000;

let closedUntil = 0; // the gate, in ms since the epoch
let told = () => {};
let version = null; // of the dataset: with it in their addresses pictures can be cached for good
const gate = new EventTarget();

/** Calls `tell({words, until})` when requests start to wait, and `tell(null)` when one got through. */
export function onWaiting(tell) {
  told = tell;
}

export function setVersion(name) {
  version = name;
}

/** Lets all waiting requests try at once. */
export function tryNow() {
  closedUntil = 0;
  gate.dispatchEvent(new Event("open"));
}

export const url = (path) => new URL(path, document.baseURI).href;

/** The address of a picture. `/` and all else in a key are encoded: it is one segment of the path. */
export function pictureUrl(key, { layers, side, format } = {}) {
  const query = new URLSearchParams();
  if (layers) query.set("layers", layers);
  if (side) query.set("max_side", side);
  if (format) query.set("format", format);
  if (version) query.set("v", version);
  return url(`v1/images/${segment(key)}?${query}`);
}

/** The address of the first layers as they are stored, for programs that decode them. */
export const streamUrl = (key, layers) => url(`v1/images/${segment(key)}/stream?layers=${layers}`);

export const originalUrl = (key) => url(`v1/originals/${segment(key)}`);

/** A picture's `{blob, layers, bytes, damaged, original}`: layers used, bytes of the stream that it took, and the
 * number of the first layer that is damaged, from 0, or null; `original`: made from the kept file. */
export function picture(key, options, signal) {
  return request(() => pictureUrl(key, options), signal, async (response) => ({
    blob: await response.blob(),
    layers: Number(response.headers.get("X-Strata-Layers")) || options.layers,
    bytes: Number(response.headers.get("X-Strata-Bytes")) || 0,
    damaged: response.headers.get("X-Strata-Damaged"),
    original: response.headers.get("X-Strata-Original") === "true",
  }));
}

const json = (response) => response.json();
export const original = (key, signal) => request(() => originalUrl(key), signal, (response) => response.blob());
export const info = (key, signal) => request(() => url(`v1/images/${segment(key)}/info`), signal, json);
export const dataset = (signal) => request(() => url("v1/dataset"), signal, json);

/** One page of the list: `{items, next}`; `asked` are the query's parameters, empty ones left out. */
export function page(asked, signal) {
  const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value));
  return request(() => url(`v1/images?${query}`), signal, json);
}

/** The key of the picture after this one, or before it, in the listing of a query; undefined where it is the last. */
export async function neighbour(asked, key, backwards, signal) {
  let from = { next_to: key };
  do {
    const { items, next } = await page({ ...asked, ...from, backwards, limit: 1 }, signal);
    if (items.length) return items[0].key;
    from = { after: next }; // a page of a search may hold nothing and still not be the last
  } while (from.after);
}

function segment(key) {
  // The URL standard takes these for folders, however they are encoded.
  if (key === "." || key === "..") throw new ApiError(`A key “${key}” cannot be part of an address.`, 400);
  try {
    return encodeURIComponent(key);
  } catch {
    throw new ApiError("This key is not valid Unicode and cannot be part of an address.", 400);
  }
}

async function request(address, signal, read) {
  const target = address();
  for (let tries = 0; ; tries++) {
    await passGate(signal);
    const limit = AbortSignal.timeout(TIMEOUT);
    let response;
    try {
      response = await fetch(target, { signal: signal ? AbortSignal.any([signal, limit]) : limit });
      if (response.ok) {
        const answer = await read(response);
        reached();
        return answer;
      }
    } catch (error) {
      if (signal?.aborted) throw error;
      if (error instanceof SyntaxError) throw new ApiError("The server's answer cannot be read.", 0);
      closeGate("The server cannot be reached.", backoff(tries));
      continue;
    }
    if (response.status !== 503) {
      reached();
      throw new ApiError(await detail(response), response.status);
    }
    response.body?.cancel();
    closeGate("The server is busy.", retryAfter(response) ?? backoff(tries));
  }
}

async function detail(response) {
  let said;
  try {
    said = (await response.json()).detail;
    if (Array.isArray(said)) said = said.map((part) => part.msg).join("; "); // FastAPI's 422
  } catch {
    // no JSON: a proxy's page, say
  }
  if (typeof said === "string" && said) return said;
  return response.status === 404 ? "Not found." : `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

function retryAfter(response) {
  const given = response.headers.get("Retry-After");
  if (!given) return null;
  const wait = /^\d+$/.test(given) ? Number(given) * 1000 : Date.parse(given) - Date.now();
  return Number.isFinite(wait) ? Math.min(Math.max(wait, 0), LONGEST_WAIT) : null;
}

const backoff = (tries) => Math.min(1000 * 2 ** tries, LONGEST_WAIT) * (0.75 + 0.5 * Math.random());

function closeGate(words, wait) {
  closedUntil = Math.max(closedUntil, Date.now() + wait);
  told({ words, until: closedUntil });
}

function reached() {
  if (Date.now() >= closedUntil) told(null);
}

async function passGate(signal) {
  for (;;) {
    signal?.throwIfAborted();
    const wait = closedUntil - Date.now();
    if (wait <= 0) return;
    await new Promise((resolve) => {
      const over = new AbortController();
      const done = () => {
        clearTimeout(timer);
        over.abort();
        resolve();
      };
      const timer = setTimeout(done, wait);
      gate.addEventListener("open", done, { signal: over.signal });
      signal?.addEventListener("abort", done, { signal: over.signal });
    });
  }
}
