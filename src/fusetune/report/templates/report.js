"use strict";
(() => {
  const { plots, dark } = JSON.parse(document.getElementById("data").textContent);
  const darkScreen = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const config = { displaylogo: false, responsive: true, displayModeBar: coarse.matches ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  // Only what a colour key holds is a colour: names and texts pass as they are.
  const recolour = (value) => Array.isArray(value) ? value.map(recolour) : dark[value] ?? value;
  const themed = (node) => {
    if (Array.isArray(node)) return node.map(themed);
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) =>
      [key, key.endsWith("color") ? recolour(value) : themed(value)]));
  };

  // On a narrow screen a colour bar takes the map's place unless it lies below it.
  const lieDown = (element, data, layout) => {
    const maps = data.filter((trace) => trace.colorbar);
    if (!maps.length) return;
    for (const { colorbar } of maps) Object.assign(colorbar, { orientation: "h", x: 0.5, xanchor: "center", y: -0.2,
      yanchor: "top", len: 1, thickness: 12, nticks: 4, title: { ...colorbar.title, side: "bottom" } });
    layout.height = Math.min(layout.height, Math.round(element.clientWidth * 1.1) + 170);
    element.style.minHeight = `${layout.height}px`;
  };

  const draw = (element, isDark) => {
    const plot = plots[element.id];
    const { data, layout } = isDark ? themed(plot) : structuredClone(plot);
    if (element.clientWidth < 520) {
      layout.font.size = 11;
      layout.margin.l = Math.min(layout.margin.l, 44);
      layout.margin.r = 8;
      layout.legend.itemwidth = 30;
      lieDown(element, data, layout);
    }
    if (coarse.matches) layout.dragmode = false;  // a finger scrolls the page
    const drawn = Plotly.react(element, data, layout, config);
    element.dispatchEvent(new CustomEvent("drawn"));
    return drawn;
  };
  const hidden = (element) => element.closest("details:not([open])") !== null;
  const drawAll = (isDark) => document.querySelectorAll(".plot").forEach((element) => {
    if (!hidden(element)) draw(element, isDark);
  });

  if (typeof Plotly !== "undefined") {
    drawAll(darkScreen.matches);
    darkScreen.addEventListener("change", () => drawAll(darkScreen.matches));
    document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
      if (details.open) details.querySelectorAll(".plot").forEach((e) => draw(e, darkScreen.matches));
    }));
  }

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => { details.open = true; });
    drawAll(false);
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((details) => { details.open = false; });
    drawAll(darkScreen.matches);
  });

  if (navigator.clipboard) document.querySelectorAll(".code").forEach((block) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.querySelector("pre").textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select and copy by hand";  // the browser does not allow it here
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  });
})();
