// A grid that scrolls through any number of pictures with a bounded number of elements.
//
// Only the rows near the window exist. Browsers limit how tall an element can be, so of very long
// lists the grid stands for a stretch of rows from `origin` on, which moves as one comes near its end.

import * as address from "./address.js";
import { Sharpener, Tile } from "./tiles.js";
import { bytes, count, element, plural } from "./words.js";

const TALLEST = 2_000_000; // CSS pixels; browsers begin to fail at 8 million
const AROUND = 2; // rows kept above and below the window
const AHEAD = 3; // windows' worth of rows that the list is read ahead
const BELOW = { keys: 26, captions: 42 }; // pixels below a frame: .depth and .caption in gallery.css
const SETTLED = 150; // ms without scrolling until what is seen is sharpened

export class Gallery {
  #rows = new Map(); // row number -> {element, tiles}
  #tiles = new Map(); // place in the list -> Tile
  #origin = 0;
  #current = 0; // the place that Tab leads to
  #size = 200;
  #below = BELOW.keys;
  #bytes = 0;
  #timer = 0;
  #frame = 0;
  #range = [0, 0]; // the rows in view
  #listing = null;

  /** `parts`: elements by name (grid, end, endWords, endAgain, place, read); `open(place, key)`. */
  constructor(parts, open) {
    this.parts = parts;
    this.open = open;
    this.sharpener = new Sharpener({
      tiles: () => this.#tiles.values(),
      urgency: (tile, rank) => this.#urgency(tile, rank),
      frame: () => ({ width: this.cell, height: this.frameHeight }),
      read: (bytes) => this.#add(bytes),
    });
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#resized()).observe(parts.grid);
    parts.grid.addEventListener("keydown", (event) => this.#key(event));
    parts.grid.addEventListener("focusin", (event) => this.#focused(event.target.closest(".tile")));
    parts.grid.addEventListener("click", (event) => this.#clicked(event));
    parts.endAgain.addEventListener("click", () => this.#listing.again());
  }

  /** Shows a listing from its start. */
  show(listing, state) {
    this.#listing?.close();
    this.#listing = listing;
    this.state = state;
    this.#origin = this.#current = 0;
    this.#clear();
    scrollTo(0, 0);
    this.#measure();
    this.render();
  }

  set size(pixels) {
    this.#size = pixels;
    this.#resized();
  }

  /** Whether pictures have captions, which take two lines. */
  set captions(some) {
    this.parts.grid.classList.toggle("captions", some);
    this.#below = some ? BELOW.captions : BELOW.keys;
    this.#resized();
  }

  set layers(most) {
    this.sharpener.layers = most;
    this.sharpener.pump();
  }

  /** While paused nothing is loaded: the gallery lies behind an open picture. */
  pause(paused) {
    this.sharpener.paused = paused;
    if (paused) for (const tile of this.#tiles.values()) tile.drop();
    else this.#resized();
  }

  get listing() {
    return this.#listing;
  }

  /** Brings a place into view and gives it the focus. */
  focus(place) {
    if (!this.#listing.count) return;
    this.#current = Math.min(Math.max(place, 0), this.#listing.count - 1);
    const row = Math.floor(this.#current / this.columns);
    this.#reach(row);
    const top = (row - this.#origin) * this.rowHeight;
    const above = this.#above();
    if (top < above) this.#scrollTo(top);
    else if (top + this.rowHeight > above + this.#height()) this.#scrollTo(top + this.rowHeight - this.#height());
    this.render();
    this.#tiles.get(this.#current)?.link.focus({ preventScroll: true });
  }

  render() {
    if (!this.#listing || this.sharpener.paused) return;
    const { grid } = this.parts;
    const rows = Math.ceil(this.#listing.count / this.columns);
    this.#rebase(rows);
    grid.style.height = `${Math.min(rows - this.#origin, this.#stretch()) * this.rowHeight}px`;
    grid.setAttribute("aria-rowcount", this.#listing.complete ? rows : -1);
    grid.setAttribute("aria-colcount", this.columns);
    const [first, last] = (this.#range = this.#seen());
    const wanted = new Set();
    for (let row = Math.max(first - AROUND, 0); row <= Math.min(last + AROUND, rows - 1); row++) wanted.add(row);
    const held = document.activeElement?.closest?.(".tile"); // must not vanish with the focus
    if (held && grid.contains(held)) wanted.add(Math.floor(held.dataset.index / this.columns));
    for (const [row, made] of this.#rows) if (!wanted.has(row)) this.#remove(row, made);
    for (const row of wanted) this.#place(row);
    const start = first * this.columns;
    for (const tile of this.#tiles.values()) tile.link.tabIndex = -1;
    const tabbed = this.#tiles.get(this.#current) ?? this.#tiles.get(start);
    if (tabbed) tabbed.link.tabIndex = 0;
    if (last + AHEAD * (last - first + 1) >= rows && !this.#listing.error) this.#listing.more();
    this.#say(start, Math.min((last + 1) * this.columns, this.#listing.count));
    this.sharpener.pump();
  }

  #measure() {
    const width = this.parts.grid.clientWidth;
    this.gap = width < 700 ? 8 : 14;
    this.columns = Math.max(1, Math.round((width + this.gap) / (this.#size + this.gap)));
    this.cell = (width - this.gap * (this.columns - 1)) / this.columns;
    this.frameHeight = Math.round(this.cell * 0.75);
    this.rowHeight = this.frameHeight + this.#below + this.gap;
    this.parts.grid.style.setProperty("--gap", `${this.gap}px`);
  }

  #resized() {
    if (!this.#listing || this.sharpener.paused) return; // behind a picture there is no scrollbar
    const place = this.#seen()[0] * this.columns;
    const before = [this.columns, this.cell];
    this.#measure();
    if (before[0] === this.columns && before[1] === this.cell) return this.render();
    this.#clear();
    const row = Math.floor(place / this.columns);
    this.#reach(row);
    if (row) this.#scrollTo((row - this.#origin) * this.rowHeight);
    this.render();
  }

  #clear() {
    for (const [row, made] of this.#rows) this.#remove(row, made);
  }

  #remove(row, made) {
    for (const tile of made.tiles) {
      tile.drop();
      this.#tiles.delete(tile.index);
    }
    made.element.remove();
    this.#rows.delete(row);
  }

  #place(row) {
    let made = this.#rows.get(row);
    if (!made) {
      made = { element: element("div", { className: "row", role: "row", "aria-rowindex": row + 1 }), tiles: [] };
      made.element.style.gridTemplateColumns = `repeat(${this.columns}, minmax(0, 1fr))`;
      this.#rows.set(row, made);
      const next = [...this.#rows.keys()].filter((other) => other > row).sort((a, b) => a - b)[0];
      this.parts.grid.insertBefore(made.element, this.#rows.get(next)?.element ?? null);
    }
    made.element.style.transform = `translateY(${(row - this.#origin) * this.rowHeight}px)`;
    const start = row * this.columns;
    const end = Math.min(start + this.columns, this.#listing.count);
    for (let index = start + made.tiles.length; index < end; index++) {
      const cell = element("div", { parent: made.element, className: "cell", role: "gridcell" });
      const tile = new Tile(cell, index);
      tile.frame.style.height = `${this.frameHeight}px`;
      made.tiles.push(tile);
      this.#tiles.set(index, tile);
    }
    for (const tile of made.tiles) {
      if (tile.item) continue;
      const item = this.#listing.item(tile.index);
      if (!item) continue;
      tile.fill(item, this.state, { width: this.cell, height: this.frameHeight });
      this.sharpener.recall(tile);
    }
  }

  /** What the window shows, in pixels of the grid: how far down it begins, and how tall it is. */
  #above() {
    return scrollY - this.parts.grid.offsetTop + this.#bar();
  }

  #height() {
    return innerHeight - this.#bar();
  }

  #bar() {
    return document.querySelector(".bar").offsetHeight;
  }

  #scrollTo(top) {
    scrollTo(0, top + this.parts.grid.offsetTop - this.#bar());
  }

  #seen() {
    const above = Math.max(this.#above(), 0);
    const first = this.#origin + Math.floor(above / this.rowHeight);
    return [first, this.#origin + Math.floor((above + this.#height()) / this.rowHeight)];
  }

  #stretch() {
    return Math.floor(TALLEST / this.rowHeight);
  }

  /** Moves the stretch of rows that the grid stands for, so that the window is not near its ends. */
  #rebase(rows) {
    const [first] = this.#seen();
    const stretch = this.#stretch();
    const near = first - this.#origin;
    let shift = 0;
    if (near > stretch * 0.75 && rows - this.#origin > stretch) shift = Math.floor(stretch / 2);
    else if (near < stretch * 0.25) shift = -Math.min(this.#origin, Math.floor(stretch / 2));
    if (!shift) return;
    this.#origin += shift;
    this.parts.grid.style.height = `${Math.min(rows - this.#origin, stretch) * this.rowHeight}px`;
    scrollTo(0, scrollY - shift * this.rowHeight);
  }

  #reach(row) {
    const stretch = this.#stretch();
    if (row >= this.#origin && row < this.#origin + stretch) return;
    const rows = Math.ceil(this.#listing.count / this.columns);
    this.#origin = Math.max(0, row - Math.floor(stretch / 2));
    this.parts.grid.style.height = `${Math.min(rows - this.#origin, stretch) * this.rowHeight}px`;
    this.#scrollTo((row - this.#origin) * this.rowHeight);
  }

  #urgency(tile, rank) {
    const [first, last] = this.#range;
    const row = Math.floor(tile.index / this.columns);
    const outside = Math.max(first - row, row - last, 0);
    if (outside && rank) return Infinity; // not in view: the first layer is enough
    return outside * 1000 + Math.abs(row - (first + last) / 2) * this.columns + (tile.index % this.columns);
  }

  #scrolled() {
    this.sharpener.settled = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.sharpener.settled = true;
      this.sharpener.pump();
    }, SETTLED);
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.render();
    });
  }

  #focused(link) {
    if (!link) return;
    this.#current = Number(link.dataset.index);
    for (const tile of this.#tiles.values()) tile.link.tabIndex = tile.link === link ? 0 : -1;
  }

  #clicked(event) {
    const link = event.target.closest(".tile");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const tile = this.#tiles.get(Number(link.dataset.index));
    if (tile?.item) this.open(tile.index, tile.item.key);
  }

  #key(event) {
    if (event.altKey || event.metaKey || (event.ctrlKey && !["Home", "End"].includes(event.key))) return;
    const column = this.#current % this.columns;
    const page = Math.max(1, Math.floor(this.#height() / this.rowHeight)) * this.columns;
    const to = {
      ArrowLeft: this.#current - 1,
      ArrowRight: this.#current + 1,
      ArrowUp: this.#current - this.columns,
      ArrowDown: this.#current + this.columns,
      PageUp: Math.max(this.#current - page, column),
      PageDown: this.#current + page,
      Home: event.ctrlKey ? 0 : this.#current - column,
      End: event.ctrlKey ? this.#listing.count - 1 : this.#current - column + this.columns - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0) this.focus(to);
  }

  #add(more) {
    this.#bytes += more;
    this.parts.read.textContent = `${bytes(this.#bytes)} of streams`;
  }

  #say(start, end) {
    const { count: listed, complete, error, loading, unread } = this.#listing;
    const { endWords, endAgain, place } = this.parts;
    const searched = address.query(this.state) !== "#";
    const all = complete ? listed : searched ? null : this.total;
    place.textContent = listed ? `${count(start + 1)}–${count(end)} of ${all ? count(Math.max(all, listed)) : `${count(listed)}+`}` : "";
    let words = "";
    if (error) words = error.message;
    else if (!complete) words = !loading ? "" : searched ? "Searching…" : listed ? "" : "Reading the list…";
    else if (!listed) words = searched ? "No picture matches." : "This dataset has no pictures.";
    else words = searched ? `${plural(listed, "picture")}, no more.` : "";
    if (complete && unread) words += ` The captions of ${plural(unread, "picture")} were not searched: the files beside them are too large.`;
    if (endWords.textContent !== words) endWords.textContent = words;
    endAgain.hidden = !error;
  }
}
