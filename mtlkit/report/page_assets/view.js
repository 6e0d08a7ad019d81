// The view: what is sorted, filtered, hidden and drawn. It lives in the address, after "#view&".

const VIEW = "#view&";
const restorers = [];
let view = readView();

function readView() {
  const isView = location.hash.startsWith(VIEW);
  return new URLSearchParams(isView ? location.hash.slice(VIEW.length) : "");
}

function writeView() {
  const text = view.toString();
  history.replaceState(null, "", text ? VIEW + text : location.href.split("#")[0]);
}

function recall(key, fallback = "") {
  return view.get(key) ?? fallback;
}

/** Keep one value; the one that holds anyway is left out. */
function remember(key, value, fallback = "") {
  if (value === fallback) view.delete(key);
  else view.set(key, value);
  writeView();
}

function recallAll(key) {
  return new Set(view.getAll(key));
}

function rememberAll(key, values) {
  view.delete(key);
  for (const value of values) view.append(key, value);
  writeView();
}

/** Have something shown again when another view is followed. */
function onRestore(show) {
  restorers.push(show);
}

function restore() {
  for (const show of restorers) show();
}

addEventListener("hashchange", () => {
  if (!location.hash.startsWith(VIEW)) return; // a link to a section
  view = readView();
  restore();
});

function resetView() {
  view = new URLSearchParams();
  writeView();
  restore();
  announce("Everything is shown as at first.");
}
