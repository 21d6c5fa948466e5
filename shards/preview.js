"use strict";
const form = document.querySelector("form"), wanted = form.elements;
const samples = [...document.querySelectorAll("article")];
const texts = new Map(samples.map((sample) => [sample, text(sample)]));

function text(sample) {
  return [...sample.querySelectorAll("code, pre, dl.fields dd:not(.empty)")].map((part) => part.textContent).join("\n").toLowerCase();
}

function isWanted(sample) {
  const { category, image, rating, off } = sample.dataset;
  const words = wanted.words.value.toLowerCase().split(/\s+/);
  return words.every((word) => texts.get(sample).includes(word))
    && [category, ""].includes(wanted.category?.value ?? "")
    && [image, ""].includes(wanted.image.value)
    && Number(rating) >= (wanted.low.value || -Infinity) && Number(rating) <= (wanted.high.value || Infinity)
    && (!wanted.off?.value || Number(off || NaN) >= wanted.off.value);
}

function show() {
  for (const sample of samples) sample.hidden = !isWanted(sample);
  for (const section of document.querySelectorAll("section")) section.hidden = !section.querySelector("article:not([hidden])");
  const shown = samples.filter((sample) => !sample.hidden).length;
  form.querySelector("output").textContent = `${shown} of ${samples.length} shown`;
}

form.addEventListener("input", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
show();
