"use strict";

// The server says that something has changed; htmx fetches the parts that wait for it.
const events = document.body.dataset.events;
if (events) {
  let waiting = 0;
  let missed = false;
  const fetchNews = () => {
    missed = document.hidden; // a page that nobody looks at is fetched once it is looked at
    if (!missed) document.body.dispatchEvent(new CustomEvent("news"));
  };
  new EventSource(events).addEventListener("changed", () => {
    clearTimeout(waiting);
    waiting = setTimeout(fetchNews, 200);
  });
  document.addEventListener("visibilitychange", () => {
    if (missed) fetchNews();
  });
}

// What somebody has opened and fills in stays as it is until it is closed.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  if (event.detail.target.open) event.detail.shouldSwap = false;
});
document.addEventListener("toggle", (event) => {
  if (event.target.id === "ways" && !event.target.open) document.body.dispatchEvent(new CustomEvent("news"));
}, true);

// Before and now: the upper image is cut where the slider stands.
function cut(slider) {
  const images = slider.closest("section").querySelector("[data-compare]");
  images.style.setProperty("--cut", slider.value + "%");
}

document.addEventListener("input", (event) => {
  const input = event.target;
  if (input.matches("[data-cut]")) cut(input);
  if (input.dataset.shows) document.getElementById(input.dataset.shows).value = input.value + " %";
});
document.querySelectorAll("[data-cut]").forEach(cut);

// The keys 1 to 9 open the pages of a run; a button may have a key of its own.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const button = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  if (button) {
    event.preventDefault();
    button.click();
  }
  if (/^[1-9]$/.test(event.key)) {
    const tab = document.querySelectorAll(".tabs a")[event.key - 1];
    if (tab) tab.click();
  }
});
