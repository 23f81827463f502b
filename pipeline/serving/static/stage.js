// Where a picture lies: one pane or two, zoomed and moved together, with a divider to drag.

const MOST = 16; // CSS pixels a picture's pixel at most
const SWIPE = 60; // CSS pixels that a finger moves to turn to the next picture

export class Stage {
  #scale = 1; // CSS pixels a picture's pixel
  #x = 0; // of the picture's middle from the pane's, CSS pixels
  #y = 0;
  #fitted = true;
  #pointers = new Map();
  #size = { width: 1, height: 1 };
  #start = null; // where a single finger was put down

  /** `zoomed()` is called when the scale has changed, `swiped(step)` for the next picture or the one before. */
  constructor(root, divider, { zoomed, swiped }) {
    this.root = root;
    this.divider = divider;
    this.zoomed = zoomed;
    this.swiped = swiped;
    this.panes = [...root.querySelectorAll(".pane")];
    new ResizeObserver(() => this.#draw()).observe(root);
    root.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    root.addEventListener("dblclick", (event) => this.toggle(event));
    root.addEventListener("pointerdown", (event) => this.#down(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) root.addEventListener(end, (event) => this.#up(event));
    divider.addEventListener("pointerdown", (event) => this.#grab(event));
    divider.addEventListener("pointermove", (event) => this.#drag(event));
    divider.addEventListener("dblclick", (event) => event.stopPropagation());
    divider.addEventListener("keydown", (event) => this.#dividerKey(event));
    this.divide(50);
  }

  /** A new picture of `width` x `height` pixels, fitted into the window, but not larger than it is. */
  reset(width, height) {
    this.#size = { width, height };
    for (const pane of this.panes) this.#sheet(pane).replaceChildren();
    this.fit();
  }

  set view(view) {
    this.root.dataset.view = view;
    this.#draw();
  }

  /** Puts an image into a pane (0: the stream, 1: what it is compared with). */
  put(pane, image) {
    image.draggable = false;
    this.#sheet(this.panes[pane]).replaceChildren(image);
  }

  caption(pane, words) {
    this.panes[pane].querySelector("figcaption").textContent = words;
  }

  get scale() {
    return this.#scale;
  }

  fit() {
    this.#fitted = true;
    this.#x = this.#y = 0;
    this.#draw();
  }

  /** From fitted to actual size, or of a small picture as large as fits; and back. */
  toggle(event) {
    if (!this.#fitted) return this.fit();
    const fit = this.#fitScale();
    const large = Math.min(this.#room(), MOST);
    return this.zoom((fit < 1 ? 1 : large > 1.2 ? large : 4) / fit, event);
  }

  zoom(factor, event) {
    const fit = this.#fitScale();
    const scale = Math.min(Math.max(this.#scale * factor, fit), MOST);
    const [x, y] = event ? this.#inPane(event) : [0, 0];
    this.#x = x - ((x - this.#x) * scale) / this.#scale;
    this.#y = y - ((y - this.#y) * scale) / this.#scale;
    this.#scale = scale;
    this.#fitted = scale === fit;
    this.#draw();
  }

  /** Puts the divider at `percent` from the left. */
  divide(percent) {
    const at = Math.min(Math.max(percent, 0), 100);
    this.root.style.setProperty("--at", `${at}%`);
    this.divider.setAttribute("aria-valuenow", Math.round(at));
    this.divider.setAttribute("aria-valuetext", `${Math.round(at)} % of the width shows the stream`);
    this.at = at;
  }

  #sheet(pane) {
    return pane.querySelector(".sheet");
  }

  #paneBox() {
    return this.panes[0].getBoundingClientRect(); // both have the same size
  }

  /** How large the whole picture can be. */
  #room() {
    const { width, height } = this.#paneBox();
    return Math.min(width / this.#size.width, height / this.#size.height) || 1;
  }

  /** The whole picture, and not larger than it is. */
  #fitScale() {
    return Math.min(this.#room(), 1);
  }

  #draw() {
    const { width, height } = this.#paneBox();
    if (!width) return;
    if (this.#fitted) this.#scale = this.#fitScale();
    const most = [this.#size.width * this.#scale - width, this.#size.height * this.#scale - height];
    const [mostX, mostY] = most.map((over) => Math.max(over / 2, 0));
    this.#x = Math.min(Math.max(this.#x, -mostX), mostX);
    this.#y = Math.min(Math.max(this.#y, -mostY), mostY);
    for (const sheet of this.panes.map(this.#sheet)) {
      sheet.style.width = `${this.#size.width}px`;
      sheet.style.height = `${this.#size.height}px`;
      const middle = `translate(${-this.#size.width / 2}px, ${-this.#size.height / 2}px)`;
      sheet.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#scale}) ${middle}`;
      sheet.classList.toggle("pixels", this.#scale * devicePixelRatio >= 3);
    }
    this.zoomed();
  }

  /** An event's place from the middle of the pane that it is over. */
  #inPane({ clientX, clientY }) {
    const boxes = this.panes.map((pane) => pane.getBoundingClientRect());
    const over = (box) => clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
    const box = boxes.find(over) ?? boxes[0];
    return [clientX - box.left - box.width / 2, clientY - box.top - box.height / 2];
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.zoom(Math.exp((-event.deltaY * lines) / (event.ctrlKey ? 100 : 400)), event);
  }

  #down(event) {
    if (event.button) return;
    this.root.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, event);
    const alone = this.#pointers.size === 1;
    this.#start = alone && event.pointerType === "touch" && this.#fitted ? event : null;
    this.root.classList.add("dragging");
  }

  #move(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    if (this.#pointers.size === 1) {
      this.#x += event.clientX - before.clientX;
      this.#y += event.clientY - before.clientY;
      this.#draw();
    } else {
      const [other] = [...this.#pointers.values()].filter((one) => one.pointerId !== event.pointerId);
      const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      this.zoom(distance(event) / Math.max(distance(before), 1), middle);
    }
    this.#pointers.set(event.pointerId, event);
  }

  #up(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    if (!this.#pointers.size) this.root.classList.remove("dragging");
    const start = this.#start;
    this.#start = null;
    if (!start || event.type === "pointercancel" || !this.#fitted) return;
    const across = event.clientX - start.clientX;
    if (Math.abs(across) > SWIPE && Math.abs(across) > 2 * Math.abs(event.clientY - start.clientY)) this.swiped(across < 0 ? 1 : -1);
  }

  #grab(event) {
    if (event.button) return;
    event.stopPropagation();
    this.divider.setPointerCapture(event.pointerId);
    this.divider.focus({ preventScroll: true });
  }

  #drag(event) {
    if (!this.divider.hasPointerCapture(event.pointerId)) return;
    event.stopPropagation();
    const box = this.root.getBoundingClientRect();
    this.divide((100 * (event.clientX - box.left)) / box.width);
  }

  #dividerKey(event) {
    const far = event.shiftKey ? 10 : 2;
    const to = { ArrowLeft: this.at - far, ArrowRight: this.at + far, Home: 0, End: 100 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.divide(to);
  }
}
