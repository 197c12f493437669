
(() => {
  const { picks } = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("pick");
  const before = document.getElementById("pick-before");
  const after = document.getElementById("pick-after");
  const at = document.getElementById("pick-at");
  const command = document.getElementById("pick-command");
  const figures = Object.keys(picks.planes).map((key) => document.getElementById(key));
  const across = (place) => picks.rows[place - 1].values[picks.objectives.indexOf(picks.planes[figures[0].id][0])];
  const walk = picks.rows.flatMap((row, i) => row.front ? [i + 1] : [])
    .sort((a, b) => across(a) - across(b) || a - b);  // from left to right in the first figure
  const short = (value) => value === null || value === undefined ? "–"
    : Math.abs(value) >= 10 ? value.toFixed(2) : value.toFixed(4);
  let kept = picks.first;

  // The neighbour on the front, also of a mixture that is not on it.
  const step = (way) => {
    const here = walk.indexOf(kept);
    if (here >= 0) return walk[here + way];
    const beside = walk.filter((place) => way * (across(place) - across(kept)) > 0);
    return way > 0 ? beside[0] : beside.at(-1);
  };

  const bars = (weights) => weights.map((weight, i) => {
    const item = document.createElement("li");
    if (weight < 0.0005) item.className = "zero";
    for (const [name, text] of [["name", picks.members[i]], ["track", ""], ["weight", weight.toFixed(3)]]) {
      const part = document.createElement("span");
      part.className = name;
      part.textContent = text;
      item.append(part);
    }
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${100 * weight / Math.max(...weights)}%`;
    item.children[0].title = picks.members[i];
    item.children[1].append(bar);
    return item;
  });

  // The last trace of a figure is the ring around the mixture looked at.
  const ringed = (element, row) => {
    const [x, y] = picks.planes[element.id].map((name) => row.values[picks.objectives.indexOf(name)]);
    return { x: [x], y: [y] };
  };
  const ring = (element, row) => {
    if (!element.data) return;  // not drawn yet
    const { x, y } = ringed(element, row);
    Plotly.restyle(element, { x: [x], y: [y] }, [element.data.length - 1]);
  };

  const show = (place) => {
    const row = picks.rows[place - 1];
    const values = picks.objectives.map((_, i) => `${picks.labels[i]} ${short(row.values[i])}`);
    document.getElementById("pick-values").textContent =
      [`Evaluation ${place}`, row.method, ...values, row.front ? "on the Pareto front" : ""].filter(Boolean).join(" · ");
    document.getElementById("pick-weights").replaceChildren(...bars(row.weights));
    if (command) command.textContent =
      `${picks.command} --weights ${row.weights.join(",")} --out picked-${place}`;
    document.querySelectorAll("tr[data-place]").forEach((line) =>
      line.classList.toggle("lit", Number(line.dataset.place) === place));
    figures.forEach((element) => ring(element, row));
  };

  const keep = (place) => {
    kept = place;
    at.value = place;
    before.disabled = step(-1) === undefined;
    after.disabled = step(1) === undefined;
    show(place);
  };

  const placeOf = (event) => event.points?.[0]?.customdata;
  const listen = (element) => {
    element.on("plotly_hover", (event) => { if (placeOf(event)) show(placeOf(event)); });
    element.on("plotly_unhover", () => show(kept));
    element.on("plotly_click", (event) => { if (placeOf(event)) keep(placeOf(event)); });
  };
  figures.forEach((element) => {
    // Drawn for the first time, or again for other colours: with the ring where it belongs.
    element.addEventListener("draw", ({ detail: traces }) =>
      Object.assign(traces.at(-1), ringed(element, picks.rows[kept - 1])));
    element.addEventListener("drawn", () => listen(element), { once: true });
  });

  at.addEventListener("input", () => {
    const place = at.valueAsNumber;
    if (Number.isInteger(place) && place >= 1 && place <= picks.rows.length) keep(place);
  });
  before.addEventListener("click", () => keep(step(-1)));
  after.addEventListener("click", () => keep(step(1)));
  document.querySelectorAll("tr[data-place]").forEach((line) => {
    const place = Number(line.dataset.place);
    line.addEventListener("mouseenter", () => show(place));
    line.addEventListener("mouseleave", () => show(kept));
    line.querySelector("button.link")?.addEventListener("click", () => keep(place));
  });

  box.hidden = false;
  keep(picks.first);
})();
