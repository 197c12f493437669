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

  const figures = [...document.querySelectorAll(".plot")];
  const narrow = (element) => element.clientWidth < 520;

  // On a narrow screen a colour bar takes the map's place unless it lies below it.
  const heightOf = (element) => {
    const { data, layout } = plots[element.id];
    return narrow(element) && data.some((trace) => trace.colorbar)
      ? Math.min(layout.height, Math.round(element.clientWidth * 1.1) + 170) : layout.height;
  };
  const lieDown = (data) => data.filter((trace) => trace.colorbar).forEach(({ colorbar }) =>
    Object.assign(colorbar, { orientation: "h", x: 0.5, xanchor: "center", y: -0.2,
      yanchor: "top", len: 1, thickness: 12, nticks: 4, title: { ...colorbar.title, side: "bottom" } }));

  // The room of a figure is kept until it is drawn, so that nothing moves then.
  const reserve = (element, height) => { element.style.minHeight = `${height}px`; };

  // plotly.js waits as text until a figure comes near or the browser has nothing else to do:
  // to read it takes longer than all the rest of the page.
  const library = document.getElementById("plotly");
  const load = () => {
    if (!library || typeof Plotly !== "undefined") return;
    const script = document.createElement("script");
    script.textContent = library.textContent;
    document.head.append(script);
  };

  const drawnDark = new Map();  // figure → whether it is drawn in the dark colours
  const draw = (element, isDark) => {
    load();
    const plot = plots[element.id];
    const { data, layout } = isDark ? themed(plot) : structuredClone(plot);
    layout.height = heightOf(element);
    if (narrow(element)) {
      layout.font.size = 11;
      layout.margin.l = Math.min(layout.margin.l, 44);
      layout.margin.r = 8;
      layout.legend.itemwidth = 30;
      lieDown(data);
    }
    if (coarse.matches) layout.dragmode = false;  // a finger scrolls the page
    reserve(element, layout.height);
    element.dispatchEvent(new CustomEvent("draw", { detail: data }));  // what is to be seen in it
    Plotly.react(element, data, layout, config);
    drawnDark.set(element, isDark);
    element.dispatchEvent(new CustomEvent("drawn"));
  };

  // A figure is drawn when it comes near what is seen, and again after the colours changed; one
  // at a time, so that the first is seen before the second is drawn, and none that only passes by.
  const wanted = new Set();
  const next = () => {
    const [element] = wanted;
    if (!element) return;
    wanted.delete(element);
    if (drawnDark.get(element) !== darkScreen.matches) draw(element, darkScreen.matches);
    setTimeout(next);
  };
  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) wanted[isIntersecting ? "add" : "delete"](target);
    next();
  }, { rootMargin: "50% 0px" });
  const watch = () => {
    near.disconnect();
    figures.forEach((element) => near.observe(element));
  };
  const heights = figures.map((element) => element.clientWidth && heightOf(element));  // read all, then write
  figures.forEach((element, i) => { if (heights[i]) reserve(element, heights[i]); });
  watch();
  window.addEventListener("load", () => (window.requestIdleCallback ?? setTimeout)(load));
  darkScreen.addEventListener("change", watch);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
    // What is folded does not follow the window's size: drawn anew when it is opened again.
    if (!details.open) details.querySelectorAll(".plot").forEach((element) => drawnDark.delete(element));
  }));

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => { details.open = true; });
    figures.forEach((element) => draw(element, false));
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((details) => { details.open = false; });
    watch();
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
