"use strict";
(() => {
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Downloads.
const save = (name, parts, type) => {
  const link = Object.assign(document.createElement("a"), {
    download: name, href: URL.createObjectURL(new Blob(parts, {type})),
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
// Spreadsheets run cells that begin with these characters, unless they are numbers.
const cell = value => {
  const text = value === null ? "" : String(value).trim();
  const safe = /^[=+\-@\t\r]/.test(text) && isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const saveCSV = (name, rows) =>
  save(`${name}.csv`, [rows.map(row => row.map(cell).join(",")).join("\r\n") + "\r\n"], "text/csv");

// Tables: sort by a click on a heading, download as CSV.
const number = text => {
  const found = text.match(/^-?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return found ? Number(found[0]) : text ? -Infinity : null;
};
for (const table of all("table.sortable")) {
  const headings = all("thead th", table), body = table.tBodies[0];
  headings.forEach((heading, column) => {
    if (heading.matches(".strip")) return;
    heading.tabIndex = 0;
    const sort = () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = row => row.cells[column].textContent.trim();
      const order = (a, b) => column
        ? (number(text(a)) ?? -Infinity) - (number(text(b)) ?? -Infinity) || 0
        : text(b).localeCompare(text(a), undefined, {numeric: true});
      body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
    };
    heading.onclick = sort;
    heading.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
  const button = Object.assign(document.createElement("button"), {type: "button", textContent: "CSV", className: "csv-table"});
  button.onclick = () => saveCSV(table.dataset.name,
    [...table.rows].map(row => [...row.cells].map(one => one.textContent.replace(/\s+/g, " "))));
  table.closest(".wide").after(button);
}

// Charts.
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => ({
  background: "transparent", font: "system-ui, sans-serif",
  axis: {labelColor: style("--soft"), titleColor: style("--soft"), gridColor: style("--rule"),
    domainColor: style("--rule"), tickColor: style("--rule"), titleFontWeight: "normal", labelFontSize: 11},
  legend: {labelColor: style("--ink"), labelFontSize: 12, columns: innerWidth < 500 ? 1 : 3},
  view: {stroke: null},
});
for (const section of all(".chart-section")) {
  const views = all(".chart", section).map(async chart => {
    const {view} = await vegaEmbed(chart, JSON.parse(chart.dataset.spec),
      {ast: true, renderer: "svg", actions: false, config: theme()});
    chart.view = view;
    const downloads = chart.nextElementSibling;
    downloads.hidden = false;
    for (const button of all("button", downloads)) button.onclick = async () => {
      const name = `${chart.dataset.name}.${button.dataset.type}`;
      if (button.dataset.type === "svg") save(name, [await view.toSVG()], "image/svg+xml");
      else (await view.toCanvas(2)).toBlob(blob => save(name, [blob], "image/png"));
    };
    return view;
  });
  section.querySelector(".controls").hidden = false;
  section.querySelector(".baseline").onchange = async event => {
    for (const view of await Promise.all(views)) await view.signal("baseline", event.target.value).runAsync();
  };
  const csv = section.querySelector(".csv");
  csv.onclick = () => saveCSV(section.id, JSON.parse(csv.dataset.csv));
}

// Clients: hover and search.
const NAMES = {c: "counted", t: "trimmed", r: "rejected", m: "silent", k: "in a skipped round", ".": "not asked"};
const tip = document.body.appendChild(Object.assign(document.createElement("div"), {id: "tip", hidden: true}));
const show = (event, text) => {
  tip.textContent = text;
  tip.hidden = !text;
  const left = Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 6);
  tip.style.left = `${left}px`;
  tip.style.top = `${event.pageY + 16}px`;
};
for (const bars of all("td > .bars")) {
  const {row, first} = bars.dataset;
  bars.onmousemove = event => {
    const box = bars.getBoundingClientRect();
    const i = Math.max(0, Math.min(row.length - 1, Math.floor((event.clientX - box.left) / box.width * row.length)));
    show(event, `Node ${bars.closest("tr").dataset.node}, round ${+first + i}: ${NAMES[row[i]]}`);
  };
  bars.onmouseleave = event => show(event, "");
}
const node = document.getElementById("node");
if (node) node.oninput = () => {
  for (const row of all(".client-table tbody tr")) row.hidden = !row.dataset.node.includes(node.value.trim());
  if (node.value) for (const run of all("details")) run.open = true;
};
})();
