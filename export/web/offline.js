/** The page without a network, from its second visit on: service.js keeps the files that it used. */

/**
 * @param {string[]} names of the files beside this one that a visit needs
 * @returns {Promise<boolean>} whether the page now works offline; service workers want https or localhost
 */
export async function keepOffline(names) {
  if (!navigator.serviceWorker) return false;
  const root = new URL("../", import.meta.url);
  await navigator.serviceWorker.register(new URL("service.js", root), { updateViaCache: "none" });
  const { active } = await navigator.serviceWorker.ready;
  const folder = new URL(".", import.meta.url).href;
  const { port1, port2 } = new MessageChannel();
  const answer = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(data)));
  active.postMessage({ folder, files: [root.href, ...names.map((name) => folder + name)] }, [port2]);
  return answer;
}
