// Figures: a note on the row under the pointer, and downloads.

const tipBox = make("div", { class: "tip", hidden: true, "aria-hidden": "true" });

/** Show what a row is, beside an element. */
function tip(section, index, element) {
  const row = section.rows[index];
  const numbers = section.axes.map((axis, at) => [axis.name, row.points[at], axis])
    .filter(([, [mean]]) => mean !== null)
    .map(([name, values, axis]) => make("span", {}, `${name} ${say(axis, values)}`));
  const most = 9;
  if (numbers.length > most) numbers.splice(most, Infinity, make("span", {}, "…"));
  tipBox.replaceChildren(
    make("strong", {}, row.label),
    ...numbers,
    ...(row.word ? [make("span", {}, `against single-task: ${row.word}`)] : []),
    ...row.settings.map((text) => make("span", { class: "muted" }, text)),
  );
  tipBox.hidden = false;
  const [spot, box] = [element.getBoundingClientRect(), tipBox.getBoundingClientRect()];
  const room = document.documentElement;
  const isRight = spot.right + 12 + box.width < room.clientWidth;
  const left = isRight ? spot.right + 12 : Math.max(4, spot.left - 12 - box.width);
  const top = Math.max(4, Math.min(spot.top - 10, room.clientHeight - box.height - 4));
  tipBox.style.left = `${left + scrollX}px`;
  tipBox.style.top = `${top + scrollY}px`;
}

function hideTip() {
  tipBox.hidden = true;
}

/** Downloads of a figure, and notes on the rows that it names. */
function liveFigure(section, figure) {
  const buttons = {
    SVG: () => save(new Blob([standalone(shown())], { type: "image/svg+xml" }), `${name}.svg`),
    PNG: () => savePng(standalone(shown()), `${name}.png`),
    PDF: () => printAlone(figure),
  };
  const name = figure.dataset.name;
  const shown = () => figure.querySelector(".living svg") ?? figure.querySelector(".sheet svg");
  if (figure.hidden) return;
  const tools = make("div", { class: "tools" }, make("span", { class: "muted" }, "download"));
  for (const [format, act] of Object.entries(buttons)) {
    tools.append(make("button", { type: "button", click: act, "aria-label": `Download ${figure.dataset.title} as ${format}` }, format));
  }
  figure.append(tools);
  figure.querySelector(".files")?.toggleAttribute("hidden", true);
  const still = figure.querySelector(".sheet svg");
  if (still && !figure.querySelector(".living")) noteNames(section, still);
}

/** A drawing as a file of its own: its size, white ground, and colours of the light theme. */
function standalone(svg) {
  const copy = svg.cloneNode(true);
  const { width, height } = svg.viewBox.baseVal;
  dress(copy, { xmlns: SVG, width, height });
  for (const node of copy.querySelectorAll(".faded")) node.classList.remove("faded");
  copy.prepend(shape("rect", { width: "100%", height: "100%", fill: "#fff" }));
  const styles = getComputedStyle(document.documentElement);
  const light = (name) => /light-dark\(([^,]+),/.exec(styles.getPropertyValue(name))?.[1] ?? "#000";
  return new XMLSerializer().serializeToString(copy).replace(/var\((--[a-z-]+)\)/g, (_, name) => light(name));
}

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  announce(`${name} was saved.`);
}

/** Draw an SVG on a canvas at twice its size. */
function savePng(text, name) {
  const picture = new Image();
  picture.onload = () => {
    const canvas = make("canvas", { width: 2 * picture.width, height: 2 * picture.height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(blob, name), "image/png");
  };
  picture.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
}

/** Print a figure alone: the dialog of the browser saves it as PDF, with lines and letters. */
function printAlone(figure) {
  document.documentElement.classList.add("one-figure");
  figure.classList.add("printed");
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("one-figure");
    figure.classList.remove("printed");
  }, { once: true });
  print();
}

/** Rows whose names stand in a drawing: pointing at a name, or at its line, lights the row. */
function noteNames(section, svg) {
  const byLabel = new Map(section.rows.map((row, index) => [row.label, index]));
  const find = (text) => {
    if (!text.endsWith("…")) return byLabel.get(text);
    const begun = section.rows.filter((row) => row.label.startsWith(text.slice(0, -1)));
    return begun.length === 1 ? section.rows.indexOf(begun[0]) : undefined;
  };
  const named = [...svg.querySelectorAll("text")]
    .map((node) => ({ node, index: find(node.textContent.trim()) }))
    .filter(({ index }) => index !== undefined);
  for (const { node, index } of named) section.link(node, index);
  svg.addEventListener("pointermove", (event) => {
    const spots = named.map((one) => ({ ...one, box: one.node.getBoundingClientRect() }));
    const off = ({ box }) => Math.abs(event.clientY - (box.top + box.bottom) / 2);
    const hit = spots.find(({ box }) => off({ box }) < Math.max(7, box.height / 2 + 1)
      && event.clientX > box.left - 4 && event.clientX < svg.getBoundingClientRect().right);
    section.light(hit ? hit.index : -1);
    if (hit) tip(section, hit.index, hit.node);
    else hideTip();
  });
  svg.addEventListener("pointerleave", () => { section.light(-1); hideTip(); });
}
