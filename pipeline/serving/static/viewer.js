// One picture at any number of layers: what it costs, how good it is, and the original beside it.

import * as api from "./api.js";
import { Stage } from "./stage.js";
import * as words from "./words.js";

const SIDES = [512, 1024, 2048, 4096]; // longest sides asked for; few, so that caches are hit
const EXACT = 1_500_000; // pixels up to which PNG is asked for, beyond that WebP
const PACE = 350; // ms between layers while a picture sharpens by itself
const SMALL = 256; // longest side of a first layer that is only to bridge the time
const PICTURE_FORMATS = new Set("jpeg png webp gif bmp tiff avif ppm jpeg2000".split(" "));
const SHOWN_FORMATS = new Set(["jpeg", "png", "webp"]); // which the server makes, too
const LONG = 3000; // ms after which one is told that it is the server that takes so long

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Viewer {
  #stage;
  #session = new AbortController(); // ends with the picture
  #wish = new AbortController(); // ends when another layer is wanted
  #urls = new Map(); // "layers@side" -> {url, got}: what has been loaded of this picture
  #pending = ""; // the name of what is being loaded for the first pane
  #info = null;
  #touched = false; // somebody chose a layer: no more sharpening by itself
  #other = null; // what is in the second pane

  /** `parts`: elements by id. `changed({layers, view})` tells of choices, `step(±1)`, `close()` are asked for. */
  constructor(parts, { changed, step, close }) {
    Object.assign(this, { parts, changed, step });
    this.key = null; // of the open picture
    this.layers = 1;
    this.view = "single";
    this.quick = Infinity; // layers that the server decodes quickly; all of them take it longer
    this.#stage = new Stage(parts.stage, parts.divider, { zoomed: () => this.#zoomed(), swiped: step });
    parts.viewer.addEventListener("cancel", (event) => {
      if (event.target !== parts.viewer) return;
      event.preventDefault();
      close();
    });
    parts.viewer.addEventListener("keydown", (event) => this.#key(event));
    parts.close.addEventListener("click", close);
    parts.previous.addEventListener("click", () => step(-1));
    parts.following.addEventListener("click", () => step(1));
    parts.layers.addEventListener("input", () => this.choose(Number(parts.layers.value)));
    for (const button of this.#viewButtons()) button.addEventListener("click", () => this.compare(button.dataset.view));
    parts.zoomIn.addEventListener("click", () => this.#stage.zoom(1.5));
    parts.zoomOut.addEventListener("click", () => this.#stage.zoom(1 / 1.5));
    parts.zoomFit.addEventListener("click", () => this.#stage.toggle());
  }

  /** Opens a picture. `layers` (null: sharpen up to all) and `view` as in the address; `preview` is
   * what the gallery has of it: `{url, item}` or undefined; `neighbours`: are there others? */
  async open(key, { layers, view, preview, neighbours }) {
    this.end();
    const session = this.#session;
    const { parts } = this;
    this.key = key;
    parts.viewerKey.textContent = parts.viewerKey.title = key;
    parts.previous.disabled = !neighbours.before;
    parts.following.disabled = !neighbours.after;
    this.#blank();
    if (!parts.viewer.open) {
      parts.viewer.showModal();
      parts.stage.focus();
    }
    document.documentElement.classList.add("viewing");
    this.#stage.reset(preview?.item.width ?? 3, preview?.item.height ?? 2);
    if (preview?.url) this.#stage.put(0, this.#image(preview.url));
    this.#say("Loading…");
    try {
      this.#info = await api.info(key, session.signal);
    } catch (error) {
      if (!session.signal.aborted) this.#fail(error);
      return;
    }
    this.#describe();
    if (preview) this.#zoomed();
    else this.#stage.reset(this.#info.width, this.#info.height);
    const shown = layers ? Math.min(Math.max(layers, 1), this.#last()) : null;
    this.#touched = shown !== null;
    this.#setView(view);
    if (shown) await this.#show(shown);
    else await this.#sharpen(session.signal, Boolean(preview?.url));
  }

  /** Closes the view; nothing more is loaded. */
  close() {
    this.end();
    this.key = null;
    this.parts.viewer.close();
    document.documentElement.classList.remove("viewing");
  }

  /** Ends what is under way for the open picture, and forgets what was loaded of it. */
  end() {
    this.#session.abort();
    this.#wish.abort();
    this.#session = new AbortController();
    for (const { url } of this.#urls.values()) URL.revokeObjectURL(url);
    if (this.#other?.url) URL.revokeObjectURL(this.#other.url);
    this.#urls = new Map(); // what still comes belongs to the old one
    this.#info = this.#other = null;
    this.#touched = false;
  }

  /** Shows the first `layers` layers, because somebody wants to. */
  choose(layers) {
    if (!this.#info) return;
    this.#touched = true;
    this.#show(Math.min(Math.max(layers, 1), this.#last()));
    this.changed({ layers: this.layers, view: this.view });
  }

  /** "single", "split" or "side". */
  compare(view) {
    this.#setView(view);
    this.changed({ layers: this.#touched ? this.layers : null, view });
  }

  /** The last step of the slider: all layers; or the original, where it takes the place of those not stored. */
  #last() {
    return this.#info.original_from ?? this.#info.layers;
  }

  /** Layer after layer, as they come, until all are there or somebody chooses. */
  async #sharpen(signal, previewed) {
    for (const { layers, side } of this.#steps(previewed)) {
      await this.#show(layers, side);
      if (signal.aborted || this.#touched) return;
      if (this.#quickly() && layers < this.#last()) await pause(PACE);
      if (signal.aborted || this.#touched) return;
    }
  }

  /** What to load on the way. Where every step would take as long as all layers, there is but a first one. */
  #steps(previewed) {
    const { width, height } = this.#info;
    const all = this.#last();
    const last = { layers: all };
    if (!this.#quickly()) return previewed ? [last] : [{ layers: 1, side: Math.max(width, height) >= 2 * SMALL ? SMALL : 0 }, last];
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return [last];
    return Array.from({ length: all }, (_, place) => ({ layers: place + 1 }));
  }

  #quickly() {
    return this.quick >= this.#info.layers;
  }

  async #show(layers, side = this.#side()) {
    this.layers = layers;
    this.#figures();
    this.#wish.abort();
    const wish = (this.#wish = new AbortController());
    const name = (this.#pending = `${layers}@${side}`);
    try {
      const { url, got } = await this.#load(layers, side, wish.signal);
      const image = this.#image(url);
      await image.decode();
      if (wish.signal.aborted) return;
      this.#stage.put(0, image);
      image.dataset.layers = layers;
      const damaged = got.damaged === null ? "" : `; layer ${Number(got.damaged) + 1} is damaged`;
      const shown = `${Math.min(got.layers, layers)} of ${words.plural(this.#info.layers, "layer")}`;
      this.#stage.caption(0, got.original ? "original" : shown + damaged);
      this.#say("");
    } catch (error) {
      if (!wish.signal.aborted) this.#fail(error);
    } finally {
      if (this.#pending === name) this.#pending = "";
    }
  }

  async #load(layers, side, signal) {
    const name = `${layers}@${side}`;
    const known = this.#urls.get(name);
    if (known) return known;
    const { width, height } = this.#info;
    const scale = side ? side / Math.max(width, height) : 1;
    const small = width * height * scale * scale <= EXACT;
    const own = !side && layers > this.#info.layers && SHOWN_FORMATS.has(this.#info.source_format);
    const format = own ? this.#info.source_format : small ? "png" : "webp"; // in its own format it comes as it is
    const urls = this.#urls;
    const said = layers > this.#info.layers ? "Loading the original…" : this.layers > 1 ? `Loading layer ${layers}…` : "Loading…";
    this.#say(said);
    const slow = setTimeout(() => signal.aborted || this.#say(`${said} The server takes its time for this one.`), LONG);
    const got = await api.picture(this.key, { layers, side, format }, signal).finally(() => clearTimeout(slow));
    const loaded = { url: URL.createObjectURL(got.blob), got };
    urls.set(name, loaded);
    return loaded;
  }

  /** The longest side needed at this zoom, 0 for the picture's own. */
  #side() {
    const longest = Math.max(this.#info.width, this.#info.height);
    const seen = longest * this.#stage.scale * Math.min(devicePixelRatio, 2);
    const side = SIDES.find((one) => one >= seen);
    return side && side < longest ? side : 0;
  }

  #zoomed() {
    const { scale } = this.#stage;
    this.parts.zoomFit.textContent = this.#info ? `${Math.round(scale * 100)} %` : "";
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      // sharper only: nothing is loaded again because it is seen from further away
      const side = this.#info && this.#side();
      const finer = (name) => {
        const [layers, have] = name.split("@").map(Number);
        return layers === this.layers && (!have || (side && have >= side));
      };
      const there = [...this.#urls.keys(), this.#pending];
      if (this.#info && this.#urls.size && !there.some(finer)) this.#show(this.layers);
    }, 250);
  }

  #setView(view) {
    this.view = ["split", "side"].includes(view) ? view : "single";
    this.#stage.view = this.view;
    for (const button of this.#viewButtons()) button.setAttribute("aria-pressed", button.dataset.view === this.view);
    if (this.view !== "single" && this.#info && !this.#other) this.#loadOther();
  }

  /** The kept original or else all layers, for the second pane. */
  async #loadOther() {
    const { signal } = this.#session;
    const { has_original: kept, layers, source_format: format } = this.#info;
    const other = (this.#other = {});
    this.#stage.caption(1, "Loading…");
    try {
      if (kept) other.url = URL.createObjectURL(await api.original(this.key, signal));
      const image = this.#image(kept ? other.url : (await this.#load(layers, this.#side(), signal)).url);
      try {
        await image.decode();
      } catch {
        throw new api.ApiError(`This browser cannot show the original (${format ?? "unknown format"}).`);
      }
      if (signal.aborted) return;
      this.#stage.put(1, image);
      this.#stage.caption(1, kept ? "original" : `all ${words.plural(layers, "layer")}`);
      this.#say("");
    } catch (error) {
      if (!signal.aborted) this.#stage.caption(1, this.#explain(error));
    }
  }

  #viewButtons() {
    return this.parts.views.querySelectorAll("button[data-view]");
  }

  #image(url) {
    const image = new Image();
    image.alt = this.key;
    image.src = url;
    return image;
  }

  #say(text) {
    this.parts.stageWords.textContent = text;
    this.parts.stageWords.classList.remove("fault-words");
  }

  #fail(error) {
    this.#say(this.#explain(error));
    this.parts.stageWords.classList.add("fault-words");
  }

  #explain(error) {
    if (error.status === 404) return `Not found: ${error.message}`;
    return error instanceof api.ApiError ? error.message : "This picture cannot be shown.";
  }

  #blank() {
    const { parts } = this;
    parts.layers.max = parts.layers.value = 1;
    parts.layers.disabled = true;
    parts.saveOriginal.hidden = true;
    parts.save.removeAttribute("href");
    parts.saveStream.removeAttribute("href");
    for (const part of ["layersOf", "bytes", "bpp", "psnr", "share", "caption", "label"]) parts[part].textContent = "";
    for (const part of ["facts", "fields", "strata"]) parts[part].replaceChildren();
    for (const pane of [0, 1]) this.#stage.caption(pane, "");
  }

  /** What stays the same for all layers. */
  #describe() {
    const { parts } = this;
    const info = this.#info;
    parts.layers.max = this.#last();
    parts.layers.disabled = this.#last() < 2;
    const slab = (layers, own, title) => {
      // the bytes of layers grow tenfold: a root keeps the first ones visible
      const made = words.element("button", { parent: parts.strata, type: "button", tabindex: "-1", title });
      made.style.flexGrow = Math.cbrt(own);
      made.style.setProperty("--depth", `${Math.round(100 - (65 * (layers - 1)) / info.layers)}%`);
      made.addEventListener("click", () => this.choose(layers));
      return made;
    };
    info.cumulative_bytes.forEach((total, place) => {
      const own = total - (info.cumulative_bytes[place - 1] ?? 0);
      slab(place + 1, own, `Layer ${place + 1}: ${words.bytes(own)}`);
    });
    if (info.original_from) {
      const own = info.source_bytes ?? 0;
      slab(info.original_from, own, `Original: ${words.bytes(own)}`).classList.add("original");
    }
    parts.caption.textContent = info.caption ?? "";
    parts.label.textContent = info.label ?? "";
    this.#describeFields();
    const original = `${info.source_format ?? "unknown format"}, ${words.bytes(info.source_bytes ?? 0)}${info.has_original ? ", kept" : ", not kept"}`;
    const notes = [info.notes ?? []].flat().join(", ");
    const facts = [
      ["Key", this.key],
      ["Size", `${words.count(info.width)} × ${words.count(info.height)} pixels`],
      ["Original", original],
      ["Codec", info.codec],
      ["Model", info.model_id],
      ["Before encoding", notes],
    ];
    for (const [name, text] of facts.filter(([, text]) => text)) {
      words.element("dt", { parent: parts.facts, text: name });
      words.element("dd", { parent: parts.facts, text });
    }
    const name = this.key.split("/").at(-1);
    parts.saveOriginal.hidden = !info.has_original;
    parts.saveOriginal.href = api.originalUrl(this.key);
    // Only a picture's: the dataset could name a format that the system would run.
    const format = PICTURE_FORMATS.has(info.source_format) ? info.source_format : "bin";
    parts.saveOriginal.download = `${name}.${format}`;
  }

  /** The files beside the picture, as text: they come from strangers. */
  #describeFields() {
    const { fields } = this.parts;
    const told = this.#info.fields;
    const tell = (name, text, dir) => {
      words.element("dt", { parent: fields, text: name, dir: "auto" });
      words.element("dd", { parent: fields, text, dir });
    };
    if (!told) tell("Files beside it", "too large to be read here", "ltr");
    for (const { name, bytes, text } of told?.items ?? []) tell(name, text ?? `${words.bytes(bytes)}, not shown`, "auto");
    if (told?.more) tell("…", `${words.count(told.more)} more`, "ltr");
  }

  /** What the slider says: it follows at once, whatever the pictures take. */
  #figures() {
    const { parts, layers } = this;
    const info = this.#info;
    const original = layers > info.layers;
    const total = original ? (info.source_bytes ?? 0) : info.cumulative_bytes[layers - 1];
    const bpp = original ? (8 * total) / (info.width * info.height) : info.bpp[layers - 1];
    parts.layers.value = layers;
    parts.layers.setAttribute("aria-valuetext", original ? "original" : `${layers} of ${words.plural(info.layers, "layer")}`);
    parts.layersOf.textContent = original ? "original" : `${layers} of ${info.layers}`;
    parts.bytes.title = `${words.count(total)} bytes`;
    const told = {
      bytes: words.bytes(total),
      bpp: words.bpp(bpp),
      psnr: original ? "exact" : words.psnr(info.psnr, layers),
      share: words.share(total, info.source_bytes),
    };
    for (const [name, text] of Object.entries(told)) {
      parts[name].textContent = text;
      parts[name].parentElement.hidden = !text;
    }
    [...parts.strata.children].forEach((slab, place) => slab.classList.toggle("in", place < layers));
    parts.save.href = api.pictureUrl(this.key, { layers, format: "png" });
    parts.save.download = `${this.key.split("/").at(-1)}-${original ? "original" : `layers-${layers}`}.png`;
    const stored = Math.min(layers, info.layers);
    parts.saveStream.href = api.streamUrl(this.key, stored);
    parts.saveStream.download = `${this.key.split("/").at(-1)}-layers-${stored}.strata`;
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const { key, target } = event;
    if (target.closest("#help")) return;
    const slides = target.matches("input[type=range]") && key.startsWith("Arrow");
    if (slides) return;
    const layers = this.#info ? this.#last() : 1;
    const act = {
      ArrowLeft: () => this.parts.previous.disabled || this.step(-1),
      ArrowRight: () => this.parts.following.disabled || this.step(1),
      ArrowUp: () => this.choose(this.layers + 1),
      ArrowDown: () => this.choose(this.layers - 1),
      0: () => this.choose(layers),
      s: () => this.compare(this.view === "split" ? "single" : "split"),
      d: () => this.compare(this.view === "side" ? "single" : "side"),
      f: () => this.#stage.toggle(),
      "+": () => this.#stage.zoom(1.5),
      "=": () => this.#stage.zoom(1.5),
      "-": () => this.#stage.zoom(1 / 1.5),
    }[key] ?? (/^[1-9]$/.test(key) ? () => this.choose(Number(key)) : null);
    if (!act) return;
    event.preventDefault();
    act();
  }
}
