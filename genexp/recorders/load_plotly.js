"use strict";
// Runs the gzipped plotly.js in the text of #plotly, or in the style properties of the file that several pages share.
// The page's Content-Security-Policy names the hash of plotly.js. No other content of that file can run.
async function loadPlotly() {
  const element = document.getElementById("plotly");
  const style = getComputedStyle(element);
  let encoded = element.textContent.trim();
  for (let index = 0, part; (part = style.getPropertyValue(`--part-${index}`).trim()); index++) encoded += part.slice(1, -1);
  try {
    const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch { /* a damaged file: below */ }
  return typeof Plotly !== "undefined";
}
