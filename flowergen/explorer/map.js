// Points on a plane. props.map has points [x, y, class], names and colors by class. A click sets props.value to {place: [x, y]}, a drag to
// {start: [x, y], end: [x, y]}, and both submit it. server.picture(number) gives the address of a point's picture, or "" while another is decoded.
const box = element.querySelector(".canvas"), canvas = element.querySelector("canvas"), hover = element.querySelector(".hover");
const context = canvas.getContext("2d");
const { points, names, colors } = props.map;
const bounds = [0, 1].map((axis) => {
  const values = points.map((point) => point[axis]);
  const low = Math.min(...values), high = Math.max(...values), margin = 0.04 * (high - low) || 1;
  return [low - margin, high + margin];
});
const pictures = new Map();
let start = null, end = null, wanted = null, marked = null;

const toPixel = ([x, y]) => [
  (x - bounds[0][0]) / (bounds[0][1] - bounds[0][0]) * canvas.width,
  (bounds[1][1] - y) / (bounds[1][1] - bounds[1][0]) * canvas.height,
];

function place(event) {
  const at = canvas.getBoundingClientRect();
  const x = (event.clientX - at.left) / at.width, y = (event.clientY - at.top) / at.height;
  return [bounds[0][0] + x * (bounds[0][1] - bounds[0][0]), bounds[1][1] - y * (bounds[1][1] - bounds[1][0])];
}

function nearest(at) {
  const [x, y] = toPixel(at);
  let best = -1, least = Infinity;
  points.forEach((point, number) => {
    const [px, py] = toPixel(point), far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [number, far];
  });
  return [best, Math.sqrt(least) * canvas.getBoundingClientRect().width / canvas.width];
}

function draw() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const point of points) {
    const [x, y] = toPixel(point);
    context.fillStyle = colors[point[2]];
    context.globalAlpha = 0.75;
    context.beginPath();
    context.arc(x, y, points.length > 600 ? 5 : 8, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = context.fillStyle = getComputedStyle(element).color;
  context.lineWidth = 4;
  const line = start && end ? [start, end] : marked;
  if (!line) return;
  context.beginPath();
  context.moveTo(...toPixel(line[0]));
  context.lineTo(...toPixel(line[1]));
  context.stroke();
  for (const at of line) {
    context.beginPath();
    context.arc(...toPixel(at), 9, 0, 7);
    context.stroke();
  }
}

function send(value, line) {
  marked = line;
  draw();
  props.value = value;
  trigger("submit");
}

async function look(event) {
  const [number, far] = nearest(place(event));
  hover.style.display = far < 12 ? "block" : "none";
  if (far >= 12) return wanted = null;
  const at = box.getBoundingClientRect(), x = event.clientX - at.left, y = event.clientY - at.top;
  hover.style.left = `${Math.min(x + 14, at.width - 100)}px`;
  hover.style.top = `${y + 14}px`;
  if (wanted?.number === number) return; // it is being asked for, or shown
  const asked = wanted = {number}; // equal to no other
  hover.querySelector("span").textContent = names[points[number][2]] || "";
  const image = hover.querySelector("img");
  image.style.visibility = "hidden";
  let picture = "";
  for (let wait = 60; !picture; wait = 300) { // ms; a pointer that only passes asks for nothing
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (wanted !== asked) return;
    picture = pictures.get(number) || await server.picture(number);
  }
  pictures.set(number, picture);
  if (wanted !== asked) return;
  image.src = picture;
  image.style.visibility = "visible";
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  start = place(event);
  end = null;
});
canvas.addEventListener("pointermove", (event) => {
  if (!start) return look(event);
  end = place(event);
  hover.style.display = "none";
  draw();
});
canvas.addEventListener("pointerleave", () => {
  wanted = null;
  hover.style.display = "none";
});
canvas.addEventListener("pointerup", (event) => {
  if (!start) return;
  const from = start, to = place(event), [a, b] = [toPixel(from), toPixel(to)];
  start = end = null;
  const far = Math.hypot(a[0] - b[0], a[1] - b[1]) / canvas.width;
  if (far > 0.02) send({ start: from, end: to }, [from, to]);
  else send({ place: to }, [to, to]);
});
const legend = element.querySelector(".legend");
legend.parentElement.open = Object.keys(names).length <= 20;
legend.parentElement.hidden = !Object.keys(names).length;
for (const [label, name] of Object.entries(names)) {
  const entry = document.createElement("span"), dot = document.createElement("i");
  dot.style.background = colors[label];
  entry.append(dot, name);
  legend.append(entry);
}
draw();
