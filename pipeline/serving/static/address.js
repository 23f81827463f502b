// What the page shows, as the part of its address after "#": a search, filters, a picture.
//
//     #q=lake&min_width=500&key=holiday%2F0001&layers=2&view=split

export const FILTERS = ["min_width", "max_width", "min_height", "max_height", "format"];
const NAMES = ["q", ...FILTERS, "key", "layers", "view"];

/** The state in an address: strings by name, without what is empty or unknown. */
export function read(hash = location.hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(NAMES.filter((name) => given.get(name)).map((name) => [name, given.get(name)]));
}

export function write(state) {
  const told = NAMES.filter((name) => state[name]).map((name) => [name, state[name]]);
  return `#${new URLSearchParams(told)}`;
}

/** The same address without the picture. */
export function gallery(state) {
  const { key, layers, view, ...rest } = state;
  return rest;
}

/** Which pictures are listed; two states with equal queries show the same gallery. */
export const query = (state) => write(gallery(state));
