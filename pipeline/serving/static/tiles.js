// The pictures in the gallery's cells: first layers first, then sharper what stays in view.
//
// There is no queue. Whenever a request may start, the most urgent one is chosen among the tiles
// that are there at that moment, and what has scrolled away is aborted.

import * as address from "./address.js";
import * as api from "./api.js";
import { element } from "./words.js";

const PARALLEL = 4; // requests at a time; a browser gives a server six connections
const FIRST_SIDE = 128; // pixels: more cannot be seen in a first layer
const SIDES = [64, 128, 192, 256, 384, 512, 768, 1024]; // few sizes, so that caches are hit
const KEPT = 400; // pictures in memory after they scrolled away
const LEFT = 2 / 3; // of a picture that must be seen in a cell that it fills

/** How a picture lies in a cell: in its "own" size if it is small; else it may "fill" the cell, cut rather below than
 * above, where heads are; or it is seen "whole", where filling would cut too much away. */
function placement({ width, height }, frame) {
  if (width <= frame.width && height <= frame.height) return "own";
  const [across, down] = [frame.width / width, frame.height / height];
  return Math.min(across, down) / Math.max(across, down) >= LEFT ? "fill" : "whole";
}

/** One cell: a link with the picture, how many layers have come, and the key. */
export class Tile {
  constructor(cell, index) {
    this.index = index;
    this.item = undefined;
    this.have = { layers: 0, side: 0 };
    this.failed = false;
    this.job = null; // what loads it now
    this.rank = 0; // of what is loaded, 0: a first layer
    this.link = element("a", { parent: cell, className: "tile", tabindex: "-1", draggable: "false" });
    this.link.dataset.index = index;
    this.frame = element("span", { parent: this.link, className: "frame" });
    this.depth = element("i", { parent: element("span", { parent: this.link, className: "depth" }) });
    this.depth.style.transform = "scaleX(0)";
    this.caption = element("span", { parent: this.link, className: "caption", dir: "auto" });
  }

  /** `size`: of the frame, CSS pixels. */
  fill(item, state, size) {
    this.item = item;
    this.frame.classList.add(placement(item, size));
    this.frame.style.setProperty("--width", `${item.width}px`);
    this.frame.style.setProperty("--height", `${item.height}px`);
    this.caption.textContent = item.caption ?? (item.label ? `${item.label} · ${item.key}` : item.key);
    this.link.href = address.write({ ...address.gallery(state), key: item.key });
    const told = [item.key, item.caption, item.label].filter(Boolean);
    this.link.title = [...told, `${item.width} × ${item.height}`].join("\n");
    this.link.setAttribute("aria-label", [...told, `${item.width} by ${item.height}`].join(", "));
  }

  show(image, have, layers) {
    this.have = have;
    this.link.dataset.layers = layers > this.item.layers ? "original" : layers;
    this.depth.style.transform = `scaleX(${Math.min(layers / this.item.layers, 1)})`;
    this.frame.append(image);
    while (this.frame.firstChild !== image) this.frame.firstChild.remove();
  }

  fail(words) {
    this.failed = true;
    if (!this.have.layers) element("span", { parent: this.frame, className: "fault", text: words });
  }

  drop() {
    this.job?.abort();
  }
}

export class Sharpener {
  #running = 0;
  #kept = new Map(); // key -> {have, layers, bytes, url}, the least recently used first

  /** `tiles()` are those there now; `urgency(tile)` is smaller for sooner, Infinity for not now. */
  constructor({ tiles, urgency, frame, read }) {
    this.tiles = tiles;
    this.urgency = urgency;
    this.frame = frame; // () -> {width, height} of the cells' frames, CSS pixels
    this.read = read; // (bytes) of a stream that were read
    this.layers = 3;
    this.all = Infinity; // layers of the dataset
    this.settled = true; // false while the gallery scrolls: only first layers then
    this.paused = false;
  }

  /** What is remembered of a picture, for whoever shows it next: `{url, layers}` or undefined. */
  remembered(key) {
    return this.#kept.get(key);
  }

  /** Shows at once what is remembered of the tile's picture. */
  recall(tile) {
    const kept = this.#kept.get(tile.item.key);
    if (!kept) return;
    this.#kept.delete(tile.item.key);
    this.#kept.set(tile.item.key, kept);
    const image = new Image();
    image.alt = "";
    image.src = kept.url;
    tile.show(image, kept.have, kept.layers);
  }

  /** Starts requests, the most urgent first, as long as there may be more. */
  pump() {
    while (!this.paused) {
      const best = this.#mostUrgent();
      if (!best) return;
      if (this.#running < PARALLEL) this.#load(best.tile, best.step);
      else return best.step.rank ? undefined : this.#yield();
    }
  }

  #mostUrgent() {
    let best = null;
    for (const tile of this.tiles()) {
      if (tile.job || tile.failed || !tile.item) continue;
      const step = this.#step(tile);
      if (!step || (step.rank > 0 && !this.settled)) continue;
      const when = this.#when(tile, step.rank);
      if (when < (best?.when ?? Infinity)) best = { when, tile, step };
    }
    return best;
  }

  #when(tile, rank) {
    return rank * 1e6 + this.urgency(tile, rank);
  }

  /** First layers do not wait for sharper ones, which take seconds on some servers: the least urgent is asked
   * for again later. When its request has ended, the next one starts. */
  #yield() {
    const sharper = [...this.tiles()].filter((tile) => tile.job && tile.rank);
    if (sharper.some((tile) => tile.job.signal.aborted)) return;
    sharper.sort((a, b) => this.#when(b, b.rank) - this.#when(a, a.rank));
    sharper[0]?.drop();
  }

  /** What the tile should get next: one layer, small; then layer after layer in its own size. */
  #step({ item, have }) {
    const side = this.#side(item);
    // who wants all gets the original, where it takes the place of layers that are not stored
    const original = item.has_original && this.layers >= this.all && item.layers < this.all;
    const most = Math.min(this.layers, item.layers + original);
    if (!have.layers) return { rank: 0, layers: 1, side: Math.min(side, FIRST_SIDE) };
    if (have.layers < most) return { rank: have.layers, layers: have.layers + 1, side };
    if (have.layers === most && have.side < side) return { rank: most, layers: most, side };
    return null;
  }

  /** The longest side that it is seen in, in the screen's pixels. */
  #side({ width, height }) {
    const frame = this.frame();
    const [across, down] = [frame.width / width, frame.height / height];
    const scale = { own: 1, fill: Math.max(across, down), whole: Math.min(across, down) }[placement({ width, height }, frame)];
    const side = Math.max(width, height) * scale * Math.min(window.devicePixelRatio, 2);
    return SIDES.find((one) => one >= side) ?? SIDES.at(-1);
  }

  async #load(tile, { layers, side, rank }) {
    const job = (tile.job = new AbortController());
    tile.rank = rank;
    const { key } = tile.item;
    this.#running++;
    try {
      const got = await api.picture(key, { layers, side, format: "webp" }, job.signal);
      const image = new Image();
      image.alt = "";
      image.src = URL.createObjectURL(got.blob);
      const have = { layers, side };
      const shown = got.original ? layers : got.layers;
      this.#keep(key, { have, layers: shown, bytes: got.bytes, url: image.src });
      await image.decode();
      if (job.signal.aborted) return;
      if (layers === 1) image.className = "first"; // it fades in, sharper ones take its place
      tile.show(image, have, shown);
    } catch (error) {
      if (!job.signal.aborted) tile.fail(error instanceof api.ApiError ? error.message : "This picture cannot be shown.");
    } finally {
      tile.job = null;
      this.#running--;
      this.pump();
    }
  }

  #keep(key, entry) {
    const before = this.#kept.get(key);
    if (before) URL.revokeObjectURL(before.url); // what shows it has it decoded
    this.read(Math.max(entry.bytes - (before?.bytes ?? 0), 0)); // more layers begin with the same bytes
    this.#kept.delete(key);
    this.#kept.set(key, entry);
    if (this.#kept.size <= KEPT) return;
    const [oldest, { url }] = this.#kept.entries().next().value;
    URL.revokeObjectURL(url);
    this.#kept.delete(oldest);
  }
}
