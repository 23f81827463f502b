// Numbers as people read them, and small helpers for building elements.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

export function bytes(number) {
  if (number < 1000) return `${whole.format(number)} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let unit = -1;
  for (; number >= 999.5 && unit < units.length - 1; unit++) number /= 1000;
  return `${number < 9.95 ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}

export const bpp = (number) => (number < 0.0995 ? number.toFixed(3) : number.toFixed(2));

/** In dB; "exact" where nothing is lost (null: JSON knows no infinity), "" where it was not measured. */
export function psnr(curve, layers) {
  const value = curve?.[layers - 1];
  if (value === null || value >= 99) return "exact";
  return typeof value === "number" ? `${value.toFixed(1)} dB` : "";
}

export function share(part, all) {
  if (!all) return "";
  const percent = (100 * part) / all;
  return `${percent < 9.95 ? percent.toFixed(1) : Math.round(percent)} %`;
}

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** A new element; text goes in as text, whatever it holds: keys come from strangers' archives. */
export function element(tag, { parent, className, text, ...attributes } = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}
