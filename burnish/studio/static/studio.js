"use strict";

// The server says that something has changed since the page was made that is shown; htmx fetches
// the parts that wait for it. A browser has six connections to a server, so a page has one only
// while somebody looks at it.
let source = null;
let waiting = 0;

// The page may be the answer to a form, which must not be sent again: what it shows is asked for.
function renew() {
  const live = document.querySelector("#live");
  const shown = live?.getAttribute("hx-get") ?? live?.dataset.page;
  location.replace(shown ?? location.pathname + location.search);
}

function fetchNews() {
  const fetched = document.querySelector("#live[hx-get]");
  if (fetched) document.body.dispatchEvent(new CustomEvent("news"));
  else renew();
}

function listen() {
  const live = document.querySelector("#live[data-events]");
  if (document.hidden) {
    clearTimeout(waiting);
    source?.close();
    source = null;
  } else if (live && !source) {
    source = new EventSource(live.dataset.events);
    source.addEventListener("changed", () => {
      clearTimeout(waiting);
      waiting = setTimeout(fetchNews, 200);
    });
  }
}
document.addEventListener("visibilitychange", listen);
listen();

// A page that the browser has kept is as old as it was left.
addEventListener("pageshow", (event) => {
  if (event.persisted) renew();
});

// What has not changed stays, and so does what somebody has opened and fills in, or is asked.
function stays(old, news) {
  return old.open || old.querySelector("[name=question]") || old.isEqualNode(news);
}
document.addEventListener("htmx:before:swap", (event) => {
  const tasks = event.detail.tasks;
  const swapped = tasks.filter((one) => one.type === "main" || !stays(one.target, one.fragment.firstElementChild));
  tasks.splice(0, tasks.length, ...swapped);
});
document.addEventListener("toggle", (event) => {
  if (event.target.id === "ways" && !event.target.open) document.body.dispatchEvent(new CustomEvent("news"));
}, true);

// Before and now: the upper image is cut where the slider stands.
function cut(slider) {
  slider.closest("section").style.setProperty("--cut", slider.value + "%");
}

document.addEventListener("input", (event) => {
  const input = event.target;
  if (input.matches("[data-cut]")) cut(input);
  if (input.dataset.shows) document.getElementById(input.dataset.shows).value = input.value + " %";
});
document.querySelectorAll("[data-cut]").forEach(cut);

// A question can be answered once its images have been on the screen for a moment: the second press
// of a fast pair is not meant for the question that the first one has brought.
const SEEN = 300; // milliseconds
async function seeQuestion() {
  const form = document.querySelector(".vote:not([data-shown])");
  if (!form?.querySelector("[name=question]")) return;
  form.dataset.shown = "soon";
  await Promise.allSettled([...form.querySelectorAll("img")].map((image) => image.decode()));
  setTimeout(() => form.dataset.shown = "yes", SEEN);
}
document.addEventListener("htmx:after:swap", seeQuestion);
seeQuestion();

// A form is sent once by a double press; later again, for the browser may have been told to stop.
const SENT = 5000; // milliseconds
document.addEventListener("submit", (event) => {
  const form = event.target;
  const answers = event.submitter?.name === "answer" && event.submitter.value !== "undo";
  if (form.dataset.sent || (answers && form.dataset.shown !== "yes")) event.preventDefault();
  else if (form.method === "post") {
    form.dataset.sent = "yes";
    setTimeout(() => delete form.dataset.sent, SENT);
  }
});

// The keys 1 to 9 open the pages of a run; a button may have a key of its own.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const button = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  const tab = /^[1-9]$/.test(event.key) && document.querySelectorAll(".tabs a")[event.key - 1];
  if (button) event.preventDefault(); // a key that is held down must not scroll the page either
  if (!event.repeat) (button || tab)?.click?.();
});
