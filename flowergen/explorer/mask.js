// A picture that is painted on. props.picture is its address; props.value becomes the mask:
// a character for each pixel in reading order, "1" where it was painted over.
const image = element.querySelector("img"), canvas = element.querySelector("canvas"), size = element.querySelector("input");
const context = canvas.getContext("2d", { willReadFrequently: true });
let before = null;

function clear() {
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  props.value = "";
}

function show() {
  element.querySelector(".canvas").style.display = props.picture ? "block" : "none";
  if (props.picture) image.src = props.picture;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
}

function paint(event) {
  const [x, y] = place(event);
  context.fillStyle = context.strokeStyle = "#e0218a";
  context.lineWidth = size.value / 100 * canvas.width;
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(...(before || [x, y]));
  context.lineTo(x, y);
  context.stroke();
  before = [x, y];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  paint(event);
});
canvas.addEventListener("pointermove", (event) => before && paint(event));
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => {
  if (!before) return;
  before = null;
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let mask = "";
  for (let i = 3; i < pixels.length; i += 4) mask += pixels[i] > 127 ? "1" : "0";
  props.value = mask;
});
element.querySelector("button").addEventListener("click", clear);
image.addEventListener("load", clear);
watch("picture", show);
show();
