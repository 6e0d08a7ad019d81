// The chart: any two of tasks, gain and costs against each other, drawn again whenever the view
// changes. Colour is the family of the balancer (or what is chosen), the marker is the model.

const MARGIN = { left: 76, right: 18, top: 14, bottom: 46 };
const LABELLED = 8; // rows of the front that are labelled
const MANY = 12; // rows, from which on only the one under the pointer shows what varies
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4E2D", "#6A3D9A"];
const NEUTRAL = "#8a939b";
const SWEEP = 3; // fixed weightings that are a sweep
const SWEEP_DASHES = ["none", "6 3", "2 2"]; // of the models whose sweeps are drawn
const LIT = 24; // pixels from the pointer within which a point is lit

/** Outline of a marker of matplotlib's, with radius 1, as a path. */
function outline(marker) {
  const polygon = (corners, turn, inner = 1) => {
    const points = Array.from({ length: corners }, (_, at) => {
      const angle = turn + (2 * Math.PI * at) / corners;
      const radius = at % 2 ? inner : 1;
      return `${(radius * Math.sin(angle)).toFixed(3)},${(-radius * Math.cos(angle)).toFixed(3)}`;
    });
    return `M${points.join("L")}Z`;
  };
  const quarter = Math.PI / 2;
  const arms = "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z";
  const cross = "M-.9,-.5L-.5,-.9L0,-.4L.5,-.9L.9,-.5L.4,0L.9,.5L.5,.9L0,.4L-.5,.9L-.9,.5L-.4,0Z";
  const shapes = {
    s: polygon(4, Math.PI / 4), D: polygon(4, 0), d: "M0,-1L.6,0L0,1L-.6,0Z",
    "^": polygon(3, 0), v: polygon(3, 2 * quarter), "<": polygon(3, -quarter), ">": polygon(3, quarter),
    p: polygon(5, 0), h: polygon(6, 0), "*": polygon(10, 0, 0.45), P: arms, X: cross,
  };
  return shapes[marker] ?? "M-.9,0A.9,.9 0 1 1 .9,0A.9,.9 0 1 1 -.9,0Z";
}

function marker(row, colour, size) {
  const scale = row.marker === "*" ? 1.5 * size : row.marker === "." ? 0.6 * size : size;
  return shape("path", {
    d: outline(row.marker),
    transform: `scale(${scale})`,
    fill: row.hollow ? "var(--paper)" : colour,
    stroke: row.hollow ? colour : "var(--ink)",
    "stroke-width": row.hollow ? 2 / scale : 0.8 / scale,
  });
}

/** The rows of a front: none other is at least as good on both and better on one. */
function frontOf(points) {
  const better = (a, b) => a.good[0] >= b.good[0] && a.good[1] >= b.good[1]
    && (a.good[0] > b.good[0] || a.good[1] > b.good[1]);
  return points.filter((point) => !points.some((other) => better(other, point)));
}

/** The chart of a section, in the figure that is kept for it. */
function liveChart(section) {
  const figure = section.node.querySelector("figure[data-chart]");
  const axes = section.axes.filter((axis, at) => section.rows.some((row) => row.points[at][0] !== null));
  if (!figure || axes.length < 2 || section.rows.length < 2) return;
  const key = (name) => `${section.slug}.${name}`;
  const hasFamilies = new Set(section.rows.map((row) => row.family)).size > 2;
  const manyBalancers = new Set(section.rows.map((row) => row.balancer)).size > PALETTE.length;
  const usual = {
    x: axes[0].name,
    y: axes[1].name,
    show: section.rows.length > MANY ? "pointed" : "both",
    colour: manyBalancers && hasFamilies ? "family" : "balancer",
    fit: "most",
  };

  // Controls: what each axis shows, and how.
  const names = axes.map((axis) => [axis.name, axis.name]);
  const choices = {
    x: ["across", names],
    y: ["up", names],
    show: ["show", [["both", "intervals and seeds"], ["pointed", "both under the pointer"], ["intervals", "intervals"], ["seeds", "seeds"], ["means", "means"]]],
    colour: ["colour", [["family", "family"], ["balancer", "balancer"], ["model", "model"]]],
    fit: ["fit", [["most", "most rows"], ["all", "all rows"]]],
  };
  const tools = make("div", { class: "tools" });
  const selects = {};
  for (const [name, [label]] of Object.entries(choices)) {
    selects[name] = make("select", { change: () => choose(name) });
    tools.append(labelled(label, selects[name]));
  }
  function choose(name) {
    remember(key(name), selects[name].value, usual[name]);
    redraw();
    announce(`The chart shows ${setting("y")} against ${setting("x")}.`);
  }
  const setting = (name) => {
    const chosen = recall(key(name), usual[name]);
    return choices[name][1].some(([value]) => value === chosen) ? chosen : usual[name];
  };

  const living = make("div", { class: "living" });
  const legend = make("div", { class: "legend" });
  const note = make("p", { class: "muted outside" });
  const still = figure.querySelector(".still");
  if (still) still.hidden = true;
  figure.querySelector("figcaption").before(tools, living, legend, note);
  figure.hidden = false;
  let lit = -1;
  let isNear = false;

  // Far from the screen nothing is drawn: a page may hold many charts.
  new IntersectionObserver(
    ([{ isIntersecting }]) => {
      isNear = isIntersecting;
      redraw();
    },
    { rootMargin: "800px" },
  ).observe(living);

  function redraw() {
    for (const [name, [, options]] of Object.entries(choices)) {
      fillSelect(selects[name], options, setting(name));
    }
    if (!isNear) return;
    const width = Math.max(living.clientWidth - 18, 300);
    living.replaceChildren(drawing(width, Math.round(Math.min(540, Math.max(330, 0.55 * width)))));
    light(lit);
  }

  function drawing(width, height) {
    const pair = [setting("x"), setting("y")].map((name) => axes.find((axis) => axis.name === name));
    const columns = pair.map((axis) => section.axes.indexOf(axis));
    const isByBalancer = setting("colour") === "balancer"; // only then is a second look needed
    const colours = colourMap(section.rows, setting("colour"));
    const points = section.rows
      .map((row, index) => ({ row: isByBalancer ? row : { ...row, hollow: false }, index, values: columns.map((at) => row.points[at]), colour: colours(row) }))
      .filter(({ index, values }) => section.shows(index) && values.every(([mean]) => mean !== null));
    for (const point of points) {
      point.good = point.values.map(([mean], at) => goodness(pair[at], mean));
      point.text = `${point.row.label}: ${pair.map((axis, at) => `${axis.name} ${say(axis, point.values[at])}`).join(", ")}`;
    }
    const label = `${pair[1].name} against ${pair[0].name}, ${points.length} rows of ${section.title}`;
    const svg = shape("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label,
      "font-family": "system-ui, sans-serif", "font-size": 12, fill: "var(--ink)",
    });
    svg.append(shape("title", {}, label));
    if (!points.length) {
      svg.append(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No row is left by the filters."));
      note.textContent = "";
      return svg;
    }

    // Scales: better is up and to the right for tasks; costs grow as numbers do.
    const show = setting("show");
    const isPointed = show === "pointed";
    const spread = isPointed || show === "both" || show === "intervals";
    const seeds = isPointed || show === "both" || show === "seeds";
    const scales = pair.map((axis, at) => {
      const ends = spread && !isPointed ? points.flatMap(({ values }) => values[at].slice(1, 3).filter((end) => end !== null)) : [];
      const singles = seeds && !isPointed ? points.flatMap(({ values }) => values[at][3] ?? []).filter((value) => value !== null) : [];
      const bounds = limits(axis, [...points.map(({ values }) => values[at][0]), ...singles], ends, setting("fit") === "all");
      if (axis.cost) bounds[0] = Math.max(bounds[0], 0.9 * Math.min(...points.map(({ values }) => values[at][0])));
      const room = at ? [height - MARGIN.bottom, MARGIN.top] : [MARGIN.left, width - MARGIN.right];
      return makeScale(axis, bounds, room, axis.better < 0 && !axis.cost, Math.max(3, Math.abs(room[1] - room[0]) / (at ? 60 : 80)));
    });
    const [x, y] = scales;
    const inside = points.filter(({ values }) => x.holds(values[0][0]) && y.holds(values[1][0]));
    drawAxes(svg, pair, scales, width, height);

    // The front, then what varies, then the means with the front on top.
    const front = frontOf(inside).sort((a, b) => b.good[0] - a.good[0]);
    svg.append(frontLine(front, scales));
    const clip = shape("svg", {
      x: MARGIN.left, y: MARGIN.top, width: width - MARGIN.left - MARGIN.right,
      height: height - MARGIN.top - MARGIN.bottom,
      viewBox: `${MARGIN.left} ${MARGIN.top} ${width - MARGIN.left - MARGIN.right} ${height - MARGIN.top - MARGIN.bottom}`,
    });
    svg.append(clip);
    const sweeps = pair.some((axis) => axis.cost) ? new Map() : sweepsOf(points);
    [...sweeps.values()].forEach((swept, at) => clip.append(...attained(swept, pair, scales, SWEEP_DASHES[at], seeds && !isPointed)));
    for (const point of inside) {
      const strong = front.includes(point) || point.row.marker === "*";
      const group = shape("g", {
        "data-row": point.index, opacity: strong || isPointed ? 0.9 : 0.4, class: isPointed ? "pointed" : "",
      });
      if (spread) group.append(...bars(point, scales));
      if (seeds) group.append(...dots(point, scales));
      clip.append(group);
    }
    const size = width < 500 ? 5 : 6;
    inside.sort((a, b) => front.includes(a) - front.includes(b));
    const marks = inside.map((point) => mark(point, scales, size, front.includes(point)));
    svg.append(...marks);
    svg.append(...labels(front.slice(0, LABELLED), inside, scales, width));

    // What is not seen is said.
    const outside = points.filter((point) => !inside.includes(point)).map(({ row }) => row.label);
    note.textContent = outside.length ? `Outside of the chart: ${outside.join(", ")}.` : "";
    legend.replaceChildren(...legendEntries(points, setting("colour"), colours, emphasise), ...sweepEntries(sweeps));
    reachable(svg, marks, inside);
    return svg;
  }

  /** One stop of the tab key; arrow keys go from point to point, from left to right. */
  function reachable(svg, marks, points) {
    const order = points.map((point, at) => ({ at, x: point.place[0] })).sort((a, b) => a.x - b.x).map(({ at }) => at);
    let current = 0;
    const stop = () => order.forEach((at, turn) => marks[at].setAttribute("tabindex", turn === current ? 0 : -1));
    stop();
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Enter") section.linked(points[order[current]].index)[0]?.scrollIntoView({ block: "center" });
      if (!step) return;
      event.preventDefault();
      current = (current + step + order.length) % order.length;
      stop();
      marks[order[current]].focus();
    });
    marks.forEach((node, at) => {
      node.addEventListener("focus", () => {
        current = order.indexOf(at);
        section.light(points[at].index);
        tip(section, points[at].index, node);
      });
      node.addEventListener("blur", () => { section.light(-1); hideTip(); });
    });

    // The pointer lights the nearest point.
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / frame.width;
      const at = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
      const distance = ({ place }) => Math.hypot(place[0] - at[0], place[1] - at[1]);
      const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
      const index = distance(nearest) < LIT ? nearest.index : -1;
      if (index !== lit) section.light(index);
      if (index < 0) hideTip();
      else tip(section, index, marks[points.indexOf(nearest)]);
    });
    svg.addEventListener("pointerleave", () => { section.light(-1); hideTip(); });
  }

  /** Show which point is a row's: the others fade, and it gets its name. */
  function light(index) {
    lit = index;
    for (const node of living.querySelectorAll("[data-row]")) {
      const own = Number(node.dataset.row) === index;
      node.classList.toggle("lit", own);
      node.classList.toggle("faded", index >= 0 && !own);
    }
  }

  function emphasise(chosen) {
    for (const node of living.querySelectorAll("[data-row]")) {
      node.classList.toggle("faded", chosen !== null && !chosen(section.rows[Number(node.dataset.row)]));
    }
  }

  section.onLight(light);
  section.redraw = redraw;
  onRestore(redraw);
  new ResizeObserver(() => {
    const now = living.querySelector("svg")?.viewBox.baseVal.width;
    if (now && living.clientWidth && Math.abs(now - Math.max(living.clientWidth - 18, 300)) > 1) redraw();
  }).observe(living);
}

/** A value on a scale on which higher is better. */
function goodness(axis, value) {
  return axis.target === null ? axis.better * value : -Math.abs(value - axis.target);
}

/** From a row to its colour. */
function colourMap(rows, by) {
  if (by === "balancer") return (row) => row.colour;
  const values = [...new Set(rows.filter((row) => row.marker !== "*").map((row) => row[by]))].sort();
  return (row) => (row.marker === "*" ? NEUTRAL : PALETTE[values.indexOf(row[by])] ?? NEUTRAL);
}

function drawAxes(svg, pair, [x, y], width, height) {
  const [left, right] = [MARGIN.left, width - MARGIN.right];
  const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
  const line = (attributes) => svg.append(shape("line", { stroke: "var(--line)", ...attributes }));
  const text = (attributes, content) => svg.append(shape("text", attributes, content));
  const [texts, sideTexts] = [tickTexts(x.ticks), tickTexts(y.ticks)];
  x.ticks.forEach((tick, at) => {
    line({ x1: x(tick), x2: x(tick), y1: top, y2: bottom });
    text({ x: x(tick), y: bottom + 17, "text-anchor": "middle", fill: "var(--muted)" }, texts[at]);
  });
  y.ticks.forEach((tick, at) => {
    line({ x1: left, x2: right, y1: y(tick), y2: y(tick) });
    text({ x: left - 7, y: y(tick) + 4, "text-anchor": "end", fill: "var(--muted)" }, sideTexts[at]);
  });
  line({ x1: left, x2: right, y1: bottom, y2: bottom, stroke: "var(--muted)" });
  line({ x1: left, x2: left, y1: top, y2: bottom, stroke: "var(--muted)" });
  text({ x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, axisName(pair[0]));
  text({ transform: `translate(14 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, axisName(pair[1]));

  // Single-task as a dotted line, the ceiling as a dashed one.
  const lines = { reference: ["var(--muted)", "2 3"], ceiling: ["var(--warn-line)", "9 3 2 3"] };
  for (const [name, [stroke, dashes]] of Object.entries(lines)) {
    const style = { stroke, "stroke-dasharray": dashes, "stroke-width": 1.3 };
    const [across, up] = [pair[0][name], pair[1][name]];
    if (across !== null && x.holds(across)) line({ x1: x(across), x2: x(across), y1: top, y2: bottom, ...style });
    if (up !== null && y.holds(up)) line({ x1: left, x2: right, y1: y(up), y2: y(up), ...style });
  }
}

/** What an axis shows and which way is better; axes of tasks are turned so that it is the end. */
function axisName(axis) {
  if (axis.target !== null) return `${axis.name} (nearest to ${axis.target} is best)`;
  const end = axis.cost ? axis.better > 0 : true;
  return end ? `${axis.name}, better →` : `← better, ${axis.name}`;
}

/** The stepped line that joins the front. */
function frontLine(front, [x, y]) {
  const steps = front.map(({ values: [[across], [up]] }, at) => {
    const next = front[at + 1];
    return `${at ? "L" : "M"}${x(across)},${y(up)}${next ? `L${x(across)},${y(next.values[1][0])}` : ""}`;
  });
  return shape("path", { d: steps.join(""), fill: "none", stroke: "var(--ink)", "stroke-dasharray": "4 2" });
}

/** Model to its points of fixed weights, of the first few models that have enough of them. */
function sweepsOf(points) {
  const sweeps = Map.groupBy(points.filter(({ row }) => row.sweep), ({ row }) => row.sweep);
  return new Map([...sweeps].filter(([, swept]) => swept.length >= SWEEP).slice(0, SWEEP_DASHES.length));
}

/** What fixed weights reach in the mean, as stairs; as a band, what they reach in some seeds but not in all. */
function attained(swept, pair, [x, y], dashes, hasBand) {
  const signs = pair.map((axis) => (axis.target === null ? axis.better : 0));
  if (signs.includes(0)) return [];

  // Points on scales on which higher is better, of means and of the seeds that all weightings have.
  const [left, low] = [x, y].map((scale, at) => signs[at] * (signs[at] > 0 ? scale.low : scale.high));
  const signed = (pick) => swept.map(({ values }) => values.map((value, at) => signs[at] * pick(value)));
  const isIn = (seed) => swept.every(({ values }) => values.every((value) => (value[3]?.[seed] ?? null) !== null));
  const seeds = hasBand ? Object.keys(swept[0].values[0][3] ?? []).filter(isIn) : [];
  const means = signed(([mean]) => mean);
  const bySeed = seeds.map((seed) => signed((value) => value[3][seed]));
  const places = [left, ...[means, ...bySeed].flat().map(([across]) => across)].sort((a, b) => a - b);

  const reached = (points, place) => Math.max(low, ...points.filter(([across]) => across >= place).map(([, up]) => up));
  const stairs = (heights) => heights.flatMap((height, at) => [places[Math.max(at - 1, 0)], places[at]]
    .map((place) => `${x(signs[0] * place)},${y(signs[1] * height)}`));
  const end = places.findLastIndex((place) => means.some(([across]) => across >= place));
  const line = stairs(places.slice(0, end + 1).map((place) => reached(means, place)));
  line.push(`${x(signs[0] * places[end])},${y(signs[1] * low)}`);
  const style = { class: "sweep", stroke: "var(--muted)", "stroke-dasharray": dashes };
  const front = shape("path", { ...style, d: `M${line.join("L")}`, fill: "none" });
  if (seeds.length < 2) return [front];

  const edge = (best) => stairs(places.map((place) => best(...bySeed.map((points) => reached(points, place)))));
  const outline = [...edge(Math.max), ...edge(Math.min).reverse()].join("L");
  return [shape("path", { d: `M${outline}Z`, fill: "var(--muted)", "fill-opacity": 0.14, class: "sweep" }), front];
}

/** A legend entry a model whose fixed weights are drawn. */
function sweepEntries(sweeps) {
  return [...sweeps.keys()].map((model, at) => make(
    "span", {},
    shape(
      "svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" },
      shape("path", { d: "M-8,0H8", stroke: "var(--muted)", "stroke-dasharray": SWEEP_DASHES[at] }),
    ),
    `fixed weights, ${model}`,
  ));
}

/** The intervals of a row. */
function bars({ values: [across, up], colour }, [x, y]) {
  const style = { stroke: colour, "stroke-width": 1.4 };
  const found = [];
  if (across[1] !== null) found.push({ x1: x(across[1]), x2: x(across[2]), y1: y(up[0]), y2: y(up[0]) });
  if (up[1] !== null) found.push({ x1: x(across[0]), x2: x(across[0]), y1: y(up[1]), y2: y(up[2]) });
  return found.map((ends) => shape("line", { ...ends, ...style }));
}

/** The seeds of a row that have both values. */
function dots({ values: [across, up], colour }, [x, y]) {
  const pairs = (across[3] ?? []).map((value, seed) => [value, up[3]?.[seed]]);
  const known = pairs.filter(([one, other]) => one !== null && other !== null && other !== undefined);
  return known.map(([one, other]) => shape("circle", { cx: x(one), cy: y(other), r: 2.4, fill: colour }));
}

/** The mean of a row: a halo for the front and the focus, the marker, its text. */
function mark(point, [x, y], size, onFront) {
  point.place = [x(point.values[0][0]), y(point.values[1][0])];
  const halo = { class: "halo", r: size + 4.5, fill: "transparent", stroke: "var(--ink)", "stroke-width": 1.2 };
  return shape(
    "g",
    {
      class: "point", "data-row": point.index, transform: `translate(${point.place})`, role: "img",
      "aria-label": point.text, "aria-description": point.row.settings.join("; "),
    },
    shape("circle", { ...halo, "stroke-opacity": onFront ? 0.8 : 0 }),
    marker(point.row, point.colour, size),
  );
}

/** Names beside the points of the front, where they cover neither points nor each other. */
function labels(front, points, scales, width) {
  const taken = points.map(({ place: [left, top] }) => [left - 7, top - 7, left + 7, top + 7]);
  const nodes = [];
  for (const { row, index, place: [x, y] } of front) {
    const text = row.label.length > 34 ? `${row.label.slice(0, 33)}…` : row.label;
    const length = 7.2 * text.length;
    const [right, left] = [10, -10 - length];
    const spots = [[right, -10], [left, -10], [right, 19], [left, 19], [-length / 2, -14], [-length / 2, 24], [right + 4, 4], [left - 4, 4]];
    const box = ([across, down]) => [x + across, y + down - 11, x + across + length, y + down + 3];
    const isFree = (one) => one[0] > MARGIN.left && one[2] < width - 4 && one[1] > 0
      && !taken.some((other) => one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3]);
    const spot = spots.find((candidate) => isFree(box(candidate)));
    if (!spot) continue;
    taken.push(box(spot));
    nodes.push(shape("text", {
      x: x + spot[0], y: y + spot[1], "data-row": index, stroke: "var(--paper)", "stroke-width": 3,
      "paint-order": "stroke", "pointer-events": "none",
    }, text));
  }
  return nodes;
}

/** Colours and markers among some points; pointing at one fades the others. */
function legendEntries(points, by, colours, emphasise) {
  const rows = points.map(({ row }) => row);
  const entry = (row, text, chosen, drawn) => make(
    "span",
    { pointerenter: () => emphasise(chosen), pointerleave: () => emphasise(null) },
    shape("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, drawn), text,
  );
  const first = (field) => [...new Map(rows.toReversed().map((row) => [row[field], row])).values()].reverse();
  const withColour = first(by).filter((row) => row.marker !== "*" || by === "model");
  const coloured = withColour.slice(0, PALETTE.length).map((row) => entry(
    row, row[by], (other) => other[by] === row[by], marker({ marker: "s", hollow: row.hollow }, colours(row), 6)));
  const more = withColour.length - coloured.length;
  const marked = first("model").map((row) => entry(
    row, row.model, (other) => other.model === row.model, marker({ ...row, hollow: true }, "var(--muted)", 6)));
  return [...coloured, ...(more > 0 ? [make("span", {}, `and ${more} more, named under the pointer`)] : []), ...marked];
}
