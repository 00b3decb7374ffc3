// A classic script: a module cannot load from file://, so the page has to say so without one.
if (location.protocol === "file:") {
  const error = document.getElementById("error");
  error.textContent =
    "Browsers load no model from file://. Serve this folder, for example with " +
    "python -m http.server, and open the address that it prints.";
  error.hidden = false;
}
