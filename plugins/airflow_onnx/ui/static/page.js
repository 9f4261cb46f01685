// Live pages of releases: theme, links out of Airflow's frame, refresh, and times in Airflow's time zone.
// All text from the server comes as markup that the server has escaped. Text from an answer is set as text.
"use strict";

// Airflow shows the pages in a frame of its own origin. A page that is opened alone has no such parent.
function airflowDocument() {
  try {
    return window.parent !== window ? window.parent.document : null;
  } catch {
    return null;
  }
}

const frame = airflowDocument();

function copyTheme() {
  const theme = ["dark", "light"].find((name) => frame.documentElement.classList.contains(name));
  if (theme) document.documentElement.dataset.theme = theme;
}

if (frame) {
  copyTheme();
  const watch = new MutationObserver(copyTheme);
  watch.observe(frame.documentElement, { attributes: true, attributeFilter: ["class"] });
  window.addEventListener("pagehide", () => watch.disconnect());
}

// The frame's sandbox has neither popups nor navigation of its parent, so the link is followed in the parent's document.
function openOutside(event) {
  const link = event.target.closest && event.target.closest("a[data-top], a[data-new], a[target=_blank]");
  if (!link || event.defaultPrevented) return;
  if (!frame) {
    if (link.hasAttribute("data-new")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
    return;
  }
  event.preventDefault();
  followInAirflow(link.href, link.hasAttribute("data-new") || link.target === "_blank" || event.ctrlKey || event.metaKey);
}

function followInAirflow(address, inNewTab) {
  if (!/^https?:$/.test(new URL(address, window.location.href).protocol)) return;
  if (!frame) {
    window.location.assign(address);
    return;
  }
  const outer = frame.createElement("a");
  outer.href = address;
  if (inNewTab) Object.assign(outer, { target: "_blank", rel: "noopener noreferrer" });
  outer.hidden = true;
  frame.body.append(outer);
  outer.click();
  outer.remove();
}

// The zone of Airflow's own pages. Its setting may name a zone that this browser does not have.
function showTimes(root) {
  let zone;
  try {
    zone = window.localStorage.getItem("timezone") || undefined;
    new Intl.DateTimeFormat(undefined, { timeZone: zone });
  } catch {
    zone = undefined;
  }
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.valueOf())) time.title = moment.toLocaleString(undefined, { timeZone: zone, timeZoneName: "short" });
  }
}

// The elements of a part by a text that stays the same when the page is made again. Equal ones are counted.
function keyed(part, selector) {
  const found = new Map();
  for (const one of part.querySelectorAll(selector)) {
    const words = (one.querySelector("summary") || one).textContent.trim().slice(0, 200);
    const text = [one.tagName, one.getAttribute("href"), one.getAttribute("aria-label"), one.name, words].join("|");
    let key = text;
    for (let number = 2; found.has(key); number += 1) key = `${text}|${number}`;
    found.set(key, one);
  }
  return found;
}

const FOCUSABLE = "a[href], button, summary, [tabindex]";
const keyOf = (elements, wanted) => [...elements].find(([, one]) => one === wanted)?.[0];

// A person who types, selects text or answers a dialog is not interrupted.
function isBusy(part) {
  const selection = window.getSelection();
  const selects = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return selects || document.querySelector("dialog[open]") || part.querySelector("input:focus, select:focus, textarea:focus");
}

// Replaces the live part by that of a fresh page. Focus and opened details stay where they were.
async function refresh() {
  const answer = await fetch(window.location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const old = document.getElementById("live");
  const fresh = page.getElementById("live");
  if (!fresh || isBusy(old)) return;
  const focused = keyOf(keyed(old, FOCUSABLE), document.activeElement);
  const details = keyed(old, "details");
  const before = summary(old);
  for (const kept of old.querySelectorAll("[data-kept]")) fresh.querySelector(`#${CSS.escape(kept.id)}`)?.replaceWith(kept);
  old.replaceWith(document.adoptNode(fresh));
  for (const [key, one] of keyed(fresh, "details")) if (details.has(key)) one.open = details.get(key).open;
  if (focused) keyed(fresh, FOCUSABLE).get(focused)?.focus({ preventScroll: true });
  showTimes(fresh);
  document.dispatchEvent(new Event("refreshed"));
  if (summary(fresh) !== before) document.getElementById("announcement").textContent = summary(fresh);
}

const summary = (part) => part.querySelector("[data-summary]")?.dataset.summary || "";

// The pause is in the page: short while a release runs. A hidden page asks for nothing.
async function refreshForever() {
  for (;;) {
    const live = document.getElementById("live");
    if (!live) return;
    await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(2, Number(live.dataset.live) || 15)));
    if (document.visibilityState === "visible") await refresh().catch(() => {});
  }
}

async function copyText(event) {
  const button = event.target.closest && event.target.closest("button[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    document.getElementById("announcement").textContent = "Copied";
    button.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(button.previousElementSibling || button);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.addEventListener("click", openOutside);
  document.addEventListener("click", copyText);
  for (const select of document.querySelectorAll(".filters select")) select.addEventListener("change", () => select.form.requestSubmit());
  showTimes(document);
  refreshForever();
});
