/* --- the filter --- */

const filter = document.getElementById("filter");
const articles = [...document.querySelectorAll("article.claim")];
const words = articles.map((article) => article.textContent.toLowerCase());
let wanted = "";

function sift() {
  const asked = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  articles.forEach((article, k) => {
    const fits = (!wanted || article.dataset.verdict === wanted) && asked.every((word) => words[k].includes(word));
    article.hidden = !fits;
    count += fits;
    document.querySelector(`[data-claim="${CSS.escape(article.id)}"]`).hidden = !fits;
  });
  for (const theme of document.querySelectorAll(".contents > ol > li:has([data-claim])")) theme.hidden = !theme.querySelector("[data-claim]:not([hidden])");
  for (const section of document.querySelectorAll(".theme-section")) section.hidden = !section.querySelector("article:not([hidden])");
  document.getElementById("found").textContent = count === articles.length ? "" : `${count} of ${articles.length} claims`;
}

function choose(verdict) {
  wanted = verdict;
  for (const button of filter.querySelectorAll("[data-verdict]")) button.ariaPressed = String(button.dataset.verdict === verdict);
  sift();
}

if (filter) {
  filter.hidden = false;
  filter.querySelectorAll("[data-verdict]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.verdict)));
  document.getElementById("search").addEventListener("input", sift);
  document.getElementById("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.target.value = "", sift();
  });
}

/** A link to a claim that is filtered out brings it back. */
function uncover() {
  const article = articles.find((a) => a.id === decodeURIComponent(location.hash.slice(1)));
  if (!article?.hidden) return;
  document.getElementById("search").value = "";
  choose("");
  article.scrollIntoView();
}
addEventListener("hashchange", uncover);

