// Images in the page: values 0 to 255 as {width, height, channels, values}, PNG in base64 on the wire.

import { Problem } from "./api.js";
import { element } from "./elements.js";

const LARGEST_FILE = 16 * 2 ** 20; // bytes: what the service itself reads at most, unless set otherwise
const LARGEST_SIDE = 8192; // a small file can claim to be any size

/** Show a PNG, each of its pixels as `scale` by `scale` of the page's. */
export function picture(png, [height, width], scale, alt) {
  return element("img", {
    class: "pixels", src: `data:image/png;base64,${png}`, width: width * scale, height: height * scale, alt,
  });
}

/** Return how many columns, and how large whole pixels, show most of `count` images in a space. */
export function fit(count, [height, width], space, { gap = 4, largest = 8 } = {}) {
  const fitting = [];
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const scale = Math.min(
      Math.floor(((space.width + gap) / columns - gap) / width),
      Math.floor(((space.height + gap) / rows - gap) / height),
      largest,
    );
    fitting.push({ columns, scale, empty: columns * rows - count });
  }
  const best = fitting.reduce((a, b) => (b.scale > a.scale || (b.scale === a.scale && b.empty <= a.empty) ? b : a));
  if (best.scale >= 1) return best;
  return { columns: Math.max(1, Math.floor((space.width + gap) / (width + gap))), scale: 1 };
}

/** Make a canvas of an image's size, shown `scale` times as large. */
export function canvas([height, width], scale, label) {
  const made = element("canvas", { class: "pixels", width, height, role: "img", "aria-label": label });
  resize(made, scale);
  return made;
}

/** Show a canvas `scale` times as large as it is. */
export function resize(made, scale) {
  made.style.width = `${made.width * scale}px`;
  made.style.height = `${made.height * scale}px`;
}

/** Draw rows of values on a canvas, from `firstRow` on. */
export function draw(target, values, width, channels = 1, firstRow = 0) {
  const pixels = new ImageData(width, values.length / width / channels);
  for (let i = 0; i < pixels.data.length / 4; i += 1) {
    for (let c = 0; c < 3; c += 1) pixels.data[4 * i + c] = values[i * channels + (channels === 3 ? c : 0)];
    pixels.data[4 * i + 3] = 255;
  }
  target.getContext("2d").putImageData(pixels, 0, firstRow);
}

/** Draw the first two coordinates of vectors as points on a square canvas, the second upwards. */
export function scatter(vectors, side, label) {
  const made = canvas([side, side], 1, label);
  const context = made.getContext("2d");
  const extent = Math.max(...vectors.flatMap((vector) => vector.slice(0, 2).map(Math.abs))) || 1;
  const place = (coordinate = 0) => (side / 2) * (1 + (0.95 * coordinate) / extent);
  context.fillStyle = getComputedStyle(document.body).color;
  for (const [x, y] of vectors) context.fillRect(place(x), side - place(y), 1.5, 1.5);
  return made;
}

/** Return an image in which all is black. */
export function blank([height, width, channels]) {
  return { width, height, channels, values: new Uint8Array(height * width * channels) };
}

/** Return an image with each value at the nearest of a model's levels. */
export function atLevels(image, levels) {
  const top = levels - 1;
  const nearest = (value) => Math.round((Math.round((value * top) / 255) * 255) / top);
  return { ...image, values: image.values.map(nearest) };
}

/** Decode a base64 PNG to an image of a shape. */
export async function fromPng(png, shape) {
  const bytes = Uint8Array.from(atob(png), (character) => character.charCodeAt(0));
  return (await fitted(new Blob([bytes]), shape, "the picture")).image;
}

/**
 * Read a file that somebody chose as an image of a shape.
 *
 * Returns {image, note}; the note says what had to be done to it, and is empty where that is nothing. Throws a Problem in words for what
 * is too large, or no image.
 */
export async function readFile(chosen, shape) {
  const name = `“${chosen.name}”`;
  if (chosen.size > LARGEST_FILE) {
    throw refusal(`${name} is ${Math.round(chosen.size / 2 ** 20)} MB. Files up to 16 MB are read: choose a smaller one.`);
  }
  const claimed = pngSize(new Uint8Array(await chosen.slice(0, 24).arrayBuffer()));
  if (Math.max(...claimed) > LARGEST_SIDE) {
    throw refusal(`${name} is ${claimed.join(" by ")} pixels. At most ${LARGEST_SIDE} a side are read: make it smaller first.`);
  }
  return fitted(chosen, shape, name);
}

const refusal = (detail) => new Problem({ title: "This file can't be used", detail });

// A PNG says its size first; other formats are left to the browser.
function pngSize(head) {
  const view = new DataView(head.buffer);
  return head.length === 24 && view.getUint32(0) === 0x89504e47 ? [view.getUint32(16), view.getUint32(20)] : [0, 0];
}

async function fitted(blob, [height, width, channels], name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw refusal(`${name} is no image that this browser can read. PNG files work, if they are whole.`);
  }
  const scale = Math.min(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  const context = element("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const notes = [];
  if (bitmap.width !== width || bitmap.height !== height) {
    notes.push(`Fitted from ${bitmap.width} by ${bitmap.height} to ${width} by ${height} pixels by this page.`);
  }
  if (channels === 1 && hasColour(data)) notes.push("Its colours were made grey by this page.");
  return { image: { width, height, channels, values: fromRgba(data, channels) }, note: notes.join(" ") };
}

function hasColour(data) {
  for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return true;
  return false;
}

function fromRgba(data, channels) {
  const values = new Uint8Array((data.length / 4) * channels);
  for (let i = 0; i < data.length / 4; i += 1) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 3) values.set([red, green, blue], 3 * i);
    else values[i] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue); // luma of ITU-R 601-2
  }
  return values;
}

/** Encode an image as a base64 PNG, 8-bit grey or RGB: a canvas would add an alpha channel. */
export async function toPng({ width, height, channels, values }) {
  const line = width * channels;
  const rows = new Uint8Array(height * (line + 1)); // each begins with 0: not filtered
  for (let y = 0; y < height; y += 1) rows.set(values.subarray(y * line, (y + 1) * line), y * (line + 1) + 1);
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 8);
  header.setUint8(9, channels === 3 ? 2 : 0);
  const parts = [
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    chunk("IHDR", new Uint8Array(header.buffer)),
    chunk("IDAT", await deflate(rows)),
    chunk("IEND", new Uint8Array()),
  ];
  return btoa(parts.map((part) => String.fromCharCode(...part)).join(""));
}

async function deflate(bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, checksum(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** CRC-32 as PNG uses it. */
function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return (sum ^ 0xffffffff) >>> 0;
}
