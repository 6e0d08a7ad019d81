// What happens when the page is opened.

const THEMES = [["", "as the system"], ["light", "light"], ["dark", "dark"]];

/** The controls of the whole page: theme, and which data sets are shown. */
function livePage(sections) {
  const root = document.documentElement;
  const theme = make("select", { change: () => { remember("theme", theme.value); show(); } });
  const tools = make("div", { class: "tools" }, labelled("theme", theme));
  function show() {
    const chosen = recall("theme");
    fillSelect(theme, THEMES, chosen);
    const isKnown = chosen && THEMES.some(([value]) => value === chosen);
    if (isKnown) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    const without = recallAll("without");
    for (const section of sections) section.node.hidden = without.has(section.title);
    for (const row of document.querySelectorAll(".overview tbody tr")) {
      row.hidden = without.has(row.cells[0].textContent.trim());
    }
  }
  if (sections.length > 1) {
    tools.append(tickMenu("data sets", sections.map(({ title }) => title), "without", show));
  }
  document.querySelector("header").append(tools);
  onRestore(show);
  show();
}

document.body.append(announcer, tipBox);
const blocks = [...document.querySelectorAll("script.rows")].map((script) => JSON.parse(script.textContent));
livePage(blocks.map(liveSection));
if (document.getElementById("across")) liveSection({ slug: "across", title: "all data sets", axes: [], rows: [] });
