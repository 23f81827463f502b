// The page: what its address says is what it shows.

import * as address from "./address.js";
import * as api from "./api.js";
import { Gallery } from "./gallery.js";
import { Listing } from "./listing.js";
import { Viewer } from "./viewer.js";
import { count, element, plural } from "./words.js";

const TYPING = 250; // ms without a key until a search starts

const part = (id) => document.getElementById(id);
const parts = (names) =>
  Object.fromEntries(names.map((id) => [id.replace(/-(\w)/g, (_, letter) => letter.toUpperCase()), part(id)]));

let state = address.read();
let shown = null; // the query that the gallery shows
let closing = false; // on the way back to the gallery
let place = -1; // of the open picture in the gallery, -1 where it was opened by its address
let beside = { over: new AbortController() }; // keys `before` and `after` it, where it was
let captions = {}; // what lists are asked for, where the dataset has captions

const gallery = new Gallery(parts(["grid", "end-words", "end-again", "place", "read"]), (index, key) => {
  place = index;
  go({ ...address.gallery(state), key }, { inside: true });
});
const viewer = new Viewer(
  {
    ...parts(["viewer", "viewer-key", "close", "previous", "following", "stage", "divider", "stage-words"]),
    ...parts(["strata", "layers", "layers-of", "bytes", "bpp", "psnr", "share", "facts", "save", "save-original"]),
    ...parts(["zoom-in", "zoom-out", "zoom-fit", "caption", "label", "fields", "save-stream"]),
    views: document.querySelector(".views"),
  },
  { changed: ({ layers, view }) => keep({ ...state, layers, view: view === "single" ? null : view }), step, close },
);

/** To another address, as a new entry of the history. */
function go(to, mark = null) {
  history.pushState(mark, "", address.write(to));
  route();
}

/** The same entry with another address: Back does not go through every layer looked at. */
function keep(to) {
  history.replaceState(history.state, "", address.write(to));
  state = address.read();
}

function route() {
  const before = state;
  closing = false;
  state = address.read();
  if (shown !== address.query(state)) {
    shown = address.query(state);
    place = before.key ? -1 : place;
    const listing = new Listing(asked(), () => grown(listing));
    gallery.show(listing, address.gallery(state));
    fillForms();
  }
  if (state.key) open();
  else if (viewer.key !== null) {
    viewer.close();
    beside.over.abort();
    gallery.pause(false);
    if (place >= 0) gallery.focus(place);
    place = -1;
  }
  title();
}

function asked() {
  const { q: search, ...filters } = address.gallery(state);
  return { search, ...filters, ...captions };
}

function open() {
  if (viewer.key === state.key) return;
  gallery.pause(true);
  const item = place >= 0 ? gallery.listing.item(place) : undefined;
  if (item?.key !== state.key) place = -1;
  const url = gallery.sharpener.remembered(state.key)?.url;
  viewer.open(state.key, {
    layers: Number.parseInt(state.layers, 10) || null,
    view: state.view,
    preview: place >= 0 ? { url, item } : undefined,
    neighbours: neighbours(),
  });
  if (place < 0) findBeside(state.key);
}

/** Which pictures lie beside one that was opened by its address: the gallery may be far from it. */
async function findBeside(key) {
  beside.over.abort();
  const found = (beside = { over: new AbortController() });
  const find = async (name, backwards) => {
    try {
      found[name] = await api.neighbour(asked(), key, backwards, found.over.signal);
    } catch (error) {
      if (!found.over.signal.aborted) console.info(error); // what it says, the picture says itself
    }
    if (found === beside) offerNeighbours();
  };
  await Promise.all([find("before", true), find("after", false)]);
}

function neighbours() {
  const { listing } = gallery;
  if (place < 0) return { before: Boolean(beside.before), after: Boolean(beside.after) };
  return { before: place > 0, after: place + 1 < listing.count || !listing.complete };
}

function offerNeighbours() {
  const { before, after } = neighbours();
  part("previous").disabled = !before;
  part("following").disabled = !after;
}

/** To the next picture of the gallery (1) or the one before (-1); Back still leads to the gallery. */
async function step(by) {
  if (place < 0) {
    const next = by < 0 ? beside.before : beside.after;
    if (next !== undefined) turn(next);
    return;
  }
  const { listing } = gallery;
  const { key } = state;
  const to = place + by;
  // a page of a search may have found nothing, and a page that was forgotten is read again
  const item = await listing.find(to);
  if (!item || listing !== gallery.listing || state.key !== key) return;
  place = to;
  turn(item.key);
}

function turn(key) {
  beside.over.abort();
  beside = { over: new AbortController() };
  keep({ ...state, key, layers: null });
  open();
  title();
}

function close() {
  if (closing) return;
  closing = Boolean(history.state?.inside);
  if (closing) history.back(); // which takes its time
  else {
    history.replaceState(null, "", address.write(address.gallery(state)));
    route();
  }
}

function grown(listing) {
  if (listing !== gallery.listing) return;
  gallery.render();
  offerNeighbours();
}

function title() {
  const name = part("dataset").textContent;
  document.title = state.key ? `${state.key} – ${name}` : name;
}

// --- the bar -------------------------------------------------------------------------------------

const query = part("query");
const filters = part("filters");

function fillForms() {
  if (document.activeElement !== query) query.value = state.q ?? "";
  if (state.format) offerFormats([state.format]); // a link may name any
  for (const name of address.FILTERS) filters.elements[name].value = state[name] ?? "";
  const used = address.FILTERS.some((name) => state[name]);
  if (used) showFilters(true);
}

function offerFormats(names) {
  const { options } = filters.elements.format;
  for (const name of names) {
    if (![...options].some((one) => one.value === name)) options.add(new Option(name, name));
  }
}

function showFilters(open) {
  filters.hidden = !open;
  part("filters-open").setAttribute("aria-expanded", open);
}

/** What the forms say becomes the address; letters typed one after the other are one entry. */
function search(entry) {
  if (!filters.reportValidity()) return;
  const told = { q: query.value };
  for (const name of address.FILTERS) told[name] = filters.elements[name].value.trim();
  if (address.write(told) === address.write(state)) return;
  if (entry) history.pushState(null, "", address.write(told));
  else history.replaceState(null, "", address.write(told));
  route();
}

let typing = 0;
query.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => search(!state.q), TYPING);
});
part("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  search(true);
});
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") {
    event.preventDefault();
    gallery.focus(0);
  }
});
filters.addEventListener("change", () => search(true));
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  search(true);
});
filters.addEventListener("reset", () => setTimeout(() => search(true)));
part("filters-open").addEventListener("click", () => showFilters(filters.hidden));
part("size").addEventListener("change", (event) => (gallery.size = Number(event.target.value)));
part("depth").addEventListener("change", (event) => (gallery.layers = Number(event.target.value)));
part("help-open").addEventListener("click", () => part("help").showModal());
part("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  query.value = "";
  if (address.write(state) === "#") scrollTo(0, 0);
  else go({});
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input:not([type=range]), select")) return;
  if (event.key === "?" && !part("help").open) part("help").showModal();
  else if (event.key === "/" && !document.querySelector("dialog[open]")) query.focus();
  else return;
  event.preventDefault();
});

// --- waiting for the server ----------------------------------------------------------------------

let waiting = 0;
api.onWaiting((why) => {
  clearInterval(waiting);
  const notice = part("notice");
  notice.hidden = !why;
  if (!why) return;
  const tell = () => {
    // an open dialog makes all else inert: the notice goes where it can be used
    const top = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
    if (notice.parentElement !== top) top.append(notice);
    const left = Math.ceil((why.until - Date.now()) / 1000);
    part("notice-now").hidden = left <= 0;
    part("notice-words").textContent = `${why.words} ${left > 0 ? `Trying again in ${left} s.` : "Trying again…"}`;
    if (left < -5) notice.hidden = true; // whoever waited has gone
  };
  tell();
  waiting = setInterval(tell, 1000);
});
part("notice-now").addEventListener("click", api.tryNow);

// --- the dataset ---------------------------------------------------------------------------------

/** `quick`: layers that the server decodes quickly; the gallery asks for more only if somebody wants them. */
function offerDepths(layers, quick) {
  const depth = part("depth");
  depth.replaceChildren();
  for (let one = 1; one <= layers; one++) {
    element("option", { parent: depth, text: one === layers && one > 1 ? `all ${one}` : `${one}`, value: one });
  }
  depth.value = Math.min(3, layers, quick);
  gallery.sharpener.all = layers;
  gallery.layers = Number(depth.value);
}

async function describe() {
  try {
    const { name, pictures, layers, quick_layers: quick, codec, model_id: model, version, ...more } = await api.dataset();
    api.setVersion(version);
    part("dataset").textContent = name;
    part("home").title = [`${plural(pictures, "picture")} in ${plural(layers, "layer")}`, codec, model].filter(Boolean).join("\n");
    if (more.captions !== 0) captions = { captions: true };
    gallery.captions = more.captions !== 0;
    query.placeholder = `Search ${count(pictures)} keys${more.captions ? " and captions" : ""}`;
    query.setAttribute("aria-label", more.captions ? "Search keys and captions" : "Search keys");
    offerFormats(more.formats ?? []);
    gallery.total = pictures;
    viewer.quick = quick ?? layers;
    offerDepths(layers, viewer.quick);
  } catch (error) {
    part("dataset").textContent = "Strata";
    offerDepths(3, 1);
    console.warn(error);
  }
}

// A browser may close a dialog without asking. The event comes late: another picture may be open by then.
part("viewer").addEventListener("close", () => state.key && !part("viewer").open && close());
history.scrollRestoration = "manual";
addEventListener("popstate", route);
describe().finally(route);
