// What pages do beyond HTML: ticking ages, the connection banner, copying, the theme, toasts.
// Everything works on markup (data attributes); pages are right without this file.
"use strict";

(() => {
  const ages = () => document.querySelectorAll("time[data-since]");

  // The server's clock counts: compare it once with ours, at the moment its answer arrived.
  const serverNow = Number(document.querySelector('meta[name="server-now"]').content) * 1000;
  const arrived = performance.timeOrigin + performance.getEntriesByType("navigation")[0].responseStart;
  const skew = arrived - serverNow;

  function duration(seconds) {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    }
    return `${Math.floor(seconds)} s`;
  }

  function tick() {
    const now = (Date.now() - skew) / 1000;
    for (const time of ages()) {
      const text = duration(Math.max(0, now - Number(time.dataset.since))) + time.dataset.suffix;
      if (time.textContent !== text) time.textContent = text;
    }
  }

  tick();
  setInterval(tick, 1000);
  document.addEventListener("htmx:wsAfterMessage", () => {
    tick();
    reveal();
  });

  // A short gap is normal (a restart, a new socket): only a longer one is worth a word.
  let lost;
  document.addEventListener("htmx:wsClose", () => {
    lost ??= setTimeout(() => showBanner(true), 1500);
  });
  document.addEventListener("htmx:wsOpen", () => {
    clearTimeout(lost);
    lost = undefined;
    showBanner(false);
  });

  function showBanner(shown) {
    document.getElementById("banner").hidden = !shown;
    document.body.classList.toggle("stale", shown);
  }

  // Buttons that need JavaScript are hidden in the markup until it is there.
  function reveal() {
    for (const button of document.querySelectorAll("[data-copy], [data-dismiss], [data-theme-toggle]")) {
      button.hidden = false;
    }
  }
  reveal();

  const THEMES = { auto: "automatic", light: "light", dark: "dark" };

  function showTheme() {
    const label = `Theme: ${THEMES[document.documentElement.dataset.theme]}`;
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.title = label;
      button.setAttribute("aria-label", label);
    }
  }
  showTheme();

  function nextTheme() {
    const names = Object.keys(THEMES);
    const root = document.documentElement;
    root.dataset.theme = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    localStorage.setItem("theme", root.dataset.theme);
    showTheme();
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      button.textContent = "Copied";
    } catch {
      // No clipboard outside HTTPS and localhost: select the text, one key press is left.
      getSelection().selectAllChildren(source);
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("copy" in button.dataset) copy(button);
    if ("dismiss" in button.dataset) button.closest(".toast").remove();
    if ("themeToggle" in button.dataset) nextTheme();
  });
})();
