// A section a data set: its rows, its filters, and what is lit in tables and figures together.

const FACETS = { model: "models", balancer: "balancers", family: "families" };

function liveSection(data) {
  const node = document.getElementById(data.slug);
  const links = data.rows.map(() => []);
  const lighters = [];
  const section = {
    ...data,
    node,
    /** Say that an element shows a row: pointing at it lights the row everywhere. */
    link(element, index) {
      links[index].push(element);
      element.addEventListener("pointerenter", () => section.light(index));
      element.addEventListener("pointerleave", () => section.light(-1));
    },
    linked: (index) => links[index],
    onLight: (show) => lighters.push(show),
    light(index) {
      links.forEach((elements, at) => {
        for (const element of elements) element.classList.toggle("lit", at === index);
      });
      for (const show of lighters) show(index);
    },
    /** Whether the filters let a row through; what it does not have is no reason against it. */
    passes: (facts) =>
      Object.keys(FACETS).every(
        (facet) => !facts[facet] || !recallAll(`${data.slug}.without.${facet}`).has(facts[facet]),
      ),
  };

  // Tables, the first of which decides what the chart shows.
  const tables = [...node.querySelectorAll("table.results")].map((table, number) =>
    liveTable(section, table, number),
  );
  section.shows = (index) => !tables[0]?.hides(index);
  const arrange = () => tables.forEach((table) => table.arrange());

  // Filters, where there is something to choose.
  const filters = make("div", { class: "tools filters", role: "group" });
  filters.setAttribute("aria-label", `Filters of ${data.title}`);
  for (const [facet, name] of Object.entries(FACETS)) {
    const values = [...new Set(data.rows.map((row) => row[facet]).filter((text) => text !== "–"))];
    if (values.length < 2) continue;
    filters.append(tickMenu(name, values, `${data.slug}.without.${facet}`, arrange));
  }
  filters.append(
    make("button", { type: "button", click: () => copyText(location.href, "The link to this view") },
      "copy link to this view"),
    make("button", { type: "button", click: resetView }, "reset"),
  );
  node.querySelector("h3.first")?.before(filters);

  liveChart(section);
  for (const figure of node.querySelectorAll("figure")) liveFigure(section, figure);
  arrange();
  return section;
}
