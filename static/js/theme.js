// Sets the theme before the first paint. Loaded without `defer` for that reason; keep it tiny.
"use strict";

try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage can be switched off: then the system's theme it is.
}
