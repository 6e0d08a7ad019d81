// Tables: sort, search, hide columns, group rows, follow the filters of their section.

const REFERENCE = "ref.";

/** The number that a cell begins with; NaN for text. A reference differs from itself by 0. */
function numberIn(text) {
  if (text === REFERENCE) return 0;
  const plain = text.split("±")[0].replaceAll("−", "-").replace(/\s/g, "");
  const match = /^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i.exec(plain);
  return match ? Number(match[0]) : NaN;
}

/** Compare cells: numbers by value, text by its letters, what is missing last in any order. */
function compareCells(one, other, isText, sign) {
  if (isText) return sign * one.localeCompare(other, "en", { numeric: true });
  const [first, second] = [numberIn(one), numberIn(other)];
  if (isNaN(first) || isNaN(second)) return isNaN(first) - isNaN(second);
  return sign * (first - second);
}

/** By what rows may be grouped: the name of a field of a row's data, and its words. */
const GROUPINGS = {
  model: "model",
  balancer: "balancer",
  family: "family of balancers",
  same: "equivalent methods",
  word: "verdict against single-task",
};

/** Make a table of methods, or any other, a living one. */
function liveTable(section, table, number) {
  const key = (name) => `${section.slug}.${number}.${name}`;
  const heads = [...table.tHead.rows[0].cells];
  const columns = heads.map((head) => head.textContent);
  const isText = heads.map((head) => /\b(name|text)\b/.test(head.className));
  const body = table.tBodies[0];
  const ceiling = body.querySelector(".ceiling");
  const rows = [...body.rows].filter((row) => row !== ceiling);
  const title = table.closest(".scroll").getAttribute("aria-label");
  const [modelColumn, balancerColumn] = [columns.indexOf("model"), columns.indexOf("balancer")];

  // What is known of each row: of a table without models, only what its balancer is.
  const facts = new Map();
  for (const row of rows) {
    const text = (column) => (column < 0 ? undefined : row.cells[column].textContent);
    const [model, balancer] = [text(modelColumn), text(balancerColumn)];
    const index = section.rows.findIndex((one) => one.model === model && one.balancer === balancer);
    const alike = section.rows.find((one) => one.balancer === balancer);
    const { family, same } = alike ?? {};
    facts.set(row, section.rows[index] ?? { model, balancer, family, same });
    if (index >= 0) section.link(row, index);
  }

  // Heads become buttons.
  heads.forEach((head, column) => {
    const press = () => sortBy(column);
    head.replaceChildren(make("button", { type: "button", click: press }, columns[column]));
  });

  /** First the direction that shows the most at the top, then the other, then as it was. */
  function sortBy(column) {
    const first = isText[column] ? "ascending" : "descending";
    const second = isText[column] ? "descending" : "ascending";
    const [name, direction] = sorting();
    const next = name !== columns[column] ? first : direction === first ? second : "";
    remember(key("sort"), next && `${next} ${columns[column]}`);
    arrange();
    announce(next ? `Sorted by ${columns[column]}, ${next}.` : "In the first order.");
  }

  /** Name of the column and direction. */
  function sorting() {
    const [direction, ...name] = recall(key("sort")).split(" ");
    return [name.join(" "), direction];
  }

  // The controls above the table.
  const search = make("input", { type: "search", "aria-label": `Search in ${title}` });
  search.placeholder = "search rows";
  const groupings = Object.entries(GROUPINGS).filter(([field]) => {
    const values = new Set(rows.map((row) => facts.get(row)[field]).filter(Boolean));
    return values.size > 1 || (field === "same" && values.size);
  });
  const grouping = make("select");
  const count = make("span", { class: "muted" });
  const tools = make("div", { class: "tools" }, search);
  if (groupings.length) tools.append(labelled("group by", grouping));
  const hideable = columns.filter((name) => !["model", "balancer"].includes(name));
  tools.append(tickMenu("columns", hideable, key("hidden"), arrange), copyMenu(visibleCells), count);
  table.closest(".scroll").before(tools);
  search.addEventListener("input", () => {
    remember(key("search"), search.value);
    arrange();
  });
  grouping.addEventListener("change", () => {
    remember(key("group"), grouping.value);
    arrange();
  });

  /** Whether a row passes the filters of the section and the search. */
  function passes(row) {
    const words = recall(key("search")).toLowerCase().split(/\s+/);
    const text = row.textContent.toLowerCase();
    return words.every((word) => text.includes(word)) && section.passes(facts.get(row));
  }

  /** Rows in their order, under headings if they are grouped. */
  function arrange() {
    const [name, direction] = sorting();
    const column = columns.indexOf(name);
    const ordered = [...rows];
    if (column >= 0) {
      const text = (row) => row.cells[column].textContent;
      const sign = direction === "descending" ? -1 : 1;
      ordered.sort((a, b) => compareCells(text(a), text(b), isText[column], sign));
    }
    heads.forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });

    // Columns.
    const hidden = recallAll(key("hidden"));
    const isHidden = columns.map((name) => hidden.has(name));
    for (const row of [...rows, ...(ceiling ? [ceiling] : []), table.tHead.rows[0]]) {
      [...row.cells].forEach((cell, at) => (cell.hidden = isHidden[at]));
    }

    // Rows.
    for (const row of rows) row.hidden = !passes(row);
    const shown = ordered.filter((row) => !row.hidden);
    const field = recall(key("group"));
    const width = isHidden.filter((is) => !is).length;
    const lines = field in GROUPINGS ? underHeadings(shown, field, width) : shown;
    lines.push(...rows.filter((row) => row.hidden), ...(ceiling ? [ceiling] : []));
    if (body.rows.length !== lines.length || lines.some((line, at) => line !== body.rows[at])) {
      body.replaceChildren(...lines);
    }

    // What the controls show.
    if (search.value !== recall(key("search"))) search.value = recall(key("search"));
    fillSelect(grouping, [["", "–"], ...groupings], field);
    count.textContent = shown.length < rows.length ? `${shown.length} of ${rows.length} rows` : "";
    if (number === 0) section.redraw?.();
  }

  /** Rows by the value of a field, in the order of each value's first row. */
  function underHeadings(shown, field, width) {
    const groups = Map.groupBy(shown, (row) => facts.get(row)[field] || "");
    return [...groups].flatMap(([value, members]) => [heading(value, members.length), ...members]);
    function heading(value, size) {
      const text = value || (field === "same" ? "no equivalent method here" : "none");
      const cell = make("th", { scope: "rowgroup", colspan: width });
      cell.append(make("span", {}, `${text} (${size})`));
      return make("tr", { class: "group" }, cell);
    }
  }

  /** What is seen: heads and lines of cells, for a copy. */
  function visibleCells() {
    const lines = [...body.rows].filter((row) => !row.hidden && !row.matches(".group"));
    const seen = (row) => [...row.cells].filter((cell) => !cell.hidden);
    const kept = columns.map((_, at) => !heads[at].hidden);
    return {
      title,
      columns: columns.filter((_, at) => kept[at]),
      isText: isText.filter((_, at) => kept[at]),
      lines: lines.map((row) => seen(row).map((cell) => ({
        text: cell.textContent.trim(),
        best: cell.classList.contains("best"),
      }))),
    };
  }

  onRestore(arrange);
  const hides = (index) => rows.some((row) => row.hidden && facts.get(row) === section.rows[index]);
  return { arrange, hides };
}
