// Small helpers: elements, menus, and what a screen reader is told.

const SVG = "http://www.w3.org/2000/svg";

/** Set attributes of a node; functions become listeners, booleans toggle, null is left out. */
function dress(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  return node;
}

/** An HTML element with attributes and children. Text children are text, never markup. */
function make(tag, attributes = {}, ...children) {
  const node = dress(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

/** The same for a part of a drawing. */
function shape(tag, attributes = {}, ...children) {
  const node = dress(document.createElementNS(SVG, tag), attributes);
  node.append(...children);
  return node;
}

const announcer = make("div", { class: "unseen", "aria-live": "polite" });

/** Tell a screen reader what has changed. */
function announce(text) {
  announcer.textContent = text;
}

/** Options of a select. */
function fillSelect(select, choices, chosen) {
  select.replaceChildren(
    ...choices.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
  );
}

/** A select with a label. */
function labelled(text, select) {
  return make("label", {}, text, dress(select, { "aria-label": text }));
}

/** A menu that opens below its name. */
function menu(name, ...children) {
  return make("details", { class: "menu" }, make("summary", {}, name), make("div", {}, ...children));
}

/**
 * A menu of checkboxes. What is not ticked is kept in the view under a key, so that a link shows
 * what was added since.
 */
function tickMenu(name, texts, key, changed) {
  const boxes = texts.map((text) => make("input", { type: "checkbox", value: text }));
  const whole = make("button", { type: "button", click: () => untick([]) }, "all");
  const nothing = make("button", { type: "button", click: () => untick(texts) }, "none");
  const lines = boxes.map((box) => make("label", {}, box, box.value));
  const node = menu(name, whole, nothing, ...lines);

  function untick(left) {
    rememberAll(key, left);
    show();
    changed();
  }
  function show() {
    const left = recallAll(key);
    for (const box of boxes) box.checked = !left.has(box.value);
    node.classList.toggle("used", left.size > 0);
  }
  node.addEventListener("change", () =>
    untick(boxes.filter((box) => !box.checked).map((box) => box.value)),
  );
  onRestore(show);
  show();
  return node;
}

// A menu closes when something else is clicked or Escape is pressed.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll(".menu[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideTip();
  for (const open of document.querySelectorAll(".menu[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});
