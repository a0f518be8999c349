"use strict";

// The server says that something has changed; htmx fetches the parts that wait for it.
const events = document.body.dataset.events;
if (events) {
  let waiting = 0;
  new EventSource(events).addEventListener("changed", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => document.body.dispatchEvent(new CustomEvent("news")), 200);
  });
}

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
