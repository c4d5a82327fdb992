// Browsers load no modules from files: say what to do instead.
if (location.protocol === "file:") {
  document.getElementById("about").textContent =
    "This page has to be served: run `python -m http.server` in its folder and open http://127.0.0.1:8000";
}
