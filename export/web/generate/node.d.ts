/** @returns LiteRT.js with its WebAssembly loaded, one thread */
export function loadLiteRt(): Promise<typeof import("@litertjs/core")>;
