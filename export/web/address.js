/**
 * What the page shows, as the part of its address behind #, so that a link shows it again.
 *
 * @typedef {object} View
 * @property {number} seed of the large picture
 * @property {number | null} label the class that was chosen; null = each seed's own
 * @property {number} grid how many pictures the grid has; 0 = there is none
 * @property {number} first the seed of the grid's first picture
 * @property {number} [steps] of the whole way from noise; the file's own if it is not there
 */

/** @param {View} view */
export function writeAddress({ seed, label, grid, first, steps }) {
  const parts = new URLSearchParams({ seed: String(seed) });
  if (label !== null) parts.set("label", String(label));
  if (grid) parts.set("grid", String(grid));
  if (grid && first !== seed) parts.set("first", String(first));
  if (steps) parts.set("steps", String(steps));
  return `#${parts}`;
}

/** The address's own words, unchecked; null = not there. */
export function readAddress(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(["seed", "label", "grid", "first", "steps"].map((name) => [name, parts.get(name)]));
}
