// Light and dark theme.

const root = document.documentElement;

// The theme follows the system until the button is pressed; the choice is stored if the browser permits.
const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
const remembered = (value) => {
  try {
    if (value) localStorage.setItem("edgeopt-theme", value);
    return localStorage.getItem("edgeopt-theme");
  } catch { return null; }
};
let redraw = () => {};
const paint = () => {
  part("theme").textContent = dark() ? "Light colours" : "Dark colours";
  redraw();
};
const setTheme = (theme) => {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  paint();
};

const stored = remembered();
if (stored === "dark" || stored === "light") root.dataset.theme = stored;

// charts: redraws the charts, since a canvas does not follow the stylesheet.
const themed = (charts) => {
  redraw = charts;
  paint();
  part("theme").addEventListener("click", () => setTheme(remembered(dark() ? "light" : "dark") ?? (dark() ? "light" : "dark")));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  let printing;
  addEventListener("beforeprint", () => { printing = root.dataset.theme ?? ""; setTheme("light"); });
  addEventListener("afterprint", () => setTheme(printing));
};
