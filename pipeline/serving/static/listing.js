// The pictures of a dataset, or those that a search finds, page by page as far as one has looked.
//
// Pages follow each other by cursor, so they are first read in order. Of long lists only the pages
// near those last looked at are kept; others are read again, by their cursor, when they are needed.

import * as api from "./api.js";

const FIRST = 100; // pictures of the first page, so that something is seen soon
const LIMIT = 500; // of the others: as many as the server gives
const KEPT = 16; // pages with their items in memory

export class Listing {
  #pages = []; // {after, start, length, items | null, loading, failed, used}
  #next = ""; // the cursor behind the last page, null at the end
  #growing = null;
  #uses = 0;
  #over = new AbortController();

  /** `asked`: the query's parameters; `changed()` is called when there is more to show, or an error. */
  constructor(asked, changed) {
    this.asked = asked;
    this.changed = changed;
    this.count = 0;
    this.error = null;
    this.unread = 0; // pictures whose captions a search could not look at
  }

  get complete() {
    return this.#next === null;
  }

  get loading() {
    return this.#growing !== null;
  }

  /** Stops all requests; the listing is of no use then. */
  close() {
    this.#over.abort();
  }

  /** The picture at a place, or undefined while its page is not here; it is fetched then. */
  item(index) {
    const page = this.#pageOf(index);
    if (!page) return undefined;
    page.used = ++this.#uses;
    if (page.items) return page.items[index - page.start];
    if (!page.failed) page.loading ??= this.#reload(page);
    return undefined;
  }

  /** The picture at a place, however many pages that takes; undefined where the list ends or fails. */
  async find(index) {
    while (index >= this.count && !this.complete && !this.error && !this.#over.signal.aborted) await this.more();
    const item = this.item(index);
    await (item ? null : this.#pageOf(index)?.loading);
    return this.item(index);
  }

  /** Reads the next page, if there is one; resolves when the list has grown, ended or failed. */
  more() {
    if (this.complete || this.#over.signal.aborted) return Promise.resolve();
    this.#growing ??= this.#grow().finally(() => {
      this.#growing = null;
      if (!this.#over.signal.aborted) this.changed();
    });
    return this.#growing;
  }

  /** Tries once more what failed; from the start, where the server does not know a cursor any more. */
  again() {
    if (this.error?.status === 400) {
      this.#pages = [];
      this.#next = "";
      this.count = this.unread = 0;
    }
    this.error = null;
    for (const page of this.#pages) page.failed = false;
    this.changed();
  }

  async #grow() {
    this.error = null;
    try {
      const after = this.#next;
      const { items, next, unread } = await api.page({ ...this.asked, after, limit: after ? LIMIT : FIRST }, this.#over.signal);
      if (items.length) {
        this.#pages.push({ after, start: this.count, length: items.length, items, loading: null, used: ++this.#uses });
        this.count += items.length;
      }
      this.#next = next || null;
      this.unread += unread ?? 0;
      this.#forget();
    } catch (error) {
      if (!this.#over.signal.aborted) this.error = error;
    }
  }

  async #reload(page) {
    try {
      const { items } = await api.page({ ...this.asked, after: page.after, limit: page.length }, this.#over.signal);
      page.items = items.slice(0, page.length);
      this.#forget();
      this.changed();
    } catch (error) {
      if (this.#over.signal.aborted) return;
      this.error = error;
      page.failed = true;
      this.changed();
    } finally {
      page.loading = null;
    }
  }

  #forget() {
    const held = this.#pages.filter((page) => page.items);
    held.sort((a, b) => b.used - a.used);
    for (const page of held.slice(KEPT)) page.items = null;
  }

  #pageOf(index) {
    if (index < 0 || index >= this.count) return undefined;
    let low = 0;
    let high = this.#pages.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#pages[middle].start <= index) low = middle;
      else high = middle - 1;
    }
    return this.#pages[low];
  }
}
