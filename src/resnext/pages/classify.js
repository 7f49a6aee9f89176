// Files that are chosen, dropped or pasted; the page's add() takes them

const named = (files) => [...files].map((file) => [file, file.name || "Picture"]);
document.addEventListener("paste", (event) => add(named(event.clipboardData.files)));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(named(event.dataTransfer.files));
});

// The camera

let stream = null;

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("video").srcObject = null;
}

// False, and a line that says why, if it cannot be used.
async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) {
    say(error.name === "NotFoundError" ? "There is no camera." : navigator.mediaDevices
      ? "The browser does not give this page the camera. Allow it, or choose a picture."
      : "Browsers give the camera to pages of this machine and to https only.", true);
    return false;
  }
  $("video").srcObject = stream;
  return true;
}

// What the network saw of a picture: left, top, width, height

function seen(crop, width, height) {
  const left = Math.round(crop[0] * width), top = Math.round(crop[1] * height);
  return [left, top, Math.max(Math.round(crop[2] * width) - left, 1), Math.max(Math.round(crop[3] * height) - top, 1)];
}

function outline(context, left, top, w, h) {
  const { width, height } = context.canvas, thick = Math.max(Math.round(Math.max(width, height) / 320), 1);
  context.lineWidth = thick;
  for (const [ink, offset] of [["#ffffff", 0], ["#16181d", 4 * thick]]) {
    context.strokeStyle = ink;
    context.setLineDash([4 * thick, 4 * thick]);
    context.lineDashOffset = offset;
    const [x, y] = [Math.max(left, 0), Math.max(top, 0)];
    context.strokeRect(x + thick / 2, y + thick / 2, Math.min(left + w, width) - x - thick, Math.min(top + h, height) - y - thick);
  }
}
