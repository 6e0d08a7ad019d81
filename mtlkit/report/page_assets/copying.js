// Copies of what a table shows: as LaTeX, Markdown or CSV.

/** Letters that mean something to LaTeX, as the files of the report write them. */
const texLetters = JSON.parse(document.getElementById("tex-letters").textContent);

function toTex(text) {
  return [...text].map((letter) => texLetters[letter] ?? letter).join("");
}

const FORMATS = {
  LaTeX({ title, columns, isText, lines }) {
    const cell = ({ text, best }) => (best ? `\\textbf{${toTex(text)}}` : toTex(text));
    return [
      "% Needs \\usepackage{booktabs}.",
      "\\begin{table}",
      "\\centering",
      `\\caption{${toTex(title)}}`,
      `\\begin{tabular}{${isText.map((is) => (is ? "l" : "r")).join("")}}`,
      "\\toprule",
      `${columns.map(toTex).join(" & ")} \\\\`,
      "\\midrule",
      ...lines.map((cells) => `${cells.map(cell).join(" & ")} \\\\`),
      "\\bottomrule",
      "\\end{tabular}",
      "\\end{table}",
    ];
  },
  Markdown({ columns, isText, lines }) {
    const plain = (text) => text.replace(/[\\|*_`<>[\]#]/g, "\\$&").replace(/\s+/g, " ");
    const cell = ({ text, best }) => (best ? `**${plain(text)}**` : plain(text));
    const line = (cells) => `| ${cells.join(" | ")} |`;
    return [
      line(columns.map(plain)),
      `|${isText.map((is) => (is ? "---" : "---:")).join("|")}|`,
      ...lines.map((cells) => line(cells.map(cell))),
    ];
  },
  CSV({ columns, lines }) {
    // A field that a spreadsheet would compute gets an apostrophe, unless it is a number.
    const field = (text) => {
      const isNumber = text !== "" && !isNaN(text);
      const safe = /^[=+\-@\t\r]/.test(text) && !isNumber ? `'${text}` : text;
      return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    return [columns, ...lines.map((cells) => cells.map(({ text }) => text))].map((fields) =>
      fields.map(field).join(","),
    );
  },
};

/** A menu that copies what `cells` returns. */
function copyMenu(cells) {
  const choices = Object.keys(FORMATS).map((format) =>
    make("button", { type: "button", click: () => pick(format) }, `as ${format}`),
  );
  const node = menu("copy", ...choices);
  function pick(format) {
    copyText(FORMATS[format](cells()).join("\n") + "\n", `The table as ${format}`);
    node.open = false;
    node.querySelector("summary").focus();
  }
  return node;
}

/** Put a text on the clipboard, by the old way where the new one is refused. */
async function copyText(text, what) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  announce(done ? `${what} was copied.` : "The browser refused the copy.");
  toast(announcer.textContent);
}

/** Say something for two seconds. */
function toast(text) {
  const node = make("div", { class: "toast", "aria-hidden": "true" }, text);
  document.body.append(node);
  setTimeout(() => node.remove(), 2000);
}
