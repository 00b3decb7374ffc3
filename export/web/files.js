/** Files of the site. */

/** @param {string} name of a file beside this one @returns {Promise<Response>} which is not an error page */
export async function fetchFile(name) {
  const response = await fetch(new URL(name, import.meta.url)).catch((error) => ({ ok: false, error }));
  if (response.ok) return response;
  const reason = response.error ? response.error.message : `the server answered ${response.status}`;
  throw new Error(`${name} could not be fetched: ${reason}.`);
}

/** The chunks of a response as they come in; `hear` is told the length of each. */
export async function readChunks(/** @type {Response} */ response, /** @type {(bytes: number) => void} */ hear) {
  const chunks = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return chunks;
    hear(value.length);
    chunks.push(value);
  }
}

/** The same as one array. */
export async function readBytes(/** @type {Response} */ response, hear) {
  return new Uint8Array(await new Blob(await readChunks(response, hear)).arrayBuffer());
}
