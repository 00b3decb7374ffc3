/**
 * The service worker: it keeps one version of the site for visits without a network.
 *
 * All files but index.html and this one lie in a folder that is named after their content. index.html comes from the
 * network where there is one, and names the folder: what it needs is in there, from one export, kept or not.
 */
const OURS = `kddpm ${self.registration.scope} `; // other sites may lie under the same host
const PATIENCE_MS = 8000; // with a network that does not answer

self.addEventListener("install", () => self.skipWaiting());

self.addEventListener("message", (event) => {
  const kept = keep(event.data).catch(() => false);
  event.waitUntil(kept.then((isKept) => event.ports[0].postMessage(isKept)));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(event.request.mode === "navigate" ? page(event.request) : file(event.request));
});

/** @returns {Promise<boolean>} whether all `files` of the version in `folder` are kept, and no other version is */
async function keep({ folder, files }) {
  const cache = await caches.open(OURS + folder);
  const kept = await Promise.all(files.map((address) => cache.match(address)));
  await cache.addAll(files.filter((_, index) => !kept[index]));
  const index = await (await cache.match(self.registration.scope)).text();
  if (!index.includes(folder.slice(self.registration.scope.length))) {
    await caches.delete(OURS + folder); // the site was replaced meanwhile
    return false;
  }
  const others = (await caches.keys()).filter((name) => name.startsWith(OURS) && name !== OURS + folder);
  await Promise.all(others.map((name) => caches.delete(name)));
  return true;
}

async function page(request) {
  const kept = await caches.match(self.registration.scope);
  const answer = fetch(request, { cache: "reload" }); // another export may bear the same date, or an earlier one
  if (!kept) return answer;
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS, kept));
  return Promise.race([answer, late]).catch(() => kept);
}

async function file(request) {
  return (await caches.match(request, { ignoreVary: true })) ?? fetch(request);
}
